// Chosen rows as gene tokens, packed end to end, nothing padded: each cell as `TokenRow` makes it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "csr.hpp"
#include "parallel.hpp"
#include "row_totals.hpp"
#include "token_row.hpp"

namespace scdd {

// What the threads find, before it is known how much it is: that shows only when duplicates and zeros are gone, and
// a second look at the rows would decode and sort them twice. Keep it from batch to batch, as fresh memory costs
// page faults, a fifth of the time; but never use it for two calls at once.
class TokenParts {
 public:
  struct Part {
    int64_t begin, end;  // of the rows wanted
    std::vector<int32_t> genes;
    std::vector<float> values;
  };

  void clear() {
    for (Part& part : found_) spare_.push_back(std::move(part));
    found_.clear();
  }

  // Gives all memory back if it is more than this.
  void trim(size_t bytes) {
    clear();
    size_t held = 0;
    for (const Part& part : spare_) held += sizeof(float) * (part.genes.capacity() + part.values.capacity());
    if (held > bytes) spare_.clear();
  }

  Part take(int64_t begin, int64_t end) {
    Part part{begin, end, {}, {}};
    const std::lock_guard<std::mutex> hold(mutex_);
    if (spare_.empty()) return part;
    part.genes.swap(spare_.back().genes);
    part.values.swap(spare_.back().values);
    spare_.pop_back();
    part.genes.clear();
    part.values.clear();
    return part;
  }

  void put(Part part) {
    const std::lock_guard<std::mutex> hold(mutex_);
    found_.push_back(std::move(part));
  }

  const std::vector<Part>& found() const { return found_; }

 private:
  std::mutex mutex_;
  std::vector<Part> found_, spare_;
};

struct NoScratch {};

// Chosen rows as tokens: select(), then write() into arrays of the size found. Rows is a source of rows with
//   size(row), and either
//   decode(row, float*, int32_t*), with total(row) and prefetch(row) if it has them, or
//   view(row, next, Scratch&, f) and total(row), where f(values, genes, n) is given the source's own types.
template <class Rows, class Scratch = NoScratch>
class TokenGather {
 public:
  TokenGather(const Rows& rows, const int64_t* wanted, int64_t n, const TokenPlan& plan, TokenParts& parts,
              int64_t threads)
      : rows_(rows), wanted_(wanted), n_(n), plan_(plan), parts_(parts), threads_(threads) {}

  // Fills cu_seqlens [n + 1], totals [n] and, if not null, detected [n]: a cell's genes before max_genes.
  // Returns the number of tokens.
  int64_t select(int32_t* cu_seqlens, double* totals, int32_t* detected) {
    parts_.clear();
    parallel_ranges(n_, threads_, [&](int64_t begin, int64_t end) {
      parts_.put(select_range(begin, end, cu_seqlens, totals, detected));
    });
    return add_up(cu_seqlens);
  }

  // genes, values and coordinates [number of tokens].
  void write(const int32_t* cu_seqlens, int32_t* genes, float* values, float* coordinates) const {
    int64_t longest = 0;
    for (int64_t i = 0; i < n_; ++i) longest = std::max<int64_t>(longest, cu_seqlens[i + 1] - cu_seqlens[i]);
    std::vector<float> coordinate_of_rank(static_cast<size_t>(longest));
    for (int64_t rank = 0; rank < longest; ++rank) {
      coordinate_of_rank[rank] = static_cast<float>(std::log2(1.0 + static_cast<double>(rank)));
    }
    parallel_ranges(n_, threads_, [&](int64_t begin, int64_t end) {
      for (const Part& part : parts_.found()) {
        const int64_t first = std::max(begin, part.begin), last = std::min(end, part.end);
        if (first >= last) continue;
        const int64_t offset = cu_seqlens[part.begin], start = cu_seqlens[first], stop = cu_seqlens[last];
        std::copy(part.genes.data() + (start - offset), part.genes.data() + (stop - offset), genes + start);
        std::copy(part.values.data() + (start - offset), part.values.data() + (stop - offset), values + start);
        for (int64_t i = first; i < last; ++i) {
          std::copy_n(coordinate_of_rank.data(), cu_seqlens[i + 1] - cu_seqlens[i], coordinates + cu_seqlens[i]);
        }
      }
    });
  }

 private:
  using Part = TokenParts::Part;

