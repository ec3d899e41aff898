// Admission in a running engine: tenants share it, deadlines are judged by what requests took.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <mutex>
#include <thread>

#include "engine/admission.h"
#include "tests/engine/fake_model.h"

namespace quantd {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

absl::Status TakesAMillisecond() {
  std::this_thread::sleep_for(milliseconds(1));
  return absl::OkStatus();
}

// Writes its name down when its request is done.
class NamedSink : public CollectingSink {
 public:
  NamedSink(std::string name, std::mutex* mutex, std::vector<std::string>* done)
      : name_(std::move(name)), mutex_(*mutex), done_(*done) {}
  void OnUpdate(RequestUpdate update) override {
    if (update.finish_reason.has_value()) {
      std::lock_guard lock(mutex_);
      done_.push_back(name_);
    }
    CollectingSink::OnUpdate(std::move(update));
  }

 private:
  const std::string name_;
  std::mutex& mutex_;
  std::vector<std::string>& done_;
};

TEST(EngineAdmission, ATenantWithAFloodDoesNotKeepAnotherWaiting) {
  EngineOptions options = SmallOptions(0);
  options.max_num_seqs = 1;
  std::mutex mutex;
  std::vector<std::string> done;
  FakeEngine engine(options, {}, nullptr, TakesAMillisecond);
  std::vector<std::shared_ptr<NamedSink>> sinks;
  const auto submit = [&](const std::string& tenant) {
    Request request = GreedyRequest({1, 2}, 4);
    request.tenant = tenant;
    sinks.push_back(std::make_shared<NamedSink>(tenant, &mutex, &done));
    ASSERT_TRUE(engine->Submit(request, sinks.back()).ok());
  };
  for (int i = 0; i < 20; ++i) submit("flood");
  for (int i = 0; i < 3; ++i) submit("guest");
  for (const auto& sink : sinks) EXPECT_EQ(sink->Wait().finish_reason, FinishReason::kLength);
  // In the order of arrival the guest's would be the last three.
  int guests = 0;
  for (size_t i = 0; i < 12; ++i) guests += done[i] == "guest";
  EXPECT_EQ(guests, 3);
  ExpectNothingLeaked(*engine);
}

TEST(EngineAdmission, ADeadlineThatCannotBeMetIsRefusedAtOnce) {
  EngineOptions options = SmallOptions(0);
  options.max_num_seqs = 1;
  FakeEngine engine(options, {}, nullptr, TakesAMillisecond);
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(Generate(*engine, GreedyRequest({1, 2}, 20)).ok());
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (int i = 0; i < 20; ++i) {
    sinks.push_back(std::make_shared<CollectingSink>());
    ASSERT_TRUE(engine->Submit(GreedyRequest({1, 2}, 20), sinks.back()).ok());
  }
  EXPECT_GT(engine->Stats().expected_wait_seconds, 0.1);
  EXPECT_GT(engine->Stats().waiting_tokens, 0);
  // 20 requests of 20 steps of at least 1 ms each are ahead of it.
  Request hurried = GreedyRequest({1, 2}, 20);
  hurried.deadline = Clock::now() + milliseconds(50);
  auto sink = std::make_shared<CollectingSink>();
  const absl::Status refused = engine->Submit(hurried, sink).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("cannot be met"));
  EXPECT_GT(*RetryAfter(refused), 0.0);
  EXPECT_EQ(sink.use_count(), 1);
  EXPECT_EQ(engine->Stats().refused_deadline, 1);
  // One that is more important has nobody ahead but the one that runs.
  hurried.priority = -1;
  hurried.deadline = Clock::now() + std::chrono::seconds(5);
  ASSERT_TRUE(engine->Submit(hurried, sink).ok());
  EXPECT_EQ(sink->Wait().finish_reason, FinishReason::kLength);
  for (const auto& waiting : sinks) waiting->Wait();
  EXPECT_EQ(engine->Stats().waiting_tokens, 0);
  ExpectNothingLeaked(*engine);
}

TEST(EngineAdmission, ALongPromptMayWaitAloneASecondMayNot) {
  EngineOptions options = SmallOptions(0);
  options.max_num_seqs = 1;
  options.max_queued_tokens = 10;
  FakeEngine engine(options, {}, nullptr, TakesAMillisecond);
  auto running = std::make_shared<CollectingSink>();
  ASSERT_TRUE(engine->Submit(GreedyRequest({1, 2}, 400), running).ok());
  while (engine->Stats().running == 0) std::this_thread::yield();
  auto first = std::make_shared<CollectingSink>(), second = std::make_shared<CollectingSink>();
  const std::vector<int32_t> prompt(30, 1);
  ASSERT_TRUE(engine->Submit(GreedyRequest(prompt, 2), first).ok());
  const absl::Status refused = engine->Submit(GreedyRequest({1}, 2), second).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("30 tokens are waiting"));
  EXPECT_EQ(engine->Stats().refused_tokens, 1);
  running->Wait();
  first->Wait();
  ASSERT_TRUE(engine->Submit(GreedyRequest({1}, 2), second).ok());
  second->Wait();
  ExpectNothingLeaked(*engine);
}

}  // namespace
}  // namespace quantd
