// Sum, sum of squares and number of non-zero values of every gene, added to what the caller already has.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "csr.hpp"

namespace scdd {

struct MomentTransform {
  const double* row_scale;  // [n_rows], or null
  bool log1p;
  const double* clip_max;  // [n_vars], or null; not negative, so that zero stays zero
};

struct Moments {
  double* sum;
  double* sum_of_squares;
  double* nonzero;
};

template <class Value, class Index>
void check_row_genes(const Csr<Value, Index>& matrix, int64_t row, RowRange range) {
  for (int64_t p = range.begin; p < range.end; ++p) {
    const Index gene = matrix.indices[p];
    if (outside(gene, matrix.n_vars)) fail_gene(row, p, static_cast<int64_t>(gene), matrix.n_vars);
  }
}

// One thread and one order of addition: results are the same bits everywhere.
template <class Value, class Index>
void column_moments(const Csr<Value, Index>& matrix, const MomentTransform& transform, const Moments& moments) {
  // Duplicates must meet before log1p, clip and square: each row is first added up here, then taken out again.
  std::vector<double> row_sum(static_cast<size_t>(matrix.n_vars), 0.0);
  for (int64_t row = 0; row < matrix.rows.n_rows; ++row) {
    const RowRange range = matrix.rows.row(row);
    check_row_genes(matrix, row, range);
    for (int64_t p = range.begin; p < range.end; ++p) row_sum[matrix.indices[p]] += static_cast<double>(matrix.data[p]);
    const double scale = transform.row_scale ? transform.row_scale[row] : 1.0;
    for (int64_t p = range.begin; p < range.end; ++p) {
      const auto gene = matrix.indices[p];
      double value = row_sum[gene];
      if (value == 0) continue;  // an explicit zero, or the second visit of a duplicate
      row_sum[gene] = 0;
      value *= scale;
      if (transform.log1p) value = std::log1p(value);
      if (transform.clip_max) value = transform.clip_max[gene] < value ? transform.clip_max[gene] : value;
      moments.sum[gene] += value;
      moments.sum_of_squares[gene] += value * value;
      moments.nonzero[gene] += 1;
    }
  }
}

}  // namespace scdd
