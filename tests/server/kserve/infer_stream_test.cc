// ModelStreamInfer on a fake engine, over TCP: many requests on one stream, and how each of them,
// and the stream itself, comes to its end.
#include <map>
#include <thread>

#include "tests/server/kserve/kserve_fixture.h"

namespace quantd {
namespace {

using grpc::StatusCode;
using inference::ModelInferRequest;
using inference::ModelStreamInferResponse;
using test::Eventually;
using test::FakeEngine;
using test::Letters;
using test::NewChannel;
using test::StreamRequest;
using test::TextOf;

// What came for one id.
struct Heard {
  std::string text;
  int responses = 0;  // with text
  int finals = 0;     // with triton_final_response true
  bool empty_final = false;
  std::vector<std::string> errors;
};

class InferStreamTest : public test::KserveTest {
 protected:
  // A stream, with metadata when `grpc_errors`, on `channel` when given.
  struct Stream {
    grpc::ClientContext context;
    std::unique_ptr<inference::GRPCInferenceService::Stub> stub;
    std::unique_ptr<grpc::ClientReaderWriter<ModelInferRequest, ModelStreamInferResponse>> call;
    std::map<std::string, Heard> heard;

    bool Write(const ModelInferRequest& request) { return call->Write(request); }
    bool Write(const std::string& id, int32_t max_tokens) {
      return Write(StreamRequest("fake", id, max_tokens));
    }
    // Reads one response into `heard`; false at the end of the stream.
    bool Read() {
      ModelStreamInferResponse response;
      if (!call->Read(&response)) return false;
      const auto& infer = response.infer_response();
      Heard& about = heard[infer.id()];
      EXPECT_EQ(about.finals, 0) << infer.id() << ": a response after the final one";
      const auto final = infer.parameters().find("triton_final_response");
      if (final == infer.parameters().end()) ADD_FAILURE() << "no triton_final_response";
      const bool is_final = final != infer.parameters().end() && final->second.bool_param();
      if (is_final) ++about.finals;
      if (!response.error_message().empty()) {
        about.errors.push_back(infer.parameters().at("grpc_status").string_param() + ": " +
                               response.error_message());
        EXPECT_EQ(infer.outputs_size(), 0);
      } else if (infer.outputs_size() == 0) {
        about.empty_final = is_final;
      } else {
        EXPECT_EQ(infer.model_name(), "fake");
        EXPECT_EQ(infer.outputs(0).name(), "text_output");
        EXPECT_EQ(infer.outputs(0).datatype(), "BYTES");
        EXPECT_FALSE(infer.outputs(0).has_contents());
        about.text += TextOf(infer);
        ++about.responses;
      }
      return true;
    }
    // Until `id` has its final response.
    void ReadFinal(const std::string& id) {
      while (heard[id].finals == 0 && Read()) {
      }
      EXPECT_EQ(heard[id].finals, 1) << id;
    }
    void ReadAll() {
      while (Read()) {
      }
    }
    grpc::Status End() {
      call->WritesDone();
      ReadAll();
      return call->Finish();
    }
  };

  std::unique_ptr<Stream> Open(bool grpc_errors = false,
                               std::shared_ptr<grpc::Channel> channel = nullptr) {
    auto stream = std::make_unique<Stream>();
    if (grpc_errors) stream->context.AddMetadata("triton_grpc_error", "true");
    stream->stub = inference::GRPCInferenceService::NewStub(channel ? channel : channel_);
    stream->call = stream->stub->ModelStreamInfer(&stream->context);
    return stream;
  }

