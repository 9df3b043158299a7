// The shuffle window: decoded rows held small, each in the narrowest form that loses nothing.
//
// A count is a byte as long as all of its row are, else two bytes, else the float itself; a gene number is two
// bytes where there are at most 65,536 genes. That is 3 bytes a non-zero for counts instead of 8, so a window of the
// same memory mixes 2.7 times as many cells, and narrowing and widening again costs less than the memory it saves.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "arena.hpp"
#include "chunk_edges.hpp"
#include "csr.hpp"
#include "log1p.hpp"
#include "row_totals.hpp"
#include "rows.hpp"

namespace scdd {

enum class Width : uint8_t { byte, two_bytes, real };

// What is wrong with the values of a row, by the first row in which it is; INT64_MAX: nowhere.
struct ValueFaultRows {
  int64_t nan = INT64_MAX, infinite = INT64_MAX, negative = INT64_MAX, fractional = INT64_MAX;

  void merge(const ValueFaultRows& other) {
    nan = std::min(nan, other.nan);
    infinite = std::min(infinite, other.infinite);
    negative = std::min(negative, other.negative);
    fractional = std::min(fractional, other.fractional);
  }
};

// The narrowest width that holds every value. A whole number x below 2^23 stands, once 2^23 is added, in the low bits of
// the float; anything else (a fraction, a NaN, a negative, -0.0) either changes higher bits or is not got back. Without
// a branch and a cast the compiler makes vector instructions of it (3.0 -> 0.3 us for 1,500 values).
inline Width width_of(const float* values, int64_t n) {
  constexpr float kShift = 0x1p23f;
  constexpr int32_t kShiftBits = 0x4b000000;
  int32_t inexact = 0;
  int32_t used = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float shifted = values[i] + kShift;
    inexact |= detail::bits_of(shifted - kShift) ^ detail::bits_of(values[i]);
    used |= detail::bits_of(shifted) ^ kShiftBits;
  }
  if (inexact || static_cast<uint32_t>(used) > 0xffff) return Width::real;
  return used < 256 ? Width::byte : Width::two_bytes;
}

inline void note_faults(const float* values, int64_t n, int64_t row, ValueFaultRows& faults) {
  for (int64_t i = 0; i < n; ++i) {
    const float value = values[i];
    if (std::isnan(value)) {
      faults.nan = std::min(faults.nan, row);
      continue;
    }
    if (std::isinf(value)) faults.infinite = std::min(faults.infinite, row);
    if (value < 0) faults.negative = std::min(faults.negative, row);
    if (value != std::trunc(value)) faults.fractional = std::min(faults.fractional, row);
  }
}

// What windows that follow each other share.
struct WindowMemory {
  SegmentPool segments;
  ChunkEdges edges;

  WindowMemory(size_t segment_bytes, size_t edge_bytes) : segments(segment_bytes), edges(edge_bytes) {}
};

// Rows 0..n_rows-1, each written once, by one of many threads; read by any number of them afterwards.
class Window {
 public:
  int64_t n_rows, n_vars;

  Window(int64_t rows, int64_t vars, std::shared_ptr<WindowMemory> memory)
      : n_rows(rows), n_vars(vars), memory_(std::move(memory)), rows_(static_cast<size_t>(rows)),
        totals_(static_cast<size_t>(rows), 0.0), narrow_genes_(vars <= 65536) {}

  // Writes rows for one thread. It goes on in memory that an earlier one has begun, or else many small sources would
  // leave many segments almost empty.
  class Writer {
   public:
    explicit Writer(Window& window) : window_(window), arena_(window.idle_arena()) {}
    ~Writer() {
      const std::lock_guard<std::mutex> hold(window_.mutex_);
      window_.idle_.push_back(arena_);
    }
    const ValueFaultRows& faults() const { return faults_; }
    Writer(const Writer&) = delete;
    Writer& operator=(const Writer&) = delete;

