// AVX2 and AVX-512 loops, chosen when the program runs: the library itself is built for any machine.
#include "packed_kernels.hpp"

#include <algorithm>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define SCDD_PACKED_X86 1
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the deliberately undefined registers of its own AVX-512 header for a fault of ours.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#endif

namespace scdd {

namespace {

constexpr PackedKernels kScalar{"scalar", packed_scalar::summarise, packed_scalar::genes, packed_scalar::counts,
                                packed_scalar::dictionary, packed_scalar::stream_genes, packed_scalar::stream_counts,
                                packed_scalar::gap_codes, packed_scalar::count_codes};

#ifdef SCDD_PACKED_X86

#define SCDD_AVX2 __attribute__((target("avx2,popcnt")))
#define SCDD_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,popcnt")))

// Entries before the first whole line of `out`, at most n.
inline int64_t before_line(const void* out, int64_t n) {
  const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) % 64);
  return std::min<int64_t>(past == 0 ? 0 : (64 - past) / 4, n);
}

// Whether no number of entries before it leads to a whole line.
inline bool odd_place(const void* out) { return reinterpret_cast<uintptr_t>(out) % 4 != 0; }

namespace avx2 {

SCDD_AVX2 uint64_t sum_lanes(__m256i lanes) {
  return static_cast<uint64_t>(_mm256_extract_epi64(lanes, 0)) +
         static_cast<uint64_t>(_mm256_extract_epi64(lanes, 1)) +
         static_cast<uint64_t>(_mm256_extract_epi64(lanes, 2)) + static_cast<uint64_t>(_mm256_extract_epi64(lanes, 3));
}

SCDD_AVX2 CodeSummary summarise(const uint8_t* codes, int64_t n) {
  const __m256i escape = _mm256_set1_epi8(-1), zero = _mm256_setzero_si256();
  __m256i sum = zero, largest = zero;
  uint64_t escapes = 0;
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m256i code = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i));
    const __m256i is_escape = _mm256_cmpeq_epi8(code, escape);
    const __m256i kept = _mm256_andnot_si256(is_escape, code);
    sum = _mm256_add_epi64(sum, _mm256_sad_epu8(kept, zero));
    largest = _mm256_max_epu8(largest, kept);
    escapes += static_cast<uint64_t>(__builtin_popcount(static_cast<uint32_t>(_mm256_movemask_epi8(is_escape))));
  }
  CodeSummary found = packed_scalar::summarise(codes + i, n - i);
  found.sum += sum_lanes(sum);
  found.escapes += escapes;
  alignas(32) uint8_t lanes[32];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), largest);
  for (const uint8_t lane : lanes) found.largest = lane > found.largest ? lane : found.largest;
  return found;
}

// Sixteen gaps below 255 sum to less than 2^16, so that the running sum within them needs 16 bits only.
SCDD_AVX2 __m256i prefix_of_16(__m256i gaps) {
  gaps = _mm256_add_epi16(gaps, _mm256_slli_si256(gaps, 2));
  gaps = _mm256_add_epi16(gaps, _mm256_slli_si256(gaps, 4));
  gaps = _mm256_add_epi16(gaps, _mm256_slli_si256(gaps, 8));
  // The shifts stop at the middle: carry the sum of the lower eight over to the upper.
  const __m256i low_half = _mm256_permute2x128_si256(gaps, gaps, 0x08);
  const __m256i last = _mm256_set1_epi16(static_cast<short>(0x0F0E));
  return _mm256_add_epi16(gaps, _mm256_shuffle_epi8(low_half, last));
}

