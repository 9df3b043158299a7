// Chosen rows over chosen genes as a new CSR matrix, normalised on the way: sorted, without duplicates.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "gather_dense.hpp"
#include "parallel.hpp"
#include "rows.hpp"
#include "stream.hpp"
#include "widen.hpp"

namespace scdd {

struct CsrTransform {
  double target_sum;  // 0: no scaling
  bool log1p;
};

// Whether a source can write a row where it belongs, without a view of it in between.
template <class Rows, class = void>
struct DecodesInto : std::false_type {};
template <class Rows>
struct DecodesInto<Rows, std::void_t<decltype(&Rows::decode_into)>> : std::true_type {};

// Whether a source can check a row, decode it and send it past the caches to its place in one pass.
template <class Rows, class = void>
struct Streams : std::false_type {};
template <class Rows>
struct Streams<Rows, std::void_t<decltype(&Rows::stream)>> : std::true_type {};

// column_of_gene == nullptr keeps every gene at its own place.
template <class Rows>
struct CsrGather {
  const Rows& source;
  const int64_t* rows;
  int64_t n;
  const int32_t* column_of_gene;
  CsrTransform transform;
  int64_t threads;

  // indptr [n + 1] of the result, unless duplicates make it shorter.
  void count(int64_t* indptr) const {
    indptr[0] = 0;
    parallel_ranges(n, threads, [&](int64_t begin, int64_t end) {
      RowScratch scratch;
      for (int64_t i = begin; i < end; ++i) {
        if constexpr (TakesHints<Rows>::value) source.hint(i + kAhead < end ? rows[i + kAhead] : -1);
        indptr[i + 1] = count_row(rows[i], i + 1 < end ? rows[i + 1] : -1, scratch);
      }
    });
    for (int64_t i = 0; i < n; ++i) indptr[i + 1] += indptr[i];
  }

  // Fills what count() has measured; totals [n] is written. Where duplicates were added up, rows move together and
  // indptr is corrected; returns the number of entries.
  int64_t fill(int64_t* indptr, float* data, int32_t* indices, double* totals) const {
    std::vector<int64_t> sizes(static_cast<size_t>(n));
    parallel_ranges(n, threads, [&](int64_t begin, int64_t end) {
      RowScratch scratch, made;
      std::vector<std::pair<int32_t, float>> pairs;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t next = i + 1 < end ? rows[i + 1] : -1;
        if constexpr (TakesHints<Rows>::value) touch_block(begin, i, end);
        const RowOut out{indptr[i + 1] - indptr[i], data + indptr[i], indices + indptr[i]};
        sizes[i] = out.room;
        if (!stream_row(rows[i], next, out, made, scratch, totals[i])) {
          sizes[i] = make_row(rows[i], next, out, made, scratch, pairs, totals[i]);
        }
      }
      stream_fence();
    });
    return close_gaps(sizes, indptr, data, indices);
  }

 private:
  // Where a row goes, and how many entries have been counted for it.
  struct RowOut {
    int64_t room;
    float* data;
    int32_t* indices;
  };

  static constexpr size_t kSlack = 64;   // decoders may write whole vectors
      static constexpr int64_t kBlock = 64;  // rows
  static constexpr int64_t kAhead = 16;  // rows: a size lies in far memory, some hundred nanoseconds away

  int64_t count_row(int64_t row, int64_t next, RowScratch& scratch) const {
    if (!column_of_gene) return source.size(row);
    return source.view(row, next, scratch, [&](const auto*, const auto* genes, int64_t size) {
      int64_t kept = 0;
      for (int64_t p = 0; p < size; ++p) kept += column_of_gene[genes[p]] >= 0;
      return kept;
    });
  }

  // A row in far memory begins with a walk through the page tables. Many walk side by side, and their rows are still
  // known when their turn comes; alone, between decoding and storing, each is waited for (530 -> 680 thousand rows a
  // second).
  void touch_block(int64_t begin, int64_t i, int64_t end) const {
    if ((i - begin) % kBlock != 0) return;
    for (int64_t k = i; k < std::min(i + kBlock, end); ++k) source.touch(rows[k]);
  }

  // Straight to where the row belongs, where the source can do that and the row is in order. False: nothing was made.
  bool stream_row(int64_t row, int64_t next, const RowOut& out, RowScratch& made, RowScratch& scratch,
                  double& total) const {
    if (column_of_gene) return false;
    const bool finished = transform.target_sum == 0 && !transform.log1p;
    const size_t room = static_cast<size_t>(out.room) + kSlack;
    float* values = finished ? out.data : made.values.template reserve_of<float>(room);
    if constexpr (Streams<Rows>::value) {
      if (!source.stream(row, next, out.room, {values, out.indices, finished}, scratch.values, total)) return false;
    } else {
      if (!widen_row(row, next, out, values, finished, scratch)) return false;
      total = source.total(row);
    }
    if (!finished) put_values(values, out.room, total, out.data);
    return true;
  }

