// The page of a report of `quantd bench serve`.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <tuple>

#include "engine/eval/report_html.h"
#include "engine/eval/svg.h"
#include "server/bench/bench_report.h"
#include "server/bench/line_plot.h"

namespace quantd::bench {
namespace {

using svg::Escape;

using PageOut = std::back_insert_iterator<std::string>;

constexpr double kBlue = 215.0, kViolet = 290.0, kOrange = 25.0, kGreen = 140.0;

// Runs that can stand on one axis: those with a rate if there are two of them, else those with a
// concurrency; in ascending order.
struct Axis {
  std::string title;
  std::vector<std::pair<double, const RunResult*>> runs;
  bool rates = true;
};

Axis OfferedLoads(const BenchReport& report) {
  Axis by_rate, by_concurrency;
  by_rate.title = "offered load, requests/s";
  by_concurrency.title = "requests at once";
  by_concurrency.rates = false;
  for (const RunResult& run : report.runs) {
    if (std::isfinite(run.load.request_rate)) {
      by_rate.runs.emplace_back(run.load.request_rate, &run);
    } else if (run.load.max_concurrency > 0) {
      by_concurrency.runs.emplace_back(run.load.max_concurrency, &run);
    }
  }
  Axis& best = by_rate.runs.size() >= 2 ? by_rate : by_concurrency;
  std::stable_sort(best.runs.begin(), best.runs.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  return best;
}

std::string LatencyPlot(const Axis& axis, const std::string& what, Summary RunResult::*latency) {
  LinePlot plot;
  plot.label = what + " over offered load";
  plot.x_axis = axis.title;
  plot.y_axis = "milliseconds (log scale): lower is better";
  plot.log_y = true;
  const std::tuple<const char*, double Summary::*, double, const char*> shares[] = {
      {"p50", &Summary::p50, kBlue, ""},
      {"p90", &Summary::p90, kViolet, "8 4"},
      {"p99", &Summary::p99, kOrange, "2 3"}};
  for (const auto& [name, member, hue, dash] : shares) {
    PlotLine line{name, hue, dash, true, {}};
    for (const auto& [x, run] : axis.runs) {
      if ((run->*latency).count > 0) line.points.emplace_back(x, 1e3 * (run->*latency).*member);
    }
    plot.lines.push_back(std::move(line));
  }
  return Draw(plot);
}

std::string ThroughputPlot(const BenchReport& report, const Axis& axis) {
  LinePlot plot;
  plot.label = "completed and good requests over offered load";
  plot.x_axis = axis.title;
  plot.y_axis = "requests/s: higher is better";
  plot.from_zero = true;
  PlotLine offered{"offered", -1.0, "2 4", false, {}};
  PlotLine completed{"completed", kBlue, "", true, {}};
  PlotLine good{"goodput", kGreen, "", true, {}};
  for (const auto& [x, run] : axis.runs) {
    if (axis.rates) offered.points.emplace_back(x, x);
    completed.points.emplace_back(x, run->request_throughput);
    if (report.slo.any()) good.points.emplace_back(x, run->goodput);
  }
  plot.lines = {std::move(offered), std::move(completed), std::move(good)};
  return Draw(plot);
}

std::string QueuePlot(const Axis& axis) {
  LinePlot plot;
  plot.label = "requests waiting and running at the server over offered load";
  plot.x_axis = axis.title;
  plot.y_axis = "requests";
  plot.from_zero = true;
  PlotLine waiting{"waiting, mean", kOrange, "", true, {}};
  PlotLine running{"running, mean", kBlue, "8 4", true, {}};
  for (const auto& [x, run] : axis.runs) {
    if (run->waiting.count == 0) continue;
    waiting.points.emplace_back(x, run->waiting.mean);
    running.points.emplace_back(x, run->running.mean);
  }
  plot.lines = {std::move(waiting), std::move(running)};
  return Draw(plot);
}

std::string FirstTokenCdf(const BenchReport& report) {
  constexpr size_t kMostLines = 8;
  std::vector<const RunResult*> runs;
  for (const RunResult& run : report.runs) {
    if (run.ttft_quantiles.size() > 1) runs.push_back(&run);
  }
  LinePlot plot;
  plot.label = "distribution of the time to first token";
  plot.x_axis = "time to first token, milliseconds (log scale)";
  plot.y_axis = "share of the completed requests";
  plot.log_x = true;
  plot.share = true;
  const size_t every = runs.size() > kMostLines ? (runs.size() + kMostLines - 1) / kMostLines : 1;
  for (size_t i = 0; i < runs.size(); i += every) {
    const RunResult& run = *runs[i];
    const double place =
        runs.size() > 1 ? static_cast<double>(i) / static_cast<double>(runs.size() - 1) : 0.0;
    PlotLine line{std::isfinite(run.load.request_rate) ? RateText(run.load.request_rate) + "/s"
                                                       : LoadText(run.load),
                  std::fmod(kBlue + place * (360.0 + kOrange - kBlue), 360.0),
                  "",
                  false,
                  {}};
    for (size_t q = 0; q < run.ttft_quantiles.size(); ++q) {
      line.points.emplace_back(
          1e3 * run.ttft_quantiles[q],
          static_cast<double>(q) / static_cast<double>(run.ttft_quantiles.size() - 1));
    }
    plot.lines.push_back(std::move(line));
  }
  return Draw(plot);
}

std::string BenchCards(const BenchReport& report) {
  const RunResult* fastest = nullptr;
  const RunResult* best = nullptr;
  for (const RunResult& run : report.runs) {
    if (fastest == nullptr || run.output_throughput > fastest->output_throughput) fastest = &run;
    if (best == nullptr || run.goodput > best->goodput) best = &run;
  }
  if (fastest == nullptr) return "";
  std::string out = fmt::format(
      "<div class=\"cards\">\n<div class=\"card\"><span>most output</span><b>{:.0f} tokens/s</b>"
      "<span>{}; TTFT p99 {} ms</span></div>\n",
      fastest->output_throughput, LoadText(fastest->load), svg::Number(1e3 * fastest->ttft.p99));
  if (report.slo.any()) {
    fmt::format_to(PageOut(out),
                   "<div class=\"card\"><span>best goodput</span><b>{} requests/s</b>"
                   "<span>{}; {}</span></div>\n",
                   svg::Number(best->goodput), LoadText(best->load), Escape(report.slo.ToString()));
  }
  return out + "</div>\n";
}

std::string RunsTable(const BenchReport& report) {
  std::string out =
      "<div class=\"scroll\"><table><thead><tr><th>load<th>completed<th>refused<th>failed"
      "<th>completed, requests/s";
  if (report.slo.any()) out += "<th>goodput, requests/s";
  out +=
      "<th>input, tokens/s<th>output, tokens/s<th>waiting<th>TTFT p50<th>p90<th>p99<th>ITL p50"
      "<th>p99<th>TPOT p50<th>E2E p50<th>p99<th>lag p99</tr></thead><tbody>\n";
  const auto ms = [](double seconds) { return svg::Number(1e3 * seconds); };
  for (const RunResult& run : report.runs) {
    const auto counts = [](const std::map<std::string, int64_t>& by_status) {
      return by_status.empty() ? std::string("0") : CountsText(by_status);
    };
    fmt::format_to(PageOut(out), "<tr><td>{}<td>{}<td>{}<td>{}<td>{:.2f}", LoadText(run.load),
                   run.completed, Escape(counts(run.refused)), Escape(counts(run.failed)),
                   run.request_throughput);
    if (report.slo.any()) fmt::format_to(PageOut(out), "<td>{:.2f}", run.goodput);
    fmt::format_to(
        PageOut(out),
        "<td>{:.0f}<td>{:.0f}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}</tr>\n",
        run.input_throughput, run.output_throughput,
        run.waiting.count > 0 ? fmt::format("{:.1f}", run.waiting.mean) : "–", ms(run.ttft.p50),
        ms(run.ttft.p90), ms(run.ttft.p99), ms(run.itl.p50), ms(run.itl.p99), ms(run.tpot.p50),
        ms(run.e2el.p50), ms(run.e2el.p99), ms(run.lag.p99));
  }
  return out + "</tbody></table></div>\n";
}

std::string BenchFigure(const char* title, const std::string& plot, const std::string& caption) {
  if (plot.empty()) return "";
  return fmt::format("<h2>{}</h2>\n<figure>\n{}<figcaption>{}</figcaption>\n</figure>\n", title,
                     plot, caption);
}

}  // namespace

std::string RenderHtml(const BenchReport& report) {
  const std::string model = Escape(report.model);
  std::string page = fmt::format(
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<title>{0} under load</title>\n<style>\n{1}{2}</style>\n</head>\n<body>\n<main>\n"
      "<h1>Under load: {0}</h1>\n",
      model, kReportStyle, kLinePlotStyle);
  fmt::format_to(PageOut(page),
                 "<p class=\"quiet\">{}, profile {}, {} ({}), quantd {}, at {}. Measured by quantd "
                 "{}, <span class=\"whole\">{}</span>.</p>\n<p class=\"quiet\">",
                 Escape(report.architecture), Escape(report.profile), Escape(report.backend),
                 Escape(report.device), Escape(report.server_version), Escape(report.target),
                 Escape(report.version), Escape(report.date));
  for (const auto& [name, value] : report.settings) {
    fmt::format_to(PageOut(page), "<code>{} {}</code> ", Escape(name), Escape(value));
  }
  page += "</p>\n" + BenchCards(report);
  const Axis axis = OfferedLoads(report);
  page += BenchFigure(
      "Time to first token", LatencyPlot(axis, "time to first token", &RunResult::ttft),
      "From the scheduled arrival of a request to its first token: what a user waits for.");
  page += BenchFigure(
      "Throughput and goodput", ThroughputPlot(report, axis),
      report.slo.any() ? "Goodput: requests that met " + Escape(report.slo.ToString()) +
                             " (milliseconds). Where completed leaves offered, the server is full."
                       : "Where completed leaves offered, the server is full.");
  page +=
      BenchFigure("Inter-token latency", LatencyPlot(axis, "inter-token latency", &RunResult::itl),
                  "From one response of a stream to the next.");
  page += BenchFigure("End to end", LatencyPlot(axis, "end to end", &RunResult::e2el),
                      "From the scheduled arrival to the end of the stream.");
  page += BenchFigure("The server's queue", QueuePlot(axis),
                      "As the server says it, asked four times a second.");
  page += BenchFigure("Distribution of the time to first token", FirstTokenCdf(report),
                      "Share of the completed requests that had their first token by then.");
  page += "<h2>All runs</h2>\n" + RunsTable(report);
  page +=
      "<h2>What the figures are</h2>\n<dl>\n"
      "<dt>TTFT<dd>time to first token, E2E: end to end; milliseconds from the scheduled arrival, "
      "whenever the request was sent, of completed requests\n"
      "<dt>ITL<dd>inter-token latency: milliseconds from one response with tokens to the next; "
      "tokens that come in one response have one gap, as their reader sees it\n"
      "<dt>TPOT<dd>time per output token: milliseconds from the first response to the last, by the "
      "tokens after the first one\n"
      "<dt>refused<dd>RESOURCE_EXHAUSTED or UNAVAILABLE before a token; failed: ended with another "
      "status, or broken after a token\n"
      "<dt>waiting<dd>requests in the server's queue, the mean of samples\n"
      "<dt>lag<dd>how late this program sent a request; it counts in the latencies\n"
      "<dt>a second<dd>from the first arrival to the end of the last request\n</dl>\n";
  return page + "</main>\n</body>\n</html>\n";
}

}  // namespace quantd::bench
