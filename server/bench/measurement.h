// What a load measured: the record of each request, and what a run of them comes to. Pure
// functions.
//
// Times are in seconds since the run began. Latencies count from `scheduled`, when the request
// should have been sent, not from when it was: a client or a server that is late does not make the
// figures better by sending less (no coordinated omission).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace quantd::bench {

struct RequestRecord {
  double scheduled = 0.0;
  double sent = 0.0;
  double first = -1.0;  // of the first response with a token; < 0: there was none
  double last = -1.0;   // of the last response with a token
  double end = 0.0;     // of the call
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;  // of the prompt, taken from the prefix cache
  int32_t output_tokens = 0;
  int32_t responses = 0;     // with tokens
  std::vector<double> gaps;  // from one response with tokens to the next
  int32_t attempts = 1;
  absl::StatusCode code = absl::StatusCode::kOk;
  std::string message;  // of a status that is not OK

  bool ok() const { return code == absl::StatusCode::kOk; }
  /// Turned away before it had an answer: RESOURCE_EXHAUSTED or UNAVAILABLE without a token.
  bool refused() const {
    return first < 0 &&
           (code == absl::StatusCode::kResourceExhausted || code == absl::StatusCode::kUnavailable);
  }
  double ttft() const { return first - scheduled; }
  double end_to_end() const { return end - scheduled; }
  /// Time per output token after the first; 0 for a request of one token.
  double time_per_token() const {
    return output_tokens > 1 ? (last - first) / (output_tokens - 1) : 0.0;
  }
};

/// "RESOURCE_EXHAUSTED".
std::string CodeName(absl::StatusCode code);

/// Of an ascending list, `share` in [0, 1], linear between two values as numpy's default; 0 of an
/// empty list.
double Percentile(const std::vector<double>& ascending, double share);

struct Summary {
  int64_t count = 0;
  double mean = 0, p50 = 0, p90 = 0, p95 = 0, p99 = 0, max = 0;
};
Summary Summarize(std::vector<double> values);

/// What a request must meet to be good, in seconds; infinite where nothing is asked.
struct Slo {
  double ttft, itl, tpot, e2el;
  Slo();

  /// "ttft:200", "itl:50", "tpot:50" and "e2el:5000" (or e2e) in milliseconds, each alone or with
  /// commas between, onto what is there. INVALID_ARGUMENT naming `flag` for anything else.
  absl::Status Add(const std::string& flag, std::string_view text);
  /// Whether anything is asked.
  bool any() const;
  /// Of a completed request; `itl` bounds each of its gaps.
  bool Met(const RequestRecord& record) const;
  /// As Add reads it.
  std::string ToString() const;
};

/// What was asked of a run, for its report.
struct OfferedLoad {
  double request_rate = 0.0;    // requests a second; infinite: as fast as the concurrency allows
  int32_t max_concurrency = 0;  // 0: no limit
};

/// The server's queue while a run went on, asked a few times a second.
struct QueueSamples {
  std::vector<double> waiting, running;
};

struct RunResult {
  OfferedLoad load;
  int64_t requests = 0;
  int64_t completed = 0;
  std::map<std::string, int64_t> refused, failed;  // by status
  std::string first_error;                         // the message of one of them
  int64_t retries = 0;
  double duration = 0.0;      // first arrival to last end, in seconds
  double offered_rate = 0.0;  // requests a second over the time in which they came
  // Over `duration`, a second, of completed requests.
  double request_throughput = 0.0;
  double goodput = 0.0;  // requests that met the Slo
  double input_throughput = 0.0;
  double output_throughput = 0.0;
  int64_t input_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t output_tokens = 0;
  double tokens_per_response = 0.0;
  int64_t most_in_flight = 0;
  Summary ttft, itl, tpot, e2el;       // in seconds, of completed requests
  Summary lag;                         // in seconds, scheduled to sent, of all requests
  Summary waiting, running;            // requests at the server; count 0: it was not asked
  std::vector<double> ttft_quantiles;  // in seconds, at 0, 1/100 to 1; empty without any
};

RunResult Evaluate(const OfferedLoad& load, const Slo& slo,
                   const std::vector<RequestRecord>& records, QueueSamples queue);

}  // namespace quantd::bench
