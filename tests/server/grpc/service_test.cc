// The gRPC service in process, over TCP, on a fake engine.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <thread>

#include "grpc/health/v1/health.grpc.pb.h"
#include "tests/server/grpc/service_fixture.h"

namespace quantd {
namespace {

using grpc::StatusCode;
using test::Eventually;
using test::FakeEngine;
using test::Letters;
using test::NewChannel;
using test::RawCall;
using test::ServiceTest;

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
