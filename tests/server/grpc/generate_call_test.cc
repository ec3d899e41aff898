// GenerateCall without gRPC: one write in flight, merging, stalling, and ending exactly once.
#include "server/grpc/generate_call.h"

#include <gtest/gtest.h>

#include "kernels/status.h"
#include "tests/server/fake_engine.h"

namespace quantd {
namespace {

// Records what the call does with its reactor.
class RecordingPort : public GenerateCall::Port {
 public:
  void Write(RequestUpdate update) override { writes.push_back(std::move(update)); }
  void Finish(std::optional<RequestUpdate> update, const absl::Status& s, bool p) override {
    ++finishes;
    last = std::move(update);
    status = s;
    pushback = p;
  }
  void Abort() override { ++aborts; }

  std::vector<RequestUpdate> writes;
  int finishes = 0;
  int aborts = 0;
  std::optional<RequestUpdate> last;
  absl::Status status;
  bool pushback = false;
};

RequestUpdate Text(const std::string& text, std::optional<FinishReason> reason = std::nullopt) {
  RequestUpdate update;
  update.text = text;
  update.tokens.resize(text.size());
  update.finish_reason = reason;
  return update;
}

TEST(GenerateCall, MergesWhileAWriteIsInFlight) {
  RecordingPort port;
  const auto call = std::make_shared<GenerateCall>(&port, true, 100);
  call->OnUpdate(Text("a"));
  call->OnUpdate(Text("b"));
  call->OnUpdate(Text("c"));
  ASSERT_EQ(port.writes.size(), 1u);
  EXPECT_EQ(port.writes[0].text, "a");
  call->OnWriteDone(true);
  ASSERT_EQ(port.writes.size(), 2u);
  EXPECT_EQ(port.writes[1].text, "bc");
  EXPECT_EQ(port.writes[1].tokens.size(), 2u);
  call->OnUpdate(Text("d"));
  call->OnUpdate(Text("e", FinishReason::kLength));
  EXPECT_EQ(port.finishes, 0);
  call->OnWriteDone(true);
  EXPECT_EQ(port.finishes, 1);
  EXPECT_TRUE(port.status.ok());
  EXPECT_EQ(port.last->text, "de");
  EXPECT_EQ(port.last->finish_reason, FinishReason::kLength);
}

TEST(GenerateCall, StallsAtTheBacklogLimitAndRecovers) {
  RecordingPort port;
  const auto call = std::make_shared<GenerateCall>(&port, true, 3);
  call->OnUpdate(Text("a"));
  call->OnUpdate(Text("bb"));
  EXPECT_FALSE(call->Stalled());
  call->OnUpdate(Text("c"));
  EXPECT_TRUE(call->Stalled());
  call->OnWriteDone(true);
  EXPECT_FALSE(call->Stalled());
}

TEST(GenerateCall, UnaryCollectsAndNeverStalls) {
  RecordingPort port;
  const auto call = std::make_shared<GenerateCall>(&port, false, 1);
  for (int i = 0; i < 10; ++i) call->OnUpdate(Text("x"));
  EXPECT_FALSE(call->Stalled());
  EXPECT_TRUE(port.writes.empty());
  call->OnUpdate(Text("y", FinishReason::kStop));
  EXPECT_EQ(port.finishes, 1);
  EXPECT_EQ(port.last->text, "xxxxxxxxxxy");
}

TEST(GenerateCall, ErrorOfTheEngineBecomesTheStatusAfterTheTextBeforeIt) {
  RecordingPort port;
  const auto call = std::make_shared<GenerateCall>(&port, true, 100);
  call->OnUpdate(Text("a"));
  call->OnUpdate(Text("b"));
  RequestUpdate error = Text("", FinishReason::kError);
  error.status = Internal("boom");
  call->OnUpdate(std::move(error));
  EXPECT_EQ(port.finishes, 0);
  call->OnWriteDone(true);
  EXPECT_EQ(port.finishes, 1);
  EXPECT_EQ(port.last->text, "b");
  EXPECT_EQ(port.status.code(), absl::StatusCode::kInternal);
}

TEST(GenerateCall, FinishesOnceWhateverComesAfterwards) {
  RecordingPort port;
  const auto call = std::make_shared<GenerateCall>(&port, true, 100);
  call->OnUpdate(Text("a"));
  call->OnCancel();
  EXPECT_EQ(port.status.code(), absl::StatusCode::kCancelled);
  call->OnCancel();
  call->Fail(Internal("late"));
  call->OnUpdate(Text("b"));
  call->OnWriteDone(false);
  call->OnUpdate(Text("c", FinishReason::kLength));
  EXPECT_EQ(port.finishes, 1);
  EXPECT_EQ(port.writes.size(), 1u);
}

TEST(GenerateCall, NothingReachesAPortThatIsGone) {
  RecordingPort port;
  const auto call = std::make_shared<GenerateCall>(&port, true, 100);
  call->Detach();
  call->OnUpdate(Text("a"));
  call->OnUpdate(Text("b", FinishReason::kLength));
  call->CheckStall(Clock::now() + std::chrono::hours(1), std::chrono::seconds(1));
  EXPECT_TRUE(port.writes.empty());
  EXPECT_EQ(port.finishes + port.aborts, 0);
}

TEST(GenerateCall, StallTimerCountsOnlyWritesInFlightThenAborts) {
  RecordingPort port;
  const auto call = std::make_shared<GenerateCall>(&port, true, 100);
  const auto limit = std::chrono::seconds(1);
  call->CheckStall(Clock::now() + std::chrono::hours(1), limit);
  EXPECT_EQ(port.finishes, 0) << "a call that waits for its first token is not stalled";
  call->OnUpdate(Text("a"));
  call->CheckStall(Clock::now(), limit);
  EXPECT_EQ(port.finishes, 0);
  call->CheckStall(Clock::now() + std::chrono::seconds(2), limit);
  EXPECT_EQ(port.finishes, 1);
  EXPECT_EQ(port.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(port.pushback);
  call->CheckStall(Clock::now() + std::chrono::seconds(2), limit);
  EXPECT_EQ(port.aborts, 1);
}

TEST(GenerateCall, CancelBeforeSubmissionReturnsStillReachesTheEngine) {
  // The engine holds the request; the client cancels right after Submit took it.
  test::FakeEngine engine;
  engine.Hold(true);
  RecordingPort port;
  const auto call = std::make_shared<GenerateCall>(&port, true, 100);
  Request request;
  request.prompt_ids = {1};
  call->Submit(&engine, request);
  EXPECT_EQ(engine.live(), 1u);
  call->OnCancel();
  EXPECT_EQ(engine.cancels(), 1);
  // And a request of a call that is over already is not submitted at all.
  call->Submit(&engine, request);
  EXPECT_EQ(engine.cancels(), 1);
}

TEST(GenerateCall, FullQueueAsksForARetry) {
  test::FakeEngine engine({.max_live = 0});
  RecordingPort port;
  const auto call = std::make_shared<GenerateCall>(&port, true, 100);
  Request request;
  request.prompt_ids = {1};
  call->Submit(&engine, request);
  EXPECT_EQ(port.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(port.pushback);
}

}  // namespace
}  // namespace quantd
