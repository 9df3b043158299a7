// Bytes that grow and are never cleared: a vector would write zeros over what is about to be overwritten.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace scdd {

class Buffer {
 public:
  // At least `size` bytes, aligned for every element type; the former content is lost.
  uint8_t* reserve(size_t size) {
    if (size > size_) {
      size_ = 0;  // should memory run out
      bytes_.reset();  // before the new one is taken: both at once would double the peak
      bytes_.reset(new uint8_t[size]);
      size_ = size;
    }
    return bytes_.get();
  }
  template <class T>
  T* reserve_of(size_t n) {
    return reinterpret_cast<T*>(reserve(n * sizeof(T)));
  }

 private:
  std::unique_ptr<uint8_t[]> bytes_;
  size_t size_ = 0;
};

}  // namespace scdd
