#include "server/sizes.h"

#include <charconv>
#include <cmath>
#include <utility>

namespace quantd {
namespace {

constexpr double kMostBytes = 4.6e18;  // below 2^62

std::string_view Trimmed(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

std::optional<double> ParseUnits(std::string_view text) {
  constexpr std::pair<std::string_view, double> kUnits[] = {
      {"KiB", 1024.0}, {"MiB", 1048576.0}, {"GiB", 1073741824.0}, {"TiB", 1099511627776.0},
      {"KB", 1e3},     {"kB", 1e3},        {"MB", 1e6},           {"GB", 1e9},
      {"TB", 1e12},    {"B", 1.0}};
  double unit = 1.0;
  text = Trimmed(text);
  for (const auto& [suffix, bytes] : kUnits) {
    if (!text.ends_with(suffix)) continue;
    unit = bytes;
    text = Trimmed(text.substr(0, text.size() - suffix.size()));
    break;
  }
  double number = 0.0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || stop != end || !(number >= 0.0) || number * unit > kMostBytes) {
    return std::nullopt;
  }
  return number * unit;
}

}  // namespace

std::optional<int64_t> ParseBytes(std::string_view text) {
  const std::optional<double> bytes = ParseUnits(text);
  if (!bytes || *bytes != std::round(*bytes)) return std::nullopt;
  return static_cast<int64_t>(std::llround(*bytes));
}

std::optional<double> ParseBytesPerSecond(std::string_view text) {
  text = Trimmed(text);
  if (text.ends_with("/s")) text.remove_suffix(2);
  return ParseUnits(text);
}

}  // namespace quantd
