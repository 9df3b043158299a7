// Is this really a CSR matrix, and are these counts? Every answer names the place of the first fault.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>

#include "csr.hpp"

namespace scdd {

inline void validate_indptr(const int64_t* indptr, int64_t n_rows, int64_t nnz) {
  if (indptr[0] != 0) fail_value("indptr[0] is " + std::to_string(indptr[0]) + ", and must be 0");
  for (int64_t r = 0; r < n_rows; ++r) {
    if (indptr[r + 1] < indptr[r]) {
      fail_value("indptr decreases at row " + std::to_string(r) + ": " + std::to_string(indptr[r]) + " is followed by " +
                 std::to_string(indptr[r + 1]));
    }
  }
  if (indptr[n_rows] != nnz) {
    fail_value("indptr ends at " + std::to_string(indptr[n_rows]) + ", but there are " + std::to_string(nnz) +
               " stored values");
  }
}

// Call after validate_indptr: the row of a fault is looked up in it.
template <class Index>
void validate_indices(const Index* indices, const int64_t* indptr, int64_t n_vars, int64_t nnz) {
  for (int64_t p = 0; p < nnz; ++p) {
    if (!outside(indices[p], n_vars)) continue;
    int64_t row = 0;
    while (indptr[row + 1] <= p) ++row;
    fail_value("indices[" + std::to_string(p) + "] = " + std::to_string(static_cast<int64_t>(indices[p])) + " (row " +
               std::to_string(row) + ") lies outside 0.." + std::to_string(n_vars - 1));
  }
}

struct ValueFaults {
  int64_t first_nan = -1;
  int64_t first_infinite = -1;
  int64_t first_negative = -1;
  bool integers = true;  // every finite value is a whole number
};

template <class Value>
ValueFaults check_values(const Value* data, int64_t n) {
  ValueFaults faults;
  const auto note = [](int64_t& first, int64_t position) {
    if (first < 0) first = position;
  };
  for (int64_t p = 0; p < n; ++p) {
    const Value value = data[p];
    if constexpr (std::is_floating_point_v<Value>) {
      if (std::isnan(value)) {
        note(faults.first_nan, p);
        continue;
      }
      if (std::isinf(value)) note(faults.first_infinite, p);
      if (value != std::trunc(value)) faults.integers = false;
    }
    if (value < Value{0}) note(faults.first_negative, p);
  }
  return faults;
}

}  // namespace scdd
