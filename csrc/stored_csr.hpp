// A CSR matrix that lies in files: rows by number, read and decoded by many threads, with no lock in between.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "chunked_array.hpp"
#include "parallel.hpp"
#include "validate.hpp"
#include "window.hpp"

namespace scdd {

struct StoredRowScratch {
  ArrayScratch data, indices;
};

class StoredCsr {
 public:
  int64_t n_rows, n_vars;

  StoredCsr(std::string place, std::shared_ptr<const ChunkedArray> data, std::shared_ptr<const ChunkedArray> indices,
            std::vector<int64_t> indptr, int64_t vars)
      : n_rows(static_cast<int64_t>(indptr.size()) - 1), n_vars(vars), place_(std::move(place)),
        data_(std::move(data)), indices_(std::move(indices)), indptr_(std::move(indptr)) {
    if (indptr_.empty()) fail_value(place_ + ": indptr is empty, and must have one value more than there are rows");
    if (vars < 0 || vars > INT32_MAX) fail_value(place_ + " has " + std::to_string(vars) + " genes, over 2147483647");
    if (data_->length() != indices_->length()) {
      fail_value(place_ + ": data holds " + std::to_string(data_->length()) + " values, indices " +
                 std::to_string(indices_->length()));
    }
    validate_indptr(indptr_.data(), n_rows, data_->length());
    // A row is decoded whole. Genes may be named twice, but not so often that one row needs the memory of an atlas.
    const int64_t most = 16 * vars + 65536;
    for (int64_t row = 0; row < n_rows; ++row) {
      if (indptr_[row + 1] - indptr_[row] > most) {
        fail_value(place_ + ": row " + std::to_string(row) + " has " + std::to_string(indptr_[row + 1] - indptr_[row]) +
                   " entries for " + std::to_string(vars) + " genes");
      }
    }
  }

  const std::vector<int64_t>& indptr() const { return indptr_; }
  const ChunkedArray& data() const { return *data_; }
  const ChunkedArray& indices() const { return *indices_; }

  // sink.put(k, row, values, genes, size) for rows[k], 0 <= k < n; rows must ascend, each once. Each thread has its own
  // sink from make(); of several faults the one of the lowest row is thrown, whatever the number of threads.
  // `edges`, if given, spares the second decoding of chunks whose last row ends in the next.
  template <class MakeSink>
  void read(const int64_t* rows, int64_t n, int64_t threads, const Cancel* cancel, ChunkEdges* edges,
            const MakeSink& make) const {
    const std::vector<int64_t> tasks = cut(rows, n, threads);
    const auto n_tasks = static_cast<int64_t>(tasks.size()) - 1;
    using Sink = decltype(make());
    struct Worker {
      StoredRowScratch scratch;
      Sink sink;
      explicit Worker(const MakeSink& make_sink) : sink(make_sink()) {}
    };
    parallel_tasks(
        n_tasks, threads, cancel, [&] { return std::make_unique<Worker>(make); },
        [&](Worker& worker, int64_t task) {
          if (task + kAhead < n_tasks) expect(rows, tasks[task + kAhead], tasks[task + kAhead + 1]);
          read_run(rows, tasks[task], tasks[task + 1], worker.scratch, edges, worker.sink);
        });
  }

 private:
  // Reads that are asked of the disk before they are needed: a cold disk is slow by waiting, not by bandwidth.
  static constexpr int64_t kAhead = 16;
  static constexpr int64_t kTaskBytes = int64_t{1} << 19;  // decoded; two arrays of it fit a core's own cache
  static constexpr int64_t kGapBytes = int64_t{1} << 14;   // cheaper to read over than to ask twice

  int64_t bytes_of(int64_t begin, int64_t end) const {
    return (end - begin) * static_cast<int64_t>(size_of(data_->element()) + size_of(indices_->element()));
  }

