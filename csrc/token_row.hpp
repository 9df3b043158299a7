// One cell as a sequence of gene tokens, the most telling gene first.
//
//   s_g = target_sum * (sum of the entries of g) / total      total over ALL genes of the cell
//   r_g = s_g / gene_scale_g                                  what genes are ranked by; ties: lower token first
//   value = log1p(s_g),  coordinate = log2(1 + rank)          rank 0, 1, ... of the max_genes highest r_g
//
// A rank stream and a value stream made from these share one set of genes, whatever was cut off.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "csr.hpp"
#include "log1p.hpp"
#include "radix_sort.hpp"

namespace scdd {

struct TokenPlan {
  const int32_t* token_of_gene;  // [n_vars]; -1 drops the gene; genes with one token are added up
  const float* gene_scale;       // [n_tokens], positive; or null for 1
  int64_t max_genes;             // at least 1
  double target_sum;             // 0: no scaling
  bool log1p;
  bool logged;         // values are log1p already; they are ranked by expm1, as the counts would be
  int64_t max_tokens;  // of all cells together; at most INT32_MAX, for cu_seqlens to hold them
};

[[noreturn]] inline __attribute__((noinline, cold)) void fail_token_value(int64_t row, float value) {
  fail_value("row " + std::to_string(row) + " holds " + std::to_string(value) +
             "; genes are ranked by expression that is finite and not negative, so repair or drop the cell");
}

// The genes of one cell at a time. Kept between cells, so that a thread allocates a few times in all.
class TokenRow {
 public:
  // Entries in any order, duplicates included; genes have been checked. Afterwards n() tokens, in order of rank.
  template <class Value, class Gene>
  void take(int64_t row, const Value* values, const Gene* genes, int64_t n, double total, const TokenPlan& plan) {
    reserve(n, row);
    map(row, values, genes, n, plan);
    if (!ascending()) merge();
    detected_ = n_;
    scale(row, total, plan);
    rank(plan);
  }

  int64_t n() const { return n_; }
  int64_t detected() const { return detected_; }  // n() before max_genes
  const int32_t* genes() const { return ranked_tokens_.data(); }
  const float* values() const { return ranked_values_.data(); }

 private:
  std::vector<int32_t> tokens_, ranked_tokens_;
  std::vector<float> x_, ranked_values_;
  std::vector<KeyedEntry> entries_, spare_;
  int64_t n_ = 0, detected_ = 0;

  void reserve(int64_t n, int64_t row) {
    if (n > INT32_MAX) fail_value("row " + std::to_string(row) + " has " + std::to_string(n) + " entries");
    if (static_cast<int64_t>(x_.size()) >= n) return;
    const auto size = static_cast<size_t>(n);
    for (auto* part : {&tokens_, &ranked_tokens_}) part->resize(size);
    for (auto* part : {&x_, &ranked_values_}) part->resize(size);
    for (auto* part : {&entries_, &spare_}) part->resize(size);
  }

  // No branch on "kept or not": it is as good as random, and a wrong guess costs more than a wasted store.
  template <class Value, class Gene>
  void map(int64_t row, const Value* values, const Gene* genes, int64_t n, const TokenPlan& plan) {
    int32_t* tokens = tokens_.data();
    float* x = x_.data();
    int64_t kept = 0;
    bool odd = false;
    for (int64_t i = 0; i < n; ++i) {
      const auto value = static_cast<float>(values[i]);
      const int32_t token = plan.token_of_gene[genes[i]];
      odd |= !(value >= 0.0f) | !(value <= kLargest);
      tokens[kept] = token;
      x[kept] = value;
      kept += (token >= 0) & (value != 0.0f);
    }
    n_ = kept;
    if (!odd) return;
    while (*values >= Value{0} && static_cast<float>(*values) <= kLargest) ++values;
    fail_token_value(row, static_cast<float>(*values));
  }

  bool ascending() const {
    int wrong = 0;  // an OR over all, and not an early exit, so that the loop vectorises
    for (int64_t i = 1; i < n_; ++i) wrong |= tokens_[i] <= tokens_[i - 1];
    return !wrong;
  }

  // Orders by token, and adds duplicates up in the order in which they are stored.
  void merge() {
    uint32_t largest = 0;
    for (int64_t i = 0; i < n_; ++i) {
      entries_[i] = keyed(static_cast<uint32_t>(tokens_[i]), static_cast<uint32_t>(i));
      largest = std::max(largest, static_cast<uint32_t>(tokens_[i]));
    }
    const KeyedEntry* sorted = sort_keyed(entries_.data(), spare_.data(), n_, bit_width(largest));
    float* sums = ranked_values_.data();
    int64_t last = -1;
    int32_t last_token = -1;
    for (int64_t i = 0; i < n_; ++i) {
      const auto token = static_cast<int32_t>(key_of(sorted[i]));
      const float value = x_[payload_of(sorted[i])];
      const bool again = token == last_token;
      last += !again;
      sums[last] = again ? sums[last] + value : value;
      tokens_[last] = last_token = token;
    }
    n_ = last + 1;
    x_.swap(ranked_values_);
  }

  void scale(int64_t row, double total, const TokenPlan& plan) {
    if (plan.target_sum == 0) return;
    if (!(total >= 0) || std::isinf(total)) {  // the values are sound, so this was not added up from them
      fail_value("row " + std::to_string(row) + " is said to have the total " + std::to_string(total));
    }
    const auto factor = static_cast<float>(total == 0 ? 0.0 : plan.target_sum / total);
    for (int64_t i = 0; i < n_; ++i) x_[i] *= factor;
  }

  void rank(const TokenPlan& plan) {
    int64_t n = n_;
    const int key_bits = make_keys(plan);
    if (n > plan.max_genes) n = keep_lowest(entries_.data(), n, key_bits, plan.max_genes);
    const KeyedEntry* sorted = sort_keyed(entries_.data(), spare_.data(), n, key_bits);
    n_ = std::min(n, plan.max_genes);
    for (int64_t i = 0; i < n_; ++i) {
      ranked_tokens_[i] = tokens_[payload_of(sorted[i])];
      ranked_values_[i] = x_[payload_of(sorted[i])];
    }
    if (plan.log1p) log1p_in_place(ranked_values_.data(), n_);
  }

  // Floats that are not negative order as their bits do. Taken from the highest, the keys of a cell need fewer bits.
  int make_keys(const TokenPlan& plan) {
    float* score = ranked_values_.data();
    if (plan.logged && plan.gene_scale) {
      for (int64_t i = 0; i < n_; ++i) score[i] = static_cast<float>(std::expm1(static_cast<double>(x_[i])));
    } else {
      std::copy_n(x_.data(), n_, score);
    }
    if (plan.gene_scale) {
      for (int64_t i = 0; i < n_; ++i) score[i] /= plan.gene_scale[tokens_[i]];
    }
    constexpr int32_t kNoSign = INT32_MAX;  // infinity times 0 is a NaN, with whatever sign
    int32_t low = INT32_MAX, high = 0;
    for (int64_t i = 0; i < n_; ++i) {
      const int32_t bits = detail::bits_of(score[i]) & kNoSign;
      low = std::min(low, bits);
      high = std::max(high, bits);
    }
    for (int64_t i = 0; i < n_; ++i) {
      const int32_t below = high - (detail::bits_of(score[i]) & kNoSign);
      entries_[i] = keyed(static_cast<uint32_t>(below), static_cast<uint32_t>(i));
    }
    return n_ ? bit_width(static_cast<uint32_t>(high - low)) : 0;
  }

  static constexpr float kLargest = 3.40282347e38f;
};

}  // namespace scdd
