#include "server/bench/measurement.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/status.h"

namespace quantd::bench {
namespace {

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

int64_t MostInFlight(const std::vector<RequestRecord>& records) {
  std::vector<std::pair<double, int>> changes;
  for (const RequestRecord& r : records) {
    changes.emplace_back(r.sent, 1);
    changes.emplace_back(r.end, -1);
  }
  std::sort(changes.begin(), changes.end());  // ends before starts of the same moment
  int64_t now = 0, most = 0;
  for (const auto& [time, change] : changes) most = std::max(most, now += change);
  return most;
}

}  // namespace

std::string CodeName(absl::StatusCode code) { return absl::StatusCodeToString(code); }

double Percentile(const std::vector<double>& ascending, double share) {
  if (ascending.empty()) return 0.0;
  const double place = std::clamp(share, 0.0, 1.0) * static_cast<double>(ascending.size() - 1);
  const size_t below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, ascending.size() - 1);
  const double part = place - static_cast<double>(below);
  return ascending[below] + part * (ascending[above] - ascending[below]);
}

Summary Summarize(std::vector<double> values) {
  Summary s;
  if (values.empty()) return s;
  std::sort(values.begin(), values.end());
  s.count = static_cast<int64_t>(values.size());
  s.mean = std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(s.count);
  s.p50 = Percentile(values, 0.50);
  s.p90 = Percentile(values, 0.90);
  s.p95 = Percentile(values, 0.95);
  s.p99 = Percentile(values, 0.99);
  s.max = values.back();
  return s;
}

// ---- Slo ----

Slo::Slo() : ttft(kNoLimit), itl(kNoLimit), tpot(kNoLimit), e2el(kNoLimit) {}

absl::Status Slo::Add(const std::string& flag, std::string_view text) {
  while (true) {
    const size_t comma = text.find(',');
    const std::string_view part = text.substr(0, comma);
    const size_t colon = part.find(':');
    const std::string_view name = part.substr(0, colon);
    double* bound = name == "ttft"                    ? &ttft
                    : name == "itl"                   ? &itl
                    : name == "tpot"                  ? &tpot
                    : name == "e2el" || name == "e2e" ? &e2el
                                                      : nullptr;
    double milliseconds = 0.0;
    bool read = false;
    if (bound != nullptr && colon != std::string_view::npos) {
      const std::string_view number = part.substr(colon + 1);
      const char* const end = number.data() + number.size();
      const auto [last, error] = std::from_chars(number.data(), end, milliseconds);
      read = error == std::errc() && last == end && milliseconds > 0;
    }
    if (!read) {
      return InvalidArgument(
          "{} is \"{}\", allowed: ttft:MS, itl:MS, tpot:MS, e2el:MS with commas between, "
          "milliseconds above 0",
          flag, part);
    }
    *bound = milliseconds * 1e-3;
    if (comma == std::string_view::npos) return absl::OkStatus();
    text.remove_prefix(comma + 1);
  }
}

bool Slo::any() const {
  return std::isfinite(ttft) || std::isfinite(itl) || std::isfinite(tpot) || std::isfinite(e2el);
}

bool Slo::Met(const RequestRecord& record) const {
  if (!record.ok() || record.first < 0) return false;
  const double worst =
      record.gaps.empty() ? 0.0 : *std::max_element(record.gaps.begin(), record.gaps.end());
  return record.ttft() <= ttft && worst <= itl && record.time_per_token() <= tpot &&
         record.end_to_end() <= e2el;
}

std::string Slo::ToString() const {
  std::string out;
  const auto add = [&](const char* name, double bound) {
    if (!std::isfinite(bound)) return;
    out += fmt::format("{}{}:{:.6g}", out.empty() ? "" : ",", name, bound * 1e3);
  };
  add("ttft", ttft);
  add("itl", itl);
  add("tpot", tpot);
  add("e2el", e2el);
  return out;
}

// ---- a run ----

RunResult Evaluate(const OfferedLoad& load, const Slo& slo,
                   const std::vector<RequestRecord>& records, QueueSamples queue) {
  RunResult run;
  run.load = load;
  run.requests = static_cast<int64_t>(records.size());
  if (records.empty()) return run;
  double begin = kNoLimit, last_arrival = 0.0, end = 0.0;
  int64_t good = 0, responses = 0;
  std::vector<double> ttft, itl, tpot, e2el, lag;
  for (const RequestRecord& r : records) {
    begin = std::min(begin, r.scheduled);
    last_arrival = std::max(last_arrival, r.scheduled);
    end = std::max(end, r.end);
    lag.push_back(r.sent - r.scheduled);
    run.retries += r.attempts - 1;
    if (!r.ok()) {
      ++(r.refused() ? run.refused : run.failed)[CodeName(r.code)];
      if (run.first_error.empty()) run.first_error = r.message;
      continue;
    }
    ++run.completed;
    if (slo.Met(r)) ++good;
    run.input_tokens += r.prompt_tokens;
    run.cached_tokens += r.cached_tokens;
    run.output_tokens += r.output_tokens;
    responses += r.responses;
    e2el.push_back(r.end_to_end());
    if (r.first >= 0) ttft.push_back(r.ttft());
    if (r.output_tokens > 1) tpot.push_back(r.time_per_token());
    itl.insert(itl.end(), r.gaps.begin(), r.gaps.end());
  }
  run.duration = end - begin;
  // n arrivals span n - 1 gaps.
  const double span = last_arrival - begin;
  run.offered_rate = span > 0 ? static_cast<double>(run.requests - 1) / span : kNoLimit;
  const auto per_second = [&](int64_t n) {
    return run.duration > 0 ? static_cast<double>(n) / run.duration : 0.0;
  };
  run.request_throughput = per_second(run.completed);
  run.goodput = per_second(good);
  run.input_throughput = per_second(run.input_tokens);
  run.output_throughput = per_second(run.output_tokens);
  if (responses > 0) {
    run.tokens_per_response =
        static_cast<double>(run.output_tokens) / static_cast<double>(responses);
  }
  run.most_in_flight = MostInFlight(records);
  if (!ttft.empty()) {
    std::sort(ttft.begin(), ttft.end());
    for (int i = 0; i <= 100; ++i) run.ttft_quantiles.push_back(Percentile(ttft, i / 100.0));
  }
  run.ttft = Summarize(std::move(ttft));
  run.itl = Summarize(std::move(itl));
  run.tpot = Summarize(std::move(tpot));
  run.e2el = Summarize(std::move(e2el));
  run.lag = Summarize(std::move(lag));
  run.waiting = Summarize(std::move(queue.waiting));
  run.running = Summarize(std::move(queue.running));
  return run;
}

}  // namespace quantd::bench
