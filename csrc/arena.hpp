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
using Bytes = std::unique_ptr<uint8_t, FreeBytes>;

// `size` bytes, where it helps in pages of 2 MiB: each page costs a fault the first time it is touched.
inline Bytes allocate(size_t size) {
  constexpr size_t kLargePage = size_t{1} << 21;
  void* bytes = nullptr;
  const size_t alignment = size >= kLargePage ? kLargePage : 64;
  if (posix_memalign(&bytes, alignment, (size + alignment - 1) / alignment * alignment) != 0) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (size >= kLargePage) madvise(bytes, size, MADV_HUGEPAGE);  // a hint, which may be refused
#endif
  return Bytes(static_cast<uint8_t*>(bytes));
}

// Segments of one size, kept for reuse. They are cut from slabs: a process may have only so many mappings, and of a
// slab only what is touched takes memory.
class SegmentPool {
 public:
  // A segment that a thread has begun and not filled is wasted: small windows want small ones.
  explicit SegmentPool(size_t segment_bytes) : bytes_(segment_bytes) {}
  size_t segment_bytes() const { return bytes_; }

  uint8_t* take() {
    const std::lock_guard<std::mutex> hold(mutex_);
    if (free_.empty()) {
      slabs_.push_back(allocate(kSegments * bytes_));
      // Backwards, so that a slab is used from its beginning.
      for (size_t k = kSegments; k-- > 0;) free_.push_back(slabs_.back().get() + k * bytes_);
    }
    uint8_t* segment = free_.back();
    free_.pop_back();
    return segment;
  }
  void give(const std::vector<uint8_t*>& segments) {
    const std::lock_guard<std::mutex> hold(mutex_);
    free_.insert(free_.end(), segments.begin(), segments.end());
  }

 private:
  static constexpr size_t kSegments = 32;
  size_t bytes_;
  std::mutex mutex_;
  std::vector<Bytes> slabs_;
  std::vector<uint8_t*> free_;
};

// For one thread at a time.
class Arena {
 public:
  explicit Arena(SegmentPool& pool) : pool_(pool) {}
  ~Arena() {
    pool_.give(segments_);
  }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // `size` bytes, aligned to 8.
  uint8_t* take(size_t size) {
    size = (size + 7) / 8 * 8;
    if (size > pool_.segment_bytes()) {
      large_.push_back(allocate(size));
      bytes_ += size;
      return large_.back().get();
    }
    if (size > left_) {
      segments_.push_back(pool_.take());
      cursor_ = segments_.back();
      left_ = pool_.segment_bytes();
      bytes_ += left_;
    }
    uint8_t* taken = cursor_;
    cursor_ += size;
    left_ -= size;
    return taken;
  }
  size_t bytes() const { return bytes_; }

 private:
  SegmentPool& pool_;
  std::vector<uint8_t*> segments_;
  std::vector<Bytes> large_;
  uint8_t* cursor_ = nullptr;
  size_t left_ = 0, bytes_ = 0;
};

}  // namespace scdd
