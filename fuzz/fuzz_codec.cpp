// Any bytes, through any pipeline of decoders: they come out, or a DecodeError does; and a prefix is the whole's.
// sources: csrc/codec*.cpp
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "codec.hpp"

namespace {

constexpr size_t kGuard = 4096;  // the libraries are not instrumented: what they write too much is found here
constexpr uint8_t kGuardByte = 0xa5;

struct Output {
  explicit Output(size_t chunk_bytes) : size(chunk_bytes + scdd::kDecodeSlack), bytes(new uint8_t[size + kGuard]) {
    std::memset(bytes.get(), 0, size);
    std::memset(bytes.get() + size, kGuardByte, kGuard);
  }
  void check_guard() const {
    const auto intact = [](uint8_t byte) { return byte == kGuardByte; };
    if (!std::all_of(bytes.get() + size, bytes.get() + size + kGuard, intact)) {
      std::fprintf(stderr, "a decoder wrote beyond its output\n");
      std::abort();
    }
  }
  size_t size;
  std::unique_ptr<uint8_t[]> bytes;
};

bool decodes(const scdd::Pipeline& pipeline, const uint8_t* data, size_t size, uint32_t mask, Output& out,
             size_t chunk_bytes, size_t wanted, scdd::DecodeScratch& scratch) {
  bool decoded = true;
  try {
    pipeline.decode(data, size, mask, out.bytes.get(), chunk_bytes, wanted, scratch);
  } catch (const scdd::DecodeError&) {
    decoded = false;
  }
  out.check_guard();
  return decoded;
}

}  // namespace

// Layout: number of steps; for each: kind, parameter, bit of the mask; filter mask; chunk_bytes and wanted (3 bytes
// each, little-endian); the encoded chunk.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 8) return 0;
  const size_t n_steps = data[0] % 5;
  if (size < 8 + 3 * n_steps) return 0;
  std::vector<scdd::Step> steps;
  bool by_zlib = false;  // zlib and libdeflate may differ in which malformed streams they accept
  for (size_t i = 0; i < n_steps; ++i) {
    const uint8_t* at = data + 1 + 3 * i;
    steps.push_back({static_cast<scdd::Kind>(at[0] % scdd::kKinds), at[1], at[2] % 6 - 1});
    by_zlib = by_zlib || steps.back().kind == scdd::Kind::deflate || steps.back().kind == scdd::Kind::gzip;
  }
  const uint8_t* rest = data + 1 + 3 * n_steps;
  const uint32_t mask = rest[0];
  const size_t chunk_bytes = (rest[1] | rest[2] << 8 | rest[3] << 16) & 0x7ffff;
  const size_t wanted = std::min<size_t>(rest[4] | rest[5] << 8 | rest[6] << 16, chunk_bytes);
  // A copy of exactly this size: reading beyond it is found.
  const size_t encoded_size = size - 8 - 3 * n_steps;
  const std::unique_ptr<uint8_t[]> encoded(new uint8_t[encoded_size]);
  std::memcpy(encoded.get(), rest + 7, encoded_size);

  std::optional<scdd::Pipeline> pipeline;
  try {
    pipeline.emplace(steps);
  } catch (const std::invalid_argument&) {
    return 0;
  }
  static scdd::DecodeScratch scratch;  // as in a thread: whatever came before must not matter
  Output part(chunk_bytes), whole(chunk_bytes);
  const bool part_there =
      decodes(*pipeline, encoded.get(), encoded_size, mask, part, chunk_bytes, wanted, scratch);
  const bool whole_there =
      decodes(*pipeline, encoded.get(), encoded_size, mask, whole, chunk_bytes, chunk_bytes, scratch);
  if (whole_there && !part_there && !by_zlib) {
    std::fprintf(stderr, "the whole decodes, and its prefix does not\n");
    std::abort();
  }
  if (whole_there && part_there && std::memcmp(part.bytes.get(), whole.bytes.get(), wanted) != 0) {
    std::fprintf(stderr, "a prefix differs from the whole\n");
    std::abort();
  }
  return 0;
}
