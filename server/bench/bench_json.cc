// The JSON and the text of a report of `quantd bench serve`.
#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "engine/weights/json_dump.h"
#include "server/bench/bench_report.h"

namespace quantd::bench {
namespace {

using ordered = nlohmann::ordered_json;

// Microseconds are as fine as it makes sense to write.
double Rounded(double value) { return std::round(value * 1e6) / 1e6; }

ordered Milliseconds(const Summary& s) {
  const auto ms = [](double seconds) { return std::round(seconds * 1e6) / 1e3; };
  return {{"count", s.count}, {"mean", ms(s.mean)}, {"p50", ms(s.p50)}, {"p90", ms(s.p90)},
          {"p95", ms(s.p95)}, {"p99", ms(s.p99)},   {"max", ms(s.max)}};
}

ordered Requests(const Summary& s) {
  return {{"samples", s.count}, {"mean", Rounded(s.mean)}, {"p50", s.p50}, {"max", s.max}};
}

ordered RateJson(double rate) {
  return std::isfinite(rate) ? ordered(Rounded(rate)) : ordered("inf");
}

ordered Detail(const RequestRecord& r) {
  ordered out = {{"scheduled", Rounded(r.scheduled)},
                 {"sent", Rounded(r.sent)},
                 {"end", Rounded(r.end)},
                 {"status", CodeName(r.code)},
                 {"attempts", r.attempts},
                 {"input_tokens", r.prompt_tokens},
                 {"output_tokens", r.output_tokens}};
  if (r.first >= 0) out["first_token"] = Rounded(r.first);
  if (!r.message.empty()) out["message"] = r.message;
  ordered gaps = ordered::array();
  for (const double gap : r.gaps) gaps.push_back(Rounded(gap));
  out["itls"] = std::move(gaps);
  return out;
}

ordered RunJson(const RunResult& run, const Slo& slo) {
  ordered out;
  out["request_rate"] = RateJson(run.load.request_rate);
  out["max_concurrency"] =
      run.load.max_concurrency > 0 ? ordered(run.load.max_concurrency) : ordered(nullptr);
  out["duration"] = Rounded(run.duration);
  out["num_prompts"] = run.requests;
  out["completed"] = run.completed;
  out["refused"] = run.refused;
  out["failed"] = run.failed;
  if (!run.first_error.empty()) out["first_error"] = run.first_error;
  out["retries"] = run.retries;
  out["offered_rate"] = RateJson(run.offered_rate);
  out["request_throughput"] = Rounded(run.request_throughput);
  if (slo.any()) out["request_goodput"] = Rounded(run.goodput);
  out["input_throughput"] = Rounded(run.input_throughput);
  out["output_throughput"] = Rounded(run.output_throughput);
  out["total_token_throughput"] = Rounded(run.input_throughput + run.output_throughput);
  out["total_input_tokens"] = run.input_tokens;
  out["total_cached_tokens"] = run.cached_tokens;
  out["total_output_tokens"] = run.output_tokens;
  out["tokens_per_response"] = Rounded(run.tokens_per_response);
  out["max_concurrent_requests"] = run.most_in_flight;
  out["ttft_ms"] = Milliseconds(run.ttft);
  out["itl_ms"] = Milliseconds(run.itl);
  out["tpot_ms"] = Milliseconds(run.tpot);
  out["e2el_ms"] = Milliseconds(run.e2el);
  out["lag_ms"] = Milliseconds(run.lag);
  if (run.waiting.count > 0) {
    out["server_waiting"] = Requests(run.waiting);
    out["server_running"] = Requests(run.running);
  }
  return out;
}

}  // namespace

std::string CountsText(const std::map<std::string, int64_t>& counts) {
  std::string out;
  for (const auto& [name, count] : counts) {
    out += fmt::format("{}{} {}", out.empty() ? "" : ", ", name, count);
  }
  return out;
}

std::string RateText(double rate) {
  return std::isfinite(rate) ? fmt::format("{:.4g}", rate) : "inf";
}

std::string LoadText(const OfferedLoad& load) {
  if (!std::isfinite(load.request_rate)) {
    return load.max_concurrency > 0 ? fmt::format("concurrency {}", load.max_concurrency)
                                    : "all at once";
  }
  return fmt::format(
      "{} requests/s{}", RateText(load.request_rate),
      load.max_concurrency > 0 ? fmt::format(", at most {} at once", load.max_concurrency) : "");
}

std::string ToJson(const BenchReport& report) {
  ordered out;
  out["quantd_bench_serve"] = 1;  // the version of this layout
  out["version"] = report.version;
  out["date"] = report.date;
  out["target"] = report.target;
  out["server"] = {{"model", report.model},
                   {"architecture", report.architecture},
                   {"profile", report.profile},
                   {"backend", report.backend},
                   {"device", report.device},
                   {"version", report.server_version},
                   {"context_length", report.context_length}};
  ordered settings = ordered::object();
  for (const auto& [name, value] : report.settings) settings[name] = value;
  out["settings"] = std::move(settings);
  if (report.slo.any()) out["goodput"] = report.slo.ToString();
  out["latencies_from"] = "the scheduled arrival";
  ordered runs = ordered::array();
  for (size_t i = 0; i < report.runs.size(); ++i) {
    ordered run = RunJson(report.runs[i], report.slo);
    if (i < report.details.size()) {
      ordered details = ordered::array();
      for (const RequestRecord& r : report.details[i]) details.push_back(Detail(r));
      run["requests"] = std::move(details);
    }
    runs.push_back(std::move(run));
  }
  out["runs"] = std::move(runs);
  return DumpJson(out, 1) + "\n";
}

// ---- text ----

namespace {

std::string OneRun(const BenchReport& report, const RunResult& run) {
  std::string out;
  const auto line = [&](const std::string& name, const std::string& value) {
    out += fmt::format("{:<34} {}\n", name, value);
  };
  line("load", LoadText(run.load));
  line("requests", fmt::format("{} in {:.2f} s", run.requests, run.duration));
  line("completed", fmt::format("{}", run.completed));
  if (!run.refused.empty()) line("refused", CountsText(run.refused));
  if (!run.failed.empty()) line("failed", CountsText(run.failed));
  if (run.retries > 0) line("sent again", fmt::format("{}", run.retries));
  if (std::isfinite(run.load.request_rate)) {
    line("offered, requests/s", RateText(run.offered_rate));
  }
  line("completed, requests/s", fmt::format("{:.2f}", run.request_throughput));
  if (report.slo.any()) {
    line("goodput, requests/s", fmt::format("{:.2f} with {}", run.goodput, report.slo.ToString()));
  }
  line("input, tokens/s",
       fmt::format("{:.1f} ({:.0f}% cached)", run.input_throughput,
                   run.input_tokens > 0 ? 100.0 * static_cast<double>(run.cached_tokens) /
                                              static_cast<double>(run.input_tokens)
                                        : 0.0));
  line("output, tokens/s", fmt::format("{:.1f}", run.output_throughput));
  line("tokens a response", fmt::format("{:.2f}", run.tokens_per_response));
  line("in flight, most", fmt::format("{}", run.most_in_flight));
  if (run.waiting.count > 0) {
    line("waiting at the server, mean, most",
         fmt::format("{:.1f}, {:.0f}", run.waiting.mean, run.waiting.max));
  }
  out += fmt::format("\n{:<34} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}\n", "milliseconds", "mean",
                     "p50", "p90", "p95", "p99", "max");
  const auto row = [&](const char* name, const Summary& s) {
    if (s.count == 0) return;
    out +=
        fmt::format("{:<34} {:>9.2f} {:>9.2f} {:>9.2f} {:>9.2f} {:>9.2f} {:>9.2f}\n", name,
                    1e3 * s.mean, 1e3 * s.p50, 1e3 * s.p90, 1e3 * s.p95, 1e3 * s.p99, 1e3 * s.max);
  };
  row("time to first token", run.ttft);
  row("inter-token latency", run.itl);
  row("time per output token", run.tpot);
  row("end to end", run.e2el);
  row("sent late by this program", run.lag);
  return out;
}

std::string ManyRuns(const BenchReport& report) {
  const bool slo = report.slo.any();
  std::string out = fmt::format(
      "{:>9} {:>6} {:>6} {:>5} {:>5} {:>8} {}{:>9} {:>8} {:>9} {:>9} {:>8} {:>8} {:>9} {:>8}\n",
      "offered", "at", "done", "re-", "fail-", "done", slo ? "    good " : "", "output", "waiting",
      "TTFT", "TTFT", "ITL", "ITL", "E2E", "lag");
  out += fmt::format(
      "{:>9} {:>6} {:>6} {:>5} {:>5} {:>8} {}{:>9} {:>8} {:>9} {:>9} {:>8} {:>8} {:>9} {:>8}\n",
      "req/s", "once", "", "fused", "ed", "req/s", slo ? "   req/s " : "", "tokens/s", "mean",
      "p50", "p99", "p50", "p99", "p99", "p99");
  for (const RunResult& run : report.runs) {
    const auto sum = [](const std::map<std::string, int64_t>& counts) {
      int64_t total = 0;
      for (const auto& [name, count] : counts) total += count;
      return total;
    };
    out += fmt::format(
        "{:>9} {:>6} {:>6} {:>5} {:>5} {:>8.2f} {}{:>9.1f} {:>8} {:>9.1f} {:>9.1f} {:>8.2f} "
        "{:>8.2f} {:>9.1f} {:>8.2f}\n",
        RateText(run.load.request_rate),
        run.load.max_concurrency > 0 ? fmt::format("{}", run.load.max_concurrency) : "-",
        run.completed, sum(run.refused), sum(run.failed), run.request_throughput,
        slo ? fmt::format("{:>8.2f} ", run.goodput) : "", run.output_throughput,
        run.waiting.count > 0 ? fmt::format("{:.1f}", run.waiting.mean) : "-", 1e3 * run.ttft.p50,
        1e3 * run.ttft.p99, 1e3 * run.itl.p50, 1e3 * run.itl.p99, 1e3 * run.e2el.p99,
        1e3 * run.lag.p99);
  }
  return out + "\nTTFT, ITL, E2E and lag (sent late by this program) in ms.\n";
}

}  // namespace

std::string RenderText(const BenchReport& report) {
  std::string out = fmt::format("{}: {} ({}), profile {}, {} {}\n", report.target, report.model,
                                report.architecture, report.profile, report.backend, report.device);
  std::string settings;
  for (const auto& [name, value] : report.settings) {
    settings += fmt::format("{}{} {}", settings.empty() ? "" : ", ", name, value);
  }
  out += settings + "\n\n";
  out += report.runs.size() == 1 ? OneRun(report, report.runs[0]) : ManyRuns(report);
  out += "Latencies count from the scheduled arrival of a request, not from when it was sent.\n";
  for (const RunResult& run : report.runs) {
    if (!run.first_error.empty()) {
      out += fmt::format("First of the errors, {}: {}\n", LoadText(run.load), run.first_error);
      break;
    }
  }
  return out;
}

}  // namespace quantd::bench