  // A connection whose windows hold little.
  std::shared_ptr<grpc::Channel> SmallChannel() {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 8192);
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    return NewChannel(server_->address(), arguments);
  }
};

TEST_F(InferStreamTest, ManyRequestsAreMultiplexed) {
  Start();
  const auto stream = Open();
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(stream->Write(std::to_string(i), 10 + i));
  EXPECT_TRUE(stream->End().ok());
  EXPECT_EQ(stream->heard.size(), 20u);
  for (int i = 0; i < 20; ++i) {
    const Heard& heard = stream->heard[std::to_string(i)];
    EXPECT_EQ(heard.text, Letters(10 + i)) << i;
    EXPECT_EQ(heard.finals, 1) << i;
    EXPECT_FALSE(heard.empty_final) << i;
    EXPECT_TRUE(heard.errors.empty()) << i;
  }
  ExpectHealthy();
}

TEST_F(InferStreamTest, FinalResponseIsEmptyWhereThatWasAskedFor) {
  Start();
  const auto stream = Open();
  ModelInferRequest request = StreamRequest("fake", "1", 5);
  (*request.mutable_parameters())["triton_enable_empty_final_response"].set_bool_param(true);
  ASSERT_TRUE(stream->Write(request));
  // Without stream there is one response, which is the final one.
  ModelInferRequest whole = request;
  whole.set_id("2");
  whole.set_raw_input_contents(1, std::string(1, '\0'));
  ASSERT_TRUE(stream->Write(whole));
  EXPECT_TRUE(stream->End().ok());
  EXPECT_EQ(stream->heard["1"].text, Letters(5));
  EXPECT_TRUE(stream->heard["1"].empty_final);
  EXPECT_EQ(stream->heard["2"].text, "hello" + Letters(5));
  EXPECT_EQ(stream->heard["2"].responses, 1);
  EXPECT_EQ(stream->heard["2"].finals, 1);
  EXPECT_FALSE(stream->heard["2"].empty_final);
  ExpectHealthy();
}

TEST_F(InferStreamTest, IdsMayBeLeftOut) {
  Start();
  const auto stream = Open();
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(stream->Write("", 4));
  stream->call->WritesDone();
  ModelStreamInferResponse response;
  size_t letters = 0;
  while (stream->call->Read(&response)) {
    EXPECT_EQ(response.error_message(), "");
    EXPECT_EQ(response.infer_response().id(), "");
    letters += TextOf(response.infer_response()).size();
  }
  EXPECT_TRUE(stream->call->Finish().ok());
  EXPECT_EQ(letters, 12u);
  ExpectHealthy();
}

TEST_F(InferStreamTest, AnErrorLeavesTheOthersAndTheStreamOpen) {
  Start();
  engine_->Hold(true);
  const auto stream = Open();
  ASSERT_TRUE(stream->Write("good", 10));
  ModelInferRequest other = StreamRequest("gpt", "other", 3);
  ASSERT_TRUE(stream->Write(other));
  ASSERT_TRUE(stream->Write("none", 0));
  ASSERT_TRUE(stream->Write(StreamRequest("fake", "empty", 3, "")));
  for (const char* id : {"other", "none", "empty"}) stream->ReadFinal(id);
  EXPECT_EQ(stream->heard["other"].errors[0],
            "NOT_FOUND: model: \"gpt\" is not served here, \"fake\" is");
  EXPECT_EQ(stream->heard["none"].errors[0],
            "INVALID_ARGUMENT: max_tokens is 0, allowed: 1 or more");
  EXPECT_EQ(stream->heard["empty"].errors[0],
            "INVALID_ARGUMENT: text_input: comes to no token, allowed: at least one");
  engine_->Hold(false);
  ASSERT_TRUE(stream->Write("later", 7));
  EXPECT_TRUE(stream->End().ok());
  EXPECT_EQ(stream->heard["good"].text, Letters(10));
  EXPECT_EQ(stream->heard["later"].text, Letters(7));
  ExpectHealthy();
}

TEST_F(InferStreamTest, WithTritonGrpcErrorAnErrorEndsTheCall) {
  Start();
  const auto stream = Open(/*grpc_errors=*/true);
  ASSERT_TRUE(stream->Write("long", 1000000));
  ASSERT_TRUE(stream->Read());
  ASSERT_TRUE(stream->Write("bad", 0));
  stream->ReadAll();
  const grpc::Status status = stream->call->Finish();
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), "max_tokens is 0, allowed: 1 or more");
  EXPECT_TRUE(stream->heard["bad"].errors.empty());
  EXPECT_TRUE(Eventually([&] { return engine_->live() == 0; })) << "the other one goes on";
  ExpectHealthy();
}

