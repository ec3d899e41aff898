#include "engine/eval/svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace quantd::svg {

std::string Escape(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      case '\'': out += "&#39;"; break;
      default: out += c;
    }
  }
  return out;
}

double Scale::operator()(double value) const {
  const auto place = [&](double v) { return log ? std::log(v) : v; };
  const double range = place(high) - place(low);
  const double share = range > 0 ? (place(value) - place(low)) / range : 0.5;
  return from + std::clamp(share, 0.0, 1.0) * (to - from);
}

std::vector<double> Ticks(const Scale& scale, int count) {
  const double span = scale.high - scale.low;
  if (!std::isfinite(span) || (scale.log && !(scale.low > 0)) || count < 1) return {};
  if (!(span > 0)) return {scale.low};
  std::vector<double> ticks;
  if (scale.log && scale.high / scale.low >= 8.0) {
    const int first = static_cast<int>(std::floor(std::log10(scale.low)));
    const int last = static_cast<int>(std::ceil(std::log10(scale.high)));
    for (int power = first; power <= last; ++power) {
      for (const double factor : {1.0, 2.0, 5.0}) {
        // Powers of ten alone where there are many decades.
        if (factor > 1.0 && last - first > count / 2) continue;
        const double tick = std::pow(10.0, power) * factor;
        if (tick >= scale.low * (1 - 1e-9) && tick <= scale.high * (1 + 1e-9)) {
          ticks.push_back(tick);
        }
      }
    }
    return ticks;
  }
  const double raw = span / count;
  const double magnitude = std::pow(10.0, std::floor(std::log10(raw)));
  double step = 10.0 * magnitude;
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * magnitude >= raw) {
      step = factor * magnitude;
      break;
    }
  }
  const double first = std::ceil(scale.low / step - 1e-9);
  for (int i = 0; i <= 2 * count; ++i) {
    const double tick = (first + i) * step;
    if (tick > scale.high + step * 1e-9) break;
    ticks.push_back(tick);
  }
  return ticks;
}

std::string Number(double value, int digits) {
  if (value == 0.0) return "0";
  if (!std::isfinite(value)) return "–";
  const double power = std::floor(std::log10(std::fabs(value)));
  if (power < -6) return fmt::format("{:.{}e}", value, std::max(0, digits - 1));
  const int decimals = std::clamp(digits - 1 - static_cast<int>(power), 0, 9);
  return fmt::format("{:.{}f}", value, decimals);
}

}  // namespace quantd::svg
