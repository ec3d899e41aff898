#include "engine/admission.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/cord.h"
#include "kernels/status.h"

namespace quantd {
namespace {

constexpr char kRetryAfter[] = "quantd/retry_after_seconds";
constexpr int64_t kFewest = 8;   // served requests before their times say anything
constexpr int64_t kMemory = 32;  // of which a mean is about

}  // namespace

absl::Status WithRetryAfter(absl::Status status, double seconds) {
  status.SetPayload(kRetryAfter, absl::Cord(std::to_string(seconds)));
  return status;
}

std::optional<double> RetryAfter(const absl::Status& status) {
  const auto payload = status.GetPayload(kRetryAfter);
  if (!payload.has_value()) return std::nullopt;
  return std::stod(std::string(*payload));
}

void Admission::Mean::Add(double sample) {
  ++seen;
  value += (sample - value) / static_cast<double>(std::min(seen, kMemory));
}

absl::Status Admission::Refuse(Refusal why, double retry_seconds, const std::string& message) {
  ++refused_[static_cast<int>(why)];
  return WithRetryAfter(absl::ResourceExhaustedError(message), retry_seconds);
}

absl::Status Admission::Check(const Newcomer& newcomer, const Load& load) {
  // Whoever finds the queue full should find half of it gone the next time.
  const double half = DepartureSeconds(waiting_ / 2 + newcomer.outputs, load);
  if (waiting_ + newcomer.outputs > options_.max_queued_requests) {
    return Refuse(Refusal::kRequests, half,
                  fmt::format("{} requests are waiting, allowed: {}",
                              waiting_ + newcomer.outputs - 1, options_.max_queued_requests));
  }
  if (options_.max_queued_tokens > 0 && waiting_ > 0 &&
      waiting_tokens_ + newcomer.prompt_tokens > options_.max_queued_tokens) {
    return Refuse(Refusal::kTokens, half,
                  fmt::format("requests with {} tokens are waiting, and {} more are too many, "
                              "allowed: {}",
                              waiting_tokens_, newcomer.prompt_tokens, options_.max_queued_tokens));
  }
  if (const auto tenant = tenants_.find(newcomer.tenant);
      !newcomer.tenant.empty() && tenant != tenants_.end() && tenant->second.waiting > 0) {
    const int64_t free = options_.max_queued_requests - waiting_;
    if (tenant->second.waiting + newcomer.outputs > free) {
      return Refuse(Refusal::kShare, half,
                    fmt::format("{} requests of {} are waiting and {} places are left, allowed: no "
                                "more than are left for others",
                                tenant->second.waiting, newcomer.tenant, free));
    }
  }
  const bool idle = waiting_ == 0 && load.running == 0;
  if (newcomer.seconds_left.has_value() && !idle && service_seconds_.seen >= kFewest) {
    const double wait = ExpectedWait(newcomer, load);
    const double alone = prefill_seconds_.value * static_cast<double>(newcomer.prompt_tokens) +
                         token_seconds_.value * static_cast<double>(newcomer.least_tokens - 1);
    const double left = *newcomer.seconds_left;
    if (alone > left) {  // another try is in vain
      ++refused_[static_cast<int>(Refusal::kDeadline)];
      return DeadlineExceeded(
          "the deadline in {:.3f} s cannot be met: {:.3f} s are needed even if nobody is ahead",
          left, alone);
    }
    if (wait + alone > left) {
      return Refuse(Refusal::kDeadline, wait + alone - left,
                    fmt::format("the deadline in {:.3f} s cannot be met: {} requests are ahead, "
                                "and {:.3f} s are needed",
                                left, Ahead(newcomer), wait + alone));
    }
  }
  return absl::OkStatus();
}

Admission::Place Admission::Enter(const Newcomer& newcomer, int32_t index) {
  Tenant& tenant = tenants_[newcomer.tenant];
  tenant.weight = newcomer.weight;
  // Only the first output computes the prompt.
  const int64_t prompt_tokens = index == 0 ? newcomer.prompt_tokens : 0;
  // Most end long before max_tokens; what they usually come to is what they are charged.
  double completion = static_cast<double>(newcomer.max_tokens);
  if (completion_tokens_.seen >= kFewest) {
    completion = std::min(completion, std::max(1.0, completion_tokens_.value));
  }
  Place place = {.tenant = newcomer.tenant,
                 .priority = newcomer.priority,
                 .prompt_tokens = prompt_tokens,
                 .tag = std::max(virtual_time_, tenant.next_tag)};
  tenant.next_tag = place.tag + (static_cast<double>(prompt_tokens) + completion) / tenant.weight;
  ++tenant.waiting;
  ++tenant.waiting_by_priority[newcomer.priority];
  ++waiting_;
  waiting_tokens_ += prompt_tokens;
  return place;
}

void Admission::Leave(const Place& place, bool to_run) {
  const auto it = tenants_.find(place.tenant);
  Tenant& tenant = it->second;
  --tenant.waiting;
  const auto line = tenant.waiting_by_priority.find(place.priority);
  if (--line->second == 0) tenant.waiting_by_priority.erase(line);
  --waiting_;
  waiting_tokens_ -= place.prompt_tokens;
  if (to_run) virtual_time_ = std::max(virtual_time_, place.tag);
  // One whose share is used up to now, or less, is like one that was never here.
  std::erase_if(tenants_, [this](const auto& entry) {
    return entry.second.waiting == 0 && entry.second.next_tag <= virtual_time_;
  });
}

void Admission::Note(const Served& served) {
  service_seconds_.Add(served.prefill_seconds + served.decode_seconds);
  completion_tokens_.Add(static_cast<double>(served.completion_tokens));
  if (served.computed_prompt_tokens > 0 && served.completion_tokens > 0) {
    prefill_seconds_.Add(served.prefill_seconds /
                         static_cast<double>(served.computed_prompt_tokens));
  }
  if (served.completion_tokens > 1) {
    token_seconds_.Add(served.decode_seconds / static_cast<double>(served.completion_tokens - 1));
  }
}

int64_t Admission::Ahead(const Newcomer& newcomer) const {
  const auto self = tenants_.find(newcomer.tenant);
  int64_t own = 0;
  if (self != tenants_.end()) {
    const auto line = self->second.waiting_by_priority.find(newcomer.priority);
    if (line != self->second.waiting_by_priority.end()) own = line->second;
  }
  int64_t ahead = 0;
  for (const auto& [name, tenant] : tenants_) {
    for (const auto& [priority, count] : tenant.waiting_by_priority) {
      if (priority > newcomer.priority) break;
      if (priority < newcomer.priority || name == newcomer.tenant) {
        ahead += count;
      } else {
        // While one's own line moves up by one, another's moves by the ratio of the weights.
        const double turns = static_cast<double>(own + 1) * tenant.weight / newcomer.weight;
        ahead += std::min(count, static_cast<int64_t>(std::ceil(turns)));
      }
    }
  }
  return ahead;
}

double Admission::DepartureSeconds(int64_t departures, const Load& load) const {
  if (departures <= 0 || service_seconds_.seen < kFewest) return 0;
  return static_cast<double>(departures) * service_seconds_.value /
         static_cast<double>(std::max(load.running, 1));
}

double Admission::ExpectedWait(const Newcomer& newcomer, const Load& load) const {
  const int64_t free = load.full ? 0 : std::max(0, options_.max_num_seqs - load.running);
  return DepartureSeconds(Ahead(newcomer) + 1 - free, load);
}

}  // namespace quantd