SCDD_AVX2 void genes(const uint8_t* gaps, int64_t n, const uint8_t* list, bool wide, int32_t* out) {
  const __m128i escape = _mm_set1_epi8(-1);
  Escapes escapes{list, wide};
  uint32_t gene = 0;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(gaps + i));
    if (_mm_movemask_epi8(_mm_cmpeq_epi8(codes, escape)) != 0) {
      for (int64_t k = i; k < i + 16; ++k) {
        gene += gaps[k] == kEscape ? escapes.gap() : gaps[k];
        out[k] = static_cast<int32_t>(gene);
      }
      continue;
    }
    const __m256i sums = prefix_of_16(_mm256_cvtepu8_epi16(codes));
    const __m256i before = _mm256_set1_epi32(static_cast<int32_t>(gene));
    const __m128i high = _mm256_extracti128_si256(sums, 1);
    const __m256i first = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(sums)), second = _mm256_cvtepu16_epi32(high);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_add_epi32(before, first));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i + 8), _mm256_add_epi32(before, second));
    gene += static_cast<uint32_t>(_mm_extract_epi16(high, 7));
  }
  packed_scalar::genes_from(gaps, i, n, escapes, gene, out);
}

SCDD_AVX2 void counts(const uint8_t* codes, int64_t n, const uint8_t* list, bool wide, float* out) {
  const __m128i escape = _mm_set1_epi8(-1);
  Escapes escapes{list, wide};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m128i code = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i));
    _mm256_storeu_ps(out + i, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(code)));
    _mm256_storeu_ps(out + i + 8, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(code, 8))));
    uint32_t mask = static_cast<uint32_t>(_mm_movemask_epi8(_mm_cmpeq_epi8(code, escape)));
    for (; mask != 0; mask &= mask - 1) out[i + __builtin_ctz(mask)] = escapes.value();
  }
  packed_scalar::counts_from(codes, i, n, escapes, out);
}

SCDD_AVX2 void put_half_lines(void* out, __m256i first, __m256i second) {
  _mm256_stream_si256(static_cast<__m256i*>(out), first);
  _mm256_stream_si256(static_cast<__m256i*>(out) + 1, second);
}

SCDD_AVX2 StreamedCodes stream_genes(const CodeStream& gaps, Ahead& ahead, int32_t* out) {
  const __m128i escape = _mm_set1_epi8(-1), zero = _mm_setzero_si128();
  StreamedCodes met;
  int64_t i = odd_place(out) ? gaps.n : before_line(out, gaps.n);
  if (i == 0) i = std::min<int64_t>(16, gaps.n);  // the first gap is unlike the others: it may be 0
  packed_scalar::stream_genes_part(gaps, 0, i, met, out);
  for (; i + 16 <= gaps.n; i += 16) {
    ahead.step();
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(gaps.codes + i));
    if (_mm_movemask_epi8(_mm_cmpeq_epi8(codes, escape)) != 0) {
      packed_scalar::stream_genes_part(gaps, i, i + 16, met, out);
      continue;
    }
    met.rising &= _mm_movemask_epi8(_mm_cmpeq_epi8(codes, zero)) == 0;
    const __m256i sums = prefix_of_16(_mm256_cvtepu8_epi16(codes));
    const __m256i before = _mm256_set1_epi32(static_cast<int32_t>(met.last));
    const __m128i high = _mm256_extracti128_si256(sums, 1);
    put_half_lines(out + i, _mm256_add_epi32(before, _mm256_cvtepu16_epi32(_mm256_castsi256_si128(sums))),
                   _mm256_add_epi32(before, _mm256_cvtepu16_epi32(high)));
    met.last += static_cast<uint32_t>(_mm_extract_epi16(high, 7));
  }
  packed_scalar::stream_genes_part(gaps, i, gaps.n, met, out);
  return met;
}

