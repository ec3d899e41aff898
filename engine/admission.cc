#include "engine/admission.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/cord.h"
#include "kernels/status.h"

namespace quantd {
namespace {

constexpr char kRetryAfter[] = "quantd/retry_after_seconds";
constexpr size_t kFewest = 8;   // served requests before their times say anything
constexpr size_t kMemory = 32;  // of them, what is remembered

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

absl::Status Admission::Refuse(Refusal why, double retry_seconds, const std::string& message) {
  ++refused_[static_cast<int>(why)];
  return WithRetryAfter(absl::ResourceExhaustedError(message), retry_seconds);
}

absl::Status Admission::Check(const Newcomer& newcomer, const Load& load) {
  // Whoever finds the queue full should find half of it gone the next time.
  const double half = DepartureSeconds(waiting_ / 2 + newcomer.outputs, load);
  if (waiting_ + newcomer.outputs > options_.max_queued_requests) {
    const std::string outputs =
        newcomer.outputs == 1 ? ""
                              : fmt::format(", and {} outputs need a place each", newcomer.outputs);
    return Refuse(Refusal::kRequests, half,
                  fmt::format("{} requests are waiting{}, allowed: {}", waiting_, outputs,
                              options_.max_queued_requests));
  }
  const int64_t tokens = newcomer.prompt_tokens * (newcomer.shares_prompt ? 1 : newcomer.outputs);
  if (options_.max_queued_tokens > 0 && waiting_ > 0 &&
      waiting_tokens_ + tokens > options_.max_queued_tokens) {
    return Refuse(Refusal::kTokens, half,
                  fmt::format("requests with {} tokens are waiting, and {} more are too many, "
                              "allowed: {}",
                              waiting_tokens_, tokens, options_.max_queued_tokens));
  }
  if (!newcomer.tenant.empty()) {
    const auto found = tenants_.find(newcomer.tenant);
    const int64_t own = found == tenants_.end() ? 0 : found->second.waiting;
    const int64_t free = options_.max_queued_requests - waiting_;
    // As many as are left for others afterwards; who has none may take one that is left.
    const bool first = own == 0 && newcomer.outputs == 1;
    if (!first && own + 2 * newcomer.outputs - 1 > free) {
      return Refuse(Refusal::kShare, half,
                    fmt::format("{} requests of {} are waiting and {} places are left, allowed: no "
                                "more than are left for others",
                                own, newcomer.tenant, free));
    }
  }
  const bool idle = waiting_ == 0 && load.running == 0;
  if (newcomer.seconds_left.has_value() && !idle && served_.size() >= kFewest) {
    const double wait = ExpectedWait(newcomer, load);
    const double alone = PrefillSeconds(newcomer.prompt_tokens) +
                         TokenSeconds() * static_cast<double>(newcomer.least_tokens - 1);
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
  const int64_t prompt_tokens = index == 0 || !newcomer.shares_prompt ? newcomer.prompt_tokens : 0;
  // Most end long before max_tokens; what they usually come to is what they are charged.
  double completion = static_cast<double>(newcomer.max_tokens);
  if (served_.size() >= kFewest) completion = std::min(completion, std::max(1.0, MeanCompletion()));
  Place place = {.tenant = newcomer.tenant,
                 .weight = newcomer.weight,
                 .priority = newcomer.priority,
                 .prompt_tokens = prompt_tokens,
                 .tag = std::max({virtual_time_, tenant.next_tag, tenant.last_tag}),
                 .charged = static_cast<double>(prompt_tokens) + completion};
  tenant.last_tag = place.tag;
  tenant.next_tag = std::max(virtual_time_, tenant.next_tag) + place.charged / tenant.weight;
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
  if (to_run) {
    virtual_time_ = std::max(virtual_time_, place.tag);
  } else {
    Charge(place, -place.charged);
  }
  // One whose share is used up to now, or less, is like one that was never here.
  std::erase_if(tenants_, [this](const auto& entry) {
    return entry.second.waiting == 0 && entry.second.next_tag <= virtual_time_;
  });
}

void Admission::Charge(const Place& place, double tokens) {
  // One who has left and was forgotten stands where everybody stands.
  Tenant& tenant = tenants_
                       .try_emplace(place.tenant, Tenant{.weight = place.weight,
                                                         .next_tag = virtual_time_,
                                                         .last_tag = virtual_time_})
                       .first->second;
  tenant.next_tag += tokens / tenant.weight;
}

void Admission::Note(const Place& place, const Served& served) {
  Charge(place, static_cast<double>(served.computed_prompt_tokens + served.completion_tokens) -
                    place.charged);
  served_.push_back(served);
  if (served_.size() > kMemory) served_.pop_front();
}

double Admission::ServiceSeconds() const {
  double sum = 0;
  for (const Served& s : served_) sum += s.prefill_seconds + s.decode_seconds;
  return served_.empty() ? 0 : sum / static_cast<double>(served_.size());
}

double Admission::PrefillSeconds(int64_t prompt_tokens) const {
  double seconds = 0, tokens = 0, all = 0;
  for (const Served& s : served_) {
    all += s.prefill_seconds;
    if (2 * s.computed_prompt_tokens < prompt_tokens) continue;
    seconds += s.prefill_seconds;
    tokens += static_cast<double>(s.computed_prompt_tokens);
  }
  if (tokens > 0) return seconds / tokens * static_cast<double>(prompt_tokens);
  return served_.empty() ? 0 : all / static_cast<double>(served_.size());
}

double Admission::TokenSeconds() const {
  double seconds = 0;
  int64_t gaps = 0;
  for (const Served& s : served_) {
    seconds += s.decode_seconds;
    gaps += std::max<int64_t>(s.completion_tokens - 1, 0);
  }
  return gaps == 0 ? 0 : seconds / static_cast<double>(gaps);
}

double Admission::MeanCompletion() const {
  double sum = 0;
  for (const Served& s : served_) sum += static_cast<double>(s.completion_tokens);
  return served_.empty() ? 0 : sum / static_cast<double>(served_.size());
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
  if (departures <= 0 || served_.size() < kFewest) return 0;
  // As many leave at a time as run: all places, unless it could not fill them.
  const int32_t running = load.full ? std::max(load.running, 1) : options_.max_num_seqs;
  return static_cast<double>(departures) * ServiceSeconds() / static_cast<double>(running);
}

double Admission::ExpectedWait(const Newcomer& newcomer, const Load& load) const {
  const int64_t free = load.full ? 0 : std::max(0, options_.max_num_seqs - load.running);
  return DepartureSeconds(Ahead(newcomer) + 1 - free, load);
}

}  // namespace quantd