TEST_F(InferStreamTest, FailureWhileItRunsComesAfterWhatWasMade) {
  Start();
  const auto stream = Open();
  ModelInferRequest request = StreamRequest("fake", "late", 1000000);
  (*request.mutable_parameters())["timeout"].set_uint64_param(300000);
  ASSERT_TRUE(stream->Write(request));
  ASSERT_TRUE(stream->Write("good", 8));
  EXPECT_TRUE(stream->End().ok());
  EXPECT_GT(stream->heard["late"].text.size(), 10u);
  ASSERT_EQ(stream->heard["late"].errors.size(), 1u);
  EXPECT_TRUE(stream->heard["late"].errors[0].starts_with("DEADLINE_EXCEEDED: "));
  EXPECT_EQ(stream->heard["good"].text, Letters(8));
  ExpectHealthy();
}

TEST_F(InferStreamTest, ALiveIdIsRefusedAndAFinishedOneIsFree) {
  Start();
  engine_->Hold(true);
  const auto stream = Open();
  ASSERT_TRUE(stream->Write("1", 6));
  ASSERT_TRUE(Eventually([&] { return engine_->live() == 1; }));
  ASSERT_TRUE(stream->Write("1", 3));
  ModelStreamInferResponse refusal;
  ASSERT_TRUE(stream->call->Read(&refusal));
  EXPECT_EQ(refusal.infer_response().id(), "1");
  EXPECT_EQ(refusal.infer_response().parameters().at("grpc_status").string_param(),
            "ALREADY_EXISTS");
  engine_->Hold(false);
  stream->ReadFinal("1");
  EXPECT_EQ(stream->heard["1"].text, Letters(6));
  for (int i = 0; i < 50; ++i) {  // right after the final response
    stream->heard.clear();
    ASSERT_TRUE(stream->Write("1", 2));
    stream->ReadFinal("1");
    ASSERT_EQ(stream->heard["1"].text, Letters(2)) << i;
  }
  EXPECT_TRUE(stream->End().ok());
  ExpectHealthy();
}

TEST_F(InferStreamTest, RequestsOfAStreamAreLimited) {
  Start({"limits.max_concurrent_streams=3"});
  engine_->Hold(true);
  const auto stream = Open();
  for (const char* id : {"1", "2", "3", "4"}) ASSERT_TRUE(stream->Write(id, 5));
  stream->ReadFinal("4");
  EXPECT_EQ(stream->heard["4"].errors[0],
            "RESOURCE_EXHAUSTED: 3 requests on this stream are not finished, allowed: 3");
  engine_->Hold(false);
  for (const char* id : {"1", "2", "3"}) stream->ReadFinal(id);
  ASSERT_TRUE(stream->Write("5", 5));
  EXPECT_TRUE(stream->End().ok());
  for (const char* id : {"1", "2", "3", "5"}) EXPECT_EQ(stream->heard[id].text, Letters(5));
  ExpectHealthy();
}

TEST_F(InferStreamTest, AFullQueueIsTheNewcomersError) {
  Start({}, {.max_live = 1});
  engine_->Hold(true);
  const auto stream = Open();
  ASSERT_TRUE(stream->Write("1", 5));
  ASSERT_TRUE(Eventually([&] { return engine_->live() == 1; }));
  ASSERT_TRUE(stream->Write("2", 5));
  stream->ReadFinal("2");
  EXPECT_TRUE(stream->heard["2"].errors[0].starts_with("RESOURCE_EXHAUSTED: "));
  engine_->Hold(false);
  EXPECT_TRUE(stream->End().ok());
  EXPECT_EQ(stream->heard["1"].text, Letters(5));
  ExpectHealthy();
}

