// A compressed-sparse-row matrix that somebody else owns, with every access checked.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace scdd {

// Errors are built out of line: a message in a hot loop costs registers even when it is never thrown.
[[noreturn]] inline __attribute__((noinline, cold)) void fail_index(const std::string& message) {
  throw std::out_of_range(message);
}
[[noreturn]] inline __attribute__((noinline, cold)) void fail_value(const std::string& message) {
  throw std::invalid_argument(message);
}
[[noreturn]] inline __attribute__((noinline, cold)) void fail_gene(int64_t row, int64_t position, int64_t gene,
                                                                  int64_t n_vars) {
  fail_index("indices[" + std::to_string(position) + "] = " + std::to_string(gene) + " (row " +
             std::to_string(row) + ") lies outside 0.." + std::to_string(n_vars - 1));
}

// One unsigned comparison catches both a negative and a too large number.
template <class Integer>
inline bool outside(Integer value, int64_t size) {
  return static_cast<uint64_t>(static_cast<int64_t>(value)) >= static_cast<uint64_t>(size);
}

struct RowRange {
  int64_t begin, end;
};

// The row pointers alone: what is needed to find a row.
struct RowPointers {
  const int64_t* indptr;
  int64_t n_rows;
  int64_t nnz;

  // Places [begin, end) of a row. Checked against nnz, so that a damaged indptr cannot reach outside the data.
  RowRange row(int64_t r) const {
    if (outside(r, n_rows)) {
      fail_index("row " + std::to_string(r) + " lies outside 0.." + std::to_string(n_rows - 1));
    }
    const RowRange range{indptr[r], indptr[r + 1]};
    if (range.begin < 0 || range.end < range.begin || range.end > nnz) {
      fail_index("indptr of row " + std::to_string(r) + " is " + std::to_string(range.begin) + ".." +
                 std::to_string(range.end) + ", outside 0.." + std::to_string(nnz));
    }
    return range;
  }

  // Where a row will be, for prefetching: wrong rows and pointers are found when their turn comes.
  RowRange row_if_valid(int64_t r) const {
    if (outside(r, n_rows) || indptr[r] < 0 || indptr[r + 1] < indptr[r] || indptr[r + 1] > nnz) return {0, 0};
    return {indptr[r], indptr[r + 1]};
  }
};

template <class Value, class Index>
struct Csr {
  const Value* data;
  const Index* indices;
  RowPointers rows;
  int64_t n_vars;
};

}  // namespace scdd
