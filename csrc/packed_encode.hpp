// Rows of a CSR matrix to packed records; the layout is told in packed.hpp.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "csr.hpp"
#include "packed.hpp"
#include "parallel.hpp"
#include "row_totals.hpp"

namespace scdd {

// Bytes that grow without being set to zero first: each is written once.
class ByteSink {
 public:
  // Room for `more` bytes at the end; they count once they are committed.
  uint8_t* reserve(size_t more) {
    if (more > capacity_ - size_) grow(more);
    return bytes_.get() + size_;
  }
  void commit(size_t written) { size_ += written; }
  const uint8_t* data() const { return bytes_.get(); }
  uint8_t* release() { return bytes_.release(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(uint8_t* bytes) const { std::free(bytes); }
  };
  void grow(size_t more) {
    const size_t capacity = std::max(size_ + more, 2 * capacity_);
    auto* grown = static_cast<uint8_t*>(std::realloc(bytes_.get(), capacity));
    if (!grown) throw std::bad_alloc();
    (void)bytes_.release();  // realloc has freed or kept it
    bytes_.reset(grown);
    capacity_ = capacity;
  }
  std::unique_ptr<uint8_t, Free> bytes_;
  size_t size_ = 0, capacity_ = 0;
};

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Up to 255 distinct float32 values, told apart by their bits, in the order in which they were first seen.
class ValueTable {
 public:
  void clear() {
    size_ = 0;
    std::memset(place_, kEscape, sizeof place_);
  }
  // The code of a value; kEscape once the table is full.
  uint8_t code(float value) {
    const uint32_t bits = bits_of(value);
    for (uint32_t slot = (bits * 2654435761u) >> 22;; slot = (slot + 1) & 1023) {
      const uint8_t found = place_[slot];
      if (found == kEscape) {
        if (size_ == 255) return kEscape;
        bits_[size_] = bits;
        values_[size_] = value;
        place_[slot] = static_cast<uint8_t>(size_);
        return static_cast<uint8_t>(size_++);
      }
      if (bits_[found] == bits) return found;
    }
  }
  int size() const { return size_; }
  float operator[](int code) const { return values_[code]; }

 private:
  uint8_t place_[1024];
  uint32_t bits_[255];
  float values_[255];
  int size_ = 0;
};

// Encodes one row after the other; holds what can be used again.
class RowEncoder {
 public:
  explicit RowEncoder(const PackedKernels& kernels = *packed_kernels()) : kernels_(kernels) {}

  // `first` is the row's first position in the matrix, for messages.
  template <class Value, class Index>
  void encode(const Value* data, const Index* indices, int64_t n, int64_t n_vars, int64_t row, int64_t first,
              ByteSink& sink) {
    if (n > UINT32_MAX) fail_value("row " + std::to_string(row) + " has more than 2^32 stored values");
    resize(static_cast<size_t>(n));
    const float* values = as_float(data, n);
    const int32_t* genes = as_gene(indices, n, n_vars, row, first);
    if (!kernels_.gap_codes(genes, n, gaps_.data())) {
      sort(values, genes, n);
      values = sorted_values_.data();
      genes = sorted_genes_.data();
      kernels_.gap_codes(genes, n, gaps_.data());
    }
    // Genes rise by now: the ends speak for all.
    if (n > 0 && (genes[0] < 0 || genes[n - 1] >= n_vars)) fail_first_gene(indices, n, n_vars, row, first);
    collect_gaps(genes, n);
    write(choose(values, n), values, n, sink);
  }

 private:
  struct Plan {
    PackedMode mode;
    bool wide_values;
    int64_t size;
  };

  void resize(size_t n) {
    if (gaps_.size() >= n) return;
    for (auto* codes : {&gaps_, &count_codes_, &table_codes_}) codes->resize(n);
  }

  template <class Value>
  const float* as_float(const Value* data, int64_t n) {
    if constexpr (std::is_same_v<Value, float>) {
      return data;
    } else {
      cast_values_.resize(static_cast<size_t>(n));
      for (int64_t i = 0; i < n; ++i) cast_values_[i] = static_cast<float>(data[i]);
      return cast_values_.data();
    }
  }

  template <class Index>
  const int32_t* as_gene(const Index* indices, int64_t n, int64_t n_vars, int64_t row, int64_t first) {
    if constexpr (std::is_same_v<Index, int32_t>) {
      return indices;
    } else {
      cast_genes_.resize(static_cast<size_t>(n));
      for (int64_t i = 0; i < n; ++i) {
        if (outside(indices[i], n_vars)) fail_gene(row, first + i, static_cast<int64_t>(indices[i]), n_vars);
        cast_genes_[i] = static_cast<int32_t>(indices[i]);
      }
      return cast_genes_.data();
    }
  }

