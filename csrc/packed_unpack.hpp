// Chosen packed rows as a CSR matrix: count, then fill.
#pragma once

#include <algorithm>
#include <cstdint>

#include "packed.hpp"
#include "parallel.hpp"

namespace scdd {

// rows == nullptr means rows 0..n-1.
struct PackedUnpack {
  const PackedRows& packed;
  const int64_t* rows;
  int64_t n;
  int64_t threads;

  // Rows in a random order miss every cache: their headers are asked for this many rows ahead.
  static constexpr int64_t kAhead = 8;

  int64_t row(int64_t i) const { return rows ? rows[i] : i; }

  // indptr [n + 1] of the result.
  void count(int64_t* indptr) const {
    indptr[0] = 0;
    parallel_ranges(n, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (i + kAhead < end) packed.prefetch_header(row(i + kAhead));
        indptr[i + 1] = packed.size(row(i));
      }
    });
    for (int64_t i = 0; i < n; ++i) indptr[i + 1] += indptr[i];
  }

  void fill(const int64_t* indptr, float* data, int32_t* indices) const {
    parallel_ranges(n, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (i + 1 < end) packed.prefetch(row(i + 1));
        packed.decode(row(i), data + indptr[i], indices + indptr[i], indptr[i + 1] - indptr[i]);
      }
    });
  }
};

}  // namespace scdd
