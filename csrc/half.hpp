// float32 to the two 16-bit formats, to the nearest, ties to even; loops over them become vector instructions.
#pragma once

#include <cstdint>
#include <cstring>

namespace scdd {

// The bits of an IEEE half (float16) and of a bfloat16: distinct types, so that each finds its own conversion.
struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};

inline void convert(float value, float& out) { out = value; }

inline void convert(float value, Brain& out) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;  // rounding up could make an infinity of it
  out.bits = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40 : rounded);
}

inline void convert(float value, Half& out) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  // Normal halves: move the exponent from 127 to 15 and round off 13 bits.
  const uint32_t normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Below 2^-14 the float unit rounds for us: adding 0.5 leaves the half's bits at the low end of the fraction.
  float small;
  std::memcpy(&small, &magnitude, sizeof small);
  small += 0.5f;
  uint32_t subnormal;
  std::memcpy(&subnormal, &small, sizeof subnormal);
  subnormal -= 0x3f000000u;
  uint32_t result = magnitude < (113u << 23) ? subnormal : normal;
  if (magnitude >= 0x477ff000u) result = 0x7c00;  // 65,520 and above round to infinity
  if (magnitude > 0x7f800000u) result = 0x7e00;
  out.bits = static_cast<uint16_t>(sign | result);
}

}  // namespace scdd