  template <class T, class = void>
  struct HasDecode : std::false_type {};
  template <class T>
  struct HasDecode<T, std::void_t<decltype(std::declval<const T&>().decode(int64_t{}, static_cast<float*>(nullptr),
                                                                             static_cast<int32_t*>(nullptr)))>>
      : std::true_type {};
  template <class T, class = void>
  struct HasTotal : std::false_type {};
  template <class T>
  struct HasTotal<T, std::void_t<decltype(std::declval<const T&>().total(int64_t{}))>> : std::true_type {};
  template <class T, class = void>
  struct HasPrefetch : std::false_type {};
  template <class T>
  struct HasPrefetch<T, std::void_t<decltype(std::declval<const T&>().prefetch(int64_t{}))>> : std::true_type {};

  const Rows& rows_;
  const int64_t* wanted_;
  int64_t n_;
  TokenPlan plan_;
  TokenParts& parts_;
  int64_t threads_;

  struct Decoded {
    std::vector<float> values;
    std::vector<int32_t> genes;
  };

  // f(values, genes, size) of a row.
  template <class F>
  void read(int64_t row, int64_t next, Scratch& scratch, Decoded& decoded, const F& f) const {
    if constexpr (HasDecode<Rows>::value) {
      const int64_t size = rows_.size(row);
      if (static_cast<int64_t>(decoded.values.size()) < size) {
        decoded.values.resize(static_cast<size_t>(size));
        decoded.genes.resize(static_cast<size_t>(size));
      }
      rows_.decode(row, decoded.values.data(), decoded.genes.data());
      if constexpr (HasPrefetch<Rows>::value) {
        if (next >= 0) rows_.prefetch(next);
      }
      f(decoded.values.data(), decoded.genes.data(), size);
    } else {
      rows_.view(row, next, scratch, f);
    }
  }

  template <class Value>
  double total_of(int64_t row, [[maybe_unused]] const Value* values, [[maybe_unused]] int64_t size) const {
    if constexpr (HasTotal<Rows>::value) {
      return rows_.total(row);
    } else {
      return sum_in_double(values, size);
    }
  }

  // The lengths of the rows go to cu_seqlens + 1, to be added up when all are known.
  Part select_range(int64_t begin, int64_t end, int32_t* cu_seqlens, double* totals, int32_t* detected) const {
    Part part = parts_.take(begin, end);
    int64_t bound = 0;
    for (int64_t i = begin; i < end; ++i) bound += std::min(rows_.size(wanted_[i]), plan_.max_genes);
    bound = std::min(bound, plan_.max_tokens);
    part.genes.reserve(static_cast<size_t>(bound));
    part.values.reserve(static_cast<size_t>(bound));
    TokenRow cell;
    Scratch scratch;
    Decoded decoded;
    for (int64_t i = begin; i < end; ++i) {
      read(wanted_[i], i + 1 < end ? wanted_[i + 1] : -1, scratch, decoded,
           [&](const auto* values, const auto* genes, int64_t size) {
             totals[i] = total_of(wanted_[i], values, size);
             cell.take(wanted_[i], values, genes, size, totals[i], plan_);
           });
      if (static_cast<int64_t>(part.genes.size()) + cell.n() > plan_.max_tokens) fail_too_many();
      part.genes.insert(part.genes.end(), cell.genes(), cell.genes() + cell.n());
      part.values.insert(part.values.end(), cell.values(), cell.values() + cell.n());
      cu_seqlens[i + 1] = static_cast<int32_t>(cell.n());
      if (detected) detected[i] = static_cast<int32_t>(cell.detected());
    }
    return part;
  }

  int64_t add_up(int32_t* cu_seqlens) const {
    int64_t n_tokens = 0;
    cu_seqlens[0] = 0;
    for (int64_t i = 0; i < n_; ++i) {
      n_tokens += cu_seqlens[i + 1];
      if (n_tokens > plan_.max_tokens) fail_too_many();
      cu_seqlens[i + 1] = static_cast<int32_t>(n_tokens);
    }
    return n_tokens;
  }

  [[noreturn]] void fail_too_many() const {
    fail_value("these " + std::to_string(n_) + " cells have more than " + std::to_string(plan_.max_tokens) +
               " tokens, more than one batch may hold; ask for fewer cells at a time");
  }
};

}  // namespace scdd
