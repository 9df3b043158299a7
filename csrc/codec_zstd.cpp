// zstd frames: wholes straight into the output, prefixes block by block.
#include <algorithm>

#include "codec_kinds.hpp"

#ifdef SCDD_HAVE_ZSTD
#include <zstd.h>
#endif

namespace scdd::codec {

#ifdef SCDD_HAVE_ZSTD

namespace {

ZSTD_DCtx* context_of(DecodeScratch& scratch) {
  if (!scratch.zstd) {
    scratch.zstd = {ZSTD_createDCtx(), [](void* handle) { ZSTD_freeDCtx(static_cast<ZSTD_DCtx*>(handle)); }};
    if (!scratch.zstd) throw std::bad_alloc();
  }
  return static_cast<ZSTD_DCtx*>(scratch.zstd.get());
}

bool skippable(Bytes in) { return (little_endian32(in.data) & 0xfffffff0u) == 0x184d2a50u; }

// Bytes of the frame that begins here. Formats older than zstd 1.0 are refused: their decoders allocate what a header
// says.
size_t frame_size(Bytes in) {
  if (in.size < 4) fail_damaged(Kind::zstd, "a frame is cut off");
  if (!skippable(in) && little_endian32(in.data) != ZSTD_MAGICNUMBER) {
    fail_damaged(Kind::zstd, "no frame begins where one should");
  }
  const size_t size = ZSTD_findFrameCompressedSize(in.data, in.size);
  if (ZSTD_isError(size) || size > in.size) fail_damaged(Kind::zstd, "a frame is cut off or wrong");
  return size;
}

size_t decode_frames(Bytes in, const Target& target, ZSTD_DCtx* context) {
  size_t produced = 0;
  while (in.size > 0) {
    const size_t size = frame_size(in);
    if (!skippable(in)) {
      const size_t room = target.size - produced;
      const unsigned long long declared = ZSTD_getFrameContentSize(in.data, size);
      if (declared == ZSTD_CONTENTSIZE_ERROR) fail_damaged(Kind::zstd, "the header of a frame is wrong");
      if (declared != ZSTD_CONTENTSIZE_UNKNOWN && declared > room) fail_more(Kind::zstd, target.size);
      const size_t written = ZSTD_decompressDCtx(context, target.out + produced, room, in.data, size);
      if (ZSTD_isError(written)) {
        if (declared == ZSTD_CONTENTSIZE_UNKNOWN && std::strstr(ZSTD_getErrorName(written), "too small") != nullptr) {
          fail_more(Kind::zstd, target.size);
        }
        fail_damaged(Kind::zstd, ZSTD_getErrorName(written));
      }
      produced += written;
    }
    in = {in.data + size, in.size - size};
  }
  return produced;
}

// The first bytes of the first frame; fewer where it is damaged, or asks for a larger window than a prefix is worth.
size_t decode_prefix(Bytes in, const Target& target, ZSTD_DCtx* context) {
  ZSTD_DCtx_reset(context, ZSTD_reset_session_only);
  int window_log = 23;  // the 8 MB that every decoder should support, or the chunk itself
  while (window_log < 31 && (size_t{1} << window_log) < target.size) ++window_log;
  ZSTD_DCtx_setParameter(context, ZSTD_d_windowLogMax, window_log);
  ZSTD_inBuffer source{in.data, in.size, 0};
  ZSTD_outBuffer sink{target.out, target.wanted, 0};
  while (sink.pos < sink.size) {
    const size_t before_in = source.pos, before_out = sink.pos;
    const size_t status = ZSTD_decompressStream(context, &sink, &source);
    if (ZSTD_isError(status)) return 0;
    if (status == 0 || (source.pos == before_in && sink.pos == before_out)) break;
  }
  return sink.pos;
}

}  // namespace

size_t decode_zstd(Bytes in, const Target& target, DecodeScratch& scratch) {
  ZSTD_DCtx* context = context_of(scratch);
  // A frame is cut into blocks of 128 kB, and decoded one block at the least.
  constexpr size_t kBlock = size_t{128} << 10;
  if (target.exact && target.wanted + kBlock <= target.size / 2 && in.size >= 4 &&
      little_endian32(in.data) == ZSTD_MAGICNUMBER) {
    const unsigned long long declared = ZSTD_getFrameContentSize(in.data, in.size);
    if (declared == ZSTD_CONTENTSIZE_ERROR) fail_damaged(Kind::zstd, "the header of a frame is wrong");
    if (declared != ZSTD_CONTENTSIZE_UNKNOWN && declared > target.size) fail_more(Kind::zstd, target.size);
    const size_t produced = decode_prefix(in, target, context);
    if (produced == target.wanted) return produced;
    ZSTD_DCtx_reset(context, ZSTD_reset_session_only);
  }
  return decode_frames(in, target, context);
}

std::string zstd_library() { return std::string("libzstd ") + ZSTD_versionString(); }

#else

size_t decode_zstd(Bytes, const Target&, DecodeScratch&) { fail_not_built(Kind::zstd); }
std::string zstd_library() { return ""; }

#endif

}  // namespace scdd::codec
