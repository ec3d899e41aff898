#include "server/bench/engine_batches.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <random>

#include "kernels/status.h"

namespace quantd::bench {
namespace {

double Elapsed(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// Counts down as requests end.
class Countdown {
 public:
  explicit Countdown(int32_t count) : count_(count) {}
  void Down() {
    std::lock_guard lock(mutex_);
    --count_;
    changed_.notify_one();
  }
  void Wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return count_ <= 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int32_t count_;
};

// Records when updates come. The engine's thread writes until the countdown, then it may be read.
class TimingSink : public RequestSink {
 public:
  TimingSink(Clock::time_point start, std::shared_ptr<Countdown> left)
      : start_(start), left_(std::move(left)) {}

  void OnUpdate(RequestUpdate update) override {
    const double now = Elapsed(start_, Clock::now());
    if (!update.tokens.empty()) {
      if (record_.first < 0) {
        record_.first = now;
      } else {
        record_.gaps.push_back(now - record_.last);
      }
      record_.last = now;
      ++record_.responses;
      record_.output_tokens += static_cast<int32_t>(update.tokens.size());
    }
    if (!update.finish_reason) return;
    record_.end = now;
    record_.code = update.status.code();
    record_.message = Message(update.status);
    left_->Down();
  }
  const RequestRecord& record() const { return record_; }

 private:
  const Clock::time_point start_;
  const std::shared_ptr<Countdown> left_;
  RequestRecord record_;
};

Request RandomPrompt(std::mt19937_64& random, int64_t vocab_size, const BatchOptions& options) {
  Request request;
  std::uniform_int_distribution<int64_t> token(0, vocab_size - 1);
  for (int32_t i = 0; i < options.input_len; ++i) {
    request.prompt_ids.push_back(static_cast<int32_t>(token(random)));
  }
  request.sampling.temperature = 0.0f;
  request.sampling.max_tokens = options.output_len;
  request.sampling.ignore_eos = true;
  request.bypass_prefix_cache = true;
  return request;
}

}  // namespace

void StepTimes::OnStep(int32_t tokens) {
  std::lock_guard lock(mutex_);
  steps_.emplace_back(tokens, Clock::now());
}

std::vector<std::pair<int32_t, Clock::time_point>> StepTimes::Take() {
  std::lock_guard lock(mutex_);
  return std::exchange(steps_, {});
}

absl::StatusOr<BatchResult> MeasureBatch(Engine& engine, StepTimes& steps,
                                         const BatchOptions& options) {
  BatchResult result;
  result.options = options;
  std::mt19937_64 random(options.seed);
  std::vector<double> step_seconds, ttft, itl, e2el;
  double prefill_seconds = 0.0, seconds = 0.0;
  int64_t output_tokens = 0;
  for (int32_t i = -options.warmup_iterations; i < options.iterations; ++i) {
    std::vector<Request> requests;
    requests.reserve(static_cast<size_t>(options.batch));
    for (int32_t r = 0; r < options.batch; ++r) {
      requests.push_back(RandomPrompt(random, engine.spec().vocab_size, options));
    }
    steps.Take();
    const Clock::time_point start = Clock::now();
    auto left = std::make_shared<Countdown>(options.batch);
    std::vector<std::shared_ptr<TimingSink>> sinks;
    for (Request& request : requests) {
      sinks.push_back(std::make_shared<TimingSink>(start, left));
      const auto handle = engine.Submit(std::move(request), sinks.back());
      if (!handle.ok()) return handle.status();
    }
    left->Wait();
    double last_first = 0.0, end = 0.0;
    for (const auto& sink : sinks) {
      const RequestRecord& r = sink->record();
      if (!r.ok()) return absl::Status(r.code, r.message);
      if (i < 0) continue;
      last_first = std::max(last_first, r.first);
      end = std::max(end, r.end);
      output_tokens += r.output_tokens;
      ttft.push_back(r.first);
      e2el.push_back(r.end);
      itl.insert(itl.end(), r.gaps.begin(), r.gaps.end());
    }
    if (i < 0) continue;
    prefill_seconds += last_first;
    seconds += end;
    // A step of one row for each request, after all prompts were read; its time is that since the
    // step before it.
    const auto ended = steps.Take();
    for (size_t s = 1; s < ended.size(); ++s) {
      if (ended[s].first != options.batch || ended[s - 1].first != options.batch) continue;
      if (Elapsed(start, ended[s - 1].second) < last_first) continue;
      step_seconds.push_back(Elapsed(ended[s - 1].second, ended[s].second));
    }
  }
  const auto rate = [](double n, double time) { return time > 0 ? n / time : 0.0; };
  const double prompt_tokens =
      static_cast<double>(options.batch) * options.input_len * options.iterations;
  result.prefill = rate(prompt_tokens, prefill_seconds);
  result.output = rate(static_cast<double>(output_tokens), seconds);
  result.step = Summarize(std::move(step_seconds));
  result.decode = rate(options.batch, result.step.mean);
  result.ttft = Summarize(std::move(ttft));
  result.itl = Summarize(std::move(itl));
  result.e2el = Summarize(std::move(e2el));
  return result;
}

}  // namespace quantd::bench
