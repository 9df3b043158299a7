// Entries of a cell into the order of their tokens, where each token comes once: a bit for every token that is there,
// and the place of an entry is the number of bits before its own. Nothing is compared and nothing can be guessed wrong.
#pragma once

#include <algorithm>
#include <cstdint>

namespace scdd {

namespace detail {

// False, with nothing written but `taken` and `before` [n_tokens / 64 + 1], if a token comes twice.
inline __attribute__((always_inline)) bool order_by_bits(const int32_t* tokens, const float* x, int64_t n,
                                                         int64_t n_tokens, uint64_t* taken, uint32_t* before,
                                                         int32_t* ordered_tokens, float* ordered_x) {
  const int64_t words = n_tokens / 64 + 1;
  std::fill_n(taken, words, uint64_t{0});
  for (int64_t i = 0; i < n; ++i) {
    const auto token = static_cast<uint32_t>(tokens[i]);
    taken[token / 64] |= uint64_t{1} << token % 64;
  }
  uint32_t sum = 0;
  for (int64_t word = 0; word < words; ++word) {
    before[word] = sum;
    sum += static_cast<uint32_t>(__builtin_popcountll(taken[word]));
  }
  if (sum != static_cast<uint64_t>(n)) return false;
  for (int64_t i = 0; i < n; ++i) {
    const auto token = static_cast<uint32_t>(tokens[i]);
    const uint64_t lower = taken[token / 64] & ((uint64_t{1} << token % 64) - 1);
    const uint32_t place = before[token / 64] + static_cast<uint32_t>(__builtin_popcountll(lower));
    ordered_tokens[place] = tokens[i];
    ordered_x[place] = x[i];
  }
  return true;
}

using OrderByBits = bool (*)(const int32_t*, const float*, int64_t, int64_t, uint64_t*, uint32_t*, int32_t*, float*);

inline bool order_portable(const int32_t* tokens, const float* x, int64_t n, int64_t n_tokens, uint64_t* taken,
                           uint32_t* before, int32_t* ordered_tokens, float* ordered_x) {
  return order_by_bits(tokens, x, n, n_tokens, taken, before, ordered_tokens, ordered_x);
}

#if defined(__x86_64__)
__attribute__((target("popcnt"))) inline bool order_popcnt(const int32_t* tokens, const float* x, int64_t n,
                                                           int64_t n_tokens, uint64_t* taken, uint32_t* before,
                                                           int32_t* ordered_tokens, float* ordered_x) {
  return order_by_bits(tokens, x, n, n_tokens, taken, before, ordered_tokens, ordered_x);
}
#endif

}  // namespace detail

// The one for this processor: without its own instruction, counting bits takes a dozen.
inline detail::OrderByBits order_by_token() {
#if defined(__x86_64__)
  static const bool fast = __builtin_cpu_supports("popcnt");
  if (fast) return detail::order_popcnt;
#endif
  return detail::order_portable;
}

}  // namespace scdd