  bool widen_row(int64_t row, int64_t next, const RowOut& out, float* made, bool finished, RowScratch& scratch) const {
    return source.view(row, next, scratch, [&](const auto* values, const auto* genes, int64_t size) {
      using Value = std::decay_t<decltype(*values)>;
      using Gene = std::decay_t<decltype(*genes)>;
      if constexpr (kWidens<Value> && kWidens<Gene>) {
        if (size != out.room || !widen_genes(genes, size, out.indices)) return false;
        if (finished) {
          widen_values(values, size, made);
        } else {
          std::copy(values, values + size, made);
        }
        return true;
      }
      return false;
    });
  }

  // Made where it stays in the cache while it is worked on, then sent off in one go. Returns the row's size.
  int64_t make_row(int64_t row, int64_t next, const RowOut& out, RowScratch& made, RowScratch& scratch,
                   std::vector<std::pair<int32_t, float>>& pairs, double& total) const {
    float* values = made.values.template reserve_of<float>(static_cast<size_t>(out.room) + kSlack);
    int32_t* columns = made.genes.template reserve_of<int32_t>(static_cast<size_t>(out.room) + kSlack);
    int64_t size = fill_row(row, next, out.room, values, columns, scratch);
    size = sort_row(size, values, columns, pairs);
    total = source.total(row);
    put_values(values, size, total, out.data);
    stream_copy(out.indices, columns, static_cast<size_t>(size) * sizeof(int32_t));
    return size;
  }

  void put_values(float* values, int64_t size, double total, float* out) const {
    const float scale = scale_of(transform.target_sum, total);
    for (int64_t k = 0; transform.target_sum != 0 && k < size; ++k) values[k] *= scale;
    if (transform.log1p) log1p_in_place(values, size);
    stream_copy(out, values, static_cast<size_t>(size) * sizeof(float));
  }

  // Stops at the counted size: a caller who changes the arrays meanwhile gets nonsense, but no overflow.
  int64_t fill_row(int64_t row, int64_t next, int64_t room, float* out, int32_t* columns, RowScratch& scratch) const {
    if constexpr (DecodesInto<Rows>::value) {
      if (!column_of_gene) return source.decode_into(row, next, room, out, columns);
    }
    return source.view(row, next, scratch, [&](const auto* values, const auto* genes, int64_t size) {
      if (!column_of_gene) {
        size = std::min(size, room);
        for (int64_t p = 0; p < size; ++p) out[p] = static_cast<float>(values[p]);
        for (int64_t p = 0; p < size; ++p) columns[p] = static_cast<int32_t>(genes[p]);
        return size;
      }
      int64_t kept = 0;
      for (int64_t p = 0; p < size && kept < room; ++p) {
        const int32_t column = column_of_gene[genes[p]];
        out[kept] = static_cast<float>(values[p]);
        columns[kept] = column;
        kept += column >= 0;
      }
      return kept;
    });
  }

  // Genes in another order than the file's, a file that is not sorted or names a gene twice: libraries downstream
  // expect order, and log1p must see sums. Stable, so that floats are added in the file's order.
  static int64_t sort_row(int64_t size, float* data, int32_t* indices, std::vector<std::pair<int32_t, float>>& pairs) {
    int disorder = 0;
    for (int64_t k = 1; k < size; ++k) disorder |= indices[k] <= indices[k - 1];
    if (!disorder) return size;
    pairs.resize(static_cast<size_t>(size));
    for (int64_t k = 0; k < size; ++k) pairs[k] = {indices[k], data[k]};
    std::stable_sort(pairs.begin(), pairs.end(),
                     [](const auto& left, const auto& right) { return left.first < right.first; });
    int64_t kept = 0;
    for (const auto& [column, value] : pairs) {
      if (kept && indices[kept - 1] == column) {
        data[kept - 1] += value;
      } else {
        indices[kept] = column;
        data[kept++] = value;
      }
    }
    return kept;
  }

  int64_t close_gaps(const std::vector<int64_t>& sizes, int64_t* indptr, float* data, int32_t* indices) const {
    int64_t place = 0;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t begin = indptr[i];
      if (begin != place) {
        std::copy(data + begin, data + begin + sizes[i], data + place);
        std::copy(indices + begin, indices + begin + sizes[i], indices + place);
      }
      indptr[i] = place;
      place += sizes[i];
    }
    indptr[n] = place;
    return place;
  }
};

template <class Rows>
CsrGather(const Rows&, const int64_t*, int64_t, const int32_t*, CsrTransform, int64_t) -> CsrGather<Rows>;

}  // namespace scdd
