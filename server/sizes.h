// Sizes and rates as people write them, to numbers. Pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace quantd {

/// "64MiB", "16 GB", "1.5GiB", "4096" to bytes: KiB to TiB are powers of 1024, KB to TB of 1000.
/// nullopt for what is no such thing, negative, above 2^62 or no whole number of bytes.
std::optional<int64_t> ParseBytes(std::string_view text);
/// The same a second, with "/s" behind it or not: "3.35TB/s".
std::optional<double> ParseBytesPerSecond(std::string_view text);

}  // namespace quantd
