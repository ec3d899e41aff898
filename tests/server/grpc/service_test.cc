// The gRPC service in process, over TCP, on a fake engine.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <thread>

#include "grpc/health/v1/health.grpc.pb.h"
#include "quantd/v1/inference.grpc.pb.h"
#include "server/grpc/grpc_server.h"
#include "tests/server/eventually.h"
#include "tests/server/fake_engine.h"
#include "tests/server/raw_call.h"

namespace quantd {
namespace {

using grpc::StatusCode;
using test::Eventually;
using test::FakeEngine;
using test::NewChannel;
using test::RawCall;

std::string Letters(int n) {
  std::string text;
  for (int i = 0; i < n; ++i) text.push_back(static_cast<char>('a' + i % 26));
  return text;
}

class ServiceTest : public testing::Test {
 protected:
  // Starts a server on a fake engine; `ready` false leaves it loading.
  void Start(std::vector<std::string> overrides = {},
             FakeEngine::Options options = FakeEngine::Options(), bool ready = true) {
    overrides.insert(overrides.begin(), {"model=fake", "listen.grpc=127.0.0.1:0"});
    engine_ = std::make_unique<FakeEngine>(options);
    model_.name = "fake";
    model_.engine = engine_.get();
    model_.tokenizer = &tokenizer_;
    const auto config = LoadServerConfig("", overrides);
    ASSERT_TRUE(config.ok()) << config.status();
    auto server = GrpcServer::Start(*config, serving_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = std::move(*server);
    if (ready) {
      serving_.SetReady(&model_);
      server_->SetHealthy(true);
    }
    channel_ = NewChannel(server_->address());
    stub_ = v1::Inference::NewStub(channel_);
  }
  void TearDown() override {
    tokenizer_.Block(false);
    server_.reset();
  }

  v1::GenerateRequest Request(int32_t max_tokens, const std::string& text = "hello") {
    v1::GenerateRequest request;
    request.set_text(text);
    request.mutable_sampling()->set_max_tokens(max_tokens);
    return request;
  }
  // The invariant after everything: an ordinary request works and nothing stays behind.
  void ExpectHealthy() {
    const auto fresh = v1::Inference::NewStub(NewChannel(server_->address()));
    grpc::ClientContext context;
    v1::GenerateResponse response;
    const grpc::Status status = fresh->Generate(&context, Request(30), &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(response.text(), Letters(30));
    EXPECT_TRUE(Eventually([&] { return server_->live_calls() == 0 && engine_->live() == 0; }));
  }

  test::ByteTokenizer tokenizer_;
  std::unique_ptr<FakeEngine> engine_;
  ServedModel model_;
  Serving serving_;
  std::unique_ptr<GrpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

TEST_F(ServiceTest, UnaryAndStreamSayTheSame) {
  Start();
  v1::GenerateRequest request = Request(100);
  request.set_request_id("mine");
  request.mutable_sampling()->set_logprobs(2);
  grpc::ClientContext unary_context;
  v1::GenerateResponse whole;
  ASSERT_TRUE(stub_->Generate(&unary_context, request, &whole).ok());
  EXPECT_EQ(whole.text(), Letters(100));
  EXPECT_EQ(whole.request_id(), "mine");
  EXPECT_EQ(whole.token_ids_size(), 100);
  EXPECT_EQ(whole.logprobs_size(), 100);
  EXPECT_EQ(whole.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(whole.usage().prompt_tokens(), 5);
  EXPECT_EQ(whole.usage().completion_tokens(), 100);

  grpc::ClientContext context;
  const auto reader = stub_->GenerateStream(&context, request);
  v1::GenerateStreamResponse delta;
  std::string text;
  std::vector<int32_t> ids;
  int logprobs = 0;
  int last = 0;
  while (reader->Read(&delta)) {
    EXPECT_EQ(last, 0) << "a response after the one with the finish reason";
    EXPECT_EQ(delta.request_id(), "mine");
    text += delta.text();
    ids.insert(ids.end(), delta.token_ids().begin(), delta.token_ids().end());
    logprobs += delta.logprobs_size();
    if (delta.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) ++last;
  }
  ASSERT_TRUE(reader->Finish().ok());
  EXPECT_EQ(last, 1);
  EXPECT_EQ(text, whole.text());
  EXPECT_EQ(ids, std::vector<int32_t>(whole.token_ids().begin(), whole.token_ids().end()));
  EXPECT_EQ(logprobs, 100);
  ExpectHealthy();
}

TEST_F(ServiceTest, ServerNamesRequestsThatHaveNoName) {
  Start();
  grpc::ClientContext context;
  v1::GenerateResponse response;
  ASSERT_TRUE(stub_->Generate(&context, Request(1), &response).ok());
  EXPECT_FALSE(response.request_id().empty());
}

TEST_F(ServiceTest, BytesThatAreNotARequestAreInvalidArgument) {
  Start();
  const std::pair<const char*, std::string> bodies[] = {
      {"truncated", "\x1a\x05hel"},
      {"illegal wire type", std::string("\x0f\xff\xff", 3)},
      {"invalid UTF-8", "\x0a\x02\xff\xfe"},  // field 1, a string in all of these methods
  };
  for (const char* method :
       {"Generate", "GenerateStream", "Tokenize", "Detokenize", "GetModelInfo"}) {
    for (const auto& [name, bytes] : bodies) {
      const grpc::Status status =
          RawCall(channel_, std::string("/quantd.v1.Inference/") + method, bytes);
      EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT) << method << ", " << name;
      EXPECT_NE(status.error_message().find("malformed"), std::string::npos)
          << status.error_message();
    }
  }
  EXPECT_EQ(RawCall(channel_, "/quantd.v1.Inference/GetServerInfo", bodies[1].second).error_code(),
            StatusCode::INVALID_ARGUMENT);
  ExpectHealthy();
}

TEST_F(ServiceTest, UnknownMethodAndServiceAreUnimplemented) {
  Start();
  EXPECT_EQ(RawCall(channel_, "/quantd.v1.Inference/Nothing", "").error_code(),
            StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(RawCall(channel_, "/nobody.Nothing/Generate", "").error_code(),
            StatusCode::UNIMPLEMENTED);
  ExpectHealthy();
}

TEST_F(ServiceTest, OversizedMessageIsResourceExhausted) {
  Start({"limits.max_message_bytes=64KiB"});
  grpc::ClientContext context;
  v1::GenerateResponse response;
  const auto status = stub_->Generate(&context, Request(1, std::string(100 << 10, 'x')), &response);
  EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
  ExpectHealthy();
}

TEST_F(ServiceTest, CompressedMessagesAreRefusedBeforeTheyInflate) {
  Start();
  for (const auto algorithm : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE}) {
    grpc::ClientContext context;
    context.set_compression_algorithm(algorithm);
    v1::GenerateResponse response;
    const auto status = stub_->Generate(&context, Request(1, std::string(1 << 20, 'x')), &response);
    EXPECT_EQ(status.error_code(), StatusCode::UNIMPLEMENTED) << status.error_message();
  }
  ExpectHealthy();
}

TEST_F(ServiceTest, HugeMetadataIsResourceExhausted) {
  Start();
  grpc::ClientContext context;
  context.AddMetadata("x-large", std::string(20 << 10, 'x'));
  v1::GenerateResponse response;
  EXPECT_EQ(stub_->Generate(&context, Request(1), &response).error_code(),
            StatusCode::RESOURCE_EXHAUSTED);
  ExpectHealthy();
}

TEST_F(ServiceTest, FullQueueTellsWhenToTryAgain) {
  Start({"limits.retry_pushback_ms=321"}, {.max_live = 1});
  engine_->Hold(true);
  grpc::ClientContext first_context;
  const auto first = stub_->GenerateStream(&first_context, Request(5));
  ASSERT_TRUE(Eventually([&] { return engine_->live() == 1; }));
  for (const bool with_text : {true, false}) {
    v1::GenerateRequest request = Request(5);
    if (!with_text) request.mutable_token_ids()->add_ids(1);
    grpc::ClientContext context;
    v1::GenerateResponse response;
    const auto status = stub_->Generate(&context, request, &response);
    EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
    const auto& trailers = context.GetServerTrailingMetadata();
    const auto pushback = trailers.find("grpc-retry-pushback-ms");
    ASSERT_NE(pushback, trailers.end());
    EXPECT_EQ(std::string(pushback->second.data(), pushback->second.size()), "321");
  }
  engine_->Hold(false);
  v1::GenerateStreamResponse delta;
  while (first->Read(&delta)) {
  }
  EXPECT_TRUE(first->Finish().ok());
  ExpectHealthy();
}

TEST_F(ServiceTest, FullTokenizerQueueTellsWhenToTryAgain) {
  Start({"limits.max_queued_tokenizations=1", "limits.tokenizer_threads=1"});
  tokenizer_.Block(true);
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>>> streams;
  for (int i = 0; i < 2; ++i) {  // one is being encoded, one waits
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    streams.push_back(stub_->GenerateStream(contexts.back().get(), Request(3)));
    ASSERT_TRUE(Eventually([&] { return server_->live_calls() == i + 1; }));
    std::this_thread::sleep_for(std::chrono::milliseconds(50));  // for the worker to take the first
  }
  grpc::ClientContext context;
  v1::GenerateResponse response;
  EXPECT_EQ(stub_->Generate(&context, Request(1), &response).error_code(),
            StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
  grpc::ClientContext tokenize_context;
  v1::TokenizeRequest tokenize;
  tokenize.set_text("x");
  v1::TokenizeResponse ids;
  EXPECT_EQ(stub_->Tokenize(&tokenize_context, tokenize, &ids).error_code(),
            StatusCode::RESOURCE_EXHAUSTED);
  // Ids need no tokenizer, so they pass.
  v1::GenerateRequest by_ids = Request(3);
  by_ids.mutable_token_ids()->add_ids(1);
  grpc::ClientContext ids_context;
  EXPECT_TRUE(stub_->Generate(&ids_context, by_ids, &response).ok());
  tokenizer_.Block(false);
  for (auto& stream : streams) {
    v1::GenerateStreamResponse delta;
    while (stream->Read(&delta)) {
    }
    EXPECT_TRUE(stream->Finish().ok());
  }
  ExpectHealthy();
}

TEST_F(ServiceTest, APromptBeyondTheContextIsRefusedWithoutBeingTokenized) {
  Start({}, {.max_model_len = 512});
  tokenizer_.Block(true);
  grpc::ClientContext context;
  v1::GenerateResponse response;
  const auto status = stub_->Generate(&context, Request(4, std::string(1 << 20, 'x')), &response);
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(),
            "the prompt's 1048576 or more tokens and max_tokens 4 make at least 1048580, allowed: "
            "the context of 512");
}

TEST_F(ServiceTest, CancellingAStreamCancelsInTheEngine) {
  Start();
  grpc::ClientContext context;
  const auto reader = stub_->GenerateStream(&context, Request(1000000));
  v1::GenerateStreamResponse delta;
  ASSERT_TRUE(reader->Read(&delta));
  context.TryCancel();
  while (reader->Read(&delta)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually([&] { return engine_->live() == 0; }));
  EXPECT_EQ(engine_->cancels(), 1);
  ExpectHealthy();
}

TEST_F(ServiceTest, CancelWhileTokenizingNeverReachesTheEngine) {
  Start();
  tokenizer_.Block(true);
  grpc::ClientContext context;
  const auto reader = stub_->GenerateStream(&context, Request(10));
  ASSERT_TRUE(Eventually([&] { return server_->live_calls() == 1; }));
  context.TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), StatusCode::CANCELLED);
  ASSERT_TRUE(Eventually([&] { return server_->live_calls() == 0; }));
  tokenizer_.Block(false);
  ExpectHealthy();
  EXPECT_EQ(engine_->cancels(), 0);
}

TEST_F(ServiceTest, DeadlineOfTheCallReachesTheEngine) {
  Start();
  engine_->Hold(true);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(150));
  v1::GenerateResponse response;
  EXPECT_EQ(stub_->Generate(&context, Request(10), &response).error_code(),
            StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(engine_->last_request().deadline.has_value());
  EXPECT_TRUE(Eventually([&] { return engine_->live() == 0; }));
  engine_->Hold(false);
  ExpectHealthy();
  EXPECT_FALSE(engine_->last_request().deadline.has_value())
      << "a call without a deadline has none";
}

TEST_F(ServiceTest, ServersOwnLimitEndsARequest) {
  // Long enough for the healthy request on a slow machine, which the limit also binds.
  Start({"timeouts.max_request_seconds=1"});
  engine_->Hold(true);
  grpc::ClientContext context;
  v1::GenerateResponse response;
  EXPECT_EQ(stub_->Generate(&context, Request(10), &response).error_code(),
            StatusCode::DEADLINE_EXCEEDED);
  engine_->Hold(false);
  ExpectHealthy();
}

// A connection whose windows hold little, so that a reader that does not read blocks the writer
// soon.
grpc::ChannelArguments SmallWindow() {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 8192);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  return arguments;
}

TEST_F(ServiceTest, SlowReaderHoldsTheEngineBackAndLosesNothing) {
  Start({"limits.stream_backlog_tokens=32"},
        {.width = 1000, .step = std::chrono::microseconds(20)});
  const auto stub = v1::Inference::NewStub(NewChannel(server_->address(), SmallWindow()));
  const int total = 4000;  // 4 MB
  grpc::ClientContext context;
  const auto reader = stub->GenerateStream(&context, Request(total));
  ASSERT_TRUE(Eventually([&] { return engine_->stalled_steps() > 100; }));
  const int64_t made = engine_->tokens();
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_EQ(engine_->tokens(), made) << "the engine goes on for a reader that does not read";
  EXPECT_LT(made, 1500);
  // Another client is not held back.
  grpc::ClientContext other_context;
  v1::GenerateResponse other;
  EXPECT_TRUE(stub_->Generate(&other_context, Request(10), &other).ok());
  v1::GenerateStreamResponse delta;
  int tokens = 0;
  int merged = 0;
  std::string text;
  while (reader->Read(&delta)) {
    for (const int32_t id : delta.token_ids()) EXPECT_EQ(id, 'a' + tokens++ % 26);
    if (delta.token_ids_size() > 1) ++merged;
    EXPECT_LE(delta.token_ids_size(), 32 + 1);
    text += delta.text();
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(tokens, total);
  EXPECT_EQ(text.size(), 1000u * total);
  EXPECT_GT(merged, 0);
  EXPECT_EQ(delta.finish_reason(), v1::FINISH_REASON_LENGTH);
}

TEST_F(ServiceTest, StalledReaderIsCutOff) {
  Start({"timeouts.stall_seconds=0.2"}, {.width = 1000, .step = std::chrono::microseconds(20)});
  const auto stub = v1::Inference::NewStub(NewChannel(server_->address(), SmallWindow()));
  grpc::ClientContext context;
  const auto reader = stub->GenerateStream(&context, Request(100000));
  ASSERT_TRUE(Eventually([&] { return engine_->cancels() == 1 && engine_->live() == 0; }));
  ASSERT_TRUE(Eventually([&] { return server_->live_calls() == 0; })) << "the stream itself stays";
  v1::GenerateStreamResponse delta;
  while (reader->Read(&delta)) {
  }
  const grpc::Status status = reader->Finish();
  // Its end may have come too late behind the data it never read: then the stream was reset.
  EXPECT_TRUE(status.error_code() == StatusCode::RESOURCE_EXHAUSTED ||
              status.error_code() == StatusCode::CANCELLED)
      << status.error_code();
}

TEST_F(ServiceTest, StalledReaderThatWakesUpInTimeLearnsWhy) {
  Start({"timeouts.stall_seconds=0.5"}, {.width = 1000, .step = std::chrono::microseconds(20)});
  const auto stub = v1::Inference::NewStub(NewChannel(server_->address(), SmallWindow()));
  grpc::ClientContext context;
  const auto reader = stub->GenerateStream(&context, Request(100000));
  ASSERT_TRUE(Eventually([&] { return engine_->cancels() == 1; }));
  v1::GenerateStreamResponse delta;
  while (reader->Read(&delta)) {
  }
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_NE(status.error_message().find("reader stalled"), std::string::npos);
  EXPECT_TRUE(Eventually([&] { return server_->live_calls() == 0; }));
}

TEST_F(ServiceTest, WhileLoadingOnlyInformationIsServed) {
  Start({}, {}, /*ready=*/false);
  serving_.SetLoadProgress(0.5);
  grpc::ClientContext context;
  v1::GenerateResponse response;
  const auto status = stub_->Generate(&context, Request(1), &response);
  EXPECT_EQ(status.error_code(), StatusCode::UNAVAILABLE);
  EXPECT_NE(status.error_message().find("loading (50%)"), std::string::npos)
      << status.error_message();
  grpc::ClientContext info_context;
  v1::GetModelInfoResponse info;
  EXPECT_EQ(stub_->GetModelInfo(&info_context, {}, &info).error_code(), StatusCode::UNAVAILABLE);
  grpc::ClientContext server_context;
  v1::GetServerInfoResponse server_info;
  ASSERT_TRUE(stub_->GetServerInfo(&server_context, {}, &server_info).ok());
  EXPECT_EQ(server_info.state(), v1::SERVER_STATE_LOADING);
  EXPECT_EQ(server_info.load_progress(), 0.5);
  serving_.SetReady(&model_);
  ExpectHealthy();
}

TEST_F(ServiceTest, WhileDrainingNewRequestsAreUnavailable) {
  Start();
  serving_.SetDraining();
  grpc::ClientContext context;
  v1::GenerateResponse response;
  EXPECT_EQ(stub_->Generate(&context, Request(1), &response).error_code(), StatusCode::UNAVAILABLE);
  grpc::ClientContext tokenize_context;
  v1::TokenizeResponse ids;
  EXPECT_EQ(stub_->Tokenize(&tokenize_context, {}, &ids).error_code(), StatusCode::UNAVAILABLE);
}

TEST_F(ServiceTest, HealthFollowsReadiness) {
  Start({}, {}, /*ready=*/false);
  const auto health = grpc::health::v1::Health::NewStub(channel_);
  const auto check = [&](const std::string& service) {
    grpc::ClientContext context;
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(service);
    grpc::health::v1::HealthCheckResponse response;
    const grpc::Status status = health->Check(&context, request, &response);
    return status.ok() ? static_cast<int>(response.status())
                       : -static_cast<int>(status.error_code());
  };
  for (const char* service : {"", "quantd.v1.Inference"}) {
    server_->SetHealthy(false);
    EXPECT_EQ(check(service), grpc::health::v1::HealthCheckResponse::NOT_SERVING);
    server_->SetHealthy(true);
    EXPECT_EQ(check(service), grpc::health::v1::HealthCheckResponse::SERVING);
  }
  EXPECT_EQ(check("nobody"), -static_cast<int>(StatusCode::NOT_FOUND));
}

TEST_F(ServiceTest, ReflectionIsAFlag) {
  const char* method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
  const std::string list_services("\x3a\x00", 2);
  Start();
  std::string answer;
  EXPECT_TRUE(RawCall(channel_, method, list_services, nullptr, &answer).ok());
  EXPECT_NE(answer.find("quantd.v1.Inference"), std::string::npos);
  server_.reset();
  Start({"listen.reflection=false"});
  EXPECT_EQ(RawCall(channel_, method, list_services).error_code(), StatusCode::UNIMPLEMENTED);
}

TEST_F(ServiceTest, TokenizeAndDetokenize) {
  Start();
  v1::TokenizeRequest tokenize;
  tokenize.set_text("az");
  v1::TokenizeResponse ids;
  grpc::ClientContext tokenize_context;
  ASSERT_TRUE(stub_->Tokenize(&tokenize_context, tokenize, &ids).ok());
  EXPECT_EQ(std::vector<int32_t>(ids.token_ids().begin(), ids.token_ids().end()),
            (std::vector<int32_t>{97, 122}));
  v1::DetokenizeRequest detokenize;
  *detokenize.mutable_token_ids() = ids.token_ids();
  v1::DetokenizeResponse text;
  grpc::ClientContext detokenize_context;
  ASSERT_TRUE(stub_->Detokenize(&detokenize_context, detokenize, &text).ok());
  EXPECT_EQ(text.text(), "az");
  for (const int32_t bad : {-1, 256}) {
    detokenize.add_token_ids(bad);
    grpc::ClientContext context;
    const auto status = stub_->Detokenize(&context, detokenize, &text);
    EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
    EXPECT_NE(status.error_message().find("token_ids[2]"), std::string::npos)
        << status.error_message();
    detokenize.mutable_token_ids()->RemoveLast();
  }
}

TEST_F(ServiceTest, InformationComesFromTheEngine) {
  Start({"limits.max_queued_requests=9"});
  v1::GetModelInfoResponse info;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->GetModelInfo(&context, {}, &info).ok());
  EXPECT_EQ(info.name(), "fake");
  EXPECT_EQ(info.architecture(), "FakeForCausalLM");
  EXPECT_EQ(info.quantization().profile(), "fake");
  EXPECT_EQ(info.quantization().bits_per_weight(), 4.0);
  EXPECT_EQ(info.defaults().temperature(), 0.5f);
  EXPECT_EQ(info.defaults().top_k(), 7);
  EXPECT_EQ(info.defaults().max_tokens(), 16);
  EXPECT_EQ(info.compute_dtype(), "bfloat16");
  v1::GetModelInfoRequest other;
  other.set_model("other");
  grpc::ClientContext other_context;
  EXPECT_EQ(stub_->GetModelInfo(&other_context, other, &info).error_code(), StatusCode::NOT_FOUND);
  v1::GetServerInfoResponse server;
  grpc::ClientContext server_context;
  ASSERT_TRUE(stub_->GetServerInfo(&server_context, {}, &server).ok());
  EXPECT_EQ(server.version(), QUANTD_VERSION);
  EXPECT_EQ(server.state(), v1::SERVER_STATE_READY);
  EXPECT_EQ(server.limits().max_queued_requests(), 9);
  EXPECT_EQ(server.stats().kv_blocks_free(), 4);
  EXPECT_EQ(server.stats().prefix_cache_hits(), 3);
}

TEST_F(ServiceTest, ShutdownLetsCallsFinishAndCancelsTheRest) {
  Start();
  grpc::ClientContext context;
  const auto reader = stub_->GenerateStream(&context, Request(1000000));
  v1::GenerateStreamResponse delta;
  ASSERT_TRUE(reader->Read(&delta));
  const auto start = Clock::now();
  std::thread drain([&] {
    while (reader->Read(&delta)) {
    }
  });
  server_->Shutdown(std::chrono::milliseconds(200));
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(5));
  drain.join();
  EXPECT_FALSE(reader->Finish().ok());
  EXPECT_TRUE(Eventually([&] { return engine_->live() == 0; })) << "the engine goes on for nobody";
}

TEST_F(ServiceTest, CancelAllEndsEveryCallWithTheStatus) {
  Start();
  engine_->Hold(true);
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>>> streams;
  for (int i = 0; i < 5; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    streams.push_back(stub_->GenerateStream(contexts.back().get(), Request(10)));
  }
  ASSERT_TRUE(Eventually([&] { return engine_->live() == 5; }));
  server_->CancelAll(absl::UnavailableError("going down"));
  for (auto& stream : streams) EXPECT_EQ(stream->Finish().error_code(), StatusCode::UNAVAILABLE);
  EXPECT_TRUE(Eventually([&] { return engine_->live() == 0 && server_->live_calls() == 0; }));
}

TEST_F(ServiceTest, SecondServerOnAPortFails) {
  Start();
  Serving other;
  const auto config = LoadServerConfig("", {"model=m", "listen.grpc=" + server_->address()});
  EXPECT_EQ(GrpcServer::Start(*config, other).status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(ServiceTest, ManyClientsAtOnceEachGetTheirOwn) {
  Start({}, {.step = std::chrono::microseconds(20)});
  std::vector<std::thread> clients;
  std::atomic<int> good{0};
  for (int i = 0; i < 8; ++i) {
    clients.emplace_back([&, i] {
      for (int round = 0; round < 20; ++round) {
        const int n = 1 + (i * 20 + round) % 50;
        grpc::ClientContext context;
        const auto reader = stub_->GenerateStream(&context, Request(n));
        std::string text;
        v1::GenerateStreamResponse delta;
        while (reader->Read(&delta)) text += delta.text();
        if (reader->Finish().ok() && text == Letters(n)) ++good;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(good, 160);
  ExpectHealthy();
}

}  // namespace
}  // namespace quantd
