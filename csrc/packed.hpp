// Packed rows: about two bytes a stored value, each row on its own, so that any order of rows is as fast as the file's.
//
// A record, little-endian, without padding:
//   u8  mode        0 counts, 1 dictionary, 2 raw
//   u8  flags       bit 0: long gaps take 4 bytes (else 2); bit 1: escaped values are float32 (else u16)
//   u8  table size  distinct values of a dictionary row, 0..255
//   u8  0
//   u32 n           stored values
//   u32 long gaps   gaps between genes above 254
//   u32 escapes     values that no code stands for
//   f64 total       sum of the values, as row_totals() forms it
//   u8  gaps[n]     gene minus the gene before (the first: the gene itself), 255 = next long gap
//   u8  codes[n]    counts: the value; dictionary: its place in the table; 255 = next escape   (raw: absent)
//   long gaps, table (float32), escapes; raw: float32 values[n]
//
// Rows are in order of genes, duplicates in the order of the source. Every bit of every float32 is kept.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "buffer.hpp"
#include "csr.hpp"
#include "packed_kernels.hpp"
#include "stream.hpp"

namespace scdd {

enum class PackedMode : uint8_t { counts = 0, dictionary = 1, raw = 2 };

constexpr int64_t kPackedHeader = 24;
constexpr uint8_t kWideGaps = 1, kWideValues = 2;

[[noreturn]] inline __attribute__((noinline, cold)) void fail_packed(int64_t row, const std::string& fault) {
  fail_value("packed row " + std::to_string(row) + " is damaged: " + fault);
}

// One record, taken apart; every section lies inside it.
struct PackedRecord {
  PackedMode mode;
  bool wide_gaps, wide_values;
  int64_t n;
  int64_t table_size, long_gaps, escapes;
  double total;
  const uint8_t *gaps, *codes, *gap_list, *table, *values;

  // Checks that the sections add up to the record's length; their content is checked by decode().
  PackedRecord(const uint8_t* bytes, int64_t length, int64_t row) {
    if (length < kPackedHeader) {
      fail_packed(row, std::to_string(length) + " bytes are fewer than the header's " + std::to_string(kPackedHeader));
    }
    if (bytes[0] > 2 || bytes[1] > 3 || bytes[3] != 0) fail_packed(row, "its header holds an unknown mode or flag");
    mode = static_cast<PackedMode>(bytes[0]);
    wide_gaps = (bytes[1] & kWideGaps) != 0;
    wide_values = (bytes[1] & kWideValues) != 0;
    table_size = bytes[2];
    n = load_packed<uint32_t>(bytes + 4);
    long_gaps = load_packed<uint32_t>(bytes + 8);
    escapes = load_packed<uint32_t>(bytes + 12);
    total = load_packed<double>(bytes + 16);
    if (mode == PackedMode::raw ? (escapes != 0 || table_size != 0) : mode == PackedMode::counts && table_size != 0) {
      fail_packed(row, "its header holds sections that its mode has not");
    }
    if (mode == PackedMode::dictionary && !wide_values) fail_packed(row, "a dictionary row has float32 escapes");
    const int64_t code_bytes = mode == PackedMode::raw ? 0 : n, gap_bytes = long_gaps * (wide_gaps ? 4 : 2);
    const int64_t value_bytes = mode == PackedMode::raw ? 4 * n : escapes * (wide_values ? 4 : 2);
    const int64_t needed = kPackedHeader + n + code_bytes + gap_bytes + 4 * table_size + value_bytes;
    if (needed != length) {
      fail_packed(row, "its header asks for " + std::to_string(needed) + " bytes and it has " + std::to_string(length));
    }
    gaps = bytes + kPackedHeader;
    codes = gaps + n;
    gap_list = codes + code_bytes;
    table = gap_list + gap_bytes;
    values = table + 4 * table_size;
  }

  uint64_t sum_of_long_gaps() const {
    uint64_t sum = 0;
    Escapes list{gap_list, wide_gaps};
    for (int64_t k = 0; k < long_gaps; ++k) sum += list.gap();
    return sum;
  }

  // Gaps are never negative: genes rise, so that the last one inside means all inside and no sum that overflows.
  void check(const PackedKernels& kernels, int64_t n_vars, int64_t row) const {
    const CodeSummary steps = kernels.summarise(gaps, n);
    if (steps.escapes != static_cast<uint64_t>(long_gaps)) fail_packed(row, "its long gaps are miscounted");
    const uint64_t last = steps.sum + sum_of_long_gaps();
    if (n > 0 && last >= static_cast<uint64_t>(n_vars)) {
      fail_index("packed row " + std::to_string(row) + " holds gene " + std::to_string(last) + ", outside 0.." +
                 std::to_string(n_vars - 1));
    }
    check_values(kernels, row);
  }

  void check_values(const PackedKernels& kernels, int64_t row) const {
    if (mode == PackedMode::raw) return;
    const CodeSummary used = kernels.summarise(codes, n);
    if (used.escapes != static_cast<uint64_t>(escapes)) fail_packed(row, "its escaped values are miscounted");
    if (mode == PackedMode::dictionary && n > escapes && used.largest >= table_size) {
      fail_packed(row, "code " + std::to_string(used.largest) + " is not in its table of " +
                           std::to_string(table_size));
    }
  }

  // After check() only.
  void decode(const PackedKernels& kernels, float* out_values, int32_t* out_genes) const {
    kernels.genes(gaps, n, gap_list, wide_gaps, out_genes);
    decode_values(kernels, out_values);
  }

