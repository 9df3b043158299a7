// Files that many threads read at once, by position: no shared cursor, nothing that fork() could break.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace scdd {

// A file that is damaged, or no longer what it was when it was opened. Python sees `_csr.StoreError`, an OSError.
struct StoreError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class File {
 public:
  explicit File(const std::string& path) : path_(path), handle_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (handle_ < 0) throw StoreError(path + " cannot be opened: " + std::strerror(errno));
    struct stat status {};
    if (::fstat(handle_, &status) != 0) {
      const int reason = errno;  // close() may change it
      ::close(handle_);
      throw StoreError(path + " cannot be examined: " + std::strerror(reason));
    }
    size_ = status.st_size;
  }
  ~File() { ::close(handle_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  int64_t size() const { return size_; }

  // Exactly `size` bytes; a short read means that the file has shrunk since it was opened.
  void read(int64_t offset, int64_t size, uint8_t* out) const {
    while (size > 0) {
      // Some systems refuse 2^31 bytes and more at once.
      const ssize_t got = ::pread(handle_, out, static_cast<size_t>(std::min(size, int64_t{1} << 30)), offset);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) throw StoreError(path_ + " cannot be read at byte " + std::to_string(offset) + ": " + std::strerror(errno));
      if (got == 0) {
        throw StoreError(path_ + " ends at byte " + std::to_string(offset) + ", " + std::to_string(size) +
                         " bytes before it should: it is truncated or was replaced while in use");
      }
      out += got;
      offset += got;
      size -= got;
    }
  }

  // Asks the system to have these bytes ready soon. Purely a hint.
  void expect(int64_t offset, int64_t size) const {
#ifdef POSIX_FADV_WILLNEED
    ::posix_fadvise(handle_, offset, size, POSIX_FADV_WILLNEED);
#else
    (void)offset;
    (void)size;
#endif
  }

 private:
  std::string path_;
  int handle_;
  int64_t size_ = 0;
};

// The files of one array. A few stay open; a store of many small files opens each for the moment, since a process
// may hold no more than some hundred.
class Files {
 public:
  explicit Files(std::vector<std::string> paths) : paths_(std::move(paths)) {
    if (paths_.size() > kHeld) return;
    for (const auto& path : paths_) held_.push_back(std::make_unique<File>(path));
  }

  size_t count() const { return paths_.size(); }
  const std::string& path(size_t number) const { return paths_[number]; }

  void read(size_t number, int64_t offset, int64_t size, uint8_t* out) const {
    if (!held_.empty()) return held_[number]->read(offset, size, out);
    File(paths_[number]).read(offset, size, out);
  }

  void expect(size_t number, int64_t offset, int64_t size) const {
    if (!held_.empty()) held_[number]->expect(offset, size);
  }

 private:
  static constexpr size_t kHeld = 8;
  std::vector<std::string> paths_;
  std::vector<std::unique_ptr<File>> held_;
};

}  // namespace scdd
