// A one-dimensional array that lies in chunks in files: any run of its elements, decoded.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "buffer.hpp"
#include "chunk_edges.hpp"
#include "codec.hpp"
#include "element.hpp"
#include "files.hpp"

namespace scdd {

// Where each chunk lies, as HDF5 or zarr say it. Nothing in it is trusted before check().
struct ChunkTable {
  std::vector<int32_t> file;
  std::vector<int64_t> offset;  // -1: never written, all fill value
  std::vector<int64_t> size;    // encoded bytes
  std::vector<uint32_t> mask;   // HDF5's filter mask
  int64_t chunk_length;         // elements
  int64_t length;               // elements
};

// Elements begin..end-1.
struct Extent {
  int64_t begin, end;
};

// What one thread needs to read one array; kept between reads.
struct ArrayScratch {
  Buffer encoded, decoded, converted;
  DecodeScratch codec;
};

class ChunkedArray {
 public:
  ChunkedArray(std::string name, std::shared_ptr<const Files> files, ChunkTable table, Element element,
               bool swapped, Pipeline pipeline, double fill)
      : name_(std::move(name)), files_(std::move(files)), table_(std::move(table)), element_(element),
        swapped_(swapped), pipeline_(std::move(pipeline)), fill_(fill) {
    check();
  }

  int64_t length() const { return table_.length; }
  int64_t chunk_length() const { return table_.chunk_length; }
  Element element() const { return element_; }
  bool stored() const { return pipeline_.stored(); }
  bool cheap_prefix() const { return pipeline_.stored() || pipeline_.cheap_prefix(); }
  int64_t chunk_bytes() const { return table_.chunk_length * static_cast<int64_t>(size_of(element_)); }
  int64_t chunk_of(int64_t element) const { return element / table_.chunk_length; }

  // Elements begin..end-1, 0 <= begin < end <= length, in the machine's byte order. Lives until the next read.
  const uint8_t* read(int64_t begin, int64_t end, ArrayScratch& scratch) const {
    return read(begin, end, scratch, nullptr, [](int64_t place) { return Extent{place, place}; });
  }

  // The same, of whole rows; row_of(place) is the extent of the row that element `place` is in. What belongs to rows in
  // two chunks is taken from `edges` where it is there, and put there where this read does not ask for it.
  template <class RowOf>
  const uint8_t* read(int64_t begin, int64_t end, ArrayScratch& scratch, ChunkEdges* edges, const RowOf& row_of) const {
    const int64_t first = chunk_of(begin);
    const int64_t last = chunk_of(end - 1);
    const auto item = static_cast<int64_t>(size_of(element_));
    // Bytes that lie as they are can be taken from the middle of a chunk, others only from its beginning.
    const int64_t origin = stored() ? begin : first * table_.chunk_length;
    const int64_t capacity = stored() ? (end - begin) * item : (last - first + 1) * chunk_bytes();
    uint8_t* out = scratch.decoded.reserve(static_cast<size_t>(capacity) + kSlack);
    for (int64_t chunk = first; chunk <= last; ++chunk) {
      const int64_t start = std::max(origin, chunk * table_.chunk_length);
      const int64_t stop = std::min(end, (chunk + 1) * table_.chunk_length);
      uint8_t* const to = out + (start - origin) * item;
      if (edges && !stored()) {
        read_through({begin, end}, chunk, to, scratch, *edges, row_of);
      } else {
        read_chunk(chunk, start - chunk * table_.chunk_length, stop - start, to, scratch);
      }
    }
    uint8_t* wanted = out + (begin - origin) * item;
    if (swapped_) swap_bytes(wanted, end - begin, static_cast<size_t>(item));
    return wanted;
  }

  // Has the system fetch what read(begin, end) will need.
  void expect(int64_t begin, int64_t end) const {
    const auto item = static_cast<int64_t>(size_of(element_));
    for (int64_t chunk = chunk_of(begin); chunk <= chunk_of(end - 1); ++chunk) {
      if (table_.offset[chunk] < 0) continue;
      const int64_t start = stored() ? std::max<int64_t>(begin - chunk * table_.chunk_length, 0) * item : 0;
      const int64_t stop = stored() ? std::min(end - chunk * table_.chunk_length, table_.chunk_length) * item
                                    : table_.size[chunk];
      files_->expect(table_.file[chunk], table_.offset[chunk] + start, stop - start);
    }
  }

 private:
  static constexpr size_t kSlack = 64;
  static constexpr int64_t kLargestChunk = int64_t{1} << 31;  // no sane file; a lie about the size

  // A chunk, or what of it is wanted, with its beginning at `to`.
  template <class RowOf>
  void read_through(Extent wanted, int64_t chunk, uint8_t* to, ArrayScratch& scratch, ChunkEdges& edges,
                    const RowOf& row_of) const {
    using Side = ChunkEdges::Side;
    const size_t item = size_of(element_);
    const int64_t begin = chunk * table_.chunk_length;
    const int64_t end = std::min(begin + table_.chunk_length, table_.length);
    const auto piece = [&](int64_t from, int64_t until) { return static_cast<size_t>(until - from); };
    // All that is wanted may be the part of one row: of the last in the chunk, or of one from the chunk before.
    if (wanted.begin > begin && wanted.end > end &&
        edges.take(id_, end, Side::before, piece(wanted.begin, end), item,
                   to + (wanted.begin - begin) * static_cast<int64_t>(item))) {
      return;
    }
    if (wanted.begin < begin && wanted.end < end &&
        edges.take(id_, begin, Side::after, piece(begin, wanted.end), item, to)) {
      return;
    }
    const Extent over_begin = begin > 0 ? row_of(begin) : Extent{begin, begin};
    const Extent over_end = end < table_.length ? row_of(end) : Extent{end, end};
    const int64_t stop = std::min(wanted.end, end);
    // The rest of the chunk is not wanted now, but its last row may be later; where the rest is little, or costs
    // nothing, it is decoded as well.
    const bool keep_last = over_end.begin < end && over_end.begin > begin && over_end.begin >= stop;
    const bool whole = keep_last && (!cheap_prefix() || stop - begin >= (end - begin) / 4 * 3);
    const int64_t decoded = whole ? end : stop;
    read_chunk(chunk, 0, decoded - begin, to, scratch);
    if (over_begin.begin < begin && over_begin.end <= wanted.begin && over_begin.end <= decoded) {
      edges.put(id_, begin, Side::after, to, piece(begin, over_begin.end), item);
    }
    if (whole) {
      edges.put(id_, end, Side::before, to + (over_end.begin - begin) * static_cast<int64_t>(item),
                piece(over_end.begin, end), item);
    }
  }

