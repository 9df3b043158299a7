// Chosen rows over chosen genes as a dense matrix, normalised on the way.
//
//   x = log1p(target_sum * sum of duplicates / row total);   (x - mean) / std, clipped
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "csr.hpp"
#include "log1p.hpp"
#include "parallel.hpp"
#include "row_totals.hpp"

namespace scdd {

struct DenseTransform {
  double target_sum;         // 0: no scaling
  bool log1p;
  const float* mean;         // [G], or null
  const float* inverse_std;  // [G], or null
  float clip;                // 0: none
};

// Where the genes of one row that are wanted go. Kept between rows, so that a thread allocates a few times in all.
struct KeptGenes {
  std::vector<int32_t> columns;
  std::vector<float> values;
  int64_t n = 0;
};

// No branch on "wanted or not": it is as good as random, and a wrong guess costs more than a wasted store.
// Rows in random order come from far memory, and the processor cannot guess where the next one starts: asking for
// `next` while this row is worked on hides the way (3.2 -> 2.2 us a cell).
template <class Value, class Index>
void keep_genes(const Csr<Value, Index>& matrix, int64_t row, RowRange range, RowRange next,
                const int32_t* column_of_gene, KeptGenes& kept) {
  const auto size = static_cast<size_t>(range.end - range.begin);
  if (kept.columns.size() < size) {
    kept.columns.resize(size);
    kept.values.resize(size);
  }
  int32_t* columns = kept.columns.data();
  float* values = kept.values.data();
  int64_t n = 0;
  constexpr int64_t kStep = 64 / static_cast<int64_t>(std::max(sizeof(Value), sizeof(Index)));  // at most a cache line
  for (int64_t start = range.begin; start < range.end; start += kStep) {
    const int64_t ahead = std::min(next.begin + (start - range.begin), next.end);
    __builtin_prefetch(matrix.data + ahead, 0, 3);
    __builtin_prefetch(matrix.indices + ahead, 0, 3);
    const int64_t stop = std::min(start + kStep, range.end);
    for (int64_t p = start; p < stop; ++p) {
      const Index gene = matrix.indices[p];
      if (outside(gene, matrix.n_vars)) fail_gene(row, p, static_cast<int64_t>(gene), matrix.n_vars);
      const int32_t column = column_of_gene[gene];
      columns[n] = column;
      values[n] = static_cast<float>(matrix.data[p]);
      n += column >= 0;
    }
  }
  kept.n = n;
}

// Adds, then transforms only what is not zero. All sums are read before any is written back, so a column that
// occurs twice gets the same right value twice.
inline void scatter_row(KeptGenes& kept, float scale, bool log1p, float* out) {
  const int32_t* columns = kept.columns.data();
  float* values = kept.values.data();
  for (int64_t k = 0; k < kept.n; ++k) out[columns[k]] += values[k];
  if (scale == 1.0f && !log1p) return;
  for (int64_t k = 0; k < kept.n; ++k) values[k] = out[columns[k]] * scale;
  if (log1p) log1p_in_place(values, kept.n);
  for (int64_t k = 0; k < kept.n; ++k) out[columns[k]] = values[k];
}

inline void standardise_row(const DenseTransform& transform, int64_t n_columns, float* out) {
  const float* mean = transform.mean;
  const float* inverse_std = transform.inverse_std;
  if (mean) {
    for (int64_t g = 0; g < n_columns; ++g) out[g] -= mean[g];
  }
  if (inverse_std) {
    for (int64_t g = 0; g < n_columns; ++g) out[g] *= inverse_std[g];
  }
  if (const float clip = transform.clip; clip > 0) {
    for (int64_t g = 0; g < n_columns; ++g) {  // in this form a NaN stays a NaN
      const float low = out[g] < -clip ? -clip : out[g];
      out[g] = low > clip ? clip : low;
    }
  }
}

// out [n, n_columns]; totals [n] is read if has_totals, else written.
template <class Value, class Index>
void gather_dense(const Csr<Value, Index>& matrix, const int64_t* rows, int64_t n, const int32_t* column_of_gene,
                  int64_t n_columns, const DenseTransform& transform, bool has_totals, double* totals, float* out,
                  int64_t threads) {
  parallel_ranges(n, threads, [&](int64_t begin, int64_t end) {
    KeptGenes kept;
    for (int64_t i = begin; i < end; ++i) {
      const RowRange range = matrix.rows.row(rows[i]);
      const RowRange next = i + 1 < end ? matrix.rows.row_if_valid(rows[i + 1]) : RowRange{0, 0};
      float* row_out = out + i * n_columns;
      std::fill_n(row_out, n_columns, 0.0f);
      if (!has_totals) totals[i] = sum_in_double(matrix.data + range.begin, range.end - range.begin);
      keep_genes(matrix, rows[i], range, next, column_of_gene, kept);
      // An empty row has total 0 and stays zero; anything else that is odd (NaN, negative) stays visible.
      const bool scaled = transform.target_sum != 0;
      const double scale = !scaled ? 1.0 : totals[i] == 0 ? 0.0 : transform.target_sum / totals[i];
      scatter_row(kept, static_cast<float>(scale), transform.log1p, row_out);
      standardise_row(transform, n_columns, row_out);
    }
  });
}

}  // namespace scdd
