// LengthDistribution: how long prompts and outputs of a load are. Pure; the same seed gives the
// same lengths.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace quantd::bench {

class LengthDistribution {
 public:
  /// Always `tokens`.
  explicit LengthDistribution(int32_t tokens = 1) : low_(tokens), high_(tokens) {}

  /// "128" (always), "64:256" or "uniform:64:256" (each length as often), "normal:MEAN:STD",
  /// "lognormal:MEAN:STD" (mean and standard deviation of the lengths themselves). INVALID_ARGUMENT
  /// with `flag` in front for anything else, and for lengths outside [1, 10000000].
  static absl::StatusOr<LengthDistribution> Parse(const std::string& flag, std::string_view text);

  /// Tokens, in [1, most]: what falls outside becomes the nearest of the two.
  int32_t Draw(std::mt19937_64& random, int32_t most) const;
  /// The longest that can be asked for; 0 where there is no such (normal, lognormal).
  int32_t bound() const { return kind_ == Kind::kUniform ? high_ : 0; }
  /// As Parse reads it.
  std::string ToString() const;

 private:
  enum class Kind : uint8_t { kUniform, kNormal, kLognormal };
  Kind kind_ = Kind::kUniform;
  int32_t low_, high_;
  double mean_ = 0.0, std_ = 0.0;
};

}  // namespace quantd::bench
