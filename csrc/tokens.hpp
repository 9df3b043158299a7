// Chosen rows as gene tokens, packed end to end, nothing padded: each cell as `TokenRow` makes it.
//
// How many tokens a cell has shows only when duplicates and zeros are gone, and a second look at the rows would decode
// and sort them twice. So there is room for as many as there can be, which is mostly exactly what there is: then the
// tokens lie where they belong. Otherwise every task has left some of its room, and its tokens are copied.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "csr.hpp"
#include "parallel.hpp"
#include "rows.hpp"
#include "stream.hpp"
#include "token_row.hpp"

namespace scdd {

// What threads work in. Keep it from batch to batch, as fresh memory costs page faults; but never use it for two calls
// at once.
template <class Scratch>
struct TokenMemory {
  struct Worker {
    TokenRow cell;
    Scratch scratch;
  };
  std::vector<Worker> workers;
  std::vector<float> coordinate_of_rank;
};

// Chosen rows as tokens: measure(), select() into arrays of the room found, write() into arrays of the size found.
// Rows is a source of rows as in rows.hpp; where it has hint(row), it is told early which rows will be asked for.
template <class Rows, class Scratch>
class TokenGather {
 public:
  using Memory = TokenMemory<Scratch>;

  TokenGather(const Rows& rows, const int64_t* wanted, int64_t n, const TokenPlan& plan, Memory& memory,
              int64_t threads)
      : rows_(rows), wanted_(wanted), n_(n), plan_(plan), memory_(memory), threads_(threads),
        tasks_(number_of_tasks(n, threads)), room_(static_cast<size_t>(tasks_ + 1)) {}

  // The most tokens that there can be.
  int64_t measure() {
    each_task(n_ < kFewRows ? 1 : threads_, [&](Worker&, int64_t task) { room_[task + 1] = most_tokens(task); });
    for (int64_t task = 0; task < tasks_; ++task) room_[task + 1] += room_[task];
    return room_[tasks_];
  }

  // Fills cu_seqlens [n + 1], totals [n] and, if not null, detected [n]: a cell's genes before max_genes. Leaves the
  // tokens in genes and values [measure()]. Returns the number of tokens.
  int64_t select(int32_t* cu_seqlens, double* totals, int32_t* detected, int32_t* genes, float* values) {
    each_task(threads_, [&](Worker& worker, int64_t task) {
      select_rows(task, worker, cu_seqlens, totals, detected, genes, values);
    });
    return add_up(cu_seqlens);
  }

  // genes, values and coordinates [number of tokens], of what select() has found; genes and values may be the same
  // arrays if there are as many tokens as there was room.
  void write(const int32_t* cu_seqlens, const int32_t* found_genes, const float* found_values, int32_t* genes,
             float* values, float* coordinates) {
    const float* of_rank = coordinates_of_ranks(cu_seqlens);
    each_task(threads_, [&](Worker&, int64_t task) {
      const int64_t begin = first(task), end = first(task + 1);
      const int64_t start = cu_seqlens[begin];
      const auto bytes = static_cast<size_t>(cu_seqlens[end] - start) * sizeof(int32_t);
      if (genes != found_genes) stream_copy(genes + start, found_genes + room_[task], bytes);
      if (values != found_values) stream_copy(values + start, found_values + room_[task], bytes);
      for (int64_t i = begin; i < end; ++i) {
        const auto length = static_cast<size_t>(cu_seqlens[i + 1] - cu_seqlens[i]);
        stream_copy(coordinates + cu_seqlens[i], of_rank, length * sizeof(float));
      }
      stream_fence();
    });
  }

 private:
  using Worker = typename Memory::Worker;

  static constexpr int64_t kAhead = 16;      // rows: a size lies in far memory, some hundred nanoseconds away
  static constexpr int64_t kFewRows = 2048;  // their sizes are looked up faster than a thread starts

  const Rows& rows_;
  const int64_t* wanted_;
  int64_t n_;
  TokenPlan plan_;
  Memory& memory_;
  int64_t threads_, tasks_;
  std::vector<int64_t> room_;  // where each task's tokens begin

  // Several a thread, as cells differ in length. Any number of threads may have been asked for.
  static int64_t number_of_tasks(int64_t n, int64_t threads) {
    const int64_t most = n / kRowsWorthAThread;
    return threads == 1 ? 1 : std::max<int64_t>(1, std::min(4 * std::min(threads, most), most));
  }

  int64_t first(int64_t task) const { return n_ * task / tasks_; }

  template <class Work>
  void each_task(int64_t threads, const Work& work) {
    const auto wanted = static_cast<size_t>(std::min(threads, tasks_));
    if (memory_.workers.size() < wanted) memory_.workers.resize(wanted);
    std::atomic<size_t> next{0};
    parallel_tasks(tasks_, threads, nullptr, [&] { return &memory_.workers[next++]; },
                   [&](Worker& worker, int64_t task) { work(worker, task); });
  }

  int64_t most_tokens(int64_t task) const {
    int64_t most = 0;
    for (int64_t i = first(task), end = first(task + 1); i < end; ++i) {
      if constexpr (TakesHints<Rows>::value) rows_.hint(i + kAhead < end ? wanted_[i + kAhead] : -1);
      most += std::min(rows_.size(wanted_[i]), plan_.max_genes);
    }
    return std::min(most, plan_.max_tokens);
  }

  // The lengths of the rows go to cu_seqlens + 1, to be added up when all are known.
  void select_rows(int64_t task, Worker& worker, int32_t* cu_seqlens, double* totals, int32_t* detected,
                   int32_t* genes, float* values) const {
    TokenRow& cell = worker.cell;
    int64_t at = room_[task];
    for (int64_t i = first(task), end = first(task + 1); i < end; ++i) {
      rows_.view(wanted_[i], i + 1 < end ? wanted_[i + 1] : -1, worker.scratch,
                 [&](const auto* x, const auto* x_genes, int64_t size) {
                   totals[i] = rows_.total(wanted_[i]);
                   cell.take(wanted_[i], x, x_genes, size, totals[i], plan_);
                 });
      // Also where somebody changes the arrays meanwhile: nonsense, but no overflow.
      if (cell.n() > room_[task + 1] - at) fail_too_many();
      const auto bytes = static_cast<size_t>(cell.n()) * sizeof(int32_t);
      stream_copy(genes + at, cell.genes(), bytes);
      stream_copy(values + at, cell.values(), bytes);
      at += cell.n();
      cu_seqlens[i + 1] = static_cast<int32_t>(cell.n());
      if (detected) detected[i] = static_cast<int32_t>(cell.detected());
    }
    stream_fence();
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

  const float* coordinates_of_ranks(const int32_t* cu_seqlens) {
    int64_t longest = 0;
    for (int64_t i = 0; i < n_; ++i) longest = std::max<int64_t>(longest, cu_seqlens[i + 1] - cu_seqlens[i]);
    std::vector<float>& known = memory_.coordinate_of_rank;
    for (auto rank = static_cast<int64_t>(known.size()); rank < longest; ++rank) {
      known.push_back(static_cast<float>(std::log2(1.0 + static_cast<double>(rank))));
    }
    return known.data();
  }

  [[noreturn]] void fail_too_many() const {
    fail_value("these " + std::to_string(n_) + " cells have more than " + std::to_string(plan_.max_tokens) +
               " tokens, more than one batch may hold; ask for fewer cells at a time");
  }
};

}  // namespace scdd