  template <class Index>
  [[noreturn]] static void fail_first_gene(const Index* indices, int64_t n, int64_t n_vars, int64_t row,
                                           int64_t first) {
    int64_t i = 0;
    while (i + 1 < n && !outside(indices[i], n_vars)) ++i;
    fail_gene(row, first + i, static_cast<int64_t>(indices[i]), n_vars);
  }

  // Stable, so that duplicates keep their order.
  void sort(const float* values, const int32_t* genes, int64_t n) {
    order_.resize(static_cast<size_t>(n));
    sorted_genes_.resize(static_cast<size_t>(n));
    sorted_values_.resize(static_cast<size_t>(n));
    std::iota(order_.begin(), order_.end(), 0u);
    std::stable_sort(order_.begin(), order_.end(), [&](uint32_t a, uint32_t b) { return genes[a] < genes[b]; });
    for (int64_t i = 0; i < n; ++i) {
      sorted_genes_[i] = genes[order_[i]];
      sorted_values_[i] = values[order_[i]];
    }
  }

  // visit(i) for each escape, in order.
  template <class Visit>
  static void each_escape(const std::vector<uint8_t>& codes, int64_t n, int64_t escapes, const Visit& visit) {
    const uint8_t* const begin = codes.data();
    if (escapes > n / 16) {
      for (int64_t i = 0; i < n; ++i) {
        if (begin[i] == kEscape) visit(i);
      }
      return;
    }
    const uint8_t* at = begin;
    for (int64_t k = 0; k < escapes; ++k, ++at) {
      at = static_cast<const uint8_t*>(std::memchr(at, kEscape, static_cast<size_t>(begin + n - at)));
      visit(at - begin);
    }
  }

  void collect_gaps(const int32_t* genes, int64_t n) {
    const auto count = static_cast<int64_t>(kernels_.summarise(gaps_.data(), n).escapes);
    long_gaps_.clear();
    uint32_t longest = 0;
    each_escape(gaps_, n, count, [&](int64_t i) {
      const uint32_t gap = static_cast<uint32_t>(genes[i]) - (i > 0 ? static_cast<uint32_t>(genes[i - 1]) : 0u);
      longest = std::max(longest, gap);
      long_gaps_.push_back(gap);
    });
    wide_gaps_ = longest > UINT16_MAX;
  }

  // The smallest of the modes; a table is tried only where counts leave much to escapes.
  Plan choose(const float* values, int64_t n) {
    kernels_.count_codes(values, n, count_codes_.data());
    const auto escapes = static_cast<int64_t>(kernels_.summarise(count_codes_.data(), n).escapes);
    const bool wide = collect_counts(values, n, escapes);
    const Plan counts{PackedMode::counts, wide, n + escapes * (wide ? 4 : 2)};
    if (counts.size - n <= n / 16) return counts;
    code_table(values, n);
    const Plan table{PackedMode::dictionary, true,
                     n + 4 * table_.size() + 4 * static_cast<int64_t>(table_escapes_.size())};
    const Plan raw{PackedMode::raw, false, 4 * n};
    const Plan& best = table.size < counts.size ? table : counts;
    return raw.size < best.size ? raw : best;
  }

  // True where an escape is not a whole number of 16 bits.
  bool collect_counts(const float* values, int64_t n, int64_t escapes) {
    count_escapes_.clear();
    bool wide = false;
    each_escape(count_codes_, n, escapes, [&](int64_t i) {
      const float value = values[i];
      // The comparisons keep NaN, and whatever an int cannot hold, from being cast.
      wide |= !(value >= 255.0f && value <= 65535.0f && static_cast<float>(static_cast<int32_t>(value)) == value);
      count_escapes_.push_back(value);
    });
    return wide;
  }

  void code_table(const float* values, int64_t n) {
    table_.clear();
    table_escapes_.clear();
    for (int64_t i = 0; i < n; ++i) {
      table_codes_[i] = table_.code(values[i]);
      if (table_codes_[i] == kEscape) table_escapes_.push_back(values[i]);
    }
  }