TEST_F(InferStreamTest, AStreamWithoutRequestsEndsWithTheClient) {
  Start();
  EXPECT_TRUE(Open()->End().ok());
  ExpectHealthy();
}

TEST_F(InferStreamTest, CancelFreesAllRequestsOfTheStreamAndNoOthers) {
  Start();
  const auto stream = Open();
  const auto other = Open(false, NewChannel(server_->address()));
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(stream->Write(std::to_string(i), 1000000));
  ASSERT_TRUE(other->Write("other", 2000));
  ASSERT_TRUE(Eventually([&] { return engine_->live() == 11; }));
  stream->context.TryCancel();
  EXPECT_TRUE(Eventually([&] { return engine_->cancels() == 10; }));
  stream->ReadAll();
  EXPECT_EQ(stream->call->Finish().error_code(), StatusCode::CANCELLED);
  EXPECT_TRUE(other->End().ok());
  EXPECT_EQ(other->heard["other"].text, Letters(2000));
  ExpectHealthy();
}

TEST_F(InferStreamTest, CancelWhileTokenizingNeverReachesTheEngine) {
  Start();
  tokenizer_.Block(true);
  const auto stream = Open();
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(stream->Write(std::to_string(i), 10));
  ASSERT_TRUE(Eventually([&] { return server_->live_calls() == 5; }));
  stream->context.TryCancel();
  EXPECT_EQ(stream->call->Finish().error_code(), StatusCode::CANCELLED);
  ASSERT_TRUE(Eventually([&] { return server_->live_calls() == 0; }));
  tokenizer_.Block(false);
  ExpectHealthy();
  EXPECT_EQ(engine_->cancels(), 0);
}

TEST_F(InferStreamTest, ACancelStormLeavesNothing) {
  Start();
  for (int round = 0; round < 50; ++round) {
    const auto stream = Open();
    for (int i = 0; i < 4; ++i) stream->Write(std::to_string(i), 1000000);
    if (round % 3 == 0) stream->Read();
    if (round % 3 == 1) std::this_thread::sleep_for(std::chrono::milliseconds(round % 5));
    stream->context.TryCancel();
    stream->ReadAll();
    stream->call->Finish();
  }
  ExpectHealthy();
}

TEST_F(InferStreamTest, ASlowReaderHoldsItsRequestsBackAndLosesNothing) {
  Start({"limits.stream_backlog_tokens=32"},
        {.width = 1000, .step = std::chrono::microseconds(20)});
  const auto stream = Open(false, SmallChannel());
  for (const char* id : {"1", "2"}) ASSERT_TRUE(stream->Write(id, 2000));
  ASSERT_TRUE(Eventually([&] { return engine_->stalled_steps() > 100; }));
  int64_t made = -1;  // both are held back once the windows are full
  EXPECT_TRUE(Eventually([&] {
    const bool settled = std::exchange(made, engine_->tokens()) == engine_->tokens();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    return settled;
  }));
  EXPECT_LT(made, 1500);
  const auto other = Open();
  ASSERT_TRUE(other->Write("other", 10));
  EXPECT_TRUE(other->End().ok());
  EXPECT_EQ(other->heard["other"].text.size(), 10000u);
  EXPECT_TRUE(stream->End().ok());
  for (const char* id : {"1", "2"}) {
    EXPECT_EQ(stream->heard[id].text.size(), 2000000u) << id;
    EXPECT_LT(stream->heard[id].responses, 2000) << "nothing was merged";
  }
}

TEST_F(InferStreamTest, AStalledReaderIsCutOff) {
  Start({"timeouts.stall_seconds=0.2"}, {.width = 1000, .step = std::chrono::microseconds(20)});
  const auto stream = Open(false, SmallChannel());
  for (const char* id : {"1", "2"}) ASSERT_TRUE(stream->Write(id, 1000000));
  ASSERT_TRUE(Eventually([&] { return engine_->cancels() == 2 && engine_->live() == 0; }));
  ASSERT_TRUE(Eventually([&] { return server_->live_calls() == 0; })) << "the stream itself stays";
  stream->ReadAll();
  EXPECT_EQ(stream->call->Finish().error_code(), StatusCode::CANCELLED);
}

