// BenchReport: what `quantd bench serve` found, as JSON, a table, or a page. Pure functions.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "server/bench/measurement.h"

namespace quantd::bench {

struct BenchReport {
  std::string version;  // of this program
  std::string date;     // UTC, ISO 8601
  std::string target;
  // As the server says them.
  std::string model, architecture, profile, backend, device, server_version;
  int64_t context_length = 0;
  std::vector<std::pair<std::string, std::string>> settings;  // of the load, as flags spell them
  Slo slo;
  std::vector<RunResult> runs;
  std::vector<std::vector<RequestRecord>> details;  // of each run; empty: not asked for
};

/// Scalars have the names that vLLM's benchmark gives them, latencies are in milliseconds.
std::string ToJson(const BenchReport& report);

/// One run with all its figures; several with a line each. What a server says is printed as it is:
/// OneLine is the caller's.
std::string RenderText(const BenchReport& report);

/// A page that needs nothing else: no script, no other file.
std::string RenderHtml(const BenchReport& report);

/// "RESOURCE_EXHAUSTED 3, UNAVAILABLE 1".
std::string CountsText(const std::map<std::string, int64_t>& counts);
/// "8", "inf".
std::string RateText(double rate);
/// "8 requests/s", "concurrency 4", "16 requests/s, at most 64 at once".
std::string LoadText(const OfferedLoad& load);

}  // namespace quantd::bench