  void read_chunk(int64_t chunk, int64_t skip, int64_t count, uint8_t* out, ArrayScratch& scratch) const {
    const auto item = static_cast<int64_t>(size_of(element_));
    if (table_.offset[chunk] < 0) return fill(out, count);
    try {
      if (stored()) {
        files_->read(table_.file[chunk], table_.offset[chunk] + skip * item, count * item, out);
        return;
      }
      uint8_t* encoded = scratch.encoded.reserve(static_cast<size_t>(table_.size[chunk]) + kSlack);
      files_->read(table_.file[chunk], table_.offset[chunk], table_.size[chunk], encoded);
      pipeline_.decode(encoded, static_cast<size_t>(table_.size[chunk]), table_.mask[chunk], out,
                       static_cast<size_t>(chunk_bytes()), static_cast<size_t>(count * item), scratch.codec);
    } catch (const StoreError& error) {
      throw StoreError(name_ + ", chunk " + std::to_string(chunk) + ": " + error.what());
    } catch (const DecodeError& error) {
      throw StoreError(name_ + ", chunk " + std::to_string(chunk) + " (byte " + std::to_string(table_.offset[chunk]) +
                       " of " + files_->path(table_.file[chunk]) + "): " + error.what());
    }
  }

  void fill(uint8_t* out, int64_t count) const {
    visit_elements(element_, out, [&](const auto* elements) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(elements)>>;
      const T value = static_cast<T>(fill_);
      for (int64_t i = 0; i < count; ++i) std::memcpy(out + i * sizeof(T), &value, sizeof(T));
    });
    // The caller turns bytes around if the file's order is not ours; what is ours already must survive that.
    if (swapped_) swap_bytes(out, count, size_of(element_));
  }

  void check() const {
    const auto n = static_cast<int64_t>(table_.offset.size());
    const auto item = static_cast<int64_t>(size_of(element_));
    if (table_.length < 0) fail_value(name_ + " has the negative length " + std::to_string(table_.length));
    if (table_.chunk_length < 1 || table_.chunk_length > INT64_MAX / 16) {
      fail_value(name_ + " has chunks of " + std::to_string(table_.chunk_length) + " elements");
    }
    if (!stored() && table_.chunk_length > kLargestChunk / item) {
      fail_value(name_ + " has compressed chunks of " + std::to_string(table_.chunk_length) + " elements, over 2 GiB each");
    }
    if (table_.file.size() != table_.offset.size() || table_.size.size() != table_.offset.size() ||
        table_.mask.size() != table_.offset.size()) {
      fail_value(name_ + ": the columns of its chunk table differ in length");
    }
    const int64_t needed = table_.length == 0 ? 0 : (table_.length - 1) / table_.chunk_length + 1;
    if (n != needed) {
      fail_value(name_ + " has " + std::to_string(n) + " chunks, and must have " + std::to_string(needed));
    }
    const bool whole_numbers = element_ != Element::f4 && element_ != Element::f8;
    if (whole_numbers && fill_ != 0) {
      fail_value(name_ + " has the fill value " + std::to_string(fill_) + "; only 0 is supported for its type");
    }
    for (int64_t k = 0; k < n; ++k) check_chunk(k, item);
  }

  void check_chunk(int64_t k, int64_t item) const {
    if (table_.offset[k] < 0) return;
    const int64_t inside = std::min(table_.length - k * table_.chunk_length, table_.chunk_length) * item;
    const bool wrong_file = outside(table_.file[k], static_cast<int64_t>(files_->count()));
    const bool wrong_size = table_.size[k] < 0 || table_.size[k] > kLargestSize || table_.offset[k] > INT64_MAX / 2 ||
                            (stored() && table_.size[k] < inside);
    if (wrong_file || wrong_size) {
      fail_value(name_ + ", chunk " + std::to_string(k) + ": " + std::to_string(table_.size[k]) + " bytes at " +
                 std::to_string(table_.offset[k]) + " of file " + std::to_string(table_.file[k]) + " cannot be");
    }
    // An encoder may enlarge what it cannot compress, but not by much.
    if (!stored() && table_.size[k] > 2 * chunk_bytes() + 4096) {
      fail_value(name_ + ", chunk " + std::to_string(k) + " takes " + std::to_string(table_.size[k]) +
                 " bytes for " + std::to_string(chunk_bytes()) + " decoded ones");
    }
  }

  static constexpr int64_t kLargestSize = int64_t{1} << 50;

  static uint64_t next_id() {
    static std::atomic<uint64_t> last{0};
    return ++last;
  }

  std::string name_;
  std::shared_ptr<const Files> files_;
  ChunkTable table_;
  Element element_;
  bool swapped_;
  Pipeline pipeline_;
  double fill_;
  uint64_t id_ = next_id();  // an address may be another array's later
};

}  // namespace scdd
