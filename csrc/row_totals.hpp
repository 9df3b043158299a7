// The size of each row: the sum of its values over all genes, in double.
#pragma once

#include <cstdint>

#include "csr.hpp"

namespace scdd {

// Eight running sums in a fixed order: fast (no chain of dependent additions) and always the same result.
template <class Value>
double sum_in_double(const Value* values, int64_t n) {
  constexpr int kLanes = 8;
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += static_cast<double>(values[i + lane]);
  }
  for (int lane = 0; i < n; ++i, ++lane) lanes[lane] += static_cast<double>(values[i]);
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

// rows == nullptr means rows 0..n-1.
template <class Value>
void row_totals(const Value* data, const RowPointers& pointers, const int64_t* rows, int64_t n, double* totals) {
  for (int64_t i = 0; i < n; ++i) {
    const RowRange range = pointers.row(rows ? rows[i] : i);
    totals[i] = sum_in_double(data + range.begin, range.end - range.begin);
  }
}

}  // namespace scdd
