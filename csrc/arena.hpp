// Memory that is taken piece by piece and given back as a whole, into a pool that the next user draws from.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace scdd {

struct FreeBytes {
  void operator()(uint8_t* bytes) const { std::free(bytes); }
};
using Segment = std::unique_ptr<uint8_t, FreeBytes>;

// `size` bytes, where it helps in pages of 2 MiB: each page costs a fault the first time it is touched.
inline Segment allocate(size_t size) {
  constexpr size_t kLargePage = size_t{1} << 21;
  void* bytes = nullptr;
  const size_t alignment = size >= kLargePage ? kLargePage : 64;
  if (posix_memalign(&bytes, alignment, (size + alignment - 1) / alignment * alignment) != 0) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (size >= kLargePage) madvise(bytes, size, MADV_HUGEPAGE);  // a hint, which may be refused
#endif
  return Segment(static_cast<uint8_t*>(bytes));
}

// Segments of one size, kept for reuse.
class SegmentPool {
 public:
  static constexpr size_t kBytes = size_t{1} << 21;

  Segment take() {
    {
      const std::lock_guard<std::mutex> hold(mutex_);
      if (!free_.empty()) {
        Segment segment = std::move(free_.back());
        free_.pop_back();
        return segment;
      }
    }
    return allocate(kBytes);
  }
  void give(std::vector<Segment>&& segments) {
    const std::lock_guard<std::mutex> hold(mutex_);
    for (auto& segment : segments) free_.push_back(std::move(segment));
  }

 private:
  std::mutex mutex_;
  std::vector<Segment> free_;
};

// For one thread at a time.
class Arena {
 public:
  explicit Arena(std::shared_ptr<SegmentPool> pool) : pool_(std::move(pool)) {}
  ~Arena() {
    if (pool_) pool_->give(std::move(segments_));
  }
  Arena(Arena&&) = default;
  Arena& operator=(Arena&&) = delete;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // `size` bytes, aligned to 8.
  uint8_t* take(size_t size) {
    size = (size + 7) / 8 * 8;
    if (size > SegmentPool::kBytes) {
      large_.push_back(allocate(size));
      bytes_ += size;
      return large_.back().get();
    }
    if (size > left_) {
      segments_.push_back(pool_->take());
      cursor_ = segments_.back().get();
      left_ = SegmentPool::kBytes;
      bytes_ += SegmentPool::kBytes;
    }
    uint8_t* taken = cursor_;
    cursor_ += size;
    left_ -= size;
    return taken;
  }
  size_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<SegmentPool> pool_;
  std::vector<Segment> segments_, large_;
  uint8_t* cursor_ = nullptr;
  size_t left_ = 0, bytes_ = 0;
};

}  // namespace scdd
