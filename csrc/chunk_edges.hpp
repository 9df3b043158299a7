// Rows that lie in two chunks: the part that was decoded with one chunk, kept until the other chunk is.
//
// In random order the two chunks come at different times, and either would be decoded twice for the sake of one row:
// whoever reads the second of them asks here for what is missing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

namespace scdd {

// Elements of `Item` bytes as planes of bytes of equal significance, without the planes that are zero: gene numbers
// and small counts need two bytes of four, or of eight.
class PackedElements {
 public:
  PackedElements(const uint8_t* elements, size_t n, size_t item) : n_(n), item_(static_cast<uint8_t>(item)) {
    uint64_t any = 0;
    for (size_t i = 0; i < n; ++i) {
      uint64_t word = 0;
      std::memcpy(&word, elements + i * item, item);  // 1, 2, 4 or 8 bytes
      any |= word;
    }
    uint8_t used[8];
    std::memcpy(used, &any, sizeof used);
    for (size_t plane = 0; plane < item; ++plane) {
      if (!used[plane]) continue;
      planes_ = static_cast<uint8_t>(planes_ | 1u << plane);
      const size_t begin = bytes_.size();
      bytes_.resize(begin + n);
      for (size_t i = 0; i < n; ++i) bytes_[begin + i] = elements[i * item + plane];
    }
  }

  size_t n() const { return n_; }
  size_t item() const { return item_; }
  size_t bytes() const { return bytes_.size(); }

  void copy_to(uint8_t* elements) const {
    std::memset(elements, 0, n_ * item_);
    const uint8_t* next = bytes_.data();
    for (size_t plane = 0; plane < item_; ++plane) {
      if (!(planes_ >> plane & 1u)) continue;
      for (size_t i = 0; i < n_; ++i) elements[i * item_ + plane] = next[i];
      next += n_;
    }
  }

 private:
  size_t n_;
  uint8_t item_, planes_ = 0;
  std::vector<uint8_t> bytes_;
};

// For any number of threads. What is here is never needed: it only saves work.
class ChunkEdges {
 public:
  enum class Side : uint8_t { before, after };

  // `limit` bytes; 0 keeps nothing.
  explicit ChunkEdges(size_t limit) : limit_(limit) {}
  bool enabled() const { return limit_ > 0; }

  // Keeps the `n` elements right before or after element `boundary` of an array; the oldest go when it is full.
  void put(uint64_t array, int64_t boundary, Side side, const uint8_t* elements, size_t n, size_t item) {
    PackedElements packed(elements, n, item);
    const size_t size = packed.bytes() + kOverhead;
    if (size > limit_) return;
    const Key key{array, boundary, side};
    const std::lock_guard<std::mutex> hold(mutex_);
    if (kept_.count(key)) return;
    while (bytes_ + size > limit_) drop_oldest();
    order_.push_back(key);  // first: should memory run out, it names nothing, as one that has been taken
    kept_.emplace(key, std::move(packed));
    bytes_ += size;
  }

  // Takes out the `n` elements right before or after `boundary`, if just these are here.
  bool take(uint64_t array, int64_t boundary, Side side, size_t n, size_t item, uint8_t* out) {
    std::unordered_map<Key, PackedElements, Hash>::node_type found;
    {
      const std::lock_guard<std::mutex> hold(mutex_);
      const auto at = kept_.find({array, boundary, side});
      if (at == kept_.end() || at->second.n() != n || at->second.item() != item) return false;
      found = kept_.extract(at);
      bytes_ -= found.mapped().bytes() + kOverhead;
      if (order_.size() > 2 * kept_.size() + kStale) forget_taken();
    }
    found.mapped().copy_to(out);
    return true;
  }

  size_t bytes() const {
    const std::lock_guard<std::mutex> hold(mutex_);
    return bytes_;
  }

 private:
  struct Key {
    uint64_t array;
    int64_t boundary;
    Side side;
    bool operator==(const Key& other) const {
      return array == other.array && boundary == other.boundary && side == other.side;
    }
  };
  struct Hash {
    size_t operator()(const Key& key) const {
      uint64_t mixed = (static_cast<uint64_t>(key.boundary) << 1 | static_cast<uint64_t>(key.side)) + (key.array << 48);
      mixed *= 0x9e3779b97f4a7c15u;
      return static_cast<size_t>(mixed ^ mixed >> 32);
    }
  };

  static constexpr size_t kOverhead = 192;  // of an entry in both containers
  static constexpr size_t kStale = 64;

  void drop_oldest() {
    const auto at = kept_.find(order_.front());
    order_.pop_front();
    if (at == kept_.end()) return;  // taken meanwhile
    bytes_ -= at->second.bytes() + kOverhead;
    kept_.erase(at);
  }

  void forget_taken() {
    std::deque<Key> left;
    for (const Key& key : order_) {
      if (kept_.count(key)) left.push_back(key);
    }
    order_.swap(left);
  }

  size_t limit_, bytes_ = 0;
  mutable std::mutex mutex_;
  std::unordered_map<Key, PackedElements, Hash> kept_;
  std::deque<Key> order_;
};

}  // namespace scdd
