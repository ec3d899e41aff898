// Generate and its collecting sink. See generate.h.
#include "engine/generate.h"

#include <utility>

#include "kernels/status.h"

namespace quantd {

std::vector<int32_t> GenerateResult::token_ids() const {
  std::vector<int32_t> ids;
  ids.reserve(tokens.size());
  for (const TokenOutput& token : tokens) ids.push_back(token.token_id);
  return ids;
}

void CollectingSink::OnUpdate(RequestUpdate update) {
  {
    std::lock_guard lock(mutex_);
    QUANTD_CHECK(!done_, "an update after the last one");
    result_.text += update.text;
    for (TokenOutput& token : update.tokens) result_.tokens.push_back(std::move(token));
    result_.usage = update.usage;
    if (update.finish_reason.has_value()) {
      done_ = true;
      result_.finish_reason = *update.finish_reason;
      result_.stop_reason = std::move(update.stop_reason);
      result_.status = std::move(update.status);
    }
  }
  changed_.notify_all();
}

const GenerateResult& CollectingSink::Wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return done_; });
  return result_;
}

const GenerateResult* CollectingSink::WaitFor(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, timeout, [this] { return done_; }) ? &result_ : nullptr;
}

size_t CollectingSink::num_tokens() const {
  std::lock_guard lock(mutex_);
  return result_.tokens.size();
}

absl::StatusOr<GenerateResult> Generate(Engine& engine, Request request) {
  auto sink = std::make_shared<CollectingSink>();
  RETURN_IF_ERROR(engine.Submit(std::move(request), sink).status());
  return sink->Wait();
}

absl::StatusOr<std::vector<GenerateResult>> GenerateAll(Engine& engine,
                                                        std::vector<Request> requests) {
  std::vector<std::pair<RequestHandle, std::shared_ptr<CollectingSink>>> submitted;
  absl::Status status;
  for (Request& request : requests) {
    auto sink = std::make_shared<CollectingSink>();
    auto handle = engine.Submit(std::move(request), sink);
    if (!handle.ok()) {
      status = handle.status();
      for (const auto& [earlier, unused] : submitted) engine.Cancel(earlier);
      break;
    }
    submitted.emplace_back(*handle, std::move(sink));
  }
  std::vector<GenerateResult> results;
  results.reserve(submitted.size());
  for (const auto& [handle, sink] : submitted) results.push_back(sink->Wait());
  RETURN_IF_ERROR(status);
  return results;
}

}  // namespace quantd