SCDD_AVX2 StreamedCodes stream_counts(const CodeStream& codes, Ahead& ahead, float* out) {
  const __m128i escape = _mm_set1_epi8(-1);
  StreamedCodes met;
  int64_t i = odd_place(out) ? codes.n : before_line(out, codes.n);
  packed_scalar::stream_counts_part(codes, 0, i, met, out);
  for (; i + 16 <= codes.n; i += 16) {
    ahead.step();
    const __m128i code = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes.codes + i));
    if (_mm_movemask_epi8(_mm_cmpeq_epi8(code, escape)) != 0) {
      packed_scalar::stream_counts_part(codes, i, i + 16, met, out);
      continue;
    }
    const __m256 first = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(code));
    const __m256 second = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(code, 8)));
    put_half_lines(out + i, _mm256_castps_si256(first), _mm256_castps_si256(second));
  }
  packed_scalar::stream_counts_part(codes, i, codes.n, met, out);
  return met;
}

// 32 numbers to bytes, 255 for those above 254 (as unsigned). The packs work within halves: put them in order again.
SCDD_AVX2 __m256i saturate_32(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i top = _mm256_set1_epi32(255), order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i low = _mm256_packus_epi32(_mm256_min_epu32(a, top), _mm256_min_epu32(b, top));
  const __m256i high = _mm256_packus_epi32(_mm256_min_epu32(c, top), _mm256_min_epu32(d, top));
  return _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order);
}

SCDD_AVX2 __m256i load_8(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

SCDD_AVX2 bool gap_codes(const int32_t* genes, int64_t n, uint8_t* codes) {
  if (n == 0) return true;
  bool rising = packed_scalar::gap_codes(genes, 1, codes);
  __m256i fell = _mm256_setzero_si256();
  int64_t i = 1;
  for (; i + 32 <= n; i += 32) {
    __m256i gap[4];
    for (int k = 0; k < 4; ++k) {
      const __m256i before = load_8(genes + i + 8 * k - 1), gene = load_8(genes + i + 8 * k);
      gap[k] = _mm256_sub_epi32(gene, before);
      fell = _mm256_or_si256(fell, _mm256_cmpgt_epi32(before, gene));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + i), saturate_32(gap[0], gap[1], gap[2], gap[3]));
  }
  rising &= packed_scalar::gap_codes_from(genes, i, n, genes[i - 1], codes);
  return rising && _mm256_testz_si256(fell, fell);
}

// What a byte cannot hold becomes a negative number, which is large as an unsigned one. So does NaN.
SCDD_AVX2 __m256i whole_or_negative(const float* values) {
  const __m256i bits = load_8(values);
  const __m256i whole = _mm256_cvttps_epi32(_mm256_castsi256_ps(bits));
  const __m256i same = _mm256_cmpeq_epi32(_mm256_castps_si256(_mm256_cvtepi32_ps(whole)), bits);
  return _mm256_or_si256(whole, _mm256_xor_si256(same, _mm256_set1_epi32(-1)));
}

SCDD_AVX2 void count_codes(const float* values, int64_t n, uint8_t* codes) {
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + i),
                        saturate_32(whole_or_negative(values + i), whole_or_negative(values + i + 8),
                                    whole_or_negative(values + i + 16), whole_or_negative(values + i + 24)));
  }
  packed_scalar::count_codes(values + i, n - i, codes + i);
}

}  // namespace avx2

namespace avx512 {

SCDD_AVX512 CodeSummary summarise(const uint8_t* codes, int64_t n) {
  const __m512i escape = _mm512_set1_epi8(-1), zero = _mm512_setzero_si512();
  __m512i sum = zero, largest = zero;
  uint64_t escapes = 0;
  for (int64_t i = 0; i < n; i += 64) {
    const __mmask64 inside = n - i >= 64 ? ~__mmask64{0} : (__mmask64{1} << (n - i)) - 1;
    const __m512i code = _mm512_maskz_loadu_epi8(inside, codes + i);
    const __mmask64 is_escape = _mm512_cmpeq_epi8_mask(code, escape);
    const __m512i kept = _mm512_maskz_mov_epi8(~is_escape, code);
    sum = _mm512_add_epi64(sum, _mm512_sad_epu8(kept, zero));
    largest = _mm512_max_epu8(largest, kept);
    escapes += static_cast<uint64_t>(__builtin_popcountll(is_escape));
  }
  CodeSummary found{static_cast<uint64_t>(_mm512_reduce_add_epi64(sum)), escapes, 0};
  alignas(64) uint8_t lanes[64];
  _mm512_store_si512(lanes, largest);
  for (const uint8_t lane : lanes) found.largest = lane > found.largest ? lane : found.largest;
  return found;
}

// The next popcount(mask) entries of a list, as 32-bit lanes; nothing past them is read.
SCDD_AVX512 __m512i take_narrow(const uint8_t*& list, int count) {
  const __m256i half = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), list);
  list += 2 * count;
  return _mm512_cvtepu16_epi32(half);
}

