// Chosen rows over chosen genes as a new CSR matrix: count, then fill.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "csr.hpp"
#include "parallel.hpp"

namespace scdd {

// column_of_gene == nullptr keeps every gene at its own place.
template <class Value, class Index>
struct CsrGather {
  const Csr<Value, Index>& matrix;
  const int64_t* rows;
  int64_t n;
  const int32_t* column_of_gene;
  int64_t threads;

  // indptr [n + 1] of the result. Checks every index, so that fill() need not.
  void count(int64_t* indptr) const {
    indptr[0] = 0;
    parallel_ranges(n, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) indptr[i + 1] = count_row(rows[i]);
    });
    for (int64_t i = 0; i < n; ++i) indptr[i + 1] += indptr[i];
  }

  void fill(const int64_t* indptr, float* data, int32_t* indices) const {
    parallel_ranges(n, threads, [&](int64_t begin, int64_t end) {
      std::vector<std::pair<int32_t, float>> scratch;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t size = fill_row(rows[i], indptr[i + 1] - indptr[i], data + indptr[i], indices + indptr[i]);
        sort_row(size, data + indptr[i], indices + indptr[i], scratch);
      }
    });
  }

 private:
  int64_t count_row(int64_t row) const {
    const RowRange range = matrix.rows.row(row);
    int64_t kept = 0;
    for (int64_t p = range.begin; p < range.end; ++p) {
      const Index gene = matrix.indices[p];
      if (outside(gene, matrix.n_vars)) fail_gene(row, p, static_cast<int64_t>(gene), matrix.n_vars);
      kept += !column_of_gene || column_of_gene[gene] >= 0;
    }
    return kept;
  }

  // Stops at the counted size: a caller who changes the arrays meanwhile gets nonsense, but no overflow.
  int64_t fill_row(int64_t row, int64_t size, float* data, int32_t* indices) const {
    const RowRange range = matrix.rows.row(row);
    int64_t kept = 0;
    for (int64_t p = range.begin; p < range.end && kept < size; ++p) {
      const Index gene = matrix.indices[p];
      const int32_t column = column_of_gene ? column_of_gene[gene] : static_cast<int32_t>(gene);
      data[kept] = static_cast<float>(matrix.data[p]);
      indices[kept] = column;
      kept += column >= 0;
    }
    return kept;
  }

  // Genes in another order than the file's, or a file that is not sorted: libraries downstream expect order.
  // Stable, so that duplicates keep theirs.
  static void sort_row(int64_t size, float* data, int32_t* indices, std::vector<std::pair<int32_t, float>>& scratch) {
    if (std::is_sorted(indices, indices + size)) return;
    scratch.resize(static_cast<size_t>(size));
    for (int64_t k = 0; k < size; ++k) scratch[k] = {indices[k], data[k]};
    std::stable_sort(scratch.begin(), scratch.end(),
                     [](const auto& left, const auto& right) { return left.first < right.first; });
    for (int64_t k = 0; k < size; ++k) {
      indices[k] = scratch[k].first;
      data[k] = scratch[k].second;
    }
  }
};

template <class Value, class Index>
CsrGather(const Csr<Value, Index>&, const int64_t*, int64_t, const int32_t*, int64_t) -> CsrGather<Value, Index>;

}  // namespace scdd
