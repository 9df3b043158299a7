// Tiles for attention within packed segments: which rows a program of the grid takes, and which keys it must visit.
// What tiles are is told in scdd/data/loading/schedule.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <vector>

#include "stream.hpp"

namespace scdd {

// One long segment, which is several tiles, or a run of short ones, which is one.
struct TileGroup {
  int64_t begin, end;   // rows
  int32_t first, last;  // segments, neither empty
  int64_t keys() const { return end - begin; }
  int64_t n_tiles(int64_t tile_rows) const { return (keys() + tile_rows - 1) / tile_rows; }
};

// starts [n + 1] rises from 0. The longest first, equals in the order of rows.
inline std::vector<TileGroup> tile_groups(const int64_t* starts, int64_t n, int64_t tile_rows) {
  std::vector<TileGroup> groups;
  groups.reserve(static_cast<size_t>(n));
  for (int64_t segment = 0; segment < n; ++segment) {
    const int64_t begin = starts[segment], end = starts[segment + 1];
    const auto number = static_cast<int32_t>(segment);
    if (begin == end) continue;
    // A long segment before this one leaves no room, and a long one itself fits nowhere.
    if (!groups.empty() && end - groups.back().begin <= tile_rows) {
      groups.back().end = end;
      groups.back().last = number;
    } else {
      groups.push_back({begin, end, number, number});
    }
  }
  std::stable_sort(groups.begin(), groups.end(),
                   [](const TileGroup& left, const TileGroup& right) { return left.keys() > right.keys(); });
  return groups;
}

// int32 [number of tiles, 6].
inline void write_tiles(const std::vector<TileGroup>& groups, int64_t tile_rows, int32_t* tiles) {
  for (const TileGroup& group : groups) {
    for (int64_t row = group.begin; row < group.end; row += tile_rows) {
      const int64_t end = std::min(row + tile_rows, group.end);
      const int32_t tile[] = {static_cast<int32_t>(row),         static_cast<int32_t>(end), group.first, group.last,
                              static_cast<int32_t>(group.begin), static_cast<int32_t>(group.end)};
      tiles = std::copy(std::begin(tile), std::end(tile), tiles);
    }
  }
}

// The segment of every row, int32 [starts[n]].
inline void write_segments(const int64_t* starts, int64_t n, int32_t* segments) {
  constexpr int64_t kPiece = 2048;
  int32_t piece[kPiece];
  for (int64_t segment = 0; segment < n; ++segment) {
    const int64_t length = starts[segment + 1] - starts[segment];
    std::fill_n(piece, std::min(length, kPiece), static_cast<int32_t>(segment));
    for (int64_t done = 0; done < length; done += kPiece) {
      const auto bytes = static_cast<size_t>(std::min(kPiece, length - done)) * sizeof(int32_t);
      stream_copy(segments + starts[segment] + done, piece, bytes);
    }
  }
  stream_fence();
}

}  // namespace scdd