SCDD_AVX512 __m512i take_wide(const uint8_t*& list, int count) {
  const __m512i entries = _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << count) - 1), list);
  list += 4 * count;
  return entries;
}

// Lanes of mask are replaced by the next entries of the list.
SCDD_AVX512 __m512i patch(__m512i lanes, __mmask16 mask, __m512i entries) {
  return _mm512_mask_expand_epi32(lanes, mask, entries);
}

SCDD_AVX512 __m512i prefix_of_16(__m512i gaps) {
  const __m512i zero = _mm512_setzero_si512();
  gaps = _mm512_add_epi32(gaps, _mm512_alignr_epi32(gaps, zero, 15));
  gaps = _mm512_add_epi32(gaps, _mm512_alignr_epi32(gaps, zero, 14));
  gaps = _mm512_add_epi32(gaps, _mm512_alignr_epi32(gaps, zero, 12));
  return _mm512_add_epi32(gaps, _mm512_alignr_epi32(gaps, zero, 8));
}

SCDD_AVX512 void genes(const uint8_t* gaps, int64_t n, const uint8_t* list, bool wide, int32_t* out) {
  const __m128i escape = _mm_set1_epi8(-1);
  const __m512i last = _mm512_set1_epi32(15);
  __m512i before = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 inside = n - i >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << (n - i)) - 1);
    const __m128i codes = _mm_maskz_loadu_epi8(inside, gaps + i);
    const __mmask16 escaped = _mm_cmpeq_epi8_mask(codes, escape);
    __m512i gap = _mm512_cvtepu8_epi32(codes);
    if (escaped != 0) {
      const int count = __builtin_popcount(escaped);
      gap = patch(gap, escaped, wide ? take_wide(list, count) : take_narrow(list, count));
    }
    const __m512i gene = _mm512_add_epi32(before, prefix_of_16(gap));
    _mm512_mask_storeu_epi32(out + i, inside, gene);
    before = _mm512_permutexvar_epi32(last, gene);
  }
}

SCDD_AVX512 void counts(const uint8_t* codes, int64_t n, const uint8_t* list, bool wide, float* out) {
  const __m128i escape = _mm_set1_epi8(-1);
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 inside = n - i >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << (n - i)) - 1);
    const __m128i code = _mm_maskz_loadu_epi8(inside, codes + i);
    const __mmask16 escaped = _mm_cmpeq_epi8_mask(code, escape);
    __m512i value = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(code)));
    if (escaped != 0) {
      const int count = __builtin_popcount(escaped);
      value = patch(value, escaped,
                    wide ? take_wide(list, count)
                         : _mm512_castps_si512(_mm512_cvtepi32_ps(take_narrow(list, count))));
    }
    _mm512_mask_storeu_epi32(out + i, inside, value);
  }
}

// As take_narrow() and take_wide(), but of what is left of the list only; zeros after that.
SCDD_AVX512 __m512i take_left(const CodeStream& stream, int64_t taken, int count) {
  const int left = static_cast<int>(std::min<int64_t>(count, std::max<int64_t>(stream.entries - taken, 0)));
  const uint8_t* list = stream.list + (left ? taken * (stream.wide ? 4 : 2) : 0);
  return stream.wide ? take_wide(list, left) : take_narrow(list, left);
}

