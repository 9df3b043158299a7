// LZF, as h5py writes it (HDF5 filter 32000): literals and matches, no header, no checksum.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace scdd {

enum class LzfStatus { ok, cut_off, too_long, wrong_match };

struct LzfResult {
  size_t produced;
  LzfStatus status;
};

// Decodes until `wanted` bytes stand or the input ends. `out` has room for `size` bytes and 32 more, so that short runs
// are copied in whole words.
inline LzfResult lzf_decode(const uint8_t* in, size_t in_size, uint8_t* out, size_t size, size_t wanted) {
  const uint8_t* const in_end = in + in_size;
  uint8_t* to = out;
  uint8_t* const out_end = out + size;
  const auto result = [&](LzfStatus status) { return LzfResult{static_cast<size_t>(to - out), status}; };
  while (in < in_end && static_cast<size_t>(to - out) < wanted) {
    const size_t control = *in++;
    if (control < 32) {
      const size_t length = control + 1;
      const auto left = static_cast<size_t>(in_end - in);
      if (left < length) return result(LzfStatus::cut_off);
      if (static_cast<size_t>(out_end - to) < length) return result(LzfStatus::too_long);
      std::memcpy(to, in, left >= 32 ? 32 : length);
      in += length;
      to += length;
      continue;
    }
    size_t length = control >> 5;
    if (length == 7) {
      if (in == in_end) return result(LzfStatus::cut_off);
      length += *in++;
    }
    length += 2;
    if (in == in_end) return result(LzfStatus::cut_off);
    const size_t distance = ((control & 31) << 8 | *in++) + 1;
    if (distance > static_cast<size_t>(to - out)) return result(LzfStatus::wrong_match);
    if (static_cast<size_t>(out_end - to) < length) return result(LzfStatus::too_long);
    const uint8_t* from = to - distance;
    if (distance >= 8) {
      for (size_t i = 0; i < length; i += 8) std::memcpy(to + i, from + i, 8);
    } else {
      for (size_t i = 0; i < length; ++i) to[i] = from[i];
    }
    to += length;
  }
  return result(LzfStatus::ok);
}

}  // namespace scdd
