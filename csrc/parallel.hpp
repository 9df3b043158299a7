// Rows split evenly over threads that live for one call: nothing to clean up, nothing that fork() could break.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

namespace scdd {

// Starting a thread costs some tens of microseconds, about this many rows' work.
constexpr int64_t kRowsWorthAThread = 32;

// body(begin, end) for consecutive ranges that cover 0..n. Of several errors the one of the lowest range is
// thrown, so that the message does not depend on the number of threads.
template <class Body>
void parallel_ranges(int64_t n, int64_t threads, const Body& body) {
  const int64_t parts = std::max<int64_t>(1, std::min(threads, n / kRowsWorthAThread));
  std::vector<std::exception_ptr> errors(parts);
  const auto run = [&](int64_t part) noexcept {
    try {
      body(n * part / parts, n * (part + 1) / parts);
    } catch (...) {
      errors[part] = std::current_exception();
    }
  };
  std::vector<std::thread> workers;
  workers.reserve(parts - 1);
  int64_t started = 1;
  try {
    for (; started < parts; ++started) workers.emplace_back(run, started);
  } catch (const std::system_error&) {
    // The system grants no more threads: the caller does the rest itself.
  }
  run(0);
  for (int64_t part = started; part < parts; ++part) run(part);
  for (auto& worker : workers) worker.join();
  for (const auto& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

// A caller's wish to stop; looked at between tasks.
class Cancel {
 public:
  void request() { requested_ = true; }
  bool requested() const { return requested_; }

 private:
  std::atomic<bool> requested_{false};
};

struct Cancelled : std::runtime_error {
  Cancelled() : std::runtime_error("cancelled") {}
};

// work(worker, task) for tasks 0..n-1, each taken by the first thread that is free: for tasks of unequal length.
// `make()` builds each thread's own worker. Of several errors the one of the lowest task is thrown.
template <class Make, class Work>
void parallel_tasks(int64_t n, int64_t threads, const Cancel* cancel, const Make& make, const Work& work) {
  std::atomic<int64_t> next{0};
  std::atomic<int64_t> failed{INT64_MAX};  // no task above this one is begun any more
  std::mutex mutex;
  std::exception_ptr error;
  const auto fail = [&](int64_t task) {
    const std::lock_guard<std::mutex> hold(mutex);
    if (task >= failed) return;
    failed = task;
    error = std::current_exception();
  };
  const auto run = [&]() noexcept {
    int64_t task = -1;  // an error before the first task counts as lower than all
    try {
      auto worker = make();
      while ((task = next++) < n && task < failed) {
        if (cancel && cancel->requested()) throw Cancelled();
        work(*worker, task);
      }
    } catch (...) {
      fail(task);
    }
  };
  std::vector<std::thread> workers;
  const int64_t wanted = std::min(threads, n);
  try {
    for (int64_t k = 1; k < wanted; ++k) workers.emplace_back(run);
  } catch (const std::system_error&) {
    // The system grants no more threads: those that run do the rest.
  }
  run();
  for (auto& worker : workers) worker.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace scdd
