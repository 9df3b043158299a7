// What a batch can be made from: rows of cells, one at a time, as a view of values and gene numbers.
//
// A source of rows is a struct with
//   int64_t n_rows, n_vars
//   int64_t size(row)                     stored entries; checks the row
//   double total(row)                     sum of its stored values
//   auto view(row, next, scratch, f)      f(values, genes, n) with pointers of the source's own types, genes checked;
//                                         `next` is the row that will be asked for after this one, or -1
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "buffer.hpp"
#include "csr.hpp"
#include "row_totals.hpp"

namespace scdd {

struct RowScratch {
  Buffer values, genes;
};

// Whether a source wants to know early which rows will be asked for: hint() before size(), touch() before the rest.
template <class Rows, class = void>
struct TakesHints : std::false_type {};
template <class Rows>
struct TakesHints<Rows, std::void_t<decltype(&Rows::hint)>> : std::true_type {};

// Rows of CSR arrays that somebody else owns: nothing in them has been checked yet.
template <class Value, class Index>
struct ArrayRows {
  const Csr<Value, Index>& matrix;
  int64_t n_rows, n_vars;

  explicit ArrayRows(const Csr<Value, Index>& csr) : matrix(csr), n_rows(csr.rows.n_rows), n_vars(csr.n_vars) {}

  int64_t size(int64_t row) const {
    const RowRange range = matrix.rows.row(row);
    return range.end - range.begin;
  }
  double total(int64_t row) const {
    const RowRange range = matrix.rows.row(row);
    return sum_in_double(matrix.data + range.begin, range.end - range.begin);
  }

  // Rows in random order come from far memory, and the processor cannot guess where the next one starts: asking
  // for `next` while this row is checked hides the way (3.2 -> 2.2 us a cell).
  template <class F>
  auto view(int64_t row, int64_t next, RowScratch&, const F& f) const {
    const RowRange range = matrix.rows.row(row);
    const RowRange ahead = next < 0 ? RowRange{0, 0} : matrix.rows.row_if_valid(next);
    constexpr int64_t kStep = 64 / static_cast<int64_t>(std::max(sizeof(Value), sizeof(Index)));  // at most a cache line
    for (int64_t start = range.begin; start < range.end; start += kStep) {
      const int64_t place = std::min(ahead.begin + (start - range.begin), ahead.end);
      __builtin_prefetch(matrix.data + place, 0, 3);
      __builtin_prefetch(matrix.indices + place, 0, 3);
      check_genes(row, start, std::min(start + kStep, range.end));
    }
    return f(matrix.data + range.begin, matrix.indices + range.begin, range.end - range.begin);
  }

 private:
  void check_genes(int64_t row, int64_t begin, int64_t end) const {
    bool wrong = false;
    for (int64_t p = begin; p < end; ++p) wrong |= outside(matrix.indices[p], n_vars);
    if (!wrong) return;
    while (!outside(matrix.indices[begin], n_vars)) ++begin;
    fail_gene(row, begin, static_cast<int64_t>(matrix.indices[begin]), n_vars);
  }
};

template <class Value, class Index>
ArrayRows(const Csr<Value, Index>&) -> ArrayRows<Value, Index>;

}  // namespace scdd
