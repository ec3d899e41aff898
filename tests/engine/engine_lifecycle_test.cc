// What can go wrong or be taken back: checks at Submit, cancels, deadlines, stalled and vanished
// readers, full queues, draining, a device that dies. After everything all blocks are free again.
#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "tests/engine/fake_model.h"

namespace quantd {
namespace {

using std::chrono::milliseconds;

// Holds the engine thread in Synchronize until opened.
class Gate {
 public:
  std::function<absl::Status()> Hook() {
    return [this] {
      std::unique_lock lock(mutex_);
      ++arrivals_;
      changed_.notify_all();
      changed_.wait(lock, [this] { return open_; });
      return absl::OkStatus();
    };
  }
  void Open() {
    {
      std::lock_guard lock(mutex_);
      open_ = true;
    }
    changed_.notify_all();
  }
  void AwaitArrival() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return arrivals_ > 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int arrivals_ = 0;
  bool open_ = false;
};

// Makes steps slow enough that requests can be caught in the middle.
absl::Status Slowly() {
  std::this_thread::sleep_for(std::chrono::microseconds(300));
  return absl::OkStatus();
}

class EngineLifecycle : public testing::TestWithParam<int> {
 protected:
  EngineOptions Options() const { return SmallOptions(GetParam()); }
};

TEST_P(EngineLifecycle, SubmitRefusesWhatCanNeverRun) {
  EngineOptions options = Options();
  options.num_kv_blocks = 10;
  options.max_model_len = 60;
  FakeEngine engine(options);
  struct Row {
    Request request;
    absl::StatusCode code;
    std::string message;
  };
  Request past = GreedyRequest({1}, 1);
  past.deadline = Clock::now() - milliseconds(1);
  Request bad = GreedyRequest({1}, 1);
  bad.sampling.top_p = 0.0f;
  const std::vector<int32_t> prompt(50, 1);
  const std::vector<Row> rows = {
      {GreedyRequest({}, 1), absl::StatusCode::kInvalidArgument, "no tokens"},
      {GreedyRequest({1, kFakeVocab}, 1), absl::StatusCode::kInvalidArgument,
       "prompt_ids[1] is 64, allowed: 0 to 63"},
      {GreedyRequest({-1}, 1), absl::StatusCode::kInvalidArgument, "prompt_ids[0] is -1"},
      {GreedyRequest(prompt, 11), absl::StatusCode::kInvalidArgument,
       "50 tokens and max_tokens 11 make 61, allowed: the context of 60"},
      {GreedyRequest(prompt, 1), absl::StatusCode::kInvalidArgument,
       "need 13 KV blocks of 4 tokens, allowed: 10"},
      {GreedyRequest({1}, 2147483647), absl::StatusCode::kInvalidArgument, "context of 60"},
      {past, absl::StatusCode::kDeadlineExceeded, "deadline"},
      {bad, absl::StatusCode::kInvalidArgument, "top_p is 0"},
  };
  for (const Row& row : rows) {
    auto sink = std::make_shared<CollectingSink>();
    const auto status = engine->Submit(row.request, sink).status();
    EXPECT_EQ(status.code(), row.code) << row.message << ": " << status;
    EXPECT_NE(Message(status).find(row.message), std::string::npos) << status;
    EXPECT_EQ(sink.use_count(), 1) << "nothing was taken";
  }
  // What just fits runs.
  auto result = Generate(*engine, GreedyRequest(std::vector<int32_t>(30, 1), 11));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->tokens.size(), 11u);
  ExpectNothingLeaked(*engine);
}

TEST_P(EngineLifecycle, CreateRefusesOptionsThatContradictEachOther) {
  struct Row {
    std::function<void(EngineOptions*)> set;
    std::string message;
  };
  const std::vector<Row> rows = {
      {[](auto* o) { o->max_num_seqs = 0; }, "max_num_seqs is 0"},
      {[](auto* o) { o->max_num_seqs = 65; }, "max_num_seqs is 65"},
      {[](auto* o) { o->max_num_batched_tokens = 3; }, "max_num_batched_tokens is 3"},
      {[](auto* o) { o->max_num_batched_tokens = 65; }, "max_num_batched_tokens is 65"},
      {[](auto* o) { o->max_queued_requests = 0; }, "max_queued_requests is 0"},
      {[](auto* o) { o->block_size = 0; }, "block_size is 0"},
      {[](auto* o) { o->pipeline_depth = 2; }, "pipeline_depth is 2"},
      {[](auto* o) { o->max_model_len = 513; }, "max_model_len is 513"},
      {[](auto* o) { o->num_kv_blocks = 0, o->kv_cache_bytes = 10; }, "kv_cache_bytes is 10"},
  };
  for (const Row& row : rows) {
    FakeBackend backend;
    EngineOptions options = Options();
    row.set(&options);
    LoadedModel loaded;
    loaded.model = std::make_unique<FakeModel>(&backend, 64);
    loaded.spec = FakeModel::Spec();
    const auto status = Engine::Create(backend, std::move(loaded), nullptr, options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << row.message;
    EXPECT_NE(Message(status).find(row.message), std::string::npos) << status;
  }
}

TEST_P(EngineLifecycle, SizesTheKvCacheFromBytesOrContexts) {
  EngineOptions options = Options();
  options.num_kv_blocks = 0;
  {
    FakeEngine engine(options);
    // Four whole contexts of 512 tokens in blocks of four.
    EXPECT_EQ(engine->Stats().kv_blocks_total, 4 * 128);
    EXPECT_EQ(engine.backend.memory().Bytes(MemoryComponent::kKvCache), (4 * 128 + 1) * 4 * 16);
  }
  options.kv_cache_bytes = 10 * 4 * 16;  // 16 bytes a token
  FakeEngine engine(options);
  EXPECT_EQ(engine->Stats().kv_blocks_total, 9) << "one block is reserved";
  EXPECT_LE(engine.backend.memory().Bytes(MemoryComponent::kKvCache), options.kv_cache_bytes);
}

TEST_P(EngineLifecycle, StopStringsNeedATokenizer) {
  FakeBackend backend;
  LoadedModel loaded;
  loaded.model = std::make_unique<FakeModel>(&backend, 64);
  loaded.spec = FakeModel::Spec();
  loaded.kv_dtype = DType::kF32;
  auto engine = Engine::Create(backend, std::move(loaded), nullptr, Options());
  ASSERT_TRUE(engine.ok()) << engine.status();
  Request request = GreedyRequest({1, 2}, 4);
  auto result = Generate(**engine, request);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->token_ids(), ReferenceTokens(request));
  EXPECT_EQ(result->text, "");
  request.sampling.stop = {"x"};
  EXPECT_EQ(Generate(**engine, request).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(EngineLifecycle, AFullQueueRefusesAndTakesAgain) {
  EngineOptions options = Options();
  options.max_queued_requests = 3;
  options.max_num_seqs = 1;
  Gate gate;
  FakeEngine engine(options, {}, nullptr, gate.Hook());
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  const auto submit = [&] {
    sinks.push_back(std::make_shared<CollectingSink>());
    return engine->Submit(GreedyRequest({1, 2}, 3), sinks.back()).status();
  };
  ASSERT_TRUE(submit().ok());
  gate.AwaitArrival();  // the first is running
  // Its place in the queue is given back when its step is completed at the latest.
  int taken = 0;
  absl::Status refused;
  while (taken < 10 && (refused = submit()).ok()) ++taken;
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted) << refused;
  EXPECT_GE(taken, 2);
  EXPECT_LE(taken, 3);
  EXPECT_EQ(sinks.back().use_count(), 1);
  EXPECT_GE(engine->Stats().waiting, taken);
  sinks.pop_back();
  gate.Open();
  for (const auto& sink : sinks) EXPECT_EQ(sink->Wait().finish_reason, FinishReason::kLength);
  EXPECT_TRUE(submit().ok());
  sinks.back()->Wait();
  ExpectNothingLeaked(*engine);
}

TEST_P(EngineLifecycle, CancelEndsARequestWithinAStep) {
  FakeEngine engine(Options(), {}, nullptr, Slowly);
  auto sink = std::make_shared<CollectingSink>();
  auto handle = engine->Submit(GreedyRequest({1, 2}, 400), sink);
  ASSERT_TRUE(handle.ok());
  while (sink->num_tokens() < 5) std::this_thread::yield();
  const int64_t steps = engine->Stats().steps;
  engine->Cancel(*handle);
  engine->Cancel(*handle);
  engine->Cancel(999999);
  const GenerateResult& result = sink->Wait();
  EXPECT_EQ(result.finish_reason, FinishReason::kCancelled);
  EXPECT_EQ(result.status.code(), absl::StatusCode::kCancelled);
  EXPECT_LE(engine->Stats().steps, steps + 3)
      << "the one running, and at depth 1 the one behind it";
  EXPECT_LT(result.tokens.size(), 400u);
  ExpectNothingLeaked(*engine);
}

TEST_P(EngineLifecycle, ACancelStormLeaksNothing) {
  EngineOptions options = Options();
  options.num_kv_blocks = 24;
  FakeEngine engine(options, {}, nullptr, [] {
    std::this_thread::sleep_for(std::chrono::microseconds(50));
    return absl::OkStatus();
  });
  std::mt19937 random(5);
  std::vector<std::pair<Request, std::shared_ptr<CollectingSink>>> live;
  std::vector<RequestHandle> handles;
  for (int i = 0; i < 150; ++i) {
    Request request = GreedyRequest({}, 1 + static_cast<int32_t>(random() % 40));
    for (size_t p = 0; p < 1 + random() % 30; ++p) {
      request.prompt_ids.push_back(1 + static_cast<int32_t>(random() % 3));
    }
    if (random() % 3 == 0) request.deadline = Clock::now() + milliseconds(random() % 8 + 1);
    auto sink = std::make_shared<CollectingSink>();
    auto handle = engine->Submit(request, sink);
    if (!handle.ok()) {
      // The queue is full, or the deadline is known to be too soon.
      ASSERT_TRUE(absl::IsResourceExhausted(handle.status()) ||
                  absl::IsDeadlineExceeded(handle.status()))
          << handle.status();
      continue;
    }
    handles.push_back(*handle);
    live.emplace_back(std::move(request), std::move(sink));
    if (random() % 2 == 0) engine->Cancel(handles[random() % handles.size()]);
    if (random() % 8 == 0) std::this_thread::sleep_for(milliseconds(1));
  }
  int finished = 0, cancelled = 0;
  for (const auto& [request, sink] : live) {
    const GenerateResult& result = sink->Wait();
    const auto expected = ReferenceTokens(request);
    const auto ids = result.token_ids();
    ASSERT_LE(ids.size(), expected.size());
    EXPECT_TRUE(std::equal(ids.begin(), ids.end(), expected.begin())) << "a wrong token";
    finished += result.finish_reason == FinishReason::kLength;
    cancelled += result.finish_reason == FinishReason::kCancelled;
  }
  EXPECT_GT(finished, 0);
  EXPECT_GT(cancelled, 0);
  EXPECT_EQ(finished + cancelled, static_cast<int>(live.size()));
  ExpectNothingLeaked(*engine);
}

TEST_P(EngineLifecycle, DeadlinesEndRunningAndWaitingRequests) {
  EngineOptions options = Options();
  options.max_num_seqs = 1;
  FakeEngine engine(options, {}, nullptr, Slowly);
  Request running = GreedyRequest({1, 2}, 500);
  running.deadline = Clock::now() + milliseconds(30);
  Request waiting = GreedyRequest({3, 4}, 4);
  waiting.deadline = Clock::now() + milliseconds(10);
  auto a = std::make_shared<CollectingSink>(), b = std::make_shared<CollectingSink>();
  ASSERT_TRUE(engine->Submit(running, a).ok());
  ASSERT_TRUE(engine->Submit(waiting, b).ok());
  EXPECT_EQ(b->Wait().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(b->Wait().finish_reason, FinishReason::kCancelled);
  EXPECT_TRUE(b->Wait().tokens.empty());
  EXPECT_EQ(a->Wait().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_FALSE(a->Wait().tokens.empty());
  EXPECT_EQ(engine->Stats().prompt_tokens, 2) << "the waiting one was never prefilled";
  ExpectNothingLeaked(*engine);
}

class StallingSink : public CollectingSink {
 public:
  bool Stalled() const override { return stalled; }
  std::atomic<bool> stalled{false};
};

TEST_P(EngineLifecycle, AStalledReaderGetsNoStepsOthersGoOnAndItResumes) {
  FakeEngine engine(Options(), {}, nullptr, Slowly);
  auto slow = std::make_shared<StallingSink>();
  const Request request = GreedyRequest({1, 2}, 100);
  ASSERT_TRUE(engine->Submit(request, slow).ok());
  while (slow->num_tokens() < 3) std::this_thread::yield();
  slow->stalled = true;
  // Another request still runs from beginning to end.
  ASSERT_TRUE(Generate(*engine, GreedyRequest({5}, 10)).ok());
  const size_t tokens = slow->num_tokens();
  ASSERT_TRUE(Generate(*engine, GreedyRequest({6}, 10)).ok());
  EXPECT_EQ(slow->num_tokens(), tokens);
  slow->stalled = false;
  EXPECT_EQ(slow->Wait().token_ids(), ReferenceTokens(request));
  ExpectNothingLeaked(*engine);
}

TEST_P(EngineLifecycle, AStalledReaderCanBeCancelledAndExpires) {
  FakeEngine engine(Options());
  auto cancelled = std::make_shared<StallingSink>(), expired = std::make_shared<StallingSink>();
  cancelled->stalled = expired->stalled = true;
  auto handle = engine->Submit(GreedyRequest({1, 2}, 5), cancelled);
  ASSERT_TRUE(handle.ok());
  Request request = GreedyRequest({1, 2}, 5);
  request.deadline = Clock::now() + milliseconds(20);
  ASSERT_TRUE(engine->Submit(request, expired).ok());
  EXPECT_EQ(cancelled->WaitFor(milliseconds(5)), nullptr);
  engine->Cancel(*handle);
  EXPECT_EQ(cancelled->Wait().status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(expired->Wait().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(engine->Stats().steps, 0) << "neither ever got a step";
  ExpectNothingLeaked(*engine);
}

TEST_P(EngineLifecycle, TheSinkIsLetGoAfterTheLastUpdate) {
  FakeEngine engine(Options());
  std::weak_ptr<CollectingSink> weak;
  {
    auto sink = std::make_shared<CollectingSink>();
    weak = sink;
    ASSERT_TRUE(engine->Submit(GreedyRequest({1, 2}, 5), sink).ok());
  }
  engine->Drain(std::chrono::seconds(30));
  EXPECT_TRUE(weak.expired());
}

TEST_P(EngineLifecycle, ASinkMayCancelAndSubmitFromItsUpdate) {
  class Reacting : public CollectingSink {
   public:
    void OnUpdate(RequestUpdate update) override {
      const bool last = update.finish_reason.has_value();
      CollectingSink::OnUpdate(std::move(update));
      if (last) return;
      engine->Cancel(handle);
      engine->Submit(GreedyRequest({7}, 2), other).IgnoreError();
    }
    Engine* engine = nullptr;
    std::atomic<RequestHandle> handle{1};  // the engine's first
    std::shared_ptr<CollectingSink> other = std::make_shared<CollectingSink>();
  };
  EngineOptions options = Options();
  FakeEngine engine(options);
  auto sink = std::make_shared<Reacting>();
  sink->engine = engine.engine.get();
  auto handle = engine->Submit(GreedyRequest({1, 2}, 2), sink);
  ASSERT_TRUE(handle.ok());
  ASSERT_EQ(*handle, 1u);
  sink->Wait();
  sink->other->Wait();
  ExpectNothingLeaked(*engine);
}

TEST_P(EngineLifecycle, DrainWaitsThenCancels) {
  FakeEngine engine(Options(), {}, nullptr, Slowly);
  auto quick = std::make_shared<CollectingSink>(), endless = std::make_shared<CollectingSink>();
  auto waiting = std::make_shared<StallingSink>();
  waiting->stalled = true;
  ASSERT_TRUE(engine->Submit(GreedyRequest({1, 2}, 3), quick).ok());
  ASSERT_TRUE(engine->Submit(GreedyRequest({3, 4}, 500), endless).ok());
  ASSERT_TRUE(engine->Submit(GreedyRequest({3, 4}, 5), waiting).ok());
  EXPECT_EQ(engine->Drain(milliseconds(40)), 2);
  EXPECT_EQ(quick->Wait().finish_reason, FinishReason::kLength);
  EXPECT_EQ(endless->Wait().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(waiting->Wait().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Generate(*engine, GreedyRequest({1}, 1)).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(engine->Drain(std::chrono::hours(1000000)), 0) << "nothing is left";
  ExpectNothingLeaked(*engine);
}

TEST_P(EngineLifecycle, DestructionCancelsWhatIsLive) {
  auto running = std::make_shared<CollectingSink>(), waiting = std::make_shared<CollectingSink>();
  {
    EngineOptions options = Options();
    options.max_num_seqs = 1;
    FakeEngine engine(options, {}, nullptr, Slowly);
    ASSERT_TRUE(engine->Submit(GreedyRequest({1, 2}, 500), running).ok());
    ASSERT_TRUE(engine->Submit(GreedyRequest({1, 2}, 500), waiting).ok());
    while (running->num_tokens() < 2) std::this_thread::yield();
  }
  EXPECT_EQ(running->Wait().finish_reason, FinishReason::kCancelled);
  EXPECT_EQ(waiting->Wait().finish_reason, FinishReason::kCancelled);
}

TEST_P(EngineLifecycle, ADeadDeviceFailsEverybodyAndRefusesTheRest) {
  std::atomic<int> steps{0};
  EngineOptions options = Options();
  options.max_num_seqs = 1;
  FakeEngine engine(options, {}, nullptr, [&steps]() -> absl::Status {
    if (++steps >= 4) return Internal("bus error");
    return absl::OkStatus();
  });
  auto running = std::make_shared<CollectingSink>(), waiting = std::make_shared<CollectingSink>();
  ASSERT_TRUE(engine->Submit(GreedyRequest({1, 2}, 50), running).ok());
  // The second may come before or after the device has failed.
  const absl::Status second = engine->Submit(GreedyRequest({1, 2}, 50), waiting).status();
  EXPECT_EQ(running->Wait().finish_reason, FinishReason::kError);
  EXPECT_EQ(running->Wait().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(Message(running->Wait().status).find("bus error"), std::string::npos);
  EXPECT_EQ(Message(engine->Health()), "bus error");
  if (second.ok()) {
    EXPECT_EQ(waiting->Wait().status.code(), absl::StatusCode::kUnavailable);
  }
  const auto refused = Generate(*engine, GreedyRequest({1}, 1)).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(Message(refused).find("bus error"), std::string::npos);
  ExpectNothingLeaked(*engine);
}

TEST_P(EngineLifecycle, TheObserverHearsWhatHappens) {
  struct Observer : EngineObserver {
    void OnFirstToken(double seconds) override {
      ++first_tokens;
      EXPECT_GE(seconds, 0.0);
    }
    void OnInterTokenLatency(double) override { ++inter_token; }
    void OnStep(int32_t count) override { tokens += count; }
    void OnFinished(const Finished& f) override {
      finished.push_back(f);
      EXPECT_GE(f.total_seconds, f.queue_seconds);
    }
    std::atomic<int> first_tokens{0}, inter_token{0}, tokens{0};
    std::vector<Finished> finished;
  } observer;
  {
    FakeEngine engine(Options(), {}, &observer);
    ASSERT_TRUE(Generate(*engine, GreedyRequest({1, 2, 3}, 5)).ok());
    auto stalled = std::make_shared<StallingSink>();
    stalled->stalled = true;
    auto handle = engine->Submit(GreedyRequest({1, 2, 3}, 5), stalled);
    engine->Cancel(*handle);
    stalled->Wait();
    engine->Drain(std::chrono::seconds(10));
    const EngineStats stats = engine->Stats();
    EXPECT_EQ(stats.generation_tokens, 5);
    EXPECT_EQ(stats.prompt_tokens, 3);
    EXPECT_EQ(stats.steps, 5);
  }
  EXPECT_EQ(observer.first_tokens, 1);
  EXPECT_EQ(observer.inter_token, 4);
  EXPECT_EQ(observer.tokens, 3 + 4);
  ASSERT_EQ(observer.finished.size(), 2u);
  EXPECT_EQ(observer.finished[0].reason, FinishReason::kLength);
  EXPECT_EQ(observer.finished[0].usage.completion_tokens, 5);
  EXPECT_EQ(observer.finished[0].max_tokens, 5);
  EXPECT_EQ(observer.finished[1].reason, FinishReason::kCancelled);
}

INSTANTIATE_TEST_SUITE_P(Depth, EngineLifecycle, testing::Values(0, 1));

}  // namespace
}  // namespace quantd
