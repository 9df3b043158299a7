// The inner loops of the packed cache: streams of one-byte codes to genes and values, scalar and vectorised alike.
#pragma once

#include <cstdint>
#include <cstring>

namespace scdd {

// The code that stands for "the next entry of the list": what does not fit a byte.
constexpr uint8_t kEscape = 255;

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
constexpr bool kLittleEndian = false;
#else
constexpr bool kLittleEndian = true;
#endif

// Records are little-endian and packed without padding, so nothing in them is aligned.
template <class T>
inline T load_packed(const uint8_t* bytes) {
  T value;
  if constexpr (kLittleEndian || sizeof(T) == 1) {
    std::memcpy(&value, bytes, sizeof(T));
  } else {
    uint8_t turned[sizeof(T)];
    for (size_t i = 0; i < sizeof(T); ++i) turned[i] = bytes[sizeof(T) - 1 - i];
    std::memcpy(&value, turned, sizeof(T));
  }
  return value;
}

template <class T>
inline void store_packed(uint8_t* bytes, T value) {
  std::memcpy(bytes, &value, sizeof(T));
  if constexpr (!kLittleEndian) {
    for (size_t i = 0; i < sizeof(T) / 2; ++i) {
      const uint8_t low = bytes[i];
      bytes[i] = bytes[sizeof(T) - 1 - i];
      bytes[sizeof(T) - 1 - i] = low;
    }
  }
}

// What a stream of codes asks for, found before anything is written: decoding needs no checks after that.
struct CodeSummary {
  uint64_t sum;       // of the codes that are not escapes
  uint64_t escapes;   // how many
  uint8_t largest;    // of the codes that are not escapes; 0 where there are none
};

// What comes after the row at hand, asked for a line at a time while that one is decoded: all at once they would fill
// the processor's few places for outstanding lines and hold everything up.
struct Ahead {
  const uint8_t* at = nullptr;
  const uint8_t* end = nullptr;

  void step() {
    if (at >= end) return;
    __builtin_prefetch(at);
    at += 64;
  }
  void finish() {
    while (at < end) step();
  }
};

// A position in a list of escapes, shared by the scalar loops and the tails of the vectorised ones.
struct Escapes {
  const uint8_t* next;
  bool wide;

  uint32_t gap() {
    const uint32_t value = wide ? load_packed<uint32_t>(next) : load_packed<uint16_t>(next);
    next += wide ? 4 : 2;
    return value;
  }
  float value() {
    // Copied, not computed with: every bit of a NaN stays as it was.
    const float value = wide ? load_packed<float>(next) : static_cast<float>(load_packed<uint16_t>(next));
    next += wide ? 4 : 2;
    return value;
  }
};

// Codes and the list that their escapes are taken from.
struct CodeStream {
  const uint8_t* codes;
  int64_t n;
  const uint8_t* list;
  int64_t entries;  // of the list: no more are read
  bool wide;

