// From a source of rows to packed gene tokens: the arguments are checked here once, whatever the rows come from.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>

#include "arrays.hpp"
#include "block_pool.hpp"
#include "rows.hpp"
#include "tokens.hpp"

namespace scdd {

inline TokenMemory<RowScratch>& kept_memory() {
  thread_local TokenMemory<RowScratch> memory;
  return memory;
}

inline void check_gene_scale(const float* scale, int64_t n) {
  for (int64_t token = 0; token < n; ++token) {
    if (scale[token] > 0 && !std::isinf(scale[token])) continue;
    fail_value("gene_scale[" + std::to_string(token) + "] is " + std::to_string(scale[token]) +
               ", and must be finite and above 0; use 1 for a gene without a scale");
  }
}

inline void check_tokens(const int32_t* token_of_gene, int64_t n_vars, int64_t n_tokens) {
  for (int64_t gene = 0; gene < n_vars; ++gene) {
    if (token_of_gene[gene] >= -1 && token_of_gene[gene] < n_tokens) continue;
    fail_index("token_of_gene[" + std::to_string(gene) + "] = " + std::to_string(token_of_gene[gene]) +
               " is neither -1 nor in 0.." + std::to_string(n_tokens - 1));
  }
}

inline bool all_are_one(const float* scale, int64_t n) {
  bool other = false;
  for (int64_t token = 0; token < n; ++token) other |= scale[token] != 1.0f;
  return !other;
}

inline void describe_tokens(TokenPlan& plan, int64_t n_vars) {
  int32_t largest = -1, moved = 0;
  for (int64_t gene = 0; gene < n_vars; ++gene) {
    largest = std::max(largest, plan.token_of_gene[gene]);
    moved |= plan.token_of_gene[gene] ^ static_cast<int32_t>(gene);
  }
  plan.n_tokens = int64_t{largest} + 1;
  plan.same_tokens = !moved;
}

inline void check_plan(const TokenPlan& plan) {
  if (plan.max_genes < 1) {
    throw py::value_error("max_genes is " + std::to_string(plan.max_genes) + ", and must be at least 1");
  }
  if (!(plan.target_sum >= 0) || std::isinf(plan.target_sum)) {
    throw py::value_error("target_sum is " + std::to_string(plan.target_sum) + ", and must be finite and 0 or more");
  }
  if (plan.logged && (plan.log1p || plan.target_sum != 0)) {
    throw py::value_error("logged data is passed through; give target_sum=0 and log1p=False with logged=True");
  }
  if (plan.max_tokens < 1 || plan.max_tokens > INT32_MAX) {
    throw py::value_error("max_tokens is " + std::to_string(plan.max_tokens) + ", and must lie in 1..2147483647");
  }
}

// Returns (genes, values, coordinates, cu_seqlens, totals).
template <class Rows>
py::tuple token_batch(const Rows& source, const py::array& rows, const py::array& token_of_gene,
                      const std::optional<py::array>& gene_scale, int64_t max_genes, double target_sum, bool log1p,
                      bool logged, std::optional<py::array> detected, int64_t max_tokens, int64_t threads) {
  const int64_t* row_ids = vector_of<int64_t>(rows, "rows");
  const int32_t* tokens = vector_of<int32_t>(token_of_gene, "token_of_gene", source.n_vars);
  const float* scale = optional_vector_of<float>(gene_scale, "gene_scale", -1);
  const int64_t n = rows.size();
  int32_t* detected_genes = detected ? output_of<int32_t>(*detected, "detected", n) : nullptr;
  check_plan({tokens, scale, max_genes, target_sum, log1p, logged, max_tokens});
  require_threads(threads);
  if (scale) check_gene_scale(scale, gene_scale->size());
  const bool unscaled = !scale || (!logged && all_are_one(scale, gene_scale->size()));  // x / 1 is x
  check_tokens(tokens, token_of_gene.size(), scale ? gene_scale->size() : INT32_MAX);
  TokenPlan plan{tokens, unscaled ? nullptr : scale, max_genes, target_sum, log1p, logged, max_tokens};
  describe_tokens(plan, token_of_gene.size());
  py::array_t<int32_t> cu_seqlens(n + 1);
  py::array_t<double> totals(n);
  int32_t* segments = cu_seqlens.mutable_data();
  double* row_totals = totals.mutable_data();
  TokenGather<Rows, RowScratch> gather(source, row_ids, n, plan, kept_memory(), threads);
  int64_t room = 0, n_tokens = 0;
  {
    const py::gil_scoped_release unlocked;
    room = gather.measure();
  }
  BlockPool& pool = BlockPool::shared();
  py::array_t<int32_t> found_genes = pool.array<int32_t>(room);
  py::array_t<float> found_values = pool.array<float>(room);
  int32_t* genes_found = found_genes.mutable_data();
  float* values_found = found_values.mutable_data();
  {
    const py::gil_scoped_release unlocked;
    n_tokens = gather.select(segments, row_totals, detected_genes, genes_found, values_found);
  }
  const bool exact = n_tokens == room;
  py::array_t<int32_t> genes = exact ? found_genes : pool.array<int32_t>(n_tokens);
  py::array_t<float> values = exact ? found_values : pool.array<float>(n_tokens);
  py::array_t<float> coordinates = pool.array<float>(n_tokens);
  int32_t* out_genes = genes.mutable_data();
  float* out_values = values.mutable_data();
  float* out_coordinates = coordinates.mutable_data();
  {
    const py::gil_scoped_release unlocked;
    gather.write(segments, genes_found, values_found, out_genes, out_values, out_coordinates);
  }
  return py::make_tuple(genes, values, coordinates, cu_seqlens, totals);
}

}  // namespace scdd
