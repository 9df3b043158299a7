// What genes are ranked by: expression over the scale of the gene, eight at a time where the processor can.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace scdd {

namespace detail {

using DivideByScale = void (*)(float*, const int32_t*, int64_t, const float*);

inline void divide_portable(float* score, const int32_t* tokens, int64_t n, const float* scale) {
  for (int64_t i = 0; i < n; ++i) score[i] /= scale[tokens[i]];
}

#if defined(__x86_64__)
// A division is rounded correctly in either way, so that the scores are the same.
__attribute__((target("avx2"))) inline void divide_avx2(float* score, const int32_t* tokens, int64_t n,
                                                        const float* scale) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256i places = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tokens + i));
    const __m256 scales = _mm256_i32gather_ps(scale, places, sizeof(float));
    _mm256_storeu_ps(score + i, _mm256_div_ps(_mm256_loadu_ps(score + i), scales));
  }
  divide_portable(score + i, tokens + i, n - i, scale);
}
#endif

}  // namespace detail

// score [n] /= scale[tokens [n]], by the function for this processor.
inline detail::DivideByScale divide_by_scale() {
#if defined(__x86_64__)
  static const bool fast = __builtin_cpu_supports("avx2");
  if (fast) return detail::divide_avx2;
#endif
  return detail::divide_portable;
}

}  // namespace scdd
