// sources: csrc/packed_kernels.cpp
// Arbitrary bytes as one packed row: an error, or n values and rising genes inside 0..n_vars-1, with every instruction
// set alike.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "packed.hpp"
#include "packed_encode.hpp"

namespace {

struct Decoded {
  bool failed = false;
  std::vector<float> values;
  std::vector<int32_t> genes;
};

void require(bool holds) {
  if (!holds) std::abort();
}

// Buffers of exactly the promised size, so that a sanitizer sees the first byte that is too much.
Decoded decode(const std::vector<uint8_t>& record, int64_t n_vars, const scdd::PackedKernels* kernels) {
  const int64_t offsets[2] = {0, static_cast<int64_t>(record.size())};
  const scdd::PackedRows rows{record.data(), offsets[1], offsets, 1, n_vars, kernels};
  Decoded found;
  try {
    const auto n = static_cast<size_t>(rows.size(0));
    found.values.resize(n);
    found.genes.resize(n);
    rows.decode(0, found.values.data(), found.genes.data(), static_cast<int64_t>(n));
    (void)rows.total(0);
    rows.prefetch(0);
  } catch (const std::logic_error&) {  // out_of_range and invalid_argument
    found.failed = true;
    found.values.clear();
    found.genes.clear();
  }
  return found;
}

bool same(const Decoded& a, const Decoded& b) {
  return a.failed == b.failed && a.genes == b.genes && a.values.size() == b.values.size() &&
         (a.values.empty() || std::memcmp(a.values.data(), b.values.data(), 4 * a.values.size()) == 0);
}

// In one pass past the caches: what decode() gives, or false; false too for a row that names a gene twice.
void check_stream(const std::vector<uint8_t>& record, int64_t n_vars, const scdd::PackedKernels* kernels,
                  const Decoded& plain, bool finished, size_t lead) {
  const int64_t offsets[2] = {0, static_cast<int64_t>(record.size())};
  const scdd::PackedRows rows{record.data(), offsets[1], offsets, 1, n_vars, kernels};
  scdd::Buffer scratch;
  double total = 0;
  bool streamed = false;
  Decoded found;
  try {
    const auto n = static_cast<size_t>(rows.size(0));
    found.values.resize(n + lead);
    found.genes.resize(n + lead);
    rows.touch(0);
    const scdd::RowPlace place{found.values.data() + lead, found.genes.data() + lead, finished};
    streamed = rows.stream(0, 0, static_cast<int64_t>(n), place, scratch, total);
    scdd::stream_fence();
  } catch (const std::logic_error&) {
    require(plain.failed);
    return;
  }
  bool rising = true;
  for (size_t i = 1; i < plain.genes.size(); ++i) rising &= plain.genes[i] > plain.genes[i - 1];
  // Only a row so long that its gaps might overflow is left to decode() without need.
  require(streamed ? !plain.failed && rising : plain.failed || !rising || n_vars == INT32_MAX);
  if (!streamed) return;
  found.values.erase(found.values.begin(), found.values.begin() + static_cast<int64_t>(lead));
  found.genes.erase(found.genes.begin(), found.genes.begin() + static_cast<int64_t>(lead));
  require(same(plain, found));
  const double expected = rows.total(0);
  require(std::memcmp(&total, &expected, sizeof total) == 0);
}

// What was decoded, encoded again, decodes to the same: the encoder meets every bit pattern too.
void round_trip(const Decoded& row, int64_t n_vars) {
  const auto n = static_cast<int64_t>(row.genes.size());
  const int64_t indptr[2] = {0, n};
  const scdd::Csr<float, int32_t> matrix{row.values.data(), row.genes.data(), {indptr, 1, n}, n_vars};
  int64_t offsets[2];
  const scdd::ByteSink sink = scdd::encode_rows(matrix, 1, offsets);
  const std::vector<uint8_t> record(sink.data(), sink.data() + sink.size());
  require(same(row, decode(record, n_vars, scdd::packed_kernels())));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  const int64_t choices[] = {0, 1, 300, 60000, INT32_MAX};
  const int64_t n_vars = choices[data[0] % 5];
  const std::vector<uint8_t> record(data + 1, data + size);
  const Decoded plain = decode(record, n_vars, scdd::packed_kernels("scalar"));
  for (const char* name : {"avx2", "avx512"}) {
    if (const auto* kernels = scdd::packed_kernels(name)) require(same(plain, decode(record, n_vars, kernels)));
  }
  for (const char* name : {"scalar", "avx2", "avx512"}) {
    if (const auto* kernels = scdd::packed_kernels(name)) {
      check_stream(record, n_vars, kernels, plain, size % 2 == 0, size % 16);
    }
  }
  for (size_t i = 0; i < plain.genes.size(); ++i) {
    require(plain.genes[i] >= (i ? plain.genes[i - 1] : 0) && plain.genes[i] < n_vars);
  }
  if (!plain.failed) round_trip(plain, n_vars);
  return 0;
}
