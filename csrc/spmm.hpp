// Sparse times dense, as randomised PCA needs it: Y = f(X) D and Z += f(X)^T Q, where f scales each cell and may take
// log(1 + x) on the way. No output depends on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "csr.hpp"
#include "log1p.hpp"
#include "parallel.hpp"
#include "spmm_kernels.hpp"

namespace scdd {

struct RowTransform {
  const double* row_scale;  // [n_rows], or null
  bool log1p;
};

// f of one row, each value at the place of its entry. log1p is not linear: where a gene repeats, the first entry gets
// f of the sum and the others zero. row_sum [n_vars] is scratch, made when first needed, zero before and after.
// Returns whether the genes increase.
template <class Value, class Index>
bool transform_row(const Csr<Value, Index>& matrix, const RowTransform& transform, int64_t row, RowRange range,
                   float* values, std::vector<double>& row_sum) {
  const Value* data = matrix.data + range.begin;
  const Index* genes = matrix.indices + range.begin;
  const int64_t n = range.end - range.begin;
  bool increasing = true;
  for (int64_t i = 0; i < n; ++i) {
    if (outside(genes[i], matrix.n_vars)) {
      fail_gene(row, range.begin + i, static_cast<int64_t>(genes[i]), matrix.n_vars);
    }
    increasing &= i == 0 || genes[i - 1] < genes[i];
  }
  const double scale = transform.row_scale ? transform.row_scale[row] : 1.0;
  if (increasing || !transform.log1p) {
    for (int64_t i = 0; i < n; ++i) values[i] = static_cast<float>(static_cast<double>(data[i]) * scale);
  } else {
    row_sum.resize(static_cast<size_t>(matrix.n_vars), 0.0);
    for (int64_t i = 0; i < n; ++i) row_sum[genes[i]] += static_cast<double>(data[i]);
    for (int64_t i = 0; i < n; ++i) {
      values[i] = static_cast<float>(row_sum[genes[i]] * scale);
      row_sum[genes[i]] = 0;
    }
  }
  if (transform.log1p) log1p_in_place(values, n);
  return increasing;
}

// out [n_rows, k] = f(X) dense, dense [n_vars, k]; added up in double.
template <class Value, class Index, class Real>
void csr_times_dense(const Csr<Value, Index>& matrix, const RowTransform& transform, const Real* dense, int64_t k,
                     Real* out, int64_t threads) {
  parallel_ranges(matrix.rows.n_rows, threads, [&](int64_t begin, int64_t end) {
    std::vector<double> row_sum, sum(static_cast<size_t>(k));
    std::vector<float> values;
    for (int64_t row = begin; row < end; ++row) {
      const RowRange range = matrix.rows.row(row);
      values.resize(static_cast<size_t>(range.end - range.begin));
      transform_row(matrix, transform, row, range, values.data(), row_sum);
      row_product(values.data(), matrix.indices + range.begin, range.end - range.begin, dense, k, sum.data());
      for (int64_t j = 0; j < k; ++j) out[row * k + j] = static_cast<Real>(sum[j]);
    }
  });
}

// Bounds of consecutive ranges of genes with about the same number of entries, [parts + 1].
template <class Value, class Index>
std::vector<int64_t> gene_ranges(const Csr<Value, Index>& matrix, int64_t first, int64_t last, int64_t parts) {
  std::vector<int64_t> count(static_cast<size_t>(matrix.n_vars), 0), bounds{0};
  for (int64_t p = first; p < last; ++p) ++count[matrix.indices[p]];
  int64_t seen = 0;
  for (int64_t gene = 0; gene < matrix.n_vars; ++gene) {
    const auto part = static_cast<int64_t>(bounds.size());
    if (part < parts && seen >= (last - first) / parts * part) bounds.push_back(gene);
    seen += count[gene];
  }
  bounds.resize(static_cast<size_t>(parts), matrix.n_vars);
  bounds.push_back(matrix.n_vars);
  return bounds;
}

// out [n_vars, k] += f(X)^T dense, dense [n_rows, k]. Each thread owns a range of genes and walks over all rows in
// order, so that every sum has one order of addition and no thread needs a copy of out.
template <class Value, class Index, class Real>
void csr_transposed_times_dense(const Csr<Value, Index>& matrix, const RowTransform& transform, const Real* dense,
                                int64_t k, double* out, int64_t threads) {
  const int64_t n_rows = matrix.rows.n_rows;
  if (n_rows == 0) return;
  // Rows lie one behind the other, or row() of some row throws below before a value is used.
  const int64_t first = matrix.rows.row(0).begin, last = matrix.rows.row(n_rows - 1).end;
  if (last < first) fail_index("indptr decreases from " + std::to_string(first) + " to " + std::to_string(last));
  std::vector<float> values(static_cast<size_t>(last - first));
  std::vector<uint8_t> increasing(static_cast<size_t>(n_rows));
  parallel_ranges(n_rows, threads, [&](int64_t begin, int64_t end) {
    std::vector<double> row_sum;
    for (int64_t row = begin; row < end; ++row) {
      const RowRange range = matrix.rows.row(row);
      if (range.begin < first || range.end > last) {
        fail_index("indptr of row " + std::to_string(row) + " lies outside " + std::to_string(first) + ".." +
                   std::to_string(last));
      }
      increasing[row] = transform_row(matrix, transform, row, range, values.data() + (range.begin - first), row_sum);
    }
  });
  const int64_t parts = std::max<int64_t>(1, std::min(threads, n_rows / kRowsWorthAThread));
  const std::vector<int64_t> bounds = gene_ranges(matrix, first, last, parts);
  const auto add = [&](int64_t low, int64_t high) {
    for (int64_t row = 0; row < n_rows; ++row) {
      const RowRange range = matrix.rows.row(row);
      const Index* stop = matrix.indices + range.end;
      const Index* start = matrix.indices + range.begin;
      if (increasing[row]) {
        start = std::lower_bound(start, stop, low, [](Index gene, int64_t bound) { return gene < bound; });
      }
      // Within increasing genes the range has an end, too.
      if (increasing[row]) {
        stop = std::lower_bound(start, stop, high, [](Index gene, int64_t bound) { return gene < bound; });
      }
      const float* value = values.data() + (start - matrix.indices - first);
      add_outer(value, start, stop - start, {low, high}, dense + row * k, k, out);
    }
  };
  // As many ranges as parallel_ranges makes threads of these rows: it hands out one part each.
  parallel_ranges(parts * kRowsWorthAThread, parts, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin / kRowsWorthAThread; part < end / kRowsWorthAThread; ++part) {
      add(bounds[part], bounds[part + 1]);
    }
  });
}

}  // namespace scdd
