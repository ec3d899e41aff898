#include "server/bench/lengths.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <vector>

#include "kernels/status.h"

namespace quantd::bench {
namespace {

constexpr double kMostTokens = 1e7;  // no model has such a context

std::vector<std::string_view> SplitAtColons(std::string_view text) {
  std::vector<std::string_view> parts;
  while (true) {
    const size_t colon = text.find(':');
    parts.push_back(text.substr(0, colon));
    if (colon == std::string_view::npos) return parts;
    text.remove_prefix(colon + 1);
  }
}

template <typename T>
std::optional<T> ParseWhole(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace

absl::StatusOr<LengthDistribution> LengthDistribution::Parse(const std::string& flag,
                                                             std::string_view text) {
  std::vector<std::string_view> parts = SplitAtColons(text);
  LengthDistribution out;
  if ((parts[0] == "normal" || parts[0] == "lognormal") && parts.size() == 3) {
    const auto mean = ParseWhole<double>(parts[1]);
    const auto deviation = ParseWhole<double>(parts[2]);
    if (mean && deviation && *mean >= 1 && *mean <= kMostTokens && *deviation >= 0 &&
        *deviation <= kMostTokens) {
      out.kind_ = parts[0] == "normal" ? Kind::kNormal : Kind::kLognormal;
      out.mean_ = *mean;
      out.std_ = *deviation;
      return out;
    }
  } else {
    if (parts[0] == "uniform" && parts.size() == 3) parts.erase(parts.begin());
    const auto low = ParseWhole<int32_t>(parts.front());
    const auto high = ParseWhole<int32_t>(parts.back());
    if (parts.size() <= 2 && low && high && *low >= 1 && *low <= *high && *high <= kMostTokens) {
      out.low_ = *low;
      out.high_ = *high;
      return out;
    }
  }
  return InvalidArgument(
      "{} is \"{}\", allowed: N, MIN:MAX, normal:MEAN:STD or lognormal:MEAN:STD, in tokens, each "
      "length or mean 1 to 10000000",
      flag, text);
}

int32_t LengthDistribution::Draw(std::mt19937_64& random, int32_t most) const {
  double value = 0.0;
  switch (kind_) {
    case Kind::kUniform: value = std::uniform_int_distribution<int32_t>(low_, high_)(random); break;
    case Kind::kNormal: value = std::normal_distribution<double>(mean_, std_)(random); break;
    case Kind::kLognormal: {
      // Of mean m and deviation s: the logarithm has variance ln(1 + (s/m)^2) and mean
      // ln(m) - variance / 2.
      const double variance = std::log1p((std_ / mean_) * (std_ / mean_));
      value = std::lognormal_distribution<double>(std::log(mean_) - variance / 2,
                                                  std::sqrt(variance))(random);
      break;
    }
  }
  return static_cast<int32_t>(
      std::clamp(std::round(value), 1.0, static_cast<double>(std::max(most, 1))));
}

std::string LengthDistribution::ToString() const {
  switch (kind_) {
    case Kind::kNormal: return fmt::format("normal:{:g}:{:g}", mean_, std_);
    case Kind::kLognormal: return fmt::format("lognormal:{:g}:{:g}", mean_, std_);
    case Kind::kUniform: break;
  }
  return low_ == high_ ? fmt::format("{}", low_) : fmt::format("{}:{}", low_, high_);
}

}  // namespace quantd::bench
