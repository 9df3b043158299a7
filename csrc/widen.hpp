// Rows held narrow (bytes, 16-bit numbers) to the floats and 32-bit columns of a batch, past the caches; the loops are
// chosen when the program runs, and the portable ones give the same.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "stream.hpp"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define SCDD_WIDEN_X86 1
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the deliberately undefined registers of its own AVX-512 header for a fault of ours.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#endif

namespace scdd {

template <class T>
constexpr bool kWidens = std::is_same_v<T, uint8_t> || std::is_same_v<T, uint16_t> || std::is_same_v<T, float> ||
                         std::is_same_v<T, int32_t>;

// Loops in the order of preference; a test asks for each that the machine has.
enum class WidenPath { scalar, avx2, avx512 };

inline WidenPath best_widen_path() {
#ifdef SCDD_WIDEN_X86
  static const WidenPath best = [] {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
      return WidenPath::avx512;
    }
    return __builtin_cpu_supports("avx2") ? WidenPath::avx2 : WidenPath::scalar;
  }();
  return best;
#else
  return WidenPath::scalar;
#endif
}

namespace widen_scalar {

// Returns whether each number is above the one before it.
template <class To, class From>
bool copy(const From* from, int64_t begin, int64_t end, To* to) {
  bool rising = true;
  for (int64_t i = begin; i < end; ++i) {
    rising &= i == 0 || from[i] > from[i - 1];
    to[i] = static_cast<To>(from[i]);
  }
  return rising;
}

}  // namespace widen_scalar

#ifdef SCDD_WIDEN_X86

// Entries of 4 bytes before the first whole line of `out`, at most n; n where no line begins at an entry.
inline int64_t entries_before_line(const void* out, int64_t n) {
  const auto place = reinterpret_cast<uintptr_t>(out);
  if (place % 4 != 0) return n;
  return std::min<int64_t>(static_cast<int64_t>((64 - place % 64) % 64 / 4), n);
}

#define SCDD_WIDEN_AVX2 __attribute__((target("avx2"))) inline
#define SCDD_WIDEN_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl"))) inline

namespace widen_avx2 {

SCDD_WIDEN_AVX2 __m256i load_8(const uint8_t* from) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}
SCDD_WIDEN_AVX2 __m256i load_8(const uint16_t* from) {
  return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
SCDD_WIDEN_AVX2 __m256i load_8(const int32_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

SCDD_WIDEN_AVX2 __m256i as_bits(float, __m256i numbers) { return _mm256_castps_si256(_mm256_cvtepi32_ps(numbers)); }
SCDD_WIDEN_AVX2 __m256i as_bits(int32_t, __m256i numbers) { return numbers; }

template <bool kOrder, class To, class From>
SCDD_WIDEN_AVX2 bool copy(const From* from, int64_t n, To* to) {
  int64_t i = entries_before_line(to, n);
  if (kOrder && i == 0) i = std::min<int64_t>(16, n);  // the first has none before it
  bool rising = widen_scalar::copy(from, 0, i, to);
  __m256i fell = _mm256_setzero_si256();
  for (; i + 16 <= n; i += 16) {
    for (int64_t k = i; k < i + 16; k += 8) {
      const __m256i numbers = load_8(from + k);
      if constexpr (kOrder) {
        const __m256i above = _mm256_cmpgt_epi32(numbers, load_8(from + k - 1));
        fell = _mm256_or_si256(fell, _mm256_xor_si256(above, _mm256_set1_epi32(-1)));
      }
      _mm256_stream_si256(reinterpret_cast<__m256i*>(to + k), as_bits(To{}, numbers));
    }
  }
  rising &= widen_scalar::copy(from, i, n, to);
  return rising && _mm256_testz_si256(fell, fell);
}

}  // namespace widen_avx2

namespace widen_avx512 {

SCDD_WIDEN_AVX512 __m512i load_16(const uint8_t* from) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
SCDD_WIDEN_AVX512 __m512i load_16(const uint16_t* from) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
SCDD_WIDEN_AVX512 __m512i load_16(const int32_t* from) { return _mm512_loadu_si512(from); }

SCDD_WIDEN_AVX512 __m512i as_bits(float, __m512i numbers) { return _mm512_castps_si512(_mm512_cvtepi32_ps(numbers)); }
SCDD_WIDEN_AVX512 __m512i as_bits(int32_t, __m512i numbers) { return numbers; }

template <bool kOrder, class To, class From>
SCDD_WIDEN_AVX512 bool copy(const From* from, int64_t n, To* to) {
  int64_t i = entries_before_line(to, n);
  if (kOrder && i == 0) i = std::min<int64_t>(16, n);  // the first has none before it
  bool rising = widen_scalar::copy(from, 0, i, to);
  __mmask16 fell = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512i numbers = load_16(from + i);
    if constexpr (kOrder) fell |= _mm512_cmple_epi32_mask(numbers, load_16(from + i - 1));
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), as_bits(To{}, numbers));
  }
  rising &= widen_scalar::copy(from, i, n, to);
  return rising && fell == 0;
}

}  // namespace widen_avx512

#endif  // SCDD_WIDEN_X86

namespace detail {

template <bool kOrder, class To, class From>
bool widen(const From* from, int64_t n, To* to, WidenPath path) {
#ifdef SCDD_WIDEN_X86
  if (path == WidenPath::avx512) return widen_avx512::copy<kOrder>(from, n, to);
  if (path == WidenPath::avx2) return widen_avx2::copy<kOrder>(from, n, to);
#endif
  (void)path;
  return widen_scalar::copy(from, 0, n, to);
}

}  // namespace detail

// Bytes, 16-bit numbers or floats to floats.
template <class Value>
void widen_values(const Value* from, int64_t n, float* to, WidenPath path = best_widen_path()) {
  if constexpr (std::is_same_v<Value, float>) {
    stream_copy(to, from, static_cast<size_t>(n) * sizeof(float));
  } else {
    detail::widen<false>(from, n, to, path);
  }
}

// Genes of 16 or 32 bits; returns whether each is above the one before it.
template <class Gene>
bool widen_genes(const Gene* from, int64_t n, int32_t* to, WidenPath path = best_widen_path()) {
  return detail::widen<true>(from, n, to, path);
}

}  // namespace scdd

#if defined(SCDD_WIDEN_X86) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
