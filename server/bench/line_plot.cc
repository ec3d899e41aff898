#include "server/bench/line_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "engine/eval/svg.h"

namespace quantd::bench {

// 50 % lightness is seen on white and on black.
const char kLinePlotStyle[] =
    "svg .curve { fill: none; stroke-width: 2; stroke-linejoin: round; }\n"
    "svg .sample { stroke-width: 2.5; }\n";

namespace {

constexpr double kPlotWidth = 960.0, kPlotLeft = 70.0, kPlotRight = 940.0;
constexpr double kPlotTop = 48.0, kPlotBottom = 360.0, kPlotHeight = 412.0;
constexpr double kLegendCharacter = 7.2;  // of a letter's width, with room to spare

using PlotOut = std::back_insert_iterator<std::string>;

std::string Colour(const PlotLine& line) {
  return line.hue < 0 ? "var(--quiet)" : fmt::format("hsl({:.0f} 70% 50%)", line.hue);
}

std::string Stroke(const PlotLine& line) {
  return fmt::format("stroke:{}{}", Colour(line),
                     line.dash.empty() ? "" : ";stroke-dasharray:" + line.dash);
}

bool Shown(const LinePlot& plot, double x, double y) {
  return std::isfinite(x) && std::isfinite(y) && (!plot.log_x || x > 0) && (!plot.log_y || y > 0);
}

std::string Legend(const std::vector<PlotLine>& lines) {
  std::string out;
  double x = kPlotLeft;
  for (const PlotLine& line : lines) {
    fmt::format_to(PlotOut(out),
                   "<line class=\"sample\" style=\"{}\" x1=\"{:.1f}\" y1=\"10\" x2=\"{:.1f}\" "
                   "y2=\"10\"/>\n<text x=\"{:.1f}\" y=\"14\">{}</text>\n",
                   Stroke(line), x, x + 24.0, x + 30.0, svg::Escape(line.name));
    x += 48.0 + kLegendCharacter * static_cast<double>(line.name.size());
  }
  return out;
}

std::string Axes(const LinePlot& plot, const svg::Scale& x, const svg::Scale& y) {
  std::string out;
  for (const double tick : svg::Ticks(x, 8)) {
    fmt::format_to(PlotOut(out),
                   "<line class=\"grid\" x1=\"{0:.1f}\" y1=\"{1}\" x2=\"{0:.1f}\" y2=\"{2}\"/>\n"
                   "<text class=\"tick middle\" x=\"{0:.1f}\" y=\"{3}\">{4:.6g}</text>\n",
                   x(tick), kPlotTop, kPlotBottom, kPlotBottom + 18.0, tick);
  }
  for (const double tick : svg::Ticks(y, 6)) {
    fmt::format_to(PlotOut(out),
                   "<line class=\"grid\" x1=\"{0}\" y1=\"{1:.1f}\" x2=\"{2}\" y2=\"{1:.1f}\"/>\n"
                   "<text class=\"tick end\" x=\"{3}\" y=\"{4:.1f}\">{5}</text>\n",
                   kPlotLeft, y(tick), kPlotRight, kPlotLeft - 8.0, y(tick) + 4.0,
                   plot.share ? fmt::format("{:.4g}%", 100 * tick) : fmt::format("{:.6g}", tick));
  }
  fmt::format_to(PlotOut(out),
                 "<text class=\"axis middle\" x=\"{}\" y=\"{}\">{}</text>\n"
                 "<text class=\"axis\" x=\"{}\" y=\"{}\">{}</text>\n",
                 (kPlotLeft + kPlotRight) / 2, kPlotBottom + 42.0, svg::Escape(plot.x_axis),
                 kPlotLeft, kPlotTop - 12.0, svg::Escape(plot.y_axis));
  return out;
}

}  // namespace

std::string Draw(const LinePlot& plot) {
  constexpr double kEnd = std::numeric_limits<double>::infinity();
  svg::Scale x{kEnd, -kEnd, kPlotLeft, kPlotRight, plot.log_x};
  svg::Scale y{kEnd, -kEnd, kPlotBottom, kPlotTop, plot.log_y};
  std::vector<PlotLine> lines;
  for (PlotLine line : plot.lines) {
    std::erase_if(line.points, [&](const auto& p) { return !Shown(plot, p.first, p.second); });
    if (line.points.size() < 2) continue;
    for (const auto& [px, py] : line.points) {
      x.low = std::min(x.low, px);
      x.high = std::max(x.high, px);
      y.low = std::min(y.low, py);
      y.high = std::max(y.high, py);
    }
    lines.push_back(std::move(line));
  }
  if (lines.empty()) return "";
  if (plot.share) {
    y.low = 0.0;
    y.high = 1.0;
  } else if (plot.log_y) {
    y.low /= 1.1;
    y.high *= 1.1;
  } else {
    const double margin = y.high > y.low ? 0.05 * (y.high - y.low) : std::fabs(y.high) + 1.0;
    y.low = plot.from_zero ? std::min(0.0, y.low) : y.low - margin;
    y.high += margin;
  }
  if (!plot.log_x && plot.from_zero) x.low = std::min(0.0, x.low);

  std::string out = fmt::format(
      "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\" "
      "preserveAspectRatio=\"xMidYMid meet\">\n",
      kPlotWidth, kPlotHeight, svg::Escape(plot.label));
  out += Axes(plot, x, y) + Legend(lines);
  for (const PlotLine& line : lines) {
    std::string path;
    for (const auto& [px, py] : line.points) {
      path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : " L", x(px), y(py));
    }
    fmt::format_to(PlotOut(out), "<path class=\"curve\" style=\"{}\" d=\"{}\"/>\n", Stroke(line),
                   path);
    if (!line.dots) continue;
    for (const auto& [px, py] : line.points) {
      fmt::format_to(PlotOut(out),
                     "<circle style=\"fill:{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" "
                     "r=\"3.5\"><title>{}: {} at {:.5g}</title></circle>\n",
                     Colour(line), x(px), y(py), svg::Escape(line.name), svg::Number(py), px);
    }
  }
  return out + "</svg>\n";
}

}  // namespace quantd::bench
