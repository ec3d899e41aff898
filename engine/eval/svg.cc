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
  std::vector<double> ticks;
  const double span = scale.high - scale.low;
  if (!(span > 0) || count < 1) return {scale.low};
  if (scale.log && scale.high / scale.low >= 8.0) {
    for (double decade = std::pow(10.0, std::floor(std::log10(scale.low))); decade <= scale.high;
         decade *= 10.0) {
      for (const double factor : {1.0, 2.0, 5.0}) {
        const double tick = decade * factor;
        if (tick >= scale.low * (1 - 1e-9) && tick <= scale.high * (1 + 1e-9)) {
          ticks.push_back(tick);
        }
      }
    }
    // Powers of ten alone where there are many decades.
    if (static_cast<int>(ticks.size()) > 2 * count) {
      std::erase_if(ticks, [](double t) {
        const double power = std::log10(t);
        return std::fabs(power - std::round(power)) > 1e-6;
      });
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
  for (double k = std::ceil(scale.low / step - 1e-9); k * step <= scale.high + step * 1e-9; ++k) {
    ticks.push_back(k * step);
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
