// The order of a cell's genes where its values are whole numbers, as counts are: buckets in place of a sort.
//
// Most genes of a cell have one of a few small counts. Those up to 62 have a bucket each, and one pass puts every gene
// into its own, in the order it came: equal counts by the lower token. The few larger ones are sorted by themselves.
// What a count becomes (scaled, log1p) is worked out once a bucket and not once a gene.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "buffer.hpp"
#include "log1p.hpp"
#include "radix_sort.hpp"

namespace scdd {

class CountRank {
 public:
  // Whether all values are whole numbers in 0..65535; rank() may be called then.
  template <class Value>
  bool take(const Value* values, int64_t n) {
    uint8_t* buckets = buckets_.reserve_of<uint8_t>(static_cast<size_t>(n));
    if constexpr (std::is_same_v<Value, uint8_t> || std::is_same_v<Value, uint16_t>) {
      for (int64_t i = 0; i < n; ++i) buckets[i] = static_cast<uint8_t>(std::min<Value>(values[i], kLarge));
      return true;
    } else {
      // A whole number below 2^23 stands, once 2^23 is added, in the low bits of the float; anything else (a fraction,
      // a NaN, a negative, -0.0) changes higher bits or is not got back.
      constexpr float kShift = 0x1p23f;
      constexpr int32_t kShiftBits = 0x4b000000;
      int32_t inexact = 0, used = 0;
      for (int64_t i = 0; i < n; ++i) {
        const auto value = static_cast<float>(values[i]);
        const float shifted = value + kShift;
        inexact |= detail::bits_of(shifted - kShift) ^ detail::bits_of(value);
        const int32_t number = detail::bits_of(shifted) ^ kShiftBits;
        used |= number;
        buckets[i] = static_cast<uint8_t>(number < kLarge ? number : kLarge);
      }
      return !inexact && static_cast<uint32_t>(used) <= 0xffff;
    }
  }

  // Factors for which larger counts are larger floats: none is lost to rounding, underflow or overflow.
  static bool keeps_order(float factor) { return factor >= 0x1p-80f && factor <= 0x1p80f; }

  // Of what take() has seen: tokens in order of count, ties in the order given, and their values; the `most` first.
  // Returns how many counts are not zero: those that are come last and are no tokens. Both outputs have room for n.
  template <class Value, class Token>
  int64_t rank(const Value* values, const Token* tokens, int64_t n, float factor, bool log1p, int64_t most,
               int32_t* ranked, float* ranked_values) {
    // Four parts at a time, each with counters of its own: neighbours are often alike, and an increment would wait for
    // the one before it.
    uint32_t place[kParts][kBuckets] = {};
    const uint8_t* bucket = buckets_.reserve_of<uint8_t>(static_cast<size_t>(n));
    const int64_t part = n / kParts;
    for (int64_t i = 0; i < part; ++i) {
      for (int p = 0; p < kParts; ++p) ++place[p][bucket[p * part + i]];
    }
    for (int64_t i = kParts * part; i < n; ++i) ++place[kParts - 1][bucket[i]];
    uint32_t begin[kBuckets], before = 0;
    for (int b = kBuckets - 1; b >= 0; --b) {
      begin[b] = before;
      for (int p = 0; p < kParts; ++p) before += std::exchange(place[p][b], before);
    }
    for (int64_t i = 0; i < part; ++i) {
      for (int p = 0; p < kParts; ++p) {
        const int64_t at = p * part + i;
        ranked[place[p][bucket[at]]++] = static_cast<int32_t>(tokens[at]);
      }
    }
    for (int64_t i = kParts * part; i < n; ++i) {
      ranked[place[kParts - 1][bucket[i]]++] = static_cast<int32_t>(tokens[i]);
    }
    const int64_t n_large = begin[kLarge - 1], n_counted = begin[0];
    rank_large(values, tokens, n, n_large, factor, ranked, ranked_values);
    float value_of[kBuckets];
    values_of_buckets(factor, log1p, value_of);
    if (log1p) log1p_in_place(ranked_values, n_large);
    most = std::min(most, n_counted);
    for (int b = kLarge - 1; b > 0 && begin[b] < most; --b) {
      std::fill(ranked_values + begin[b], ranked_values + std::min<int64_t>(most, begin[b - 1]), value_of[b]);
    }
    return n_counted;
  }

  // log1p of those scaled counts that take() has seen at `places` [n], which need not be in any order. `values` holds
  // the scaled counts.
  void log1p_of(const uint32_t* places, int64_t n, float factor, float* values) {
    const uint8_t* bucket = buckets_.reserve_of<uint8_t>(0);
    float value_of[kBuckets];
    values_of_buckets(factor, true, value_of);
    for (int64_t i = 0; i < n; ++i) {
      const uint8_t own = bucket[places[i]];
      if (own < kLarge) {
        values[i] = value_of[own];
      } else {
        log1p_in_place(values + i, 1);
      }
    }
  }

 private:
  static constexpr int kBuckets = 64, kParts = 4;
  static constexpr uint8_t kLarge = kBuckets - 1;
  Buffer buckets_, large_, spare_;

  static void values_of_buckets(float factor, bool log1p, float* value_of) {
    for (int b = 0; b < kBuckets; ++b) value_of[b] = static_cast<float>(b) * factor;
    if (log1p) log1p_in_place(value_of, kBuckets);
  }

  template <class Value, class Token>
  void rank_large(const Value* values, const Token* tokens, int64_t n, int64_t n_large, float factor, int32_t* ranked,
                  float* ranked_values) {
    if (n_large == 0) return;
    auto* entries = large_.reserve_of<KeyedEntry>(static_cast<size_t>(n_large));
    auto* spare = spare_.reserve_of<KeyedEntry>(static_cast<size_t>(n_large));
    const uint8_t* bucket = buckets_.reserve_of<uint8_t>(static_cast<size_t>(n));
    const uint8_t* at = bucket;
    for (int64_t k = 0; k < n_large; ++k, ++at) {
      at = static_cast<const uint8_t*>(std::memchr(at, kLarge, static_cast<size_t>(bucket + n - at)));
      const int64_t i = at - bucket;
      entries[k] = keyed(0xffff - static_cast<uint32_t>(static_cast<float>(values[i])), static_cast<uint32_t>(i));
    }
    const KeyedEntry* sorted = sort_keyed(entries, spare, n_large, 16);
    for (int64_t k = 0; k < n_large; ++k) {
      ranked[k] = static_cast<int32_t>(tokens[payload_of(sorted[k])]);
      ranked_values[k] = static_cast<float>(0xffff - key_of(sorted[k])) * factor;
    }
  }
};

}  // namespace scdd