TEST_F(InferStreamTest, AClientThatReadsNoRefusalIsNotReadOn) {
  Start({"limits.max_concurrent_streams=4"});
  const auto stream = Open(false, SmallChannel());
  // Each refusal is larger than its request; what is not read must pile up with the client.
  std::atomic<int> written{0};
  std::thread writer([&] {
    const ModelInferRequest bad = StreamRequest("gpt", std::string(250, 'i'), 1);
    while (written < 20000 && stream->call->Write(bad)) ++written;
  });
  int before = -1;
  EXPECT_TRUE(Eventually([&] {
    const bool settled = written > 0 && std::exchange(before, written.load()) == written;
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    return settled;
  })) << "everything was read";
  EXPECT_LT(written, 20000);
  stream->context.TryCancel();
  writer.join();
  ExpectHealthy();
}

TEST_F(InferStreamTest, AClientThatReadsNoRefusalIsGivenUp) {
  Start({"timeouts.stall_seconds=0.2"});
  const auto stream = Open(false, SmallChannel());
  const ModelInferRequest bad = StreamRequest("gpt", std::string(250, 'i'), 1);
  int written = 0;
  while (written < 20000 && stream->call->Write(bad)) ++written;  // until the server ends it
  EXPECT_LT(written, 20000);
  inference::ModelStreamInferResponse refusal;
  while (stream->call->Read(&refusal)) {
  }
  EXPECT_EQ(stream->call->Finish().error_code(), StatusCode::CANCELLED);
  ExpectHealthy();
}

TEST_F(InferStreamTest, BytesThatAreNoRequestEndTheCall) {
  Start();
  for (const std::string& bytes : {std::string("\x0a\x20m"), std::string("\x1a\x02\xff\xfe")}) {
    const grpc::Status status =
        test::RawCall(channel_, "/inference.GRPCInferenceService/ModelStreamInfer", bytes);
    EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
    EXPECT_NE(status.error_message().find("malformed"), std::string::npos);
  }
  ExpectHealthy();
}

TEST_F(InferStreamTest, WhileLoadingAndDrainingRequestsAreUnavailable) {
  Start({}, {}, /*ready=*/false);
  const auto stream = Open();
  ASSERT_TRUE(stream->Write("1", 5));
  stream->ReadFinal("1");
  EXPECT_TRUE(stream->heard["1"].errors[0].starts_with("UNAVAILABLE: the model is loading"));
  serving_.SetReady(&model_);
  ASSERT_TRUE(stream->Write("2", 5));
  stream->ReadFinal("2");
  EXPECT_EQ(stream->heard["2"].text, Letters(5));
  serving_.SetDraining();
  ASSERT_TRUE(stream->Write("3", 5));
  stream->ReadFinal("3");
  EXPECT_EQ(stream->heard["3"].errors[0], "UNAVAILABLE: the server is draining");
  EXPECT_TRUE(stream->End().ok());
}

TEST_F(InferStreamTest, ShuttingDownEndsRequestsAndIdleStreams) {
  Start();
  const auto stream = Open();
  ASSERT_TRUE(stream->Write("1", 1000000));
  ASSERT_TRUE(stream->Read());
  server_->CancelAll(absl::UnavailableError("the server is shutting down"));
  stream->ReadFinal("1");
  EXPECT_EQ(stream->heard["1"].errors[0], "UNAVAILABLE: the server is shutting down");
  server_->Shutdown(std::chrono::milliseconds(50));
  stream->ReadAll();
  EXPECT_FALSE(stream->call->Finish().ok());
}

}  // namespace
}  // namespace quantd
