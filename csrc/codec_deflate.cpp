// deflate in the zlib and gzip containers: whole chunks by libdeflate, prefixes by zlib, which can stop anywhere.
#include <algorithm>

#include "codec_kinds.hpp"

#ifdef SCDD_HAVE_LIBDEFLATE
#include <libdeflate.h>
#endif
#ifdef SCDD_HAVE_ZLIB
#define ZLIB_CONST
#include <zlib.h>
#endif

namespace scdd::codec {

namespace {

// RFC 1952 lets members follow one another; anything else behind the stream is padding, ignored as zlib and HDF5 do.
[[maybe_unused]] bool another_member(Kind kind, Bytes rest) {
  return kind == Kind::gzip && rest.size >= 18 && rest.data[0] == 0x1f && rest.data[1] == 0x8b;
}

#ifdef SCDD_HAVE_LIBDEFLATE
size_t inflate_whole(Kind kind, Bytes in, const Target& target, DecodeScratch& scratch) {
  if (!scratch.libdeflate) {
    scratch.libdeflate = {libdeflate_alloc_decompressor(), [](void* handle) {
                            libdeflate_free_decompressor(static_cast<libdeflate_decompressor*>(handle));
                          }};
    if (!scratch.libdeflate) throw std::bad_alloc();
  }
  const auto handle = static_cast<libdeflate_decompressor*>(scratch.libdeflate.get());
  const auto inflate_stream = kind == Kind::gzip ? libdeflate_gzip_decompress_ex : libdeflate_zlib_decompress_ex;
  size_t produced = 0;
  do {
    size_t read = 0, written = 0;
    const auto result = inflate_stream(handle, in.data, in.size, target.out + produced, target.size - produced, &read,
                                       &written);
    if (result == LIBDEFLATE_INSUFFICIENT_SPACE) fail_more(kind, target.size);
    if (result != LIBDEFLATE_SUCCESS) fail_damaged(kind, "its stream or checksum is wrong, or its end is missing");
    produced += written;
    in = {in.data + read, in.size - read};
  } while (another_member(kind, in));
  return produced;
}
#endif

#ifdef SCDD_HAVE_ZLIB
z_stream* inflater(Kind kind, DecodeScratch& scratch) {
  if (!scratch.zlib) {
    auto fresh = std::make_unique<z_stream>();
    if (inflateInit2(fresh.get(), MAX_WBITS) != Z_OK) throw std::bad_alloc();
    scratch.zlib = {fresh.release(), [](void* handle) {
                      const auto stream = static_cast<z_stream*>(handle);
                      inflateEnd(stream);
                      delete stream;
                    }};
  }
  const auto stream = static_cast<z_stream*>(scratch.zlib.get());
  if (inflateReset2(stream, kind == Kind::gzip ? MAX_WBITS + 16 : MAX_WBITS) != Z_OK) throw std::bad_alloc();
  return stream;
}

// Inflates until `limit` bytes stand or the stream ends.
size_t inflate_some(Kind kind, Bytes in, uint8_t* out, size_t limit, DecodeScratch& scratch) {
  constexpr size_t kMost = size_t{1} << 30;  // zlib counts in 32 bits
  z_stream* stream = inflater(kind, scratch);
  size_t produced = 0;
  while (true) {
    const size_t feed = std::min(in.size, kMost), room = std::min(limit - produced, kMost);
    stream->next_in = in.data;
    stream->avail_in = static_cast<uInt>(feed);
    stream->next_out = out + produced;
    stream->avail_out = static_cast<uInt>(room);
    const int status = inflate(stream, Z_NO_FLUSH);
    in = {in.data + (feed - stream->avail_in), in.size - (feed - stream->avail_in)};
    produced += room - stream->avail_out;
    if (status == Z_STREAM_END) {
      if (produced == limit || !another_member(kind, in)) return produced;
      inflateReset(stream);
    } else if (status != Z_OK && status != Z_BUF_ERROR) {
      fail_damaged(kind, stream->msg != nullptr ? stream->msg : zError(status));
    } else if (produced == limit) {
      return produced;
    } else if (in.size == 0 && stream->avail_out > 0) {
      fail_less(kind, produced, limit);
    }
  }
}
#endif

}  // namespace

size_t decode_deflate(Kind kind, Bytes in, const Target& target, [[maybe_unused]] DecodeScratch& scratch) {
#if defined(SCDD_HAVE_ZLIB) && defined(SCDD_HAVE_LIBDEFLATE)
  // libdeflate inflates two to three times as fast, but only wholes.
  if (target.wanted <= target.size / 3) return inflate_some(kind, in, target.out, target.wanted, scratch);
#endif
#if defined(SCDD_HAVE_LIBDEFLATE)
  return inflate_whole(kind, in, target, scratch);
#elif defined(SCDD_HAVE_ZLIB)
  // One byte more than declared tells a chunk that holds more. As above, only short prefixes go without the checksum.
  const bool all = target.whole() || target.wanted > target.size / 3;
  return inflate_some(kind, in, target.out, all ? target.size + 1 : target.wanted, scratch);
#else
  (void)in, (void)target;
  fail_not_built(kind);
#endif
}

std::string deflate_library() {
#if defined(SCDD_HAVE_LIBDEFLATE)
  return "libdeflate " LIBDEFLATE_VERSION_STRING;
#elif defined(SCDD_HAVE_ZLIB)
  return std::string("zlib ") + zlibVersion();
#else
  return "";
#endif
}

}  // namespace scdd::codec
