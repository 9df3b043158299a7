// Copies to memory that is not read again soon, past the caches: an ordinary store first fetches the line that it is
// about to overwrite, and a batch of tens of megabytes would push everything else out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace scdd {

inline void stream_copy(void* to, const void* from, size_t size) {
  if (size == 0) return;  // either may be null then, which memcpy must not be given
#if defined(__SSE2__)
  auto* out = static_cast<uint8_t*>(to);
  const auto* in = static_cast<const uint8_t*>(from);
  const size_t head = (64 - reinterpret_cast<uintptr_t>(out) % 64) % 64;  // whole lines leave the processor at once
  if (size >= head + 64) {
    std::memcpy(out, in, head);
    out += head;
    in += head;
    size -= head;
    for (; size >= 64; size -= 64, out += 64, in += 64) {
      const auto* words = reinterpret_cast<const __m128i*>(in);
      auto* line = reinterpret_cast<__m128i*>(out);
      const __m128i a = _mm_loadu_si128(words), b = _mm_loadu_si128(words + 1);
      const __m128i c = _mm_loadu_si128(words + 2), d = _mm_loadu_si128(words + 3);
      _mm_stream_si128(line, a);
      _mm_stream_si128(line + 1, b);
      _mm_stream_si128(line + 2, c);
      _mm_stream_si128(line + 3, d);
    }
  }
  std::memcpy(out, in, size);
#else
  std::memcpy(to, from, size);
#endif
}

// Makes what was streamed visible to other threads; once at the end of a thread's share.
inline void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace scdd
