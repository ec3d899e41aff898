// Little-endian streams of small codes in 32-bit words: how GPTQ, AWQ and compressed-tensors pack.
// Pure function.
#pragma once

#include <cstdint>

namespace quantd {

/// Code `index` of a dense stream of `bits`-wide codes (1 to 8), the first in the lowest bits; a
/// code may straddle two words. Word i of the stream is words[i * stride].
inline uint32_t CodeAt(const uint32_t* words, int64_t stride, int64_t index, int bits) {
  const int64_t bit = index * bits;
  const int64_t word = bit / 32, shift = bit % 32;
  uint64_t value = words[word * stride];
  if (shift + bits > 32) value |= static_cast<uint64_t>(words[(word + 1) * stride]) << 32;
  return static_cast<uint32_t>(value >> shift) & ((1u << bits) - 1u);
}

/// 32-bit words that hold `count` codes.
inline int64_t WordsFor(int64_t count, int bits) { return (count * bits + 31) / 32; }

}  // namespace quantd
