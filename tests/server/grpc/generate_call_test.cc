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
  void Finish(std::vector<RequestUpdate> updates, const absl::Status& s, bool p) override {
    ++finishes;
    if (!updates.empty()) last = updates[0];
    all = std::move(updates);
    status = s;
    pushback = p;
  }
  void Abort() override { ++aborts; }

  std::vector<RequestUpdate> writes;
  int finishes = 0;
  int aborts = 0;
  std::optional<RequestUpdate> last;  // the first of `all`
  std::vector<RequestUpdate> all;
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

// ---- several outputs

RequestUpdate Of(int32_t index, const std::string& text,
                 std::optional<FinishReason> reason = std::nullopt) {
  RequestUpdate update = Text(text, reason);
  update.index = index;
  return update;
}

// Takes requests and says nothing.
class SilentEngine : public test::FakeEngine {
 public:
  absl::StatusOr<RequestHandle> Submit(Request, std::shared_ptr<RequestSink>) override { return 1; }
  void Cancel(RequestHandle) override {}
};

// A call whose request asks for `n` outputs, handed to an engine that answers nothing itself.
std::shared_ptr<GenerateCall> CallFor(RecordingPort& port, bool streaming, int32_t n,
                                      SilentEngine& engine) {
  auto call = std::make_shared<GenerateCall>(&port, streaming, 100);
  Request request;
  request.prompt_ids = {1};
  request.sampling.n = n;
  call->Submit(&engine, std::move(request));
  return call;
}

TEST(GenerateCall, StreamsOutputsInTurnAndEndsAfterTheLast) {
  SilentEngine engine;
  RecordingPort port;
  const auto call = CallFor(port, true, 3, engine);
  call->OnUpdate(Of(1, "x"));
  for (int i = 0; i < 3; ++i) {
    call->OnUpdate(Of(0, "a"));
    call->OnUpdate(Of(2, "c"));
  }
  call->OnUpdate(Of(1, "y", FinishReason::kStop));
  call->OnUpdate(Of(2, "", FinishReason::kLength));
  call->OnUpdate(Of(0, "b", FinishReason::kLength));
  EXPECT_EQ(port.finishes, 0);
  call->OnWriteDone(true);
  call->OnWriteDone(true);
  EXPECT_EQ(port.finishes, 0);
  call->OnWriteDone(true);
  ASSERT_EQ(port.finishes, 1);
  EXPECT_TRUE(port.status.ok());
  std::vector<RequestUpdate> all = port.writes;
  all.push_back(*port.last);
  std::vector<std::string> texts(3);
  std::vector<int> ends(3);
  for (const RequestUpdate& update : all) {
    texts[static_cast<size_t>(update.index)] += update.text;
    ends[static_cast<size_t>(update.index)] += update.finish_reason.has_value();
  }
  EXPECT_EQ(texts, (std::vector<std::string>{"aaab", "xy", "ccc"}));
  EXPECT_EQ(ends, (std::vector<int>{1, 1, 1}));
}

TEST(GenerateCall, CollectsAllOutputs) {
  SilentEngine engine;
  RecordingPort port;
  const auto call = CallFor(port, false, 2, engine);
  call->OnUpdate(Of(1, "b", FinishReason::kStop));
  EXPECT_EQ(port.finishes, 0);
  call->OnUpdate(Of(0, "a", FinishReason::kStop));
  ASSERT_EQ(port.finishes, 1);
  ASSERT_EQ(port.all.size(), 2u);
  EXPECT_EQ(port.all[0].text, "a");
  EXPECT_EQ(port.all[1].text, "b");
}

TEST(GenerateCall, OneFailedOutputFailsTheCall) {
  for (const bool streaming : {true, false}) {
    SilentEngine engine;
    RecordingPort port;
    const auto call = CallFor(port, streaming, 2, engine);
    RequestUpdate error = Of(1, "", FinishReason::kError);
    error.status = Internal("broken");
    call->OnUpdate(std::move(error));
    EXPECT_EQ(port.finishes, 1);
    EXPECT_EQ(port.status.code(), absl::StatusCode::kInternal);
    call->OnUpdate(Of(0, "a", FinishReason::kCancelled));
    EXPECT_EQ(port.finishes, 1);
  }
}

TEST(GenerateCall, AnOutputThatIsCutOffLastEndsTheCallBehindWhatStillWaits) {
  SilentEngine engine;
  RecordingPort port;
  const auto call = CallFor(port, true, 2, engine);
  call->OnUpdate(Of(1, "b"));  // is being written
  call->OnUpdate(Of(1, "c", FinishReason::kLength));
  RequestUpdate late = Of(0, "", FinishReason::kCancelled);
  late.status = DeadlineExceeded("too late");
  call->OnUpdate(std::move(late));
  while (port.finishes == 0) call->OnWriteDone(true);
  EXPECT_EQ(port.status.code(), absl::StatusCode::kDeadlineExceeded);
  ASSERT_TRUE(port.last.has_value());
  EXPECT_EQ(port.last->text, "c");
}

}  // namespace
}  // namespace quantd