  Escapes entry(int64_t k) const { return {list + k * (wide ? 4 : 2), wide}; }
};

// What a decoding loop met on its way. Where `escapes` is not the number of the list's entries, the rest means nothing.
struct StreamedCodes {
  int64_t escapes = 0;
  uint32_t last = 0;    // of genes: the last one, modulo 2^32
  bool rising = true;   // of genes: each above the one before it
};

// Loops for one instruction set. Lists are unaligned; `wide` is 4 bytes an entry, else 2. Every loop writes exactly n.
struct PackedKernels {
  const char* name;
  CodeSummary (*summarise)(const uint8_t* codes, int64_t n);
  // genes[i] = gap 0 + ... + gap i.
  void (*genes)(const uint8_t* gaps, int64_t n, const uint8_t* list, bool wide, int32_t* out);
  // Escapes are float32 where wide, whole numbers of 16 bits elsewhere.
  void (*counts)(const uint8_t* codes, int64_t n, const uint8_t* list, bool wide, float* out);
  // table has 256 entries; escapes are float32.
  void (*dictionary)(const uint8_t* codes, int64_t n, const uint8_t* list, const float* table, float* out);
  // The same for codes that nothing is known of: n numbers are written whatever they are, and the list is not overrun.
  // They go past the caches where the machine can: end a thread's share with stream_fence().
  StreamedCodes (*stream_genes)(const CodeStream& gaps, Ahead& ahead, int32_t* out);
  StreamedCodes (*stream_counts)(const CodeStream& codes, Ahead& ahead, float* out);
  // The way back: gaps to bytes, 255 for those above 254. False where genes fall; the codes then mean nothing.
  bool (*gap_codes)(const int32_t* genes, int64_t n, uint8_t* codes);
  // Whole numbers 0..254 to bytes, 255 for every other value. -0.0 is not 0.0 here: its bits differ.
  void (*count_codes)(const float* values, int64_t n, uint8_t* codes);
};

// The fastest that this machine runs, or the one named: "auto", "scalar", "avx2", "avx512"; nullptr: not to be had.
const PackedKernels* packed_kernels(const char* name = "auto");

namespace packed_scalar {

inline CodeSummary summarise(const uint8_t* codes, int64_t n) {
  CodeSummary found{0, 0, 0};
  for (int64_t i = 0; i < n; ++i) {
    const bool escape = codes[i] == kEscape;
    const uint8_t code = escape ? 0 : codes[i];
    found.sum += code;
    found.escapes += escape;
    found.largest = code > found.largest ? code : found.largest;
  }
  return found;
}

// Continue at i with the gene before it.
inline void genes_from(const uint8_t* gaps, int64_t i, int64_t n, Escapes escapes, uint32_t gene, int32_t* out) {
  for (; i < n; ++i) {
    gene += gaps[i] == kEscape ? escapes.gap() : gaps[i];
    out[i] = static_cast<int32_t>(gene);
  }
}

inline void counts_from(const uint8_t* codes, int64_t i, int64_t n, Escapes escapes, float* out) {
  for (; i < n; ++i) out[i] = codes[i] == kEscape ? escapes.value() : static_cast<float>(codes[i]);
}

inline void genes(const uint8_t* gaps, int64_t n, const uint8_t* list, bool wide, int32_t* out) {
  genes_from(gaps, 0, n, {list, wide}, 0, out);
}

inline void counts(const uint8_t* codes, int64_t n, const uint8_t* list, bool wide, float* out) {
  counts_from(codes, 0, n, {list, wide}, out);
}

inline void dictionary(const uint8_t* codes, int64_t n, const uint8_t* list, const float* table, float* out) {
  Escapes escapes{list, true};
  for (int64_t i = 0; i < n; ++i) out[i] = codes[i] == kEscape ? escapes.value() : table[codes[i]];
}

// An escape that the list has no entry for stands for 0, and is counted.
inline void stream_genes_part(const CodeStream& gaps, int64_t i, int64_t end, StreamedCodes& met, int32_t* out) {
  for (; i < end; ++i) {
    uint32_t gap = gaps.codes[i];
    if (gap == kEscape) {
      gap = met.escapes < gaps.entries ? gaps.entry(met.escapes).gap() : 0;
      ++met.escapes;
    }
    met.rising &= gap != 0 || i == 0;
    met.last += gap;
    out[i] = static_cast<int32_t>(met.last);
  }
}

inline void stream_counts_part(const CodeStream& codes, int64_t i, int64_t end, StreamedCodes& met, float* out) {
  for (; i < end; ++i) {
    out[i] = static_cast<float>(codes.codes[i]);
    if (codes.codes[i] != kEscape) continue;
    out[i] = met.escapes < codes.entries ? codes.entry(met.escapes).value() : 0.0f;
    ++met.escapes;
  }
}

inline StreamedCodes stream_genes(const CodeStream& gaps, Ahead& ahead, int32_t* out) {
  ahead.finish();
  StreamedCodes met;
  stream_genes_part(gaps, 0, gaps.n, met, out);
  return met;
}

inline StreamedCodes stream_counts(const CodeStream& codes, Ahead& ahead, float* out) {
  ahead.finish();
  StreamedCodes met;
  stream_counts_part(codes, 0, codes.n, met, out);
  return met;
}

// Continue at i with the gene before it. Unsigned, so that no pair of hostile genes overflows.
inline bool gap_codes_from(const int32_t* genes, int64_t i, int64_t n, int32_t before, uint8_t* codes) {
  bool rising = true;
  for (; i < n; ++i) {
    const uint32_t gap = static_cast<uint32_t>(genes[i]) - static_cast<uint32_t>(before);
    rising &= genes[i] >= before;
    codes[i] = gap >= kEscape ? kEscape : static_cast<uint8_t>(gap);
    before = genes[i];
  }
  return rising;
}

inline bool gap_codes(const int32_t* genes, int64_t n, uint8_t* codes) {
  return gap_codes_from(genes, 0, n, 0, codes);
}

inline void count_codes(const float* values, int64_t n, uint8_t* codes) {
  for (int64_t i = 0; i < n; ++i) {
    // The comparisons keep NaN, and whatever an int cannot hold, from being cast.
    const bool small = values[i] >= 0.0f && values[i] < 255.0f;
    const int32_t whole = small ? static_cast<int32_t>(values[i]) : 0;
    const float back = static_cast<float>(whole);
    codes[i] = small && std::memcmp(&back, &values[i], sizeof back) == 0 ? static_cast<uint8_t>(whole) : kEscape;
  }
}

}  // namespace packed_scalar

}  // namespace scdd
