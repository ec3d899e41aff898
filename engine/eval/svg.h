// The few pieces that plots of a report are made of: scales, ticks, and text that is safe in HTML.
// Pure functions.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace quantd::svg {

/// `text` with the five characters that mean something in HTML written as entities.
std::string Escape(std::string_view text);

/// Maps values in [low, high] to pixels, linearly or by the logarithm.
struct Scale {
  double low = 0.0, high = 1.0;  // with `log` both above 0
  double from = 0.0, to = 1.0;   // pixels at low and at high
  bool log = false;

  double operator()(double value) const;
};

/// Round values within [low, high], about `count` of them; 1, 2, 5 times a power of ten.
/// None where a scale has no numbers.
std::vector<double> Ticks(const Scale& scale, int count);

/// 0.00012 -> "0.00012", 1234.5 -> "1234", 0 -> "0": `digits` significant ones, no exponent where
/// it can be avoided.
std::string Number(double value, int digits = 3);

}  // namespace quantd::svg
