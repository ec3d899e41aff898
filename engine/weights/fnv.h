// Fnv64: FNV-1a of 64 bits, for names of contents: not against someone who looks for collisions.
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace quantd {

class Fnv64 {
 public:
  void Add(std::span<const std::byte> bytes) {
    for (const std::byte b : bytes) {
      hash_ = (hash_ ^ std::to_integer<uint64_t>(b)) * 0x100000001b3u;
    }
  }
  void Add(std::string_view text) { Add(std::as_bytes(std::span(text))); }
  void Add(int64_t value) { Add(std::as_bytes(std::span(&value, 1))); }
  /// 16 hex digits.
  std::string Hex() const { return fmt::format("{:016x}", hash_); }

 private:
  uint64_t hash_ = 0xcbf29ce484222325u;
};

}  // namespace quantd
