// Checksums that files carry: HDF5's Fletcher-32 and the CRC-32C of zarr.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace scdd {

// Over big-endian 16-bit words, an odd last byte filled up with zero (H5_checksum_fletcher32).
inline uint32_t fletcher32(const uint8_t* data, size_t size) {
  uint32_t low = 0, high = 0;
  size_t words = size / 2;
  while (words > 0) {
    const size_t batch = words < 360 ? words : 360;  // as many fit 32 bits without a carry
    for (size_t i = 0; i < batch; ++i, data += 2) {
      low += uint32_t{data[0]} << 8 | data[1];
      high += low;
    }
    words -= batch;
    low = (low & 0xffff) + (low >> 16);
    high = (high & 0xffff) + (high >> 16);
  }
  if (size % 2 != 0) {
    low += uint32_t{*data} << 8;
    high += low;
    low = (low & 0xffff) + (low >> 16);
    high = (high & 0xffff) + (high >> 16);
  }
  low = (low & 0xffff) + (low >> 16);
  high = (high & 0xffff) + (high >> 16);
  return high << 16 | low;
}

namespace detail {

// table[k][byte]: the remainder of a byte that k further bytes follow.
inline constexpr auto kCrc32cTables = [] {
  std::array<std::array<uint32_t, 256>, 8> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0u);
    table[0][byte] = crc;
  }
  for (size_t k = 1; k < 8; ++k) {
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t before = table[k - 1][byte];
      table[k][byte] = before >> 8 ^ table[0][before & 0xff];
    }
  }
  return table;
}();

constexpr uint32_t crc32c_table(const uint8_t* data, size_t size) {
  const auto& table = kCrc32cTables;
  uint32_t crc = ~0u;
  for (; size >= 8; size -= 8, data += 8) {
    const uint32_t first = crc ^ (uint32_t{data[0]} | uint32_t{data[1]} << 8 | uint32_t{data[2]} << 16 |
                                  uint32_t{data[3]} << 24);
    crc = table[7][first & 0xff] ^ table[6][first >> 8 & 0xff] ^ table[5][first >> 16 & 0xff] ^ table[4][first >> 24] ^
          table[3][data[4]] ^ table[2][data[5]] ^ table[1][data[6]] ^ table[0][data[7]];
  }
  for (; size > 0; --size, ++data) crc = crc >> 8 ^ table[0][(crc ^ *data) & 0xff];
  return ~crc;
}

// Where there is an instruction for it, nothing else would run the table.
inline constexpr uint8_t kCheckDigits[] = {'1', '2', '3', '4', '5', '6', '7', '8', '9'};
static_assert(crc32c_table(kCheckDigits, 9) == 0xe3069283u, "the check value of CRC-32C");

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) inline uint32_t crc32c_sse42(const uint8_t* data, size_t size) {
  uint64_t crc = 0xffffffffu;
  for (; size >= 8; size -= 8, data += 8) {
    uint64_t word;
    std::memcpy(&word, data, 8);
    crc = _mm_crc32_u64(crc, word);
  }
  auto rest = static_cast<uint32_t>(crc);
  for (; size > 0; --size, ++data) rest = _mm_crc32_u8(rest, *data);
  return ~rest;
}
#endif

}  // namespace detail

inline uint32_t crc32c(const uint8_t* data, size_t size) {
#if defined(__x86_64__)
  static const bool in_hardware = __builtin_cpu_supports("sse4.2");
  if (in_hardware) return detail::crc32c_sse42(data, size);
#endif
  return detail::crc32c_table(data, size);
}

}  // namespace scdd
