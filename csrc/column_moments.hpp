// Sum, sum of squares and number of non-zero values of every gene, added to what the caller already has.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "csr.hpp"
#include "parallel.hpp"

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

// Rows [begin, end), in order.
template <class Value, class Index>
void strip_moments(const Csr<Value, Index>& matrix, const MomentTransform& transform, RowRange rows,
                   const Moments& moments) {
  // Duplicates must meet before log1p, clip and square: each row is first added up here, then taken out again.
  std::vector<double> row_sum(static_cast<size_t>(matrix.n_vars), 0.0);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
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

// Rows are cut into strips by their number alone and the strips' sums added in order: results are the same bits
// whatever the threads. Fewer strips where there are few rows, since each costs a pass over all genes.
constexpr int64_t kStrips = 8;
constexpr int64_t kRowsWorthAStrip = 128;

template <class Value, class Index>
void column_moments(const Csr<Value, Index>& matrix, const MomentTransform& transform, const Moments& moments,
                    int64_t threads) {
  const int64_t n_rows = matrix.rows.n_rows, n_vars = matrix.n_vars;
  const int64_t strips = std::min(kStrips, std::max<int64_t>(1, n_rows / kRowsWorthAStrip));
  std::vector<double> sums(static_cast<size_t>(strips * 3 * n_vars), 0.0);
  const auto part_of = [&](int64_t strip, int64_t part) { return sums.data() + (3 * strip + part) * n_vars; };
  // parallel_ranges deals in rows, and gives a thread no fewer than kRowsWorthAThread: each strip stands for so many.
  parallel_ranges(strips * kRowsWorthAThread, threads, [&](int64_t begin, int64_t end) {
    for (int64_t strip = begin / kRowsWorthAThread; strip < end / kRowsWorthAThread; ++strip) {
      const RowRange rows{n_rows * strip / strips, n_rows * (strip + 1) / strips};
      strip_moments(matrix, transform, rows, {part_of(strip, 0), part_of(strip, 1), part_of(strip, 2)});
    }
  });
  double* const outputs[] = {moments.sum, moments.sum_of_squares, moments.nonzero};
  for (int64_t strip = 0; strip < strips; ++strip) {
    for (int64_t part = 0; part < 3; ++part) {
      const double* from = part_of(strip, part);
      for (int64_t gene = 0; gene < n_vars; ++gene) outputs[part][gene] += from[gene];
    }
  }
}

}  // namespace scdd
