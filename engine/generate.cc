// Generate and its collecting sink. See generate.h.
#include "engine/generate.h"

#include <algorithm>
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
    GenerateResult& result = results_.at(static_cast<size_t>(update.index));
    QUANTD_CHECK(unfinished_ > 0, "an update after the last one");
    result.text += update.text;
    for (TokenOutput& token : update.tokens) result.tokens.push_back(std::move(token));
    result.usage = update.usage;
    if (update.finish_reason.has_value()) {
      --unfinished_;
      result.finish_reason = *update.finish_reason;
      result.stop_reason = std::move(update.stop_reason);
      result.status = std::move(update.status);
    }
  }
  changed_.notify_all();
}

const GenerateResult& CollectingSink::Wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return unfinished_ == 0; });
  return results_[0];
}

const GenerateResult* CollectingSink::WaitFor(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, timeout, [this] { return unfinished_ == 0; }) ? &results_[0]
                                                                               : nullptr;
}

size_t CollectingSink::num_tokens() const {
  std::lock_guard lock(mutex_);
  size_t tokens = 0;
  for (const GenerateResult& result : results_) tokens += result.tokens.size();
  return tokens;
}

absl::StatusOr<std::vector<GenerateResult>> GenerateOutputs(Engine& engine, Request request) {
  auto sink = std::make_shared<CollectingSink>(std::max(request.sampling.n, 1));
  RETURN_IF_ERROR(engine.Submit(std::move(request), sink).status());
  sink->Wait();
  return sink->results();
}

absl::StatusOr<GenerateResult> Generate(Engine& engine, Request request) {
  ASSIGN_OR_RETURN(std::vector<GenerateResult> outputs,
                   GenerateOutputs(engine, std::move(request)));
  return std::move(outputs[0]);
}

absl::StatusOr<std::vector<GenerateResult>> GenerateAll(Engine& engine,
                                                        std::vector<Request> requests) {
  std::vector<std::pair<RequestHandle, std::shared_ptr<CollectingSink>>> submitted;
  absl::Status status;
  for (Request& request : requests) {
    auto sink = std::make_shared<CollectingSink>(std::max(request.sampling.n, 1));
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