  // After check_values() only.
  void decode_values(const PackedKernels& kernels, float* out_values) const {
    if (mode == PackedMode::counts) {
      kernels.counts(codes, n, values, wide_values, out_values);
    } else if (mode == PackedMode::dictionary) {
      float entries[256];  // check() has seen that no code lies past table_size
      for (int64_t k = 0; k < table_size; ++k) entries[k] = load_packed<float>(table + 4 * k);
      kernels.dictionary(codes, n, values, entries, out_values);
    } else {
      for (int64_t i = 0; i < n; ++i) out_values[i] = load_packed<float>(values + 4 * i);
    }
  }

  // Genes checked and decoded in one pass, past the caches. False where check() has a fault to name, where a gene comes
  // twice and where only check() can tell: what was written then means nothing.
  bool stream_genes(const PackedKernels& kernels, int64_t n_vars, Ahead& ahead, int32_t* out) const {
    constexpr uint64_t kLargestCode = kEscape - 1;
    if (sum_of_long_gaps() + kLargestCode * static_cast<uint64_t>(n) > UINT32_MAX) return false;  // the sum may wrap
    const StreamedCodes met = kernels.stream_genes({gaps, n, gap_list, long_gaps, wide_gaps}, ahead, out);
    return met.escapes == long_gaps && met.rising && (n == 0 || int64_t{met.last} < n_vars);
  }

  // The same for values.
  bool stream_values(const PackedKernels& kernels, int64_t row, Ahead& ahead, Buffer& scratch, float* out) const {
    if (mode == PackedMode::counts) {
      return kernels.stream_counts({codes, n, values, escapes, wide_values}, ahead, out).escapes == escapes;
    }
    check_values(kernels, row);
    float* made = scratch.reserve_of<float>(static_cast<size_t>(n));
    decode_values(kernels, made);
    stream_copy(out, made, static_cast<size_t>(n) * sizeof(float));
    return true;
  }
};

// Where a row goes that is decoded straight to its place.
struct RowPlace {
  float* values;
  int32_t* genes;
  bool finished_values;  // else somebody goes on working with them: they stay in the cache
};

// Packed rows as a source of rows. The bytes must not change meanwhile: replace a file, never write into it.
struct PackedRows {
  const uint8_t* bytes;
  int64_t n_bytes;
  const int64_t* offsets;  // [n_rows + 1]
  int64_t n_rows, n_vars;
  const PackedKernels* kernels = packed_kernels();

  PackedRecord record(int64_t row) const {
    if (outside(row, n_rows)) {
      fail_index("row " + std::to_string(row) + " lies outside 0.." + std::to_string(n_rows - 1));
    }
    const int64_t begin = offsets[row], end = offsets[row + 1];
    if (begin < 0 || end < begin || end > n_bytes) {
      fail_packed(row, "it lies at " + std::to_string(begin) + ".." + std::to_string(end) + " of " +
                           std::to_string(n_bytes) + " bytes");
    }
    return PackedRecord(bytes + begin, end - begin, row);
  }

  // Stored entries of a row.
  int64_t size(int64_t row) const { return record(row).n; }

  // Sum of a row's values in double, from its header: nothing is decoded.
  double total(int64_t row) const { return record(row).total; }

  // Writes size(row) entries. `expected` >= 0: what size(row) was when the room for them was made.
  void decode(int64_t row, float* values, int32_t* genes, int64_t expected = -1) const {
    const PackedRecord found = record(row);
    if (expected >= 0 && found.n != expected) fail_packed(row, "it changed while it was read");
    found.check(*kernels, n_vars, row);
    found.decode(*kernels, values, genes);
  }

  // As decode(), with the genes, and the values where they are finished, past the caches. False: decode() has to say
  // what is wrong with the row, or the row names a gene twice.
  bool stream(int64_t row, int64_t next, int64_t expected, const RowPlace& place, Buffer& scratch,
              double& total) const {
    Ahead ahead = lines(next);
    const PackedRecord found = record(row);
    if (found.n != expected) fail_packed(row, "it changed while it was read");
    total = found.total;
    if (!found.stream_genes(*kernels, n_vars, ahead, place.genes)) return false;
    if (place.finished_values) {
      if (!found.stream_values(*kernels, row, ahead, scratch, place.values)) return false;
    } else {
      found.check_values(*kernels, row);
      found.decode_values(*kernels, place.values);
    }
    ahead.finish();
    return true;
  }

  // Of a row that comes soon. Wrong rows and offsets are found when their turn comes.
  void prefetch_header(int64_t row) const {
    if (!outside(row, n_rows) && !outside(offsets[row], n_bytes)) __builtin_prefetch(bytes + offsets[row]);
  }
  // The same by a load: a prefetch may be given up where the processor has not seen the page for long.
  void touch(int64_t row) const {
    if (outside(row, n_rows) || outside(offsets[row], n_bytes)) return;
    static_cast<void>(*static_cast<const volatile uint8_t*>(bytes + offsets[row]));
  }
  void prefetch(int64_t row) const { lines(row).finish(); }
  Ahead lines(int64_t row) const {
    if (outside(row, n_rows) || outside(offsets[row], n_bytes)) return {};
    const int64_t end = offsets[row + 1] < n_bytes ? offsets[row + 1] : n_bytes;
    return end < offsets[row] ? Ahead{} : Ahead{bytes + offsets[row], bytes + end};
  }
};

}  // namespace scdd
