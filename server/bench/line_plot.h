// LinePlot: curves in one pair of axes, as an SVG element for a page with report.css and
// kLinePlotStyle. Pure function.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace quantd::bench {

/// What a page with line plots needs beside report.css.
extern const char kLinePlotStyle[];

struct PlotLine {
  std::string name;
  double hue = 215.0;                             // degrees; < 0: the page's quiet ink
  std::string dash;                               // of stroke-dasharray; empty: solid
  bool dots = true;                               // at each point, with its figures
  std::vector<std::pair<double, double>> points;  // ascending x
};

struct LinePlot {
  std::string label;  // what it shows, for who cannot see it
  std::string x_axis, y_axis;
  bool log_x = false, log_y = false;
  bool from_zero = false;  // a linear y axis begins at 0
  bool share = false;      // y is in [0, 1], written as percent
  std::vector<PlotLine> lines;
};

/// "" where there is nothing to see: no line with two points. Points that a logarithmic axis cannot
/// show are left out.
std::string Draw(const LinePlot& plot);

}  // namespace quantd::bench
