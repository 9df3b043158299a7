// Chosen rows over chosen genes as a dense matrix, normalised on the way.
//
//   x = log1p(target_sum * sum of duplicates / row total);   (x - mean) / std, clipped
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "half.hpp"
#include "log1p.hpp"
#include "parallel.hpp"
#include "rows.hpp"

namespace scdd {

// An empty row has total 0 and stays zero; anything else that is odd (NaN, negative) stays visible.
inline float scale_of(double target_sum, double total) {
  return target_sum == 0 ? 1.0f : total == 0 ? 0.0f : static_cast<float>(target_sum / total);
}

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
template <class Value, class Gene>
void keep_genes(const Value* values, const Gene* genes, int64_t size, const int32_t* column_of_gene, KeptGenes& kept) {
  if (kept.columns.size() < static_cast<size_t>(size)) {
    kept.columns.resize(static_cast<size_t>(size));
    kept.values.resize(static_cast<size_t>(size));
  }
  int32_t* columns = kept.columns.data();
  float* out = kept.values.data();
  int64_t n = 0;
  for (int64_t p = 0; p < size; ++p) {
    const int32_t column = column_of_gene[genes[p]];
    columns[n] = column;
    out[n] = static_cast<float>(values[p]);
    n += column >= 0;
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

// out [n, n_columns] of float, Half or Brain; totals [n] is read if has_totals, else written.
template <class Rows, class Out>
void gather_dense(const Rows& source, const int64_t* rows, int64_t n, const int32_t* column_of_gene, int64_t n_columns,
                  const DenseTransform& transform, bool has_totals, double* totals, Out* out, int64_t threads) {
  parallel_ranges(n, threads, [&](int64_t begin, int64_t end) {
    KeptGenes kept;
    RowScratch scratch;
    std::vector<float> narrow(std::is_same_v<Out, float> ? 0 : static_cast<size_t>(n_columns));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t next = i + 1 < end ? rows[i + 1] : -1;
      float* row_out = narrow.data();
      if constexpr (std::is_same_v<Out, float>) row_out = out + i * n_columns;
      source.view(rows[i], next, scratch, [&](const auto* values, const auto* genes, int64_t size) {
        keep_genes(values, genes, size, column_of_gene, kept);
      });
      if (!has_totals) totals[i] = source.total(rows[i]);
      std::fill_n(row_out, n_columns, 0.0f);
      scatter_row(kept, scale_of(transform.target_sum, totals[i]), transform.log1p, row_out);
      standardise_row(transform, n_columns, row_out);
      if constexpr (!std::is_same_v<Out, float>) {
        for (int64_t g = 0; g < n_columns; ++g) convert(row_out[g], out[i * n_columns + g]);
      }
    }
  });
}

}  // namespace scdd
