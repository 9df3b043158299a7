// Rows split evenly over threads that live for one call: nothing to clean up, nothing that fork() could break.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
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

}  // namespace scdd
