#include "engine/eval/report_plots.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <map>

#include "engine/eval/eval_summary.h"
#include "engine/eval/svg.h"

namespace quantd {
namespace {

using svg::Escape;
using svg::Number;
using svg::Scale;

constexpr double kWidth = 960.0;
constexpr double kRowHeight = 22.0;
constexpr double kNames = 170.0;   // room for profiles' names at the left
constexpr double kValues = 190.0;  // and for figures at the right

using Out = std::back_insert_iterator<std::string>;

std::string Open(double height, const std::string& label) {
  return fmt::format(
      "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\" "
      "preserveAspectRatio=\"xMidYMid meet\">\n",
      kWidth, height, Escape(label));
}

std::vector<const ProfileResult*> Measured(const EvalReport& report, bool compared) {
  std::vector<const ProfileResult*> out;
  for (const ProfileResult& p : report.profiles) {
    if (p.refusal.empty() && (p.compared || !compared)) out.push_back(&p);
  }
  return out;
}

// ---- labels of a scatter plot ----

struct Box {
  double x0, y0, x1, y1;

  double Overlap(const Box& o) const {
    return std::max(0.0, std::min(x1, o.x1) - std::max(x0, o.x0)) *
           std::max(0.0, std::min(y1, o.y1) - std::max(y0, o.y0));
  }
};

struct Point {
  double x, y;
  std::string name;
  bool front;
  std::string title;
};

// Puts the names beside the points, each where it covers least of what is there already: points,
// names, and `lines`.
std::string Labels(const std::vector<Point>& points, std::vector<Box> lines, const Box& plot) {
  constexpr double kCharacter = 7.6, kHeight = 14.0, kGap = 8.0;
  std::vector<Box> taken = std::move(lines);
  for (const Point& p : points) taken.push_back({p.x - 5, p.y - 5, p.x + 5, p.y + 5});
  std::string out;
  for (const Point& p : points) {
    const double width = kCharacter * static_cast<double>(p.name.size());
    Box best{};
    double least = INFINITY;
    for (const double distance : {1.0, 2.0, 3.2}) {
      const double gap = kGap * distance;
      const double lefts[] = {p.x + gap, p.x - gap - width, p.x - width / 2};
      const double tops[] = {p.y - kHeight / 2, p.y - kHeight - gap + 3, p.y + gap - 3};
      for (const double top : tops) {
        for (const double left : lefts) {
          const Box box{left, top, left + width, top + kHeight};
          double cost = distance;
          for (const Box& other : taken) cost += box.Overlap(other);
          const bool inside =
              box.x0 >= plot.x0 && box.x1 <= plot.x1 && box.y0 >= plot.y0 && box.y1 <= plot.y1;
          if (!inside) cost += 1e4;
          if (cost < least) {
            least = cost;
            best = box;
          }
        }
      }
    }
    taken.push_back(best);
    const double cx = (best.x0 + best.x1) / 2, cy = (best.y0 + best.y1) / 2;
    if (std::hypot(cx - p.x, cy - p.y) > width / 2 + 2.2 * kGap) {
      fmt::format_to(Out(out),
                     "<line class=\"leader\" x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" "
                     "y2=\"{:.1f}\"/>\n",
                     p.x, p.y, std::clamp(p.x, best.x0, best.x1),
                     std::clamp(p.y, best.y0, best.y1));
    }
    fmt::format_to(Out(out), "<text class=\"{}\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n",
                   p.front ? "name front" : "name", best.x0, best.y1 - 3.0, Escape(p.name));
  }
  return out;
}

// ---- rows of dots ----

struct Row {
  std::string name;
  std::optional<double> low, high;  // a line between them
  double dot = 0.0;
  std::optional<double> ring;
  std::string text;  // at the right
  std::string title;
};

// Of shares, the largest first.
std::string DotRows(std::vector<Row> rows, const std::string& label) {
  if (rows.empty()) return "";
  std::stable_sort(rows.begin(), rows.end(),
                   [](const Row& a, const Row& b) { return a.dot > b.dot; });
  Scale x{INFINITY, -INFINITY, kNames, kWidth - kValues, false};
  for (const Row& r : rows) {
    for (const double v :
         {r.dot, r.low.value_or(r.dot), r.high.value_or(r.dot), r.ring.value_or(r.dot)}) {
      x.low = std::min(x.low, v);
      x.high = std::max(x.high, v);
    }
  }
  const double margin = std::max((x.high - x.low) * 0.04, 1e-4);
  x.low -= margin;
  x.high += margin;
  const double height = kRowHeight * static_cast<double>(rows.size()) + 40.0;
  std::string out = Open(height, label);
  for (const double tick : svg::Ticks(x, 8)) {
    fmt::format_to(Out(out),
                   "<line class=\"grid\" x1=\"{0:.1f}\" y1=\"6\" x2=\"{0:.1f}\" y2=\"{1:.1f}\"/>\n"
                   "<text class=\"tick middle\" x=\"{0:.1f}\" y=\"{2:.1f}\">{3}</text>\n",
                   x(tick), height - 30.0, height - 14.0, fmt::format("{:.4g}%", 100 * tick));
  }
  double y = 16.0;
  for (const Row& r : rows) {
    fmt::format_to(Out(out), "<g><title>{}</title>\n", Escape(r.title));
    fmt::format_to(Out(out), "<text class=\"name end\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n",
                   kNames - 14.0, y + 4.0, Escape(r.name));
    if (r.low && r.high) {
      fmt::format_to(Out(out),
                     "<line class=\"span\" x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" "
                     "y2=\"{:.1f}\"/>\n",
                     x(*r.low), y, x(*r.high), y);
    }
    if (r.ring) {
      fmt::format_to(Out(out), "<circle class=\"ring\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4.5\"/>\n",
                     x(*r.ring), y);
    }
    fmt::format_to(Out(out), "<circle class=\"dot\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4.5\"/>\n",
                   x(r.dot), y);
    fmt::format_to(Out(out), "<text class=\"value\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text></g>\n",
                   kWidth - kValues + 14.0, y + 4.0, Escape(r.text));
    y += kRowHeight;
  }
  return out + "</svg>\n";
}

// ---- heat maps ----

struct HeatMap {
  std::vector<std::string> rows, cols;
  std::map<std::pair<size_t, size_t>, double> cells;  // absent: nothing there
  std::function<std::string(double)> text;
};

// Shades go by the logarithm: errors of methods differ by powers of ten.
std::string Draw(const HeatMap& map, const std::string& label) {
  double low = INFINITY, high = 0.0;
  for (const auto& [at, value] : map.cells) {
    if (value > 0) low = std::min(low, value);
    high = std::max(high, value);
  }
  if (map.rows.empty() || map.cols.empty() || map.cells.empty()) return "";
  const Scale shade{low, high, 0.06, 1.0, true};
  const double cell = (kWidth - kNames) / static_cast<double>(map.cols.size());
  const double height = kRowHeight * static_cast<double>(map.rows.size()) + 30.0;
  const bool with_text = cell >= 44.0;
  std::string out = Open(height, label);
  const size_t every = std::max<size_t>(1, static_cast<size_t>(std::ceil(26.0 / cell)));
  for (size_t c = 0; c < map.cols.size(); c += every) {
    fmt::format_to(Out(out), "<text class=\"tick middle\" x=\"{:.1f}\" y=\"14\">{}</text>\n",
                   kNames + (static_cast<double>(c) + 0.5) * cell, Escape(map.cols[c]));
  }
  for (size_t r = 0; r < map.rows.size(); ++r) {
    const double y = 22.0 + static_cast<double>(r) * kRowHeight;
    fmt::format_to(Out(out), "<text class=\"name end\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n",
                   kNames - 14.0, y + 15.0, Escape(map.rows[r]));
    for (size_t c = 0; c < map.cols.size(); ++c) {
      const auto it = map.cells.find({r, c});
      if (it == map.cells.end()) continue;
      const double value = it->second;
      const double opacity = value > 0 && high > low ? shade(value) : value > 0 ? 1.0 : 0.0;
      const double x = kNames + static_cast<double>(c) * cell;
      fmt::format_to(Out(out),
                     "<g><title>{}, {}: {}</title><rect class=\"cell\" x=\"{:.1f}\" y=\"{:.1f}\" "
                     "width=\"{:.1f}\" height=\"{:.1f}\" fill-opacity=\"{:.2f}\"/>",
                     Escape(map.rows[r]), Escape(map.cols[c]), map.text(value), x + 0.5, y + 0.5,
                     cell - 1.0, kRowHeight - 1.0, opacity);
      if (with_text) {
        fmt::format_to(Out(out), "<text class=\"{}\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>",
                       opacity > 0.55 ? "in dark middle" : "in middle", x + cell / 2, y + 15.0,
                       map.text(value));
      }
      out += "</g>\n";
    }
  }
  return out + "</svg>\n";
}

std::string Percent(double share, int digits) { return Number(100.0 * share, digits) + "%"; }

size_t IndexOf(std::vector<std::string>* names, const std::string& name) {
  const auto it = std::find(names->begin(), names->end(), name);
  if (it != names->end()) return static_cast<size_t>(it - names->begin());
  names->push_back(name);
  return names->size() - 1;
}

std::string ColumnOfLayer(const std::string& module) {
  const int64_t layer = LayerOf(module);
  return layer >= 0 ? fmt::format("{}", layer) : KindOf(module);
}

// Root mean square of the modules' own errors, by profile and `column`.
std::string ErrorMap(const EvalReport& report, const std::string& label,
                     const std::function<std::string(const std::string&)>& column) {
  HeatMap map;
  map.text = [](double v) { return Percent(v, 2); };
  std::map<std::pair<size_t, size_t>, std::pair<double, int>> sums;
  for (const ProfileResult* p : Measured(report, true)) {
    if (p->facts.name == report.reference) continue;
    const size_t row = map.rows.size();
    map.rows.push_back(p->facts.name);
    for (const LinearError& e : p->facts.linears) {
      auto& [squares, count] = sums[{row, IndexOf(&map.cols, column(e.module))}];
      squares += e.isolated * e.isolated;
      ++count;
    }
  }
  for (const auto& [at, sum] : sums) map.cells[at] = std::sqrt(sum.first / sum.second);
  return Draw(map, label);
}

}  // namespace

int64_t LayerOf(const std::string& module) {
  constexpr std::string_view kLayers = ".layers.";
  const size_t at = module.find(kLayers);
  if (at == std::string::npos) return -1;
  int64_t layer = 0;
  size_t i = at + kLayers.size();
  constexpr int64_t kMost = 1'000'000;  // no model has more, a name may
  for (; i < module.size() && module[i] >= '0' && module[i] <= '9' && layer < kMost; ++i) {
    layer = layer * 10 + (module[i] - '0');
  }
  return i == at + kLayers.size() ? -1 : layer;
}

std::string KindOf(const std::string& module) {
  const size_t dot = module.rfind('.');
  return dot == std::string::npos ? module : module.substr(dot + 1);
}

std::string QualityAgainstMemory(const EvalReport& report) {
  const bool compared = !report.reference.empty();
  const auto quality = [&](const ProfileResult& p) { return compared ? p.kl_mean : p.perplexity; };
  Scale x{INFINITY, 0.0, 70.0, kWidth - 20.0, true};
  double least = INFINITY, most = 0.0;
  bool zero = false;
  for (const ProfileResult* p : Measured(report, compared)) {
    const double bytes = static_cast<double>(p->facts.resident_bytes);
    x.low = std::min(x.low, bytes);
    x.high = std::max(x.high, bytes);
    if (quality(*p) > 0) least = std::min(least, quality(*p));
    if (quality(*p) <= 0) zero = true;
    most = std::max(most, quality(*p));
  }
  if (!(x.high > 0) || !(most > 0)) return "";
  x.low /= 1.08;
  x.high *= 1.08;
  constexpr double kTop = 20.0, kBottom = 400.0;
  // No divergence at all has no logarithm: it is drawn below the smallest one.
  const double floor = zero ? least / 4 : least / 1.3;
  const Scale y{floor, most * 1.3, kBottom, kTop, true};

  std::string out = Open(460.0, "quality against memory");
  for (const double tick : svg::Ticks(x, 8)) {
    fmt::format_to(Out(out),
                   "<line class=\"grid\" x1=\"{0:.1f}\" y1=\"{1}\" x2=\"{0:.1f}\" y2=\"{2}\"/>\n"
                   "<text class=\"tick middle\" x=\"{0:.1f}\" y=\"{3}\">{4}</text>\n",
                   x(tick), kTop, kBottom, kBottom + 18.0, Number(tick * 1e-6, 2));
  }
  for (const double tick : svg::Ticks(y, 6)) {
    if (zero && tick < least / 1.5) continue;
    fmt::format_to(Out(out),
                   "<line class=\"grid\" x1=\"70\" y1=\"{0:.1f}\" x2=\"{1}\" y2=\"{0:.1f}\"/>\n"
                   "<text class=\"tick end\" x=\"62\" y=\"{2:.1f}\">{3}</text>\n",
                   y(tick), kWidth - 20.0, y(tick) + 4.0, Number(tick, 1));
  }
  if (zero) {
    fmt::format_to(Out(out), "<text class=\"tick end\" x=\"62\" y=\"{}\">0</text>\n",
                   kBottom + 4.0);
  }
  fmt::format_to(Out(out),
                 "<text class=\"axis middle\" x=\"{}\" y=\"{}\">resident memory of the model, MB "
                 "(log scale)</text>\n<text class=\"axis\" x=\"70\" y=\"12\">{}</text>\n",
                 kWidth / 2, kBottom + 42.0,
                 compared ? "mean KL divergence to " + Escape(report.reference) +
                                ", nats a token (log scale): lower is better"
                          : "perplexity (log scale): lower is better");

  const std::vector<size_t> front = ParetoFront(report.profiles);
  const auto height = [&](const ProfileResult& p) { return y(std::max(quality(p), floor)); };
  std::string path;
  std::vector<Box> lines;
  double last_x = 0.0, last_y = 0.0;
  for (const size_t i : front) {
    const ProfileResult& p = report.profiles[i];
    const double px = x(static_cast<double>(p.facts.resident_bytes)), py = height(p);
    if (path.empty()) {
      path = fmt::format("M{:.1f} {:.1f}", px, py);
    } else {
      path += fmt::format(" H{:.1f} V{:.1f}", px, py);
      lines.push_back({last_x, last_y - 1, px, last_y + 1});
      lines.push_back({px - 1, last_y, px + 1, py});
    }
    last_x = px;
    last_y = py;
  }
  fmt::format_to(Out(out), "<path class=\"front\" d=\"{}\"/>\n", path);
  std::vector<Point> points;
  for (size_t i = 0; i < report.profiles.size(); ++i) {
    const ProfileResult& p = report.profiles[i];
    if (!p.refusal.empty()) continue;
    points.push_back({x(static_cast<double>(p.facts.resident_bytes)), height(p), p.facts.name,
                      std::find(front.begin(), front.end(), i) != front.end(),
                      fmt::format("{}: {:.1f} MB, {} {}", p.facts.name,
                                  static_cast<double>(p.facts.resident_bytes) * 1e-6,
                                  compared ? "KL" : "perplexity", Number(quality(p)))});
  }
  for (const Point& p : points) {
    fmt::format_to(
        Out(out),
        "<circle class=\"{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"5\"><title>{}</title></circle>\n",
        p.front ? "dot" : "ring", p.x, p.y, Escape(p.title));
  }
  out += Labels(points, std::move(lines), {70.0, kTop, kWidth - 4.0, kBottom + 2.0});
  return out + "</svg>\n";
}

std::string RetentionPlot(const EvalReport& report) {
  std::vector<Row> rows;
  for (const ProfileResult* p : Measured(report, true)) {
    const Interval& r = p->retention;
    const std::string text =
        r.low ? fmt::format("{:.2f}%  ({:.2f}–{:.2f})", 100 * r.value, 100 * *r.low, 100 * *r.high)
              : fmt::format("{:.2f}%", 100 * r.value);
    rows.push_back({p->facts.name, r.low, r.high, r.value, {}, text, p->facts.name + ": " + text});
  }
  return DotRows(std::move(rows), "retention");
}

std::string AgreementPlot(const EvalReport& report) {
  std::vector<Row> rows;
  for (const ProfileResult* p : Measured(report, true)) {
    const std::string text = fmt::format("{:.1f}% / {:.1f}%", 100 * p->top1, 100 * p->top5);
    rows.push_back({p->facts.name, std::min(p->top1, p->top5), std::max(p->top1, p->top5), p->top1,
                    p->top5, text, p->facts.name + ": " + text});
  }
  return DotRows(std::move(rows), "agreement");
}

std::string ErrorByLayer(const EvalReport& report) {
  return ErrorMap(report, "error by layer", ColumnOfLayer);
}

std::string ErrorByModule(const EvalReport& report) {
  return ErrorMap(report, "error by kind of module", KindOf);
}

std::string OutlierShares(const EvalReport& report) {
  for (const ProfileResult* p : Measured(report, true)) {
    HeatMap map;
    map.text = [](double v) { return Percent(v, 2); };
    bool any = false;
    for (const LinearError& e : p->facts.linears) {
      if (!e.outlier_share) continue;
      any = any || *e.outlier_share > 0;
      const size_t row = IndexOf(&map.rows, KindOf(e.module));
      map.cells[{row, IndexOf(&map.cols, ColumnOfLayer(e.module))}] = *e.outlier_share;
    }
    if (any) return Draw(map, "share of outliers under " + p->facts.name);
  }
  return "";
}

}  // namespace quantd
