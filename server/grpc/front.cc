#include "server/grpc/front.h"

#include <algorithm>
#include <utility>

#include "kernels/status.h"
#include "server/grpc/error_details.h"

namespace quantd {

Front::Front(const Serving& serving, const ServerConfig& config)
    : serving_(serving),
      config_(config),
      watchdog_([this] { Watch(); }),
      pool_(std::make_unique<WorkerPool>(
          static_cast<int>(config.limits.tokenizer_threads),
          static_cast<size_t>(config.limits.max_queued_tokenizations))) {}

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
  const auto tick = std::clamp<Clock::duration>(limit / 4, std::chrono::milliseconds(10),
                                                std::chrono::seconds(1));
  std::unique_lock lock(watch_mutex_);
  while (!watch_wake_.wait_for(lock, tick, [this] { return stopping_; })) {
    lock.unlock();
    const Clock::time_point now = Clock::now();
    for (const auto& call : calls_.Snapshot()) call->CheckStall(now, limit);
    lock.lock();
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

absl::StatusOr<Caller> Front::Identify(const grpc::CallbackServerContext&, Access) const {
  return Caller{};
}

std::string Front::NextRequestId() { return fmt::format("r{}", next_id_.fetch_add(1)); }

std::optional<Clock::time_point> Front::DeadlineOf(
    const grpc::CallbackServerContext& context) const {
  std::optional<Clock::time_point> deadline;
  const auto wall = context.deadline();
  if (wall != std::chrono::system_clock::time_point::max()) {
    // Clamped: a deadline years away must not overflow.
    const auto left = std::min<std::chrono::system_clock::duration>(
        wall - std::chrono::system_clock::now(), std::chrono::hours(24 * 365));
    deadline = Clock::now() + left;
  }
  if (config_.timeouts.max_request_seconds > 0) {
    const auto limit =
        Clock::now() + std::chrono::duration_cast<Clock::duration>(
                           std::chrono::duration<double>(config_.timeouts.max_request_seconds));
    deadline = deadline.has_value() ? std::min(*deadline, limit) : limit;
  }
  return deadline;
}

void Front::Start(const std::shared_ptr<GenerateCall>& call, const ServedModel& model, Caller,
                  PreparedRequest prepared) {
  if (!prepared.has_text && prepared.messages.empty()) {
    return call->Submit(model.engine, std::move(prepared.request));
  }
  auto job = [call, served = &model, p = std::make_shared<PreparedRequest>(std::move(prepared))] {
    if (!call->active()) return;
    absl::StatusOr<std::vector<int32_t>> ids =
        EncodePrompt(*p, *served->tokenizer, served->chat_template);
    if (!ids.ok()) return call->Fail(ids.status());
    p->request.prompt_ids = std::move(*ids);
    call->Submit(served->engine, std::move(p->request));
  };
  if (const absl::Status s = OnWorker(std::move(job)); !s.ok()) call->Fail(s, true);
}

absl::Status Front::OnWorker(std::function<void()> job) {
  if (pool_->Submit(std::move(job))) return absl::OkStatus();
  return ResourceExhausted("{} texts are waiting to be tokenized, allowed: {}",
                           config_.limits.max_queued_tokenizations,
                           config_.limits.max_queued_tokenizations);
}

grpc::Status Front::EndOf(grpc::CallbackServerContext* context, const absl::Status& status,
                          bool retry_pushback) const {
  if (!retry_pushback) return ToGrpc(status);
  const int64_t milliseconds = config_.limits.retry_pushback_ms;
  context->AddTrailingMetadata("grpc-retry-pushback-ms", std::to_string(milliseconds));
  return ToGrpc(status, milliseconds);
}

}  // namespace quantd