// Writes whole lines as such, so that none is fetched before it is overwritten, and masked parts at both ends.
template <bool kWhole>
SCDD_AVX512 void put_line(void* out, __mmask16 inside, __m512i line) {
  if constexpr (kWhole) {
    _mm512_stream_si512(static_cast<__m512i*>(out), line);
  } else {
    _mm512_mask_storeu_epi32(out, inside, line);
  }
}

struct GeneLoop {
  const CodeStream& gaps;
  int32_t* out;
  __m512i before;
  __mmask16 flat;  // lanes in which some gene was not above the one before it
  int64_t escapes;

  template <bool kWhole>
  SCDD_AVX512 inline __attribute__((always_inline)) void step(int64_t i, __mmask16 inside) {
    const auto* from = reinterpret_cast<const __m128i*>(gaps.codes + i);
    const __m128i codes = kWhole ? _mm_loadu_si128(from) : _mm_maskz_loadu_epi8(inside, from);
    const __mmask16 escaped = _mm_cmpeq_epi8_mask(codes, _mm_set1_epi8(-1));
    __m512i gap = _mm512_cvtepu8_epi32(codes);
    if (__builtin_expect(escaped != 0, 0)) {
      const int count = __builtin_popcount(escaped);
      gap = patch(gap, escaped, take_left(gaps, escapes, count));
      escapes += count;
    }
    const __mmask16 none = _mm512_testn_epi32_mask(gap, gap);
    flat |= kWhole ? none : static_cast<__mmask16>(none & inside);
    const __m512i sums = prefix_of_16(gap);
    put_line<kWhole>(out + i, inside, _mm512_add_epi32(before, sums));
    before = _mm512_add_epi32(before, _mm512_permutexvar_epi32(_mm512_set1_epi32(15), sums));
  }
};

SCDD_AVX512 StreamedCodes stream_genes(const CodeStream& gaps, Ahead& ahead, int32_t* out) {
  if (gaps.n == 0 || odd_place(out)) return packed_scalar::stream_genes(gaps, ahead, out);
  GeneLoop loop{gaps, out, _mm512_setzero_si512(), 0, 0};
  int64_t i = before_line(out, gaps.n);
  if (i == 0) i = std::min<int64_t>(16, gaps.n);
  loop.step<false>(0, static_cast<__mmask16>((1u << i) - 1));
  loop.flat &= static_cast<__mmask16>(~1u);  // the first gap counts from 0: gene 0 is above nothing
  for (; i + 16 <= gaps.n; i += 16) {
    ahead.step();
    loop.step<true>(i, 0xFFFF);
  }
  if (i < gaps.n) loop.step<false>(i, static_cast<__mmask16>((1u << (gaps.n - i)) - 1));
  return {loop.escapes, static_cast<uint32_t>(_mm_cvtsi128_si32(_mm512_castsi512_si128(loop.before))), loop.flat == 0};
}

struct CountLoop {
  const CodeStream& codes;
  float* out;
  int64_t escapes;

  template <bool kWhole>
  SCDD_AVX512 inline __attribute__((always_inline)) void step(int64_t i, __mmask16 inside) {
    const auto* from = reinterpret_cast<const __m128i*>(codes.codes + i);
    const __m128i code = kWhole ? _mm_loadu_si128(from) : _mm_maskz_loadu_epi8(inside, from);
    const __mmask16 escaped = _mm_cmpeq_epi8_mask(code, _mm_set1_epi8(-1));
    __m512i value = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(code)));
    if (__builtin_expect(escaped != 0, 0)) {
      const int count = __builtin_popcount(escaped);
      const __m512i entries = take_left(codes, escapes, count);
      value = patch(value, escaped, codes.wide ? entries : _mm512_castps_si512(_mm512_cvtepi32_ps(entries)));
      escapes += count;
    }
    put_line<kWhole>(out + i, inside, value);
  }
};

