// Admission: who may wait for the engine, in which order, and for how long that will be.
//
// The queue is bounded by requests and by tokens of their prompts. Tenants (API keys, say) share
// it: each request gets a tag in virtual time, counted in tokens over the tenant's weight
// (start-time fair queueing, Goyal, Vin and Cheng, SIGCOMM 1996), and requests of equal priority
// run in the order of their tags. What a request will take is guessed when it comes, and put right
// in the tenant's next tag when it has ended. With one tenant the order is that of arrival. A
// tenant with a name may fill at most as many places as it leaves free, so that there is always
// room for another.
//
// What requests took so far says when a newcomer would get its first token: those ahead of it leave
// one by one, so many at once as run. One that would be too late is refused when it arrives,
// instead of waiting for nothing.
//
// Pure logic without a clock. Not thread-safe.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>

#include "absl/status/status.h"

namespace quantd {

struct AdmissionOptions {
  int32_t max_queued_requests = 256;
  int64_t max_queued_tokens = 0;  // of prompts; a single longer one may wait alone; 0: no limit
  int32_t max_num_seqs = 16;      // running at once
};

class Admission {
 public:
  explicit Admission(const AdmissionOptions& options) : options_(options) {}

  struct Newcomer {
    std::string tenant;
    double weight = 1;  // > 0: twice the weight, twice the tokens
    int32_t priority = 0;
    int32_t outputs = 1;
    int64_t prompt_tokens = 0;
    int64_t max_tokens = 1;                   // of each output
    int64_t least_tokens = 1;                 // generated before it can end
    bool shares_prompt = true;                // only the first output computes it
    std::optional<double> seconds_left = {};  // to its deadline
  };
  /// Where one output stands in line.
  struct Place {
    std::string tenant;
    double weight = 1;
    int32_t priority = 0;
    int64_t prompt_tokens = 0;
    double tag = 0;      // of requests of equal priority the smaller one runs first
    double charged = 0;  // tokens that it was guessed to take
  };
  /// How the engine stands after its last step.
  struct Load {
    int32_t running = 0;
    bool full = false;  // when it last took what it could, somebody was left
  };
  /// What one output took.
  struct Served {
    int64_t computed_prompt_tokens = 0;
    int64_t completion_tokens = 0;
    double prefill_seconds = 0;  // first scheduled to first token
    double decode_seconds = 0;   // first token to last
  };
  enum class Refusal : uint8_t { kRequests, kTokens, kShare, kDeadline };
  static constexpr int kNumRefusals = 4;

  /// RESOURCE_EXHAUSTED, with RetryAfter, when it may not wait; DEADLINE_EXCEEDED for a deadline
  /// that could not be met in an empty line either. Counts the refusal.
  absl::Status Check(const Newcomer& newcomer, const Load& load);
  /// Takes output `index` of a newcomer that passed Check.
  Place Enter(const Newcomer& newcomer, int32_t index);
  /// An output has left the line, to run or not: then it took nothing.
  void Leave(const Place& place, bool to_run);
  /// One that ran has ended.
  void Note(const Place& place, const Served& served);

  /// Until a newcomer is begun with, in seconds; 0 before enough requests were served to say.
  double ExpectedWait(const Newcomer& newcomer, const Load& load) const;
  /// Outputs in line before a newcomer's.
  int64_t Ahead(const Newcomer& newcomer) const;

  int64_t waiting() const { return waiting_; }
  int64_t waiting_tokens() const { return waiting_tokens_; }
  int64_t refused(Refusal why) const { return refused_[static_cast<int>(why)]; }

 private:
  struct Tenant {
    double weight = 1;
    double next_tag = 0;
    double last_tag = 0;  // given: its requests keep their order whatever they turn out to take
    int64_t waiting = 0;
    std::map<int32_t, int64_t> waiting_by_priority = {};
  };
  // Adds `tokens` to what the tenant of `place` has had.
  void Charge(const Place& place, double tokens);
  // From what the last few dozen requests took. A prompt: as long a token as prompts took that were
  // no less than half as long; longer ones than any before take at least as long as those did.
  double ServiceSeconds() const;
  double PrefillSeconds(int64_t prompt_tokens) const;
  double TokenSeconds() const;
  double MeanCompletion() const;

  absl::Status Refuse(Refusal why, double retry_seconds, const std::string& message);
  // Until `departures` of the running ones have ended.
  double DepartureSeconds(int64_t departures, const Load& load) const;

  const AdmissionOptions options_;
  std::map<std::string, Tenant> tenants_;
  double virtual_time_ = 0;  // the tag of the one that left the line last, to run
  int64_t waiting_ = 0;
  int64_t waiting_tokens_ = 0;
  int64_t refused_[kNumRefusals] = {};
  std::deque<Served> served_;  // the last ones
};

/// `status` with the time after which another try makes sense, and that time.
absl::Status WithRetryAfter(absl::Status status, double seconds);
std::optional<double> RetryAfter(const absl::Status& status);

}  // namespace quantd