    // Genes must have been checked. `row` names the row in the file, for the faults.
    void put(int64_t slot, int64_t row, const float* values, const int32_t* genes, int64_t n) {
      if (n > INT32_MAX) fail_value("row " + std::to_string(row) + " has " + std::to_string(n) + " entries");
      const Width width = width_of(values, n);
      if (width == Width::real) note_faults(values, n, row, faults_);
      const size_t gene_size = window_.narrow_genes_ ? 2 : 4;
      // Genes first, padded so that floats behind them are aligned.
      const size_t gene_bytes = (static_cast<size_t>(n) * gene_size + 3) / 4 * 4;
      uint8_t* bytes = arena_->take(gene_bytes + static_cast<size_t>(n) * value_size(width));
      if (window_.narrow_genes_) {
        copy_as<uint16_t>(genes, n, bytes);
      } else {
        copy_as<int32_t>(genes, n, bytes);
      }
      switch (width) {
        case Width::byte:
          copy_as<uint8_t>(values, n, bytes + gene_bytes);
          break;
        case Width::two_bytes:
          copy_as<uint16_t>(values, n, bytes + gene_bytes);
          break;
        case Width::real:
          copy_as<float>(values, n, bytes + gene_bytes);
      }
      window_.rows_[slot] = {bytes, static_cast<int32_t>(n), width};
      window_.totals_[slot] = sum_in_double(values, n);
    }

   private:
    static size_t value_size(Width width) { return width == Width::byte ? 1 : width == Width::two_bytes ? 2 : 4; }

    // By way of int32: a float goes straight to a byte in no vector instruction.
    template <class To, class From>
    static void copy_as(const From* from, int64_t n, uint8_t* bytes) {
      To* to = reinterpret_cast<To*>(bytes);
      if constexpr (std::is_same_v<To, From>) {
        std::copy(from, from + n, to);
      } else {
        for (int64_t i = 0; i < n; ++i) to[i] = static_cast<To>(static_cast<int32_t>(from[i]));
      }
    }

    Window& window_;
    Arena* arena_;
    ValueFaultRows faults_;
  };

  // What the rows of a file may leave behind for a later window.
  ChunkEdges* edges() const { return memory_->edges.enabled() ? &memory_->edges : nullptr; }
  int64_t size(int64_t row) const { return at(row).size; }
  double total(int64_t row) const {
    at(row);
    return totals_[row];
  }
  size_t bytes() const {
    size_t sum = rows_.size() * (sizeof(Row) + sizeof(double));
    for (const auto& arena : arenas_) sum += arena->bytes();
    return sum;
  }

  template <class F>
  auto view(int64_t row, int64_t next, RowScratch&, const F& f) const {
    const Row& here = at(row);
    if (!outside(next, n_rows)) {
      const Row& ahead = rows_[next];
      const uint8_t* end = ahead.bytes + int64_t{ahead.size} * 3;  // the usual case; a hint may be wrong
      for (const uint8_t* line = ahead.bytes; line < end; line += 64) __builtin_prefetch(line, 0, 3);
    }
    return narrow_genes_ ? view_as<uint16_t>(here, f) : view_as<int32_t>(here, f);
  }

 private:
  struct Row {
    const uint8_t* bytes = nullptr;
    int32_t size = 0;
    Width width = Width::byte;
  };

  Arena* idle_arena() {
    const std::lock_guard<std::mutex> hold(mutex_);
    if (idle_.empty()) {
      arenas_.push_back(std::make_unique<Arena>(memory_->segments));
      idle_.reserve(arenas_.size());  // giving one back must not fail
      return arenas_.back().get();
    }
    Arena* arena = idle_.back();
    idle_.pop_back();
    return arena;
  }

  const Row& at(int64_t row) const {
    if (outside(row, n_rows)) {
      fail_index("row " + std::to_string(row) + " lies outside 0.." + std::to_string(n_rows - 1));
    }
    return rows_[row];
  }

  template <class Gene, class F>
  auto view_as(const Row& row, const F& f) const {
    const auto* genes = reinterpret_cast<const Gene*>(row.bytes);
    const uint8_t* values = row.bytes + (static_cast<size_t>(row.size) * sizeof(Gene) + 3) / 4 * 4;
    const int64_t n = row.size;
    if (row.width == Width::byte) return f(values, genes, n);
    if (row.width == Width::two_bytes) return f(reinterpret_cast<const uint16_t*>(values), genes, n);
    return f(reinterpret_cast<const float*>(values), genes, n);
  }

  std::shared_ptr<WindowMemory> memory_;
  std::vector<Row> rows_;
  std::vector<double> totals_;
  bool narrow_genes_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Arena>> arenas_;
  std::vector<Arena*> idle_;
};

}  // namespace scdd
