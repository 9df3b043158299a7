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
#include <utility>

#include "buffer.hpp"
#include "count_rank.hpp"
#include "csr.hpp"
#include "log1p.hpp"
#include "radix_sort.hpp"
#include "token_order.hpp"
#include "token_score.hpp"

namespace scdd {

struct TokenPlan {
  const int32_t* token_of_gene;  // [n_vars]; -1 drops the gene; genes with one token are added up
  const float* gene_scale;       // [n_tokens], positive; or null for 1
  int64_t max_genes;             // at least 1
  double target_sum;             // 0: no scaling
  bool log1p;
  bool logged;         // values are log1p already; they are ranked by expm1, as the counts would be
  int64_t max_tokens;  // of all cells together; at most INT32_MAX, for cu_seqlens to hold them
  int64_t n_tokens = INT32_MAX;  // no token is this or above
  bool same_tokens = false;      // every gene is its own token
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
    if (plan.same_tokens && rank_counts(values, genes, n, total, plan)) return;
    map(row, values, genes, n, plan);
    if (!ascending(tokens_, n_)) merge(plan);
    check_total(row, total, plan);
    if (rank_counts(x_, tokens_, n_, total, plan)) return;
    detected_ = n_;
    const float factor = factor_of(total, plan);
    // Then there are few different values, though the order follows from the scale of genes as well.
    const bool counts = plan.log1p && CountRank::keeps_order(factor) && counts_.take(x_, n_);
    scale(factor);
    rank(plan);
    if (counts) {
      counts_.log1p_of(few_, n_, factor, ranked_values_);
    } else if (plan.log1p) {
      log1p_in_place(ranked_values_, n_);
    }
  }

  int64_t n() const { return n_; }
  int64_t detected() const { return detected_; }  // n() before max_genes
  const int32_t* genes() const { return ranked_tokens_; }
  const float* values() const { return ranked_values_; }

 private:
  // Of a cell: tokens and values in the order of tokens, and in that of rank.
  Buffer cell_[7], taken_, before_;
  int32_t *tokens_ = nullptr, *ranked_tokens_ = nullptr;
  float *x_ = nullptr, *ranked_values_ = nullptr;
  KeyedEntry *entries_ = nullptr, *spare_ = nullptr;
  uint32_t* few_ = nullptr;
  CountRank counts_;
  detail::OrderByBits order_ = order_by_token();
  detail::DivideByScale divide_ = divide_by_scale();
  int64_t room_ = 0, n_ = 0, detected_ = 0;

  void reserve(int64_t n, int64_t row) {
    if (n > INT32_MAX) fail_value("row " + std::to_string(row) + " has " + std::to_string(n) + " entries");
    if (room_ >= n) return;
    room_ = 0;  // should memory run out
    const size_t size = static_cast<size_t>(n) + static_cast<size_t>(n) / 4;
    tokens_ = cell_[0].reserve_of<int32_t>(size);
    ranked_tokens_ = cell_[1].reserve_of<int32_t>(size);
    x_ = cell_[2].reserve_of<float>(size);
    ranked_values_ = cell_[3].reserve_of<float>(size);
    entries_ = cell_[4].reserve_of<KeyedEntry>(size);
    spare_ = cell_[5].reserve_of<KeyedEntry>(size);
    few_ = cell_[6].reserve_of<uint32_t>(2 * size);
    room_ = static_cast<int64_t>(size);
  }

  // Counts that are ranked as they are, each token at most once and in order; false for anything else.
  template <class Value, class Token>
  bool rank_counts(const Value* values, const Token* tokens, int64_t n, double total, const TokenPlan& plan) {
    if (plan.gene_scale) return false;
    const float factor = factor_of(total, plan);
    if (!CountRank::keeps_order(factor) || !ascending(tokens, n) || !counts_.take(values, n)) return false;
    detected_ = counts_.rank(values, tokens, n, factor, plan.log1p, plan.max_genes, ranked_tokens_, ranked_values_);
    n_ = std::min(detected_, plan.max_genes);
    return true;
  }

  template <class Value, class Gene>
  void map(int64_t row, const Value* values, const Gene* genes, int64_t n, const TokenPlan& plan) {
    if (plan.same_tokens && copy_all(values, genes, n)) return;
    if (!keep_mapped(values, genes, n, plan)) {
      while (*values >= Value{0} && static_cast<float>(*values) <= kLargest) ++values;
      fail_token_value(row, static_cast<float>(*values));
    }
  }

  // Where nothing is dropped; false if a value is zero or odd.
  template <class Value, class Gene>
  bool copy_all(const Value* values, const Gene* genes, int64_t n) {
    int odd = 0;
    for (int64_t i = 0; i < n; ++i) {
      const auto value = static_cast<float>(values[i]);
      odd |= !(value > 0.0f) | !(value <= kLargest);
      x_[i] = value;
    }
    if (odd) return false;
    for (int64_t i = 0; i < n; ++i) tokens_[i] = static_cast<int32_t>(genes[i]);
    n_ = n;
    return true;
  }

  // No branch on "kept or not": it is as good as random, and a wrong guess costs more than a wasted store. False if a
  // value is odd.
  template <class Value, class Gene>
  bool keep_mapped(const Value* values, const Gene* genes, int64_t n, const TokenPlan& plan) {
    int32_t* tokens = tokens_;
    float* x = x_;
    int64_t kept = 0;
    int odd = 0;
    for (int64_t i = 0; i < n; ++i) {
      const auto value = static_cast<float>(values[i]);
      const int32_t token = plan.token_of_gene[genes[i]];
      odd |= !(value >= 0.0f) | !(value <= kLargest);
      tokens[kept] = token;
      x[kept] = value;
      kept += (token >= 0) & (value > 0.0f);
    }
    n_ = kept;
    return !odd;
  }

