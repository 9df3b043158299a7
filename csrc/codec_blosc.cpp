// blosc 1 frames, by the functions of libblosc that keep no state of their own.
#include <algorithm>

#include "codec_kinds.hpp"

#ifdef SCDD_HAVE_BLOSC
#include <blosc.h>
#endif

namespace scdd::codec {

#ifdef SCDD_HAVE_BLOSC

size_t decode_blosc(Bytes in, const Target& target) {
  constexpr Kind kKind = Kind::blosc;
  if (in.size < BLOSC_MIN_HEADER_LENGTH) fail_damaged(kKind, "its header is cut off");
  const size_t item = in.data[3], size = little_endian32(in.data + 4), block = little_endian32(in.data + 8);
  const size_t encoded = little_endian32(in.data + 12);
  check_declared(kKind, size, target);
  if (encoded > in.size) fail_damaged(kKind, "its end is missing");
  size_t validated = 0;
  if (encoded < BLOSC_MIN_HEADER_LENGTH || item == 0 || blosc_cbuffer_validate(in.data, encoded, &validated) < 0 ||
      validated != size) {
    fail_damaged(kKind, "its header is wrong");
  }
  if (size == 0) return 0;
  const size_t wanted = std::min(size, target.wanted);
  const size_t items = (wanted + item - 1) / item;
  int written;
  // Whole blocks are decoded, whatever is wanted of them.
  if (block > 0 && wanted + block <= size / 4 * 3 && items * item <= size) {
    written = blosc_getitem(in.data, 0, static_cast<int>(items), target.out);
  } else {
    written = blosc_decompress_ctx(in.data, target.out, size, 1);
  }
  if (written < 0) fail_damaged(kKind, "a block is wrong, or of an inner codec that this libblosc lacks");
  return static_cast<size_t>(written);
}

std::string blosc_library() { return std::string("libblosc ") + blosc_get_version_string(); }

#else

size_t decode_blosc(Bytes, const Target&) { fail_not_built(Kind::blosc); }
std::string blosc_library() { return ""; }

#endif

}  // namespace scdd::codec
