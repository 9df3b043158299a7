// What quality control asks of each cell: counts, genes seen, and counts of marked (say, mitochondrial) genes.
#pragma once

#include <cstdint>
#include <vector>

#include "csr.hpp"
#include "parallel.hpp"
#include "row_totals.hpp"

namespace scdd {

struct RowStatistics {
  double* total;     // [n_rows]
  int64_t* n_genes;  // [n_rows]
  double* marked;    // [n_rows]
};

// Genes whose entries do not add up to zero. Rows are nearly always sorted, and then no two entries share a gene;
// only other rows are added up, in row_sum [n_vars], which is all zero before and after.
template <class Value, class Index>
int64_t count_genes(const Csr<Value, Index>& matrix, RowRange range, std::vector<double>& row_sum) {
  int64_t n = 0;
  bool increasing = true;
  for (int64_t p = range.begin; p < range.end; ++p) {
    n += matrix.data[p] != 0;
    increasing &= p == range.begin || matrix.indices[p - 1] < matrix.indices[p];
  }
  if (increasing) return n;
  row_sum.resize(static_cast<size_t>(matrix.n_vars), 0.0);
  for (int64_t p = range.begin; p < range.end; ++p) row_sum[matrix.indices[p]] += static_cast<double>(matrix.data[p]);
  n = 0;
  for (int64_t p = range.begin; p < range.end; ++p) {
    n += row_sum[matrix.indices[p]] != 0;
    row_sum[matrix.indices[p]] = 0;  // the next entry of the same gene is not counted again
  }
  return n;
}

// mask: [n_vars], non-zero where a gene is marked; null if none is.
template <class Value, class Index>
void row_statistics(const Csr<Value, Index>& matrix, const uint8_t* mask, const RowStatistics& out, int64_t threads) {
  parallel_ranges(matrix.rows.n_rows, threads, [&](int64_t begin, int64_t end) {
    std::vector<double> row_sum;
    for (int64_t row = begin; row < end; ++row) {
      const RowRange range = matrix.rows.row(row);
      double marked = 0;
      for (int64_t p = range.begin; p < range.end; ++p) {
        const Index gene = matrix.indices[p];
        if (outside(gene, matrix.n_vars)) fail_gene(row, p, static_cast<int64_t>(gene), matrix.n_vars);
        if (mask && mask[gene]) marked += static_cast<double>(matrix.data[p]);
      }
      out.total[row] = sum_in_double(matrix.data + range.begin, range.end - range.begin);
      out.n_genes[row] = count_genes(matrix, range, row_sum);
      out.marked[row] = marked;
    }
  });
}

}  // namespace scdd
