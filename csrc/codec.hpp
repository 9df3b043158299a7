// Chunks as HDF5 and zarr store them, back to bytes: the filters of a chunk, undone one after the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace scdd {

// A chunk whose bytes are not what its file declares. The caller adds the file, the dataset and the place.
struct DecodeError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Kind : uint8_t {
  deflate,        // zlib container: HDF5 gzip, numcodecs zlib
  gzip,           // gzip container, of one or more members
  zstd,           // frames, with or without their content size
  lz4_hdf5,       // HDF5 32004: total and block size, then blocks, all sizes big-endian
  lz4_numcodecs,  // little-endian size, then one block
  lzf,            // HDF5 32000
  blosc,          // blosc 1, any inner codec that the library has
  shuffle,        // bytes of equal significance together; parameter: bytes an element
  fletcher32,     // four trailing bytes, as HDF5 computes them
  crc32c,         // four trailing bytes, little-endian
};
constexpr size_t kKinds = 10;

const char* name_of(Kind kind);
std::optional<Kind> kind_named(std::string_view name);

// The library that serves a kind, with its version ("libdeflate 1.14", "built in"); empty where it was not built.
std::string library_of(Kind kind);

// A decoder may write as many bytes beyond the end of its output: copies in whole words need no tail.
constexpr size_t kDecodeSlack = 64;

struct Step {
  Kind kind;
  uint32_t parameter;  // bytes an element of a shuffle
  int mask_bit;        // the bit of a chunk's HDF5 filter mask that says the step was left out; -1: never left out
};

// What one thread needs to decode chunks, reused from chunk to chunk: in a steady state nothing is allocated
// (only libblosc allocates inside).
struct DecodeScratch {
  using Handle = std::unique_ptr<void, void (*)(void*)>;
  static Handle none() {
    return {nullptr, [](void*) {}};
  }

  std::vector<uint8_t> a, b;  // bytes between two steps; they only ever grow
  Handle libdeflate = none(), zlib = none(), zstd = none();
};

class Pipeline {
 public:
  Pipeline() = default;
  // Steps in the order in which they are undone: the last filter applied comes first. Throws std::invalid_argument for
  // a kind that was not built and for a parameter without sense.
  explicit Pipeline(std::vector<Step> steps);

  // No steps: the bytes lie as they are, and any part of them can be read by itself.
  bool stored() const { return steps_.empty(); }
  // The first p bytes cost about p/n of the whole. Not so behind a shuffle or a checksum, which need all bytes, nor for
  // zstd and blosc, which decode blocks of about 128 kB (of larger chunks a prefix still spares the later blocks).
  bool cheap_prefix() const { return cheap_prefix_; }

  // Writes at least the first `wanted` of the `chunk_bytes` decoded bytes to `out`, which has room for
  // chunk_bytes + kDecodeSlack. Throws DecodeError unless the chunk holds exactly chunk_bytes bytes; of a prefix only
  // what must be decoded is checked.
  void decode(const uint8_t* encoded, size_t size, uint32_t filter_mask, uint8_t* out, size_t chunk_bytes,
              size_t wanted, DecodeScratch& scratch) const;

 private:
  std::vector<Step> steps_;
  bool cheap_prefix_ = true;
};

// Steps as Python spells them: (kind, parameter, bit of the filter mask or -1).
using NamedStep = std::tuple<std::string, uint32_t, int>;
Pipeline pipeline_of(const std::vector<NamedStep>& steps);

}  // namespace scdd
