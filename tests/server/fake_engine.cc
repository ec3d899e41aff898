// FakeEngine: one thread, one map.
#include "tests/server/fake_engine.h"

#include "kernels/status.h"

namespace quantd::test {

absl::StatusOr<std::vector<int32_t>> ByteTokenizer::Encode(std::string_view text, bool) const {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !blocked_; });
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<uint8_t>(c));
  return ids;
}

std::string_view ByteTokenizer::TokenBytes(int32_t id) const {
  static const std::string all = [] {
    std::string bytes;
    for (int i = 0; i < 256; ++i) bytes.push_back(static_cast<char>(i));
    return bytes;
  }();
  return std::string_view(all).substr(static_cast<size_t>(id), 1);
}

std::string ByteTokenizer::Decode(std::span<const int32_t> ids, bool) const {
  std::string text;
  for (const int32_t id : ids) text.push_back(static_cast<char>(id));
  return text;
}

void ByteTokenizer::Block(bool blocked) {
  {
    std::lock_guard lock(mutex_);
    blocked_ = blocked;
  }
  changed_.notify_all();
}

FakeEngine::FakeEngine(Options options) : options_(options) {
  spec_.architecture = "FakeForCausalLM";
  spec_.vocab_size = 256;
  spec_.eos_token_ids = {0};
  report_.profile_name = "fake";
  report_.parameters = 8;
  report_.resident_bytes = 4;
  defaults_.temperature = 0.5f;
  defaults_.top_k = 7;
  thread_ = std::thread([this] { Loop(); });
}

FakeEngine::~FakeEngine() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  thread_.join();
}

absl::StatusOr<RequestHandle> FakeEngine::Submit(Request request,
                                                 std::shared_ptr<RequestSink> sink) {
  std::lock_guard lock(mutex_);
  if (draining_) return Unavailable("draining");
  if (live_.size() >= options_.max_live) return ResourceExhausted("{} requests wait", live_.size());
  if (request.deadline.has_value() && *request.deadline <= Clock::now())
    return DeadlineExceeded("past");
  last_ = request;
  live_[next_] = {std::move(request), std::move(sink)};
  return next_++;
}

void FakeEngine::Cancel(RequestHandle handle) {
  std::lock_guard lock(mutex_);
  const auto it = live_.find(handle);
  if (it == live_.end()) return;
  it->second.cancelled = true;
  ++cancels_;
}

int64_t FakeEngine::Drain(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  draining_ = true;
  if (changed_.wait_for(lock, timeout, [this] { return live_.empty(); })) return 0;
  const auto left = static_cast<int64_t>(live_.size());
  for (auto& [handle, live] : live_) live.cancelled = true;
  changed_.wait(lock, [this] { return live_.empty(); });
  return left;
}

EngineStats FakeEngine::Stats() const {
  EngineStats stats;
  stats.running = static_cast<int64_t>(live());
  stats.generation_tokens = tokens_;
  stats.kv_blocks_total = 10;
  stats.kv_blocks_free = 4;
  stats.prefix_cache_hits = 3;
  return stats;
}

size_t FakeEngine::live() const {
  std::lock_guard lock(mutex_);
  return live_.size();
}

Request FakeEngine::last_request() const {
  std::lock_guard lock(mutex_);
  return last_;
}

void FakeEngine::Loop() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    for (auto it = live_.begin(); it != live_.end();) {
      it = StepOne(it->second) ? std::next(it) : live_.erase(it);
    }
    changed_.notify_all();
    lock.unlock();
    std::this_thread::sleep_for(options_.step);
    lock.lock();
  }
}

bool FakeEngine::StepOne(Live& live) {
  RequestUpdate update;
  update.usage.prompt_tokens = static_cast<int32_t>(live.request.prompt_ids.size());
  update.usage.completion_tokens = live.made;
  update.usage.computed_prompt_tokens = update.usage.prompt_tokens;
  if (live.cancelled || (live.request.deadline && *live.request.deadline <= Clock::now())) {
    update.finish_reason = FinishReason::kCancelled;
    update.status =
        live.cancelled ? Cancelled("cancelled") : DeadlineExceeded("the deadline passed");
    live.sink->OnUpdate(std::move(update));
    return false;
  }
  if (held_) return true;
  if (live.sink->Stalled()) {
    ++stalled_;
    return true;
  }
  TokenOutput token;
  token.token_id = 'a' + live.made % 26;
  if (live.request.sampling.logprobs >= 0) {
    token.logprob = -0.5f;
    for (int i = 0; i < live.request.sampling.logprobs; ++i) token.top.push_back({i, -1.0f});
  }
  update.text.assign(options_.width, static_cast<char>(token.token_id));
  update.tokens.push_back(std::move(token));
  update.usage.completion_tokens = ++live.made;
  ++tokens_;
  const bool last = live.made == live.request.sampling.max_tokens;
  if (last) update.finish_reason = FinishReason::kLength;
  live.sink->OnUpdate(std::move(update));
  return !last;
}

}  // namespace quantd::test
