// A stable sort of 32-bit keys that carry 32 bits of payload, for the few hundred to few thousand genes of a cell.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace scdd {

// The key in the upper half, so that comparing entries compares keys first.
using KeyedEntry = uint64_t;

inline KeyedEntry keyed(uint32_t key, uint32_t payload) { return static_cast<uint64_t>(key) << 32 | payload; }
inline uint32_t key_of(KeyedEntry entry) { return static_cast<uint32_t>(entry >> 32); }
inline uint32_t payload_of(KeyedEntry entry) { return static_cast<uint32_t>(entry); }

// Bits needed to write a number: 0 for 0.
inline int bit_width(uint32_t number) { return number ? 32 - __builtin_clz(number) : 0; }

namespace detail {

// Setting up the counters costs as much as sorting this many entries by comparison.
constexpr int64_t kWorthCounting = 96;
// 512 counters and their write positions stay in the first-level cache; three digits hold the 27 bits that the
// float values of one cell usually differ in.
constexpr int kDigitBits = 9;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kMaxPasses = (32 + kDigitBits - 1) / kDigitBits;

}  // namespace detail

// Sorts by key, equal keys by payload; the payloads of equal keys must already be ascending. Keys are below
// 2^key_bits. Least significant digit first; the two arrays of `n` swap roles, and the sorted one is returned.
inline KeyedEntry* sort_keyed(KeyedEntry* entries, KeyedEntry* spare, int64_t n, int key_bits) {
  using namespace detail;
  if (key_bits == 0) return entries;
  if (n < kWorthCounting) {
    std::sort(entries, entries + n);
    return entries;
  }
  const int passes = (key_bits + kDigitBits - 1) / kDigitBits;
  uint32_t counts[kMaxPasses][kDigits] = {};
  for (int64_t i = 0; i < n; ++i) {
    uint32_t key = key_of(entries[i]);
    for (int pass = 0; pass < passes; ++pass, key >>= kDigitBits) ++counts[pass][key & (kDigits - 1)];
  }
  for (int pass = 0; pass < passes; ++pass) {
    const int shift = 32 + pass * kDigitBits;
    uint32_t* place = counts[pass];
    if (place[entries[0] >> shift & (kDigits - 1)] == static_cast<uint64_t>(n)) continue;  // all alike
    uint32_t before = 0;
    for (int digit = 0; digit < kDigits; ++digit) before += std::exchange(place[digit], before);
    for (int64_t i = 0; i < n; ++i) spare[place[entries[i] >> shift & (kDigits - 1)]++] = entries[i];
    std::swap(entries, spare);
  }
  return entries;
}

// The same with keys apart, for at most 65,536 of them: half the bytes move, and fewer times. The upper 16 bits of the
// keys are sorted in two passes; the few neighbours that then stand in the wrong order are put right one by one, as far
// as the `wanted` lowest reach. Returns the places of the lowest keys (in the low 16 bits), or null where there were
// too many to put right. `entries` and `spare` have room for n.
inline const uint32_t* sort_few(const uint32_t* keys, int64_t n, int key_bits, int64_t wanted, uint32_t* entries,
                                uint32_t* spare) {
  constexpr int kHighBits = 16, kHalf = 1 << 8;
  const int shift = std::max(0, key_bits - kHighBits);
  uint32_t counts[2][kHalf] = {};
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t high = keys[i] >> shift;
    entries[i] = high << 16 | static_cast<uint32_t>(i);
    ++counts[0][high & (kHalf - 1)];
    ++counts[1][high >> 8];
  }
  for (int pass = 0; pass < 2; ++pass) {
    const int place_bits = 16 + 8 * pass;
    uint32_t* place = counts[pass];
    uint32_t before = 0;
    for (int digit = 0; digit < kHalf; ++digit) before += std::exchange(place[digit], before);
    for (int64_t i = 0; i < n; ++i) spare[place[entries[i] >> place_bits & (kHalf - 1)]++] = entries[i];
    std::swap(entries, spare);
  }
  if (shift == 0) return entries;
  const auto key_at = [&](int64_t place) { return keys[entries[place] & 0xffff]; };
  int64_t moves = 4 * n;
  for (int64_t i = 1; i < n; ++i) {
    const uint32_t entry = entries[i], key = key_at(i);
    if (i >= wanted && (entry ^ entries[i - 1]) >> 16) break;
    int64_t place = i;
    for (; place > 0 && key_at(place - 1) > key; --place) {
      entries[place] = entries[place - 1];
      if (--moves < 0) return nullptr;
    }
    entries[place] = entry;
  }
  return entries;
}

// Keeps, in their order, the entries that can be among the `wanted` lowest keys: those, and few more.
inline int64_t keep_lowest(KeyedEntry* entries, int64_t n, int key_bits, int64_t wanted) {
  constexpr int kBits = 11;
  uint32_t counts[1 << kBits] = {};
  const int shift = 32 + std::max(0, key_bits - kBits);
  for (int64_t i = 0; i < n; ++i) ++counts[entries[i] >> shift];
  uint64_t last = 0;  // highest leading digit that is kept
  for (int64_t kept = counts[0]; kept < wanted; kept += counts[last]) ++last;
  int64_t kept = 0;
  for (int64_t i = 0; i < n; ++i) {
    const KeyedEntry entry = entries[i];
    entries[kept] = entry;
    kept += (entry >> shift) <= last;
  }
  return kept;
}

}  // namespace scdd
