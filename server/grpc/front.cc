#include "server/grpc/front.h"

#include <spdlog/spdlog.h>
#include <strings.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/admission.h"
#include "kernels/status.h"
#include "server/grpc/error_details.h"
#include "server/grpc/request_meter.h"
#include "server/request_log.h"
#include "server/utc_date.h"

namespace quantd {
namespace {

constexpr double kLongestPushbackMs = 3600000;
constexpr int kDenialsPerSecond = 10;  // in the log

// In [0, 1), by the call.
double Spread(const grpc::CallbackServerContext& context) {
  return static_cast<double>(std::hash<const void*>()(&context) * 0x9E3779B97F4A7C15ull >> 40) *
         0x1p-24;
}

// Says once what is wrong with a file that was read again, and is not used.
void TellFault(const absl::StatusOr<bool>& replaced, const char* what, std::string* told) {
  const std::string fault = replaced.ok() ? "" : Message(replaced.status());
  if (!fault.empty() && fault != *told) spdlog::error("{} as before: {}", what, fault);
  *told = fault;
}

}  // namespace

Front::Front(const Serving& serving, const ServerConfig& config, std::unique_ptr<KeyRing> keys,
             TlsStore* tls)
    : serving_(serving),
      config_(config),
      keys_(std::move(keys)),
      tls_(tls),
      denials_(kDenialsPerSecond),
      watchdog_([this] { Watch(); }),
      pool_(std::make_unique<WorkerPool>(
          static_cast<int>(config.limits.tokenizer_threads),
          static_cast<size_t>(config.limits.max_queued_tokenizations))) {
  if (keys_ != nullptr) LogKeys();
}

Front::~Front() {
  {
    std::lock_guard lock(watch_mutex_);
    stopping_ = true;
  }
  watch_wake_.notify_all();
  watchdog_.join();
}

void Front::Watch() {
  const auto limit = std::chrono::duration_cast<Clock::duration>(
      std::chrono::duration<double>(config_.timeouts.stall_seconds));
  const auto reload = std::chrono::duration_cast<Clock::duration>(
      std::chrono::duration<double>(config_.security.reload_seconds));
  const std::chrono::seconds reload_tls(config_.tls.reload_seconds);
  const auto tick = std::clamp<Clock::duration>(
      std::min(limit / 4, reload), std::chrono::milliseconds(10), std::chrono::seconds(1));
  Clock::time_point reloaded = Clock::now(), reloaded_tls = reloaded;
  std::unique_lock lock(watch_mutex_);
  while (!watch_wake_.wait_for(lock, tick, [this] { return stopping_; })) {
    lock.unlock();
    const Clock::time_point now = Clock::now();
    for (const auto& call : calls_.Snapshot()) call->CheckStall(now, limit);
    for (const auto& answer : answers_.Snapshot()) answer->CheckStall(now, limit);
    if (keys_ != nullptr && now - reloaded >= reload) {
      reloaded = now;
      ReloadKeys();
    }
    if (tls_ != nullptr && now - reloaded_tls >= reload_tls) {
      reloaded_tls = now;
      ReloadCertificate();
    }
    lock.lock();
  }
}

void Front::ReloadKeys() {
  const absl::StatusOr<bool> replaced = keys_->Reload();
  TellFault(replaced, "the API keys stay", &keys_fault_);
  if (replaced.ok() && *replaced) LogKeys();
}

void Front::LogKeys() const {
  spdlog::info("{} API keys read from {}", keys_->All().size(), config_.security.api_keys);
}

void Front::ReloadCertificate() {
  const absl::StatusOr<bool> replaced = tls_->Reload();
  TellFault(replaced, "the certificate stays", &certificate_fault_);
  if (replaced.ok() && *replaced) {
    spdlog::info("certificate read from {}, expires {}", config_.tls.certificate,
                 UtcDate(tls_->expires()));
  }
}

void Front::CancelAll(const absl::Status& status) {
  for (const auto& call : calls_.Snapshot()) call->Fail(status);
}

absl::StatusOr<const ServedModel*> Front::Ready() const {
  switch (serving_.state()) {
    case Serving::State::kLoading:
      return Unavailable("the model is loading ({:.0f}%)", 100.0 * serving_.load_progress());
    case Serving::State::kDraining: return Unavailable("the server is draining");
    case Serving::State::kReady: break;
  }
  return serving_.model();
}

absl::StatusOr<Caller> Front::Identify(const grpc::CallbackServerContext& context, Access access,
                                       Port port) const {
  if (access == Access::kAdmin && port == Port::kAdmin) return Caller();
  Caller caller;
  const auto deny = [&](std::atomic<int64_t>& count, absl::Status status) {
    ++count;
    LogDenial(caller, status, context.peer());
    return status;
  };
  if (keys_ != nullptr) {
    const auto& metadata = context.client_metadata();
    const auto header = metadata.find("authorization");
    constexpr std::string_view kBearer = "bearer ";  // in any case (RFC 7235)
    std::string_view presented;
    if (header != metadata.end()) presented = {header->second.data(), header->second.size()};
    while (presented.starts_with(' ')) presented.remove_prefix(1);  // of "NAME: VALUE", cut at ':'
    if (presented.size() < kBearer.size() ||
        strncasecmp(presented.data(), kBearer.data(), kBearer.size()) != 0) {
      return deny(unauthenticated_,
                  absl::UnauthenticatedError(
                      "no API key: metadata \"authorization: Bearer KEY\" is needed"));
    }
    presented.remove_prefix(kBearer.size());
    while (presented.starts_with(' ')) presented.remove_prefix(1);  // one or more
    caller.key = keys_->Find(presented);
    if (caller.key == nullptr) {
      return deny(unauthenticated_, absl::UnauthenticatedError("the API key is not known"));
    }
  }
  if (access == Access::kAdmin) {
    if (caller.key != nullptr && caller.key->key().admin) return caller;
    if (!config_.listen.admin.empty()) {
      return deny(forbidden_,
                  absl::PermissionDeniedError("this method is served on the port of listen.admin"));
    }
    if (caller.key != nullptr) {
      return deny(forbidden_, absl::PermissionDeniedError(fmt::format(
                                  "the key {} is not an administrator's", caller.name())));
    }
    return caller;
  }
  if (caller.key == nullptr) return caller;
  const ApiKey key = caller.key->key();
  if (!key.models.empty() && std::find(key.models.begin(), key.models.end(),
                                       config_.served_model_name) == key.models.end()) {
    return deny(forbidden_, absl::PermissionDeniedError(
                                fmt::format("the key {} is not for this model", key.name)));
  }
  return caller;
}

absl::StatusOr<Front::Opened> Front::Open(const grpc::CallbackServerContext& context, Port port,
                                          const std::string& id) const {
  ASSIGN_OR_RETURN(Caller caller, Identify(context, Access::kModel, port));
  const absl::StatusOr<const ServedModel*> model = Ready();
  if (!model.ok()) {
    LogRefusal(id, caller, model.status());
    return model.status();
  }
  return Opened{std::move(caller), *model};
}

std::string Front::NextRequestId() { return fmt::format("r{}", next_id_.fetch_add(1)); }

std::optional<Clock::time_point> Front::DeadlineOf(const grpc::CallbackServerContext& context,
                                                   std::optional<Clock::duration> timeout) const {
  std::optional<Clock::time_point> deadline;
  const auto within = [&](Clock::duration left) {
    const Clock::time_point end = Clock::now() + left;
    deadline = std::min(deadline.value_or(end), end);
  };
  const auto wall = context.deadline();
  if (wall != std::chrono::system_clock::time_point::max()) {
    // Clamped: a deadline years away must not overflow.
    within(std::min<std::chrono::system_clock::duration>(wall - std::chrono::system_clock::now(),
                                                         std::chrono::hours(24 * 365)));
  }
  if (config_.timeouts.max_request_seconds > 0) {
    within(std::chrono::duration_cast<Clock::duration>(
        std::chrono::duration<double>(config_.timeouts.max_request_seconds)));
  }
  if (timeout.has_value()) within(*timeout);
  return deadline;
}

void Front::Start(const std::shared_ptr<GenerateCall>& call, const ServedModel& model,
                  const Caller& caller, PreparedRequest prepared) {
  if (caller.key != nullptr) {
    const int32_t outputs = prepared.request.sampling.n;
    if (const absl::Status s = caller.key->Begin(outputs, Clock::now()); !s.ok()) {
      const bool later = absl::IsResourceExhausted(s);
      const absl::Status refusal =
          later ? s : WithField(InvalidArgument("sampling.{}", Message(s)), "sampling.n");
      LogRefusal(prepared.request.id, caller, refusal);
      return call->Fail(refusal, later);
    }
    const ApiKey key = caller.key->key();
    Request& request = prepared.request;
    request.tenant = key.name;
    request.tenant_weight = key.weight;
    request.priority = std::max(request.priority, key.min_priority);
  }
  call->SetMeter(std::make_unique<RequestMeter>(config_, caller.key, prepared));
  if (!prepared.has_text && prepared.messages.empty()) {
    return call->Submit(model.engine, std::move(prepared.request));
  }
  auto job = [call, served = &model, p = std::make_shared<PreparedRequest>(std::move(prepared))] {
    if (!call->active()) return;
    absl::StatusOr<std::vector<int32_t>> ids = EncodePrompt(
        *p, *served->tokenizer, served->chat_template, served->engine->max_model_len());
    if (!ids.ok()) return call->Fail(ids.status());
    p->request.prompt_ids = std::move(*ids);
    call->Submit(served->engine, std::move(p->request));
  };
  if (const absl::Status s = OnWorker(caller, std::move(job)); !s.ok()) call->Fail(s, true);
}

absl::Status Front::OnWorker(const Caller& caller, std::function<void()> job) {
  const std::string key = caller.name();
  const WorkerPool::Answer answer = pool_->Submit(key, std::move(job));
  if (answer == WorkerPool::Answer::kQueued) return absl::OkStatus();
  ++refused_texts_;
  const int64_t most = config_.limits.max_queued_tokenizations;
  return answer == WorkerPool::Answer::kFull
             ? ResourceExhausted("{} texts are waiting to be tokenized, allowed: {}", most, most)
             : ResourceExhausted(
                   "texts of {} are waiting to be tokenized, allowed: no more than are left for "
                   "others of {}",
                   key, most);
}

void Front::LogDenial(const Caller& caller, const absl::Status& status,
                      const std::string& peer) const {
  const std::optional<int64_t> left_out = denials_.Admit(Clock::now());
  if (!left_out.has_value()) return;
  if (*left_out > 0) spdlog::warn("{} more calls without the right key were refused", *left_out);
  LogRefusal("", caller, status, peer);
}

void Front::LogRefusal(const std::string& id, const Caller& caller, const absl::Status& status,
                       const std::string& peer) const {
  if (!config_.log.requests) return;
  RequestLine line;
  line.id = id.empty() ? "-" : id;
  line.caller = caller.name();
  line.peer = peer;
  line.status = absl::StatusCodeToString(status.code());
  line.error = ErrorForLog(status, config_.log.prompts);
  LogRequest(line);
}

grpc::Status Front::EndOf(grpc::CallbackServerContext* context, const absl::Status& status,
                          bool retry_pushback) const {
  if (!retry_pushback) return ToGrpc(status);
  // Not all at once: what was refused together should not come again together.
  const double expected = 1000 * RetryAfter(status).value_or(0);
  const int64_t milliseconds = std::max<int64_t>(
      config_.limits.retry_pushback_ms,
      std::llround(std::min(expected, kLongestPushbackMs) * (0.75 + 0.5 * Spread(*context))));
  context->AddTrailingMetadata("grpc-retry-pushback-ms", std::to_string(milliseconds));
  return ToGrpc(status, milliseconds);
}

}  // namespace quantd
