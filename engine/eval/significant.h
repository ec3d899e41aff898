// RoundSignificant: figures with as many digits as they are good for. Pure function.
#pragma once

#include <cmath>

namespace quantd {

/// `value` rounded to `digits` significant decimal ones.
inline double RoundSignificant(double value, int digits) {
  if (value == 0.0 || !std::isfinite(value)) return value;
  const double scale = std::pow(10.0, digits - 1 - std::floor(std::log10(std::fabs(value))));
  return std::isfinite(scale) && scale > 0 ? std::round(value * scale) / scale : value;
}

}  // namespace quantd
