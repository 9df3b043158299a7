// log(1 + x) over an array of floats, written so that the compiler turns the loop into vector instructions.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace scdd {

namespace detail {

inline int32_t bits_of(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float float_of(int32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// For 0 <= x < 2^100, within 2 units in the last place.
//   1 + x = 2^e (1 + r), sqrt(1/2) <= 1 + r < sqrt(2);  log(1 + r) = 2 atanh(s),  s = r / (2 + r)
// The series of atanh to s^9 leaves 7e-10 at the ends of that range.
inline float log1p_regular(float x) {
  constexpr int32_t kSqrtHalf = 0x3f3504f3;  // bits of sqrt(1/2)
  constexpr float kLog2High = 0.693359375f;  // nine bits, so that e * kLog2High is exact
  constexpr float kLog2Low = -2.12194440e-4f;
  const float u = 1.0f + x;
  const float lost = x - (u - 1.0f);  // what rounding took from u; without it a small x loses its digits
  const int32_t shift = (bits_of(u) - kSqrtHalf) & static_cast<int32_t>(0xff800000);  // e * 2^23
  const float e = static_cast<float>(shift >> 23);
  const float r = (float_of(bits_of(u) - shift) - 1.0f) + lost * float_of(0x3f800000 - shift);
  const float s = r / (2.0f + r);
  const float z = s * s;
  const float series = z * (0.66666667f + z * (0.4f + z * (0.28571429f + z * 0.22222222f)));
  const float half_square = 0.5f * r * r;
  return (r - (half_square - (s * (half_square + series) + e * kLog2Low))) + e * kLog2High;
}

}  // namespace detail

inline void log1p_in_place(float* values, int64_t n) {
  // An OR over all values, and not an early exit, so that this loop vectorises too.
  int irregular = 0;
  for (int64_t i = 0; i < n; ++i) irregular |= !(values[i] >= 0.0f) | !(values[i] < 0x1p100f);
  if (irregular) {  // negative, huge or not a number: take the slow road, which says NaN where it must
    for (int64_t i = 0; i < n; ++i) values[i] = std::log1p(values[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) values[i] = detail::log1p_regular(values[i]);
  }
}

}  // namespace scdd
