// NumPy arrays whose memory comes back for the next batch: fresh memory costs a page fault for every 4 KiB, a tenth of
// the time of a batch of tokens. An array gives its block back when Python drops the last reference to it.
#pragma once

#include <pybind11/numpy.h>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "arena.hpp"

namespace scdd {

namespace py = pybind11;

// All calls hold the GIL, which is the lock; so a fork never finds it half-way.
class BlockPool {
 public:
  // Of the process. Never destroyed: arrays may outlive everything else.
  static BlockPool& shared() {
    static auto* pool = new BlockPool;
    return *pool;
  }

  // Uninitialised.
  template <class T>
  py::array_t<T> array(int64_t n) {
    const size_t bytes = static_cast<size_t>(n) * sizeof(T);
    if (bytes < kSmall) return py::array_t<T>(n);  // malloc has those at hand
    auto* block = new Block(take(rounded(bytes)));
    const py::capsule owner(block, [](void* held) {
      auto* back = static_cast<Block*>(held);
      shared().give(std::move(*back));
      delete back;
    });
    return py::array_t<T>(n, reinterpret_cast<T*>(block->bytes.get()), owner);
  }

 private:
  struct Block {
    Bytes bytes;
    size_t size;
  };
  static constexpr size_t kSmall = size_t{64} << 10;
  static constexpr size_t kKept = size_t{128} << 20;  // bytes that wait for use

  std::vector<Block> free_;  // the one given back last at the end
  size_t kept_ = 0;

  // To an eighth of its power of two, so that a batch of a few tokens more fits into the block of the one before.
  static size_t rounded(size_t bytes) {
    size_t step = kSmall / 8;
    while (step * 16 <= bytes) step *= 2;
    return (bytes + step - 1) / step * step;
  }

  Block take(size_t size) {
    for (size_t k = free_.size(); k-- > 0;) {
      if (free_[k].size < size || free_[k].size > size + size / 2) continue;
      Block block = std::move(free_[k]);
      free_.erase(free_.begin() + static_cast<std::ptrdiff_t>(k));
      kept_ -= block.size;
      return block;
    }
    return {allocate(size), size};
  }

  void give(Block block) {
    if (block.size > kKept) return;
    kept_ += block.size;
    free_.push_back(std::move(block));
    while (kept_ > kKept) {  // those of a size that is no longer asked for go first
      kept_ -= free_.front().size;
      free_.erase(free_.begin());
    }
  }
};

}  // namespace scdd