  template <class Token>
  static bool ascending(const Token* tokens, int64_t n) {
    int wrong = 0;  // an OR over all, and not an early exit, so that the loop vectorises
    for (int64_t i = 1; i < n; ++i) wrong |= tokens[i] <= tokens[i - 1];
    return !wrong;
  }

  // Orders by token, and adds duplicates up in the order in which they are stored.
  void merge(const TokenPlan& plan) {
    if (plan.n_tokens <= kBitTokens && n_ >= kWorthBits && order_bits(plan.n_tokens)) return;
    merge_by_sort();
  }

  bool order_bits(int64_t n_tokens) {
    const auto words = static_cast<size_t>(n_tokens / 64 + 1);
    auto* taken = taken_.reserve_of<uint64_t>(words);
    auto* before = before_.reserve_of<uint32_t>(words);
    if (!order_(tokens_, x_, n_, n_tokens, taken, before, ranked_tokens_, ranked_values_)) return false;
    std::swap(tokens_, ranked_tokens_);
    std::swap(x_, ranked_values_);
    return true;
  }

  void merge_by_sort() {
    uint32_t largest = 0;
    for (int64_t i = 0; i < n_; ++i) {
      entries_[i] = keyed(static_cast<uint32_t>(tokens_[i]), static_cast<uint32_t>(i));
      largest = std::max(largest, static_cast<uint32_t>(tokens_[i]));
    }
    const KeyedEntry* sorted = sort_keyed(entries_, spare_, n_, bit_width(largest));
    float* sums = ranked_values_;
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
    std::swap(x_, ranked_values_);
  }

  // Values are sound when this is called, so a wrong total was not added up from them.
  static void check_total(int64_t row, double total, const TokenPlan& plan) {
    if (plan.target_sum == 0 || (total >= 0 && !std::isinf(total))) return;
    fail_value("row " + std::to_string(row) + " is said to have the total " + std::to_string(total));
  }

  static float factor_of(double total, const TokenPlan& plan) {
    if (plan.target_sum == 0) return 1.0f;
    return static_cast<float>(total == 0 ? 0.0 : plan.target_sum / total);
  }

  void scale(float factor) {
    for (int64_t i = 0; i < n_; ++i) x_[i] *= factor;  // 1 where nothing is scaled
  }

  void rank(const TokenPlan& plan) {
    const int64_t n = n_;
    n_ = std::min(n, plan.max_genes);
    auto* keys = reinterpret_cast<uint32_t*>(ranked_tokens_);
    const int key_bits = make_keys(plan, n, keys);
    const uint32_t* few = nullptr;
    if (n <= kFew) few = sort_few(keys, n, key_bits, n_, few_, few_ + n);
    if (few) {
      for (int64_t i = 0; i < n_; ++i) put(i, few[i] & 0xffff);
    } else {
      for (int64_t i = 0; i < n; ++i) entries_[i] = keyed(keys[i], static_cast<uint32_t>(i));
      const int64_t kept = n > n_ ? keep_lowest(entries_, n, key_bits, n_) : n;
      const KeyedEntry* sorted = sort_keyed(entries_, spare_, kept, key_bits);
      for (int64_t i = 0; i < n_; ++i) put(i, payload_of(sorted[i]));
    }
  }

  void put(int64_t rank, uint32_t place) {
    ranked_tokens_[rank] = tokens_[place];
    ranked_values_[rank] = x_[place];
    few_[rank] = place;
  }

  // Floats that are not negative order as their bits do. Taken from the highest, the keys of a cell need fewer bits.
  int make_keys(const TokenPlan& plan, int64_t n, uint32_t* keys) {
    float* score = ranked_values_;
    if (plan.logged && plan.gene_scale) {
      for (int64_t i = 0; i < n; ++i) score[i] = static_cast<float>(std::expm1(static_cast<double>(x_[i])));
    } else {
      std::copy_n(x_, n, score);
    }
    if (plan.gene_scale) {
      divide_(score, tokens_, n, plan.gene_scale);
    }
    return differences_to_highest(score, n, keys);
  }

  // Returns how many bits they need.
  static int differences_to_highest(const float* score, int64_t n, uint32_t* keys) {
    constexpr int32_t kNoSign = INT32_MAX;  // infinity times 0 is a NaN, with whatever sign
    int32_t low = INT32_MAX, high = 0;
    for (int64_t i = 0; i < n; ++i) {
      const int32_t bits = detail::bits_of(score[i]) & kNoSign;
      low = std::min(low, bits);
      high = std::max(high, bits);
    }
    for (int64_t i = 0; i < n; ++i) {
      const int32_t below = high - (detail::bits_of(score[i]) & kNoSign);
      keys[i] = static_cast<uint32_t>(below);
    }
    return n ? bit_width(static_cast<uint32_t>(high - low)) : 0;
  }

  static constexpr float kLargest = 3.40282347e38f;
  static constexpr int64_t kFew = 1 << 16;          // places are 16 bits
  static constexpr int64_t kBitTokens = 1 << 18;    // 48 KiB of bits and places
  static constexpr int64_t kWorthBits = 64;         // below this, clearing them costs more than a sort
};

}  // namespace scdd
