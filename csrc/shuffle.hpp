// The byte shuffle of HDF5 and numcodecs undone: planes of equal significance back to elements.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace scdd {

#ifdef __SSE2__
// 16 elements of `Width` bytes at a time: planes are interleaved in pairs, then the pairs, and so on.
template <size_t Width>
inline size_t unshuffle_vectors(const uint8_t* planes, size_t n, size_t count, uint8_t* out) {
  size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    __m128i from[Width], to[Width];
    for (size_t k = 0; k < Width; ++k) {
      from[k] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(planes + k * n + i));
    }
    // Perfect shuffles: after log2(Width) of them element j of the planes stands at byte j * Width.
    for (size_t round = 1; round < Width; round *= 2) {
      for (size_t k = 0; k < Width / 2; ++k) {
        to[2 * k] = _mm_unpacklo_epi8(from[k], from[k + Width / 2]);
        to[2 * k + 1] = _mm_unpackhi_epi8(from[k], from[k + Width / 2]);
      }
      for (size_t k = 0; k < Width; ++k) from[k] = to[k];
    }
    for (size_t k = 0; k < Width; ++k) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i * Width) + k, from[k]);
    }
  }
  return i;
}
#else
template <size_t Width>
inline size_t unshuffle_vectors(const uint8_t*, size_t, size_t, uint8_t*) {
  return 0;
}
#endif

template <size_t Width>
inline void unshuffle_width(const uint8_t* planes, size_t n, size_t count, uint8_t* out) {
  for (size_t i = unshuffle_vectors<Width>(planes, n, count, out); i < count; ++i) {
    for (size_t k = 0; k < Width; ++k) out[i * Width + k] = planes[k * n + i];
  }
}

// The first `count` of `n` elements of `width` bytes.
inline void unshuffle_elements(const uint8_t* planes, size_t n, size_t width, size_t count, uint8_t* out) {
  switch (width) {
    case 1: std::memcpy(out, planes, count); break;
    case 2: unshuffle_width<2>(planes, n, count, out); break;
    case 4: unshuffle_width<4>(planes, n, count, out); break;
    case 8: unshuffle_width<8>(planes, n, count, out); break;
    default:
      for (size_t k = 0; k < width; ++k) {
        for (size_t i = 0; i < count; ++i) out[i * width + k] = planes[k * n + i];
      }
  }
}

// Bytes of the input that the first `wanted` bytes of the output need.
inline size_t unshuffle_needs(size_t size, size_t width, size_t wanted) {
  const size_t n = size / width;
  if (wanted > n * width || width == 1) return wanted;
  return (width - 1) * n + (wanted + width - 1) / width;
}

// At least the first `wanted` of `size` bytes. Bytes beyond the last whole element were never shuffled.
inline void unshuffle(const uint8_t* in, size_t size, size_t width, size_t wanted, uint8_t* out) {
  const size_t n = size / width, shuffled = n * width;
  const size_t elements = wanted >= shuffled ? n : (wanted + width - 1) / width;
  unshuffle_elements(in, n, width, elements, out);
  if (wanted > shuffled) std::memcpy(out + shuffled, in + shuffled, wanted - shuffled);
}

}  // namespace scdd
