// The inner loops of sparse times dense. Compiled twice, for any x86-64 and for those with AVX2, and chosen at run
// time; without fused multiply-add, so that both (and other machines) give the same bits.
#pragma once

#include <cstdint>

#include "csr.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#define SCDD_AVX2 __attribute__((target("avx2")))
#endif
#define SCDD_INLINE inline __attribute__((always_inline))

namespace scdd {

namespace detail {

// Columns [j, j + Tile) of a row's product: the sums stay in registers while the row is walked along.
template <int Tile, class Index, class Real>
SCDD_INLINE void product_tile(const float* values, const Index* genes, int64_t n, const Real* dense, int64_t k,
                              double* sum) {
  double tile[Tile] = {};
  for (int64_t i = 0; i < n; ++i) {
    const double value = values[i];
    const Real* line = dense + static_cast<int64_t>(genes[i]) * k;
    for (int t = 0; t < Tile; ++t) tile[t] += value * static_cast<double>(line[t]);
  }
  for (int t = 0; t < Tile; ++t) sum[t] = tile[t];
}

template <class Index, class Real>
SCDD_INLINE void product_body(const float* values, const Index* genes, int64_t n, const Real* dense, int64_t k,
                              double* sum) {
  int64_t j = 0;
  for (; j + 16 <= k; j += 16) product_tile<16>(values, genes, n, dense + j, k, sum + j);
  for (; j + 4 <= k; j += 4) product_tile<4>(values, genes, n, dense + j, k, sum + j);
  for (; j < k; ++j) product_tile<1>(values, genes, n, dense + j, k, sum + j);
}

template <class Index, class Real>
SCDD_INLINE void outer_body(const float* values, const Index* genes, int64_t n, RowRange owned, const Real* line,
                            int64_t k, double* out) {
  for (int64_t i = 0; i < n; ++i) {
    const auto gene = static_cast<int64_t>(genes[i]);
    if (gene < owned.begin || gene >= owned.end) continue;
    const double value = values[i];
    double* __restrict sum = out + gene * k;
    const Real* __restrict from = line;
    int64_t j = 0;
    for (; j + 4 <= k; j += 4) {
      for (int t = 0; t < 4; ++t) sum[j + t] += value * static_cast<double>(from[j + t]);
    }
    for (; j < k; ++j) sum[j] += value * static_cast<double>(from[j]);
  }
}

#ifdef SCDD_AVX2
template <class Index, class Real>
SCDD_AVX2 void product_avx2(const float* values, const Index* genes, int64_t n, const Real* dense, int64_t k,
                            double* sum) {
  product_body(values, genes, n, dense, k, sum);
}
template <class Index, class Real>
SCDD_AVX2 void outer_avx2(const float* values, const Index* genes, int64_t n, RowRange owned, const Real* line,
                          int64_t k, double* out) {
  outer_body(values, genes, n, owned, line, k, out);
}
inline bool has_avx2() {
  static const bool has = __builtin_cpu_supports("avx2");
  return has;
}
#endif

}  // namespace detail

// sum [k] = Σ_i values[i] dense[genes[i]], added in the order of i; genes are known to lie inside.
template <class Index, class Real>
void row_product(const float* values, const Index* genes, int64_t n, const Real* dense, int64_t k, double* sum) {
#ifdef SCDD_AVX2
  if (detail::has_avx2()) return detail::product_avx2(values, genes, n, dense, k, sum);
#endif
  detail::product_body(values, genes, n, dense, k, sum);
}

// out[genes[i]] += values[i] line, for the genes in owned; line [k] is no part of out.
template <class Index, class Real>
void add_outer(const float* values, const Index* genes, int64_t n, RowRange owned, const Real* line, int64_t k,
               double* out) {
#ifdef SCDD_AVX2
  if (detail::has_avx2()) return detail::outer_avx2(values, genes, n, owned, line, k, out);
#endif
  detail::outer_body(values, genes, n, owned, line, k, out);
}

}  // namespace scdd
