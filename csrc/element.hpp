// The element types that files hold, and their way to float32 values and int32 gene numbers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "csr.hpp"

namespace scdd {

enum class Element : uint8_t { f2, f4, f8, i1, i2, i4, i8, u1, u2, u4, u8 };

inline size_t size_of(Element element) {
  switch (element) {
    case Element::i1:
    case Element::u1:
      return 1;
    case Element::f2:
    case Element::i2:
    case Element::u2:
      return 2;
    case Element::f4:
    case Element::i4:
    case Element::u4:
      return 4;
    default:
      return 8;
  }
}

// From NumPy's kind and size ("f4"); a bool is a byte of 0 or 1.
inline Element element_of(const std::string& name) {
  static constexpr const char* kNames[] = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"};
  if (name == "b1") return Element::u1;
  for (int k = 0; k < 11; ++k) {
    if (name == kNames[k]) return static_cast<Element>(k);
  }
  fail_value("dtype " + name + " is not supported; it must be a real number of at most 8 bytes");
}

inline void swap_bytes(uint8_t* bytes, int64_t n, size_t size) {
  for (int64_t i = 0; i < n; ++i) std::reverse(bytes + i * size, bytes + (i + 1) * size);
}

// IEEE half precision, exactly.
inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 0x1f;
  const uint32_t fraction = half & 0x3ff;
  float value;
  if (exponent == 0) {
    value = static_cast<float>(fraction) * 0x1p-24f;  // zero or subnormal
  } else {
    const uint32_t bits = exponent == 31 ? 0x7f800000u | (fraction << 13) : ((exponent + 112) << 23) | (fraction << 13);
    std::memcpy(&value, &bits, sizeof value);
  }
  return sign ? -value : value;
}

// visit(pointer of the right type) for everything but halves.
template <class Visit>
void visit_elements(Element element, const uint8_t* bytes, const Visit& visit) {
  switch (element) {
    case Element::f2:
      return visit(reinterpret_cast<const uint16_t*>(bytes));  // callers treat halves before
    case Element::f4:
      return visit(reinterpret_cast<const float*>(bytes));
    case Element::f8:
      return visit(reinterpret_cast<const double*>(bytes));
    case Element::i1:
      return visit(reinterpret_cast<const int8_t*>(bytes));
    case Element::i2:
      return visit(reinterpret_cast<const int16_t*>(bytes));
    case Element::i4:
      return visit(reinterpret_cast<const int32_t*>(bytes));
    case Element::i8:
      return visit(reinterpret_cast<const int64_t*>(bytes));
    case Element::u1:
      return visit(reinterpret_cast<const uint8_t*>(bytes));
    case Element::u2:
      return visit(reinterpret_cast<const uint16_t*>(bytes));
    case Element::u4:
      return visit(reinterpret_cast<const uint32_t*>(bytes));
    case Element::u8:
      return visit(reinterpret_cast<const uint64_t*>(bytes));
  }
}

// Values as float32, rounded to nearest; float32 itself is not copied.
inline const float* as_values(Element element, const uint8_t* bytes, int64_t n, float* scratch) {
  if (element == Element::f4) return reinterpret_cast<const float*>(bytes);
  if (element == Element::f2) {
    const auto* halves = reinterpret_cast<const uint16_t*>(bytes);
    for (int64_t i = 0; i < n; ++i) scratch[i] = half_to_float(halves[i]);
    return scratch;
  }
  visit_elements(element, bytes, [&](const auto* values) {
    for (int64_t i = 0; i < n; ++i) scratch[i] = static_cast<float>(values[i]);
  });
  return scratch;
}

// Gene numbers as int32; what does not fit becomes -1, which every check refuses.
inline const int32_t* as_genes(Element element, const uint8_t* bytes, int64_t n, int32_t* scratch) {
  if (element == Element::i4) return reinterpret_cast<const int32_t*>(bytes);
  visit_elements(element, bytes, [&](const auto* genes) {
    for (int64_t i = 0; i < n; ++i) {
      const auto gene = static_cast<int64_t>(genes[i]);
      scratch[i] = gene >= 0 && gene <= INT32_MAX ? static_cast<int32_t>(gene) : -1;
    }
  });
  return scratch;
}

}  // namespace scdd
