// Memory that is taken piece by piece and given back as a whole, into a pool that the next user draws from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace scdd {

using Segment = std::unique_ptr<uint8_t[]>;

// Segments of one size, kept for reuse: fresh memory costs a page fault for every 4 KiB.
class SegmentPool {
 public:
  static constexpr size_t kBytes = size_t{1} << 20;

  Segment take() {
    {
      const std::lock_guard<std::mutex> hold(mutex_);
      if (!free_.empty()) {
        Segment segment = std::move(free_.back());
        free_.pop_back();
        return segment;
      }
    }
    return Segment(new uint8_t[kBytes]);
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
      large_.emplace_back(new uint8_t[size]);
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