SCDD_AVX512 StreamedCodes stream_counts(const CodeStream& codes, Ahead& ahead, float* out) {
  if (odd_place(out)) return packed_scalar::stream_counts(codes, ahead, out);
  CountLoop loop{codes, out, 0};
  int64_t i = before_line(out, codes.n);
  if (i > 0) loop.step<false>(0, static_cast<__mmask16>((1u << i) - 1));
  for (; i + 16 <= codes.n; i += 16) {
    ahead.step();
    loop.step<true>(i, 0xFFFF);
  }
  if (i < codes.n) loop.step<false>(i, static_cast<__mmask16>((1u << (codes.n - i)) - 1));
  return {loop.escapes, 0, true};
}

SCDD_AVX512 bool gap_codes(const int32_t* genes, int64_t n, uint8_t* codes) {
  if (n == 0) return true;
  const bool rising = packed_scalar::gap_codes(genes, 1, codes);
  __mmask16 fell = 0;
  for (int64_t i = 1; i < n; i += 16) {
    const __mmask16 inside = n - i >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << (n - i)) - 1);
    const __m512i before = _mm512_maskz_loadu_epi32(inside, genes + i - 1);
    const __m512i gene = _mm512_maskz_loadu_epi32(inside, genes + i);
    fell |= _mm512_cmpgt_epi32_mask(before, gene);
    _mm_mask_storeu_epi8(codes + i, inside, _mm512_cvtusepi32_epi8(_mm512_sub_epi32(gene, before)));
  }
  return rising && fell == 0;
}

// What is not a whole number becomes negative, which is large as an unsigned number. So does NaN.
SCDD_AVX512 void count_codes(const float* values, int64_t n, uint8_t* codes) {
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 inside = n - i >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << (n - i)) - 1);
    const __m512i bits = _mm512_maskz_loadu_epi32(inside, values + i);
    const __m512i whole = _mm512_cvttps_epi32(_mm512_castsi512_ps(bits));
    const __mmask16 same = _mm512_cmpeq_epi32_mask(_mm512_castps_si512(_mm512_cvtepi32_ps(whole)), bits);
    const __m512i code = _mm512_mask_mov_epi32(_mm512_set1_epi32(-1), same, whole);
    _mm_mask_storeu_epi8(codes + i, inside, _mm512_cvtusepi32_epi8(code));
  }
}

}  // namespace avx512

// Gathering from a table of 256 is as fast by ordinary loads, and gathers are slow on many machines.
constexpr PackedKernels kAvx2{"avx2", avx2::summarise, avx2::genes, avx2::counts,
                              packed_scalar::dictionary, avx2::stream_genes, avx2::stream_counts,
                              avx2::gap_codes, avx2::count_codes};
constexpr PackedKernels kAvx512{"avx512", avx512::summarise, avx512::genes, avx512::counts,
                                packed_scalar::dictionary, avx512::stream_genes, avx512::stream_counts,
                                avx512::gap_codes, avx512::count_codes};

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt"); }

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("popcnt");
}

#endif  // SCDD_PACKED_X86

const PackedKernels* fastest() {
#ifdef SCDD_PACKED_X86
  if (has_avx512()) return &kAvx512;
  if (has_avx2()) return &kAvx2;
#endif
  return &kScalar;
}

}  // namespace

const PackedKernels* packed_kernels(const char* name) {
  static const PackedKernels* const best = fastest();
  if (std::strcmp(name, "auto") == 0) return best;
  if (std::strcmp(name, "scalar") == 0) return &kScalar;
#ifdef SCDD_PACKED_X86
  if (std::strcmp(name, "avx2") == 0 && has_avx2()) return &kAvx2;
  if (std::strcmp(name, "avx512") == 0 && has_avx512()) return &kAvx512;
#endif
  return nullptr;
}

}  // namespace scdd