  void write(const Plan& plan, const float* values, int64_t n, ByteSink& sink) {
    const bool table = plan.mode == PackedMode::dictionary, raw = plan.mode == PackedMode::raw;
    const std::vector<float>& list = table ? table_escapes_ : count_escapes_;
    const int64_t escapes = raw ? 0 : static_cast<int64_t>(list.size());
    const auto n_long_gaps = static_cast<int64_t>(long_gaps_.size());
    const int64_t length = kPackedHeader + n + n_long_gaps * (wide_gaps_ ? 4 : 2) + plan.size;
    uint8_t* const record = sink.reserve(static_cast<size_t>(length));
    record[0] = static_cast<uint8_t>(plan.mode);
    record[1] = static_cast<uint8_t>((wide_gaps_ ? kWideGaps : 0) | (plan.wide_values ? kWideValues : 0));
    record[2] = static_cast<uint8_t>(table ? table_.size() : 0);
    record[3] = 0;
    store_packed<uint32_t>(record + 4, static_cast<uint32_t>(n));
    store_packed<uint32_t>(record + 8, static_cast<uint32_t>(n_long_gaps));
    store_packed<uint32_t>(record + 12, static_cast<uint32_t>(escapes));
    store_packed<double>(record + 16, sum_in_double(values, n));
    uint8_t* out = append(record + kPackedHeader, gaps_.data(), n);
    if (!raw) out = append(out, table ? table_codes_.data() : count_codes_.data(), n);
    for (const uint32_t gap : long_gaps_) out = append_entry(out, gap, wide_gaps_);
    for (int k = 0; table && k < table_.size(); ++k) out = append_float(out, table_[k]);
    if (raw) {
      for (int64_t i = 0; i < n; ++i) out = append_float(out, values[i]);
    } else {
      for (const float value : list) {
        out = plan.wide_values ? append_float(out, value) : append_entry(out, static_cast<uint32_t>(value), false);
      }
    }
    sink.commit(static_cast<size_t>(length));
  }

  static uint8_t* append(uint8_t* out, const uint8_t* bytes, int64_t n) {
    std::copy_n(bytes, n, out);
    return out + n;
  }
  static uint8_t* append_entry(uint8_t* out, uint32_t value, bool wide) {
    if (wide) {
      store_packed<uint32_t>(out, value);
    } else {
      store_packed<uint16_t>(out, static_cast<uint16_t>(value));
    }
    return out + (wide ? 4 : 2);
  }
  static uint8_t* append_float(uint8_t* out, float value) {
    store_packed<float>(out, value);
    return out + 4;
  }

  const PackedKernels& kernels_;
  std::vector<uint8_t> gaps_, count_codes_, table_codes_;
  std::vector<float> cast_values_, sorted_values_, count_escapes_, table_escapes_;
  std::vector<int32_t> cast_genes_, sorted_genes_;
  std::vector<uint32_t> long_gaps_, order_;
  ValueTable table_;
  bool wide_gaps_ = false;
};

// All rows of a matrix; offsets is [n_rows + 1]. The records do not depend on the number of threads.
template <class Value, class Index>
ByteSink encode_rows(const Csr<Value, Index>& matrix, int64_t threads, int64_t* offsets) {
  const int64_t n_rows = matrix.rows.n_rows;
  std::vector<std::pair<int64_t, ByteSink>> parts(static_cast<size_t>(std::max<int64_t>(threads, 1)));
  std::atomic<size_t> taken{0};
  offsets[0] = 0;
  parallel_ranges(n_rows, threads, [&](int64_t begin, int64_t end) {
    RowEncoder encoder;
    ByteSink sink;
    for (int64_t row = begin; row < end; ++row) {
      const RowRange range = matrix.rows.row(row);
      const size_t before = sink.size();
      encoder.encode(matrix.data + range.begin, matrix.indices + range.begin, range.end - range.begin, matrix.n_vars,
                     row, range.begin, sink);
      offsets[row + 1] = static_cast<int64_t>(sink.size() - before);
    }
    parts[taken.fetch_add(1)] = {begin, std::move(sink)};
  });
  for (int64_t row = 0; row < n_rows; ++row) offsets[row + 1] += offsets[row];
  if (taken.load() <= 1) return std::move(parts[0].second);
  ByteSink all;
  uint8_t* const bytes = all.reserve(static_cast<size_t>(offsets[n_rows]));
  for (const auto& [first, part] : parts) {
    if (part.size()) std::memcpy(bytes + offsets[first], part.data(), part.size());
  }
  all.commit(static_cast<size_t>(offsets[n_rows]));
  return all;
}

}  // namespace scdd