  // Cuts 0..n into runs of rows that are read together: [0, ..., n]. Rows that begin in one chunk stay together, since
  // it has to be decoded once for all of them; so do neighbouring chunks, as the last row of one ends in the next.
  std::vector<int64_t> cut(const int64_t* rows, int64_t n, int64_t threads) const {
    std::vector<int64_t> cuts{0};
    int64_t budget = kTaskBytes;
    if (n > 0) {  // short requests are spread over all threads
      budget = std::min(budget, bytes_of(indptr_[check(rows[0])], indptr_[check(rows[n - 1]) + 1]) / threads / 4 + 1);
    }
    const bool exact = indices_->stored() && data_->stored();
    for (int64_t k = 1; k < n; ++k) {
      if (rows[k] <= rows[k - 1]) fail_value("rows must ascend, each once");
      const int64_t first = rows[cuts.back()];
      const int64_t begin = indptr_[check(rows[k])];
      const int64_t before = indptr_[rows[k - 1] + 1];
      const bool full = bytes_of(indptr_[first], begin) >= budget;
      bool apart;
      if (exact) {
        apart = full || bytes_of(before, begin) > kGapBytes;
      } else {
        const int64_t step = indices_->chunk_of(begin) - indices_->chunk_of(indptr_[rows[k - 1]]);
        apart = step > 1 || (step == 1 && full);
      }
      if (apart) cuts.push_back(k);
    }
    if (n > 0) cuts.push_back(n);
    return cuts;
  }

  int64_t check(int64_t row) const {
    if (outside(row, n_rows)) {
      fail_index("row " + std::to_string(row) + " lies outside 0.." + std::to_string(n_rows - 1));
    }
    return row;
  }

  void expect(const int64_t* rows, int64_t from, int64_t to) const {
    const int64_t begin = indptr_[rows[from]];
    const int64_t end = indptr_[rows[to - 1] + 1];
    if (begin == end) return;
    indices_->expect(begin, end);
    data_->expect(begin, end);
  }

  template <class Sink>
  void read_run(const int64_t* rows, int64_t from, int64_t to, StoredRowScratch& scratch, ChunkEdges* edges,
                Sink& sink) const {
    const int64_t begin = indptr_[rows[from]];
    const int64_t end = indptr_[rows[to - 1] + 1];
    const float* values = nullptr;
    const int32_t* genes = nullptr;
    if (begin < end) {
      const auto row_of = [&](int64_t place) {
        const auto after = std::upper_bound(indptr_.begin(), indptr_.end(), place);
        return Extent{*(after - 1), *after};  // 0 <= place < indptr_.back()
      };
      const uint8_t* raw = data_->read(begin, end, scratch.data, edges, row_of);
      values = as_values(data_->element(), raw, end - begin, converted<float>(*data_, Element::f4, end - begin, scratch.data));
      raw = indices_->read(begin, end, scratch.indices, edges, row_of);
      genes = as_genes(indices_->element(), raw, end - begin,
                       converted<int32_t>(*indices_, Element::i4, end - begin, scratch.indices));
    }
    for (int64_t k = from; k < to; ++k) {
      const int64_t place = indptr_[rows[k]];
      const int64_t size = indptr_[rows[k] + 1] - place;
      if (size == 0) {
        sink.put(k, rows[k], values, genes, 0);
        continue;
      }
      check_genes(rows[k], place, genes + (place - begin), size);
      sink.put(k, rows[k], values + (place - begin), genes + (place - begin), size);
    }
  }

  template <class T>
  static T* converted(const ChunkedArray& array, Element wanted, int64_t n, ArrayScratch& scratch) {
    return array.element() == wanted ? nullptr : scratch.converted.template reserve_of<T>(static_cast<size_t>(n));
  }

  void check_genes(int64_t row, int64_t place, const int32_t* genes, int64_t n) const {
    int wrong = 0;
    for (int64_t p = 0; p < n; ++p) wrong |= static_cast<uint32_t>(genes[p]) >= static_cast<uint32_t>(n_vars);
    if (!wrong) return;
    int64_t p = 0;
    while (static_cast<uint32_t>(genes[p]) < static_cast<uint32_t>(n_vars)) ++p;
    throw StoreError(place_ + " is corrupt: indices[" + std::to_string(place + p) + "] (row " + std::to_string(row) +
                     ") lies outside 0.." + std::to_string(n_vars - 1));
  }

  std::string place_;
  std::shared_ptr<const ChunkedArray> data_, indices_;
  std::vector<int64_t> indptr_;
};

}  // namespace scdd
