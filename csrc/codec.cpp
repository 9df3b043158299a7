// Which step needs how many bytes of the step before it, and the steps in line.
#include "codec.hpp"

#include <algorithm>
#include <array>

#include "checksum.hpp"
#include "codec_kinds.hpp"
#include "csr.hpp"
#include "lzf.hpp"
#include "shuffle.hpp"

namespace scdd {

namespace {

using codec::Bytes;
using codec::Target;

constexpr std::array<const char*, kKinds> kNames = {"deflate", "gzip",  "zstd",    "lz4_hdf5",   "lz4_numcodecs",
                                                    "lzf",     "blosc", "shuffle", "fletcher32", "crc32c"};
constexpr size_t kMostSteps = 32;  // HDF5's own limit

bool is_checksum(Kind kind) { return kind == Kind::fletcher32 || kind == Kind::crc32c; }
bool is_compression(Kind kind) { return kind != Kind::shuffle && !is_checksum(kind); }

// The bytes that must stand after a step: `wanted` of `size`, or of at most `size` where a compression follows, whose
// input may have any length.
struct Need {
  size_t size, wanted;
  bool exact;
};

Need before(const Step& step, const Need& after) {
  if (is_checksum(step.kind)) return {after.size + 4, after.size + 4, after.exact};
  if (step.kind == Kind::shuffle) {
    if (!after.exact) return {after.size, after.size, false};
    return {after.size, unshuffle_needs(after.size, step.parameter, after.wanted), true};
  }
  const size_t bound = after.size + after.size / 8 + 65536;  // no compressor makes its input longer than this
  return {bound, bound, false};
}

void verify_fletcher32(Bytes in) {
  const uint32_t stored = codec::little_endian32(in.data + in.size), computed = fletcher32(in.data, in.size);
  // HDF5 1.6.2 swapped the bytes of each half; HDF5 still accepts that, and so do we.
  const uint32_t swapped = (computed & 0x00ff00ffu) << 8 | (computed >> 8 & 0x00ff00ffu);
  if (stored != computed && stored != swapped) codec::fail_damaged(Kind::fletcher32, "its checksum is wrong");
}

Bytes strip_checksum(Kind kind, Bytes in) {
  if (in.size < 4) codec::fail_damaged(kind, "its checksum is missing");
  in.size -= 4;
  if (kind == Kind::fletcher32) {
    verify_fletcher32(in);
  } else if (crc32c(in.data, in.size) != codec::little_endian32(in.data + in.size)) {
    codec::fail_damaged(kind, "its checksum is wrong");
  }
  return in;
}

size_t decode_lzf(Bytes in, const Target& target) {
  const LzfResult result = lzf_decode(in.data, in.size, target.out, target.size, target.wanted);
  switch (result.status) {
    case LzfStatus::ok: return result.produced;
    case LzfStatus::too_long: codec::fail_more(Kind::lzf, target.size);
    case LzfStatus::cut_off: codec::fail_less(Kind::lzf, result.produced, target.size);
    case LzfStatus::wrong_match: break;
  }
  codec::fail_damaged(Kind::lzf, "a match begins before the chunk does");
}

size_t decompress(Kind kind, Bytes in, const Target& target, DecodeScratch& scratch) {
  switch (kind) {
    case Kind::deflate:
    case Kind::gzip: return codec::decode_deflate(kind, in, target, scratch);
    case Kind::zstd: return codec::decode_zstd(in, target, scratch);
    case Kind::lz4_hdf5: return codec::decode_lz4_hdf5(in, target);
    case Kind::lz4_numcodecs: return codec::decode_lz4_numcodecs(in, target);
    case Kind::blosc: return codec::decode_blosc(in, target);
    default: return decode_lzf(in, target);
  }
}

void require(Kind kind, size_t produced, const Need& need) {
  if (produced > need.size) codec::fail_more(kind, need.size);
  if (need.exact && produced < need.wanted) codec::fail_less(kind, produced, need.size);
}

// Grows only: a smaller chunk in between must not have the memory cleared again.
uint8_t* room_for(std::vector<uint8_t>& buffer, size_t size) {
  if (buffer.size() < size + kDecodeSlack) buffer.resize(size + kDecodeSlack);
  return buffer.data();
}

void check_parameters(const Step& step) {
  const std::string name = name_of(step.kind);
  if (library_of(step.kind).empty()) codec::fail_not_built(step.kind);
  if (step.mask_bit < -1 || step.mask_bit > 31) {
    fail_value("mask_bit of " + name + " is " + std::to_string(step.mask_bit) + ", and must lie in -1..31");
  }
  if (step.kind == Kind::shuffle && (step.parameter < 1 || step.parameter > 65536)) {
    fail_value("shuffle has elements of " + std::to_string(step.parameter) + " bytes, and they must have 1..65536");
  }
}

}  // namespace

const char* name_of(Kind kind) { return kNames[static_cast<size_t>(kind)]; }

std::optional<Kind> kind_named(std::string_view name) {
  for (size_t i = 0; i < kKinds; ++i) {
    if (name == kNames[i]) return static_cast<Kind>(i);
  }
  return std::nullopt;
}

std::string library_of(Kind kind) {
  switch (kind) {
    case Kind::deflate:
    case Kind::gzip: return codec::deflate_library();
    case Kind::zstd: return codec::zstd_library();
    case Kind::lz4_hdf5:
    case Kind::lz4_numcodecs: return codec::lz4_library();
    case Kind::blosc: return codec::blosc_library();
    default: return "built in";
  }
}

Pipeline::Pipeline(std::vector<Step> steps) : steps_(std::move(steps)) {
  if (steps_.size() > kMostSteps) {
    fail_value("a pipeline of " + std::to_string(steps_.size()) + " steps; HDF5 allows " + std::to_string(kMostSteps));
  }
  const bool compressed = std::any_of(steps_.begin(), steps_.end(),
                                      [](const Step& step) { return is_compression(step.kind); });
  bool decompressed = false;
  for (const Step& step : steps_) {
    check_parameters(step);
    const bool needs_all = step.kind == Kind::shuffle ? step.parameter > 1 : is_checksum(step.kind) || decompressed;
    const bool by_blocks = step.kind == Kind::zstd || step.kind == Kind::blosc;
    // A checksum before any compression covers the encoded bytes alone: few, and quickly read.
    const bool over_encoded = is_checksum(step.kind) && compressed && !decompressed;
    if ((needs_all && !over_encoded) || by_blocks) cheap_prefix_ = false;
    decompressed = decompressed || is_compression(step.kind);
  }
}

Pipeline pipeline_of(const std::vector<NamedStep>& steps) {
  std::vector<Step> known;
  for (const auto& [name, parameter, mask_bit] : steps) {
    const std::optional<Kind> kind = kind_named(name);
    if (!kind) fail_value("'" + name + "' is no kind of codec; codecs() names them");
    known.push_back({*kind, parameter, mask_bit});
  }
  return Pipeline(std::move(known));
}

void Pipeline::decode(const uint8_t* encoded, size_t size, uint32_t filter_mask, uint8_t* out, size_t chunk_bytes,
                      size_t wanted, DecodeScratch& scratch) const {
  if (wanted > chunk_bytes || chunk_bytes > PTRDIFF_MAX / 4) {
    fail_value(std::to_string(wanted) + " bytes are wanted of a chunk of " + std::to_string(chunk_bytes));
  }
  if (wanted == 0) return;

  // Backwards: what each step that this chunk went through must deliver.
  std::array<const Step*, kMostSteps> steps;
  std::array<Need, kMostSteps> needs;
  size_t n = 0;
  Need need{chunk_bytes, wanted, true};
  for (size_t i = steps_.size(); i-- > 0;) {
    const Step& step = steps_[i];
    if (step.mask_bit >= 0 && (filter_mask >> step.mask_bit & 1u) != 0) continue;
    steps[n] = &step;
    needs[n++] = need;
    need = before(step, need);
  }
  if (need.exact && size > need.size) {
    throw DecodeError("the chunk holds " + std::to_string(size) + " bytes, more than the " + std::to_string(need.size) +
                      " bytes declared");
  }
  if (need.exact && size < need.wanted) {
    throw DecodeError("the chunk ends after " + std::to_string(size) + " of " + std::to_string(need.size) + " bytes");
  }

  // Forwards: from buffer to buffer, the last time into `out`.
  Bytes bytes{encoded, size};
  for (size_t i = n; i-- > 0;) {
    const Kind kind = steps[i]->kind;
    if (is_checksum(kind)) {
      bytes = strip_checksum(kind, bytes);
      continue;
    }
    std::vector<uint8_t>& spare = bytes.data == scratch.a.data() ? scratch.b : scratch.a;
    uint8_t* const to = i == 0 ? out : room_for(spare, needs[i].size);
    if (kind == Kind::shuffle) {
      const size_t whole = needs[i].exact ? needs[i].size : bytes.size;
      unshuffle(bytes.data, whole, steps[i]->parameter, needs[i].exact ? needs[i].wanted : whole, to);
      bytes = {to, needs[i].exact ? needs[i].wanted : whole};
    } else {
      const Target target{to, needs[i].size, needs[i].wanted, needs[i].exact};
      const size_t produced = decompress(kind, bytes, target, scratch);
      require(kind, produced, needs[i]);
      bytes = {to, produced};
    }
  }
  if (bytes.data != out) std::memcpy(out, bytes.data, wanted);
}

}  // namespace scdd
