// One function for each kind of compression; Pipeline::decode puts them in line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "codec.hpp"

namespace scdd::codec {

struct Bytes {
  const uint8_t* data;
  size_t size;
};

// What a step must deliver. `out` has room for size + kDecodeSlack.
struct Target {
  uint8_t* out;
  size_t size;    // bytes of the whole; where not `exact`, at most as many
  size_t wanted;  // bytes needed; size: all
  bool exact;

  bool whole() const { return wanted == size; }
};

[[noreturn]] inline __attribute__((noinline, cold)) void fail_damaged(Kind kind, const std::string& why) {
  throw DecodeError(std::string(name_of(kind)) + ": the chunk is damaged: " + why);
}
[[noreturn]] inline __attribute__((noinline, cold)) void fail_more(Kind kind, size_t size) {
  throw DecodeError(std::string(name_of(kind)) + ": the chunk holds more than the " + std::to_string(size) +
                    " bytes declared");
}
[[noreturn]] inline __attribute__((noinline, cold)) void fail_less(Kind kind, size_t produced, size_t needed) {
  throw DecodeError(std::string(name_of(kind)) + ": the chunk ends after " + std::to_string(produced) + " of " +
                    std::to_string(needed) + " bytes");
}
[[noreturn]] inline __attribute__((noinline, cold)) void fail_not_built(Kind kind) {
  throw std::invalid_argument(std::string(name_of(kind)) + " was not built into scdd._csr; install its library and " +
                              "build scdd again");
}

inline uint32_t little_endian32(const uint8_t* at) {
  return uint32_t{at[0]} | uint32_t{at[1]} << 8 | uint32_t{at[2]} << 16 | uint32_t{at[3]} << 24;
}
inline uint32_t big_endian32(const uint8_t* at) {
  return uint32_t{at[0]} << 24 | uint32_t{at[1]} << 16 | uint32_t{at[2]} << 8 | uint32_t{at[3]};
}

// A size that a header declares, before anything is read or allocated by it.
inline void check_declared(Kind kind, uint64_t declared, const Target& target) {
  if (declared > target.size) fail_more(kind, target.size);
  if (target.exact && declared < target.size) fail_less(kind, static_cast<size_t>(declared), target.size);
}

// Each writes at least target.wanted bytes, or all there are where not target.exact, and returns their number.
// They throw DecodeError for damage; Pipeline::decode compares the number with what was wanted.
size_t decode_deflate(Kind kind, Bytes in, const Target& target, DecodeScratch& scratch);  // deflate, gzip
size_t decode_zstd(Bytes in, const Target& target, DecodeScratch& scratch);
size_t decode_lz4_hdf5(Bytes in, const Target& target);
size_t decode_lz4_numcodecs(Bytes in, const Target& target);
size_t decode_blosc(Bytes in, const Target& target);

// "" where the library was not there at build time.
std::string deflate_library();
std::string zstd_library();
std::string lz4_library();
std::string blosc_library();

}  // namespace scdd::codec
