// lz4 blocks in the two headers that HDF5's filter and numcodecs put before them.
#include <algorithm>

#include "codec_kinds.hpp"

#ifdef SCDD_HAVE_LZ4
#include <lz4.h>
#endif

namespace scdd::codec {

#ifdef SCDD_HAVE_LZ4

namespace {

constexpr size_t kLargest = LZ4_MAX_INPUT_SIZE;  // the library counts in int

// One block of `size` decoded bytes, of which `wanted` are needed.
size_t decode_block(Kind kind, Bytes in, uint8_t* out, size_t size, size_t wanted) {
  if (in.size > kLargest || size > kLargest) fail_damaged(kind, "a block is larger than lz4 can hold");
  const auto source = reinterpret_cast<const char*>(in.data);
  const auto sink = reinterpret_cast<char*>(out);
  const int read = static_cast<int>(in.size), room = static_cast<int>(size);
  const int written = wanted < size
                          ? LZ4_decompress_safe_partial(source, sink, read, static_cast<int>(wanted), room)
                          : LZ4_decompress_safe(source, sink, read, room);
  if (written < 0) fail_damaged(kind, "a block is wrong, cut off, or longer than declared");
  return static_cast<size_t>(written);
}

}  // namespace

size_t decode_lz4_numcodecs(Bytes in, const Target& target) {
  constexpr Kind kKind = Kind::lz4_numcodecs;
  if (in.size < 4) fail_damaged(kKind, "its header is cut off");
  const size_t declared = little_endian32(in.data);
  check_declared(kKind, declared, target);
  return decode_block(kKind, {in.data + 4, in.size - 4}, target.out, declared, std::min(declared, target.wanted));
}

size_t decode_lz4_hdf5(Bytes in, const Target& target) {
  constexpr Kind kKind = Kind::lz4_hdf5;
  if (in.size < 12) fail_damaged(kKind, "its header is cut off");
  const uint64_t declared = uint64_t{big_endian32(in.data)} << 32 | big_endian32(in.data + 4);
  check_declared(kKind, declared, target);
  const size_t total = static_cast<size_t>(declared), block_size = big_endian32(in.data + 8);
  if (block_size == 0 && total > 0) fail_damaged(kKind, "its blocks have 0 bytes");
  const size_t wanted = std::min(total, target.wanted);
  in = {in.data + 12, in.size - 12};
  size_t produced = 0;
  while (produced < wanted) {
    if (in.size < 4) fail_less(kKind, produced, target.size);
    const size_t encoded = big_endian32(in.data), block = std::min(block_size, total - produced);
    in = {in.data + 4, in.size - 4};
    if (encoded > in.size) fail_less(kKind, produced, target.size);
    const size_t part = std::min(block, wanted - produced);
    if (encoded == block) {  // incompressible, and stored
      std::memcpy(target.out + produced, in.data, block);
      produced += block;
    } else {
      const size_t written = decode_block(kKind, {in.data, encoded}, target.out + produced, block, part);
      if (written < part) fail_less(kKind, produced + written, target.size);
      produced += written;
    }
    in = {in.data + encoded, in.size - encoded};
  }
  return produced;
}

std::string lz4_library() { return std::string("liblz4 ") + LZ4_versionString(); }

#else

size_t decode_lz4_numcodecs(Bytes, const Target&) { fail_not_built(Kind::lz4_numcodecs); }
size_t decode_lz4_hdf5(Bytes, const Target&) { fail_not_built(Kind::lz4_hdf5); }
std::string lz4_library() { return ""; }

#endif

}  // namespace scdd::codec
