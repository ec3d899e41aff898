// The methods of the KServe service with one message each way, on a fake engine.
#include "grpc/health/v1/health.grpc.pb.h"
#include "tests/server/kserve/kserve_fixture.h"

namespace quantd {
namespace {

using grpc::StatusCode;
using test::AddBool;
using test::AddText;
using test::Letters;
using test::OutputOf;
using test::RawCall;
using test::TextOf;

const std::string kService = "/inference.GRPCInferenceService/";

class KserveServiceTest : public test::KserveTest {
 protected:
  template <class Request, class Response>
  using Method = grpc::Status (inference::GRPCInferenceService::Stub::*)(grpc::ClientContext*,
                                                                         const Request&, Response*);
  template <class Request, class Response>
  grpc::Status Call(Method<Request, Response> method, const Request& request, Response* response) {
    grpc::ClientContext context;
    return (stub_.get()->*method)(&context, request, response);
  }
  using Stub = inference::GRPCInferenceService::Stub;

  inference::ModelInferRequest Request() {
    inference::ModelInferRequest request;
    request.set_model_name("fake");
    request.set_model_version("1");
    request.set_id("mine");
    AddText(request, "text_input", "hello");
    return request;
  }
};

TEST_F(KserveServiceTest, InferAnswersOnce) {
  Start();
  inference::ModelInferResponse response;
  ASSERT_TRUE(Call(&Stub::ModelInfer, Request(), &response).ok());
  EXPECT_EQ(TextOf(response), "hello" + Letters(16));
  EXPECT_EQ(response.id(), "mine");
  EXPECT_EQ(response.model_name(), "fake");
  EXPECT_EQ(response.model_version(), "1");
  ASSERT_EQ(response.outputs_size(), 1);
  EXPECT_EQ(response.outputs(0).name(), "text_output");
  EXPECT_EQ(response.outputs(0).datatype(), "BYTES");
  EXPECT_EQ(response.outputs(0).shape(0), 1);
  ASSERT_EQ(response.raw_output_contents_size(), 1);
  EXPECT_EQ(response.raw_output_contents(0), kserve::EncodeBytes("hello" + Letters(16)));
  ExpectHealthy();
}

TEST_F(KserveServiceTest, InferSaysHowTheTextEndedWhenAsked) {
  Start();
  inference::ModelInferRequest request = Request();
  for (const char* name : {"return_finish_reason", "return_cumulative_logprob",
                           "return_num_input_tokens", "return_num_output_tokens"}) {
    AddBool(request, name, true);
  }
  inference::ModelInferResponse response;
  ASSERT_TRUE(Call(&Stub::ModelInfer, request, &response).ok());
  EXPECT_EQ(response.outputs_size(), 5);
  EXPECT_EQ(TextOf(response), "hello" + Letters(16));
  EXPECT_EQ(OutputOf(response, "finish_reason", "BYTES"), kserve::EncodeBytes("length"));
  EXPECT_EQ(OutputOf(response, "cumulative_logprob", "FP32"), kserve::EncodeNumber(-8.0f));
  EXPECT_EQ(OutputOf(response, "num_input_tokens", "UINT32"), kserve::EncodeNumber(uint32_t{5}));
  EXPECT_EQ(OutputOf(response, "num_output_tokens", "UINT32"), kserve::EncodeNumber(uint32_t{16}));
  ExpectHealthy();
}

TEST_F(KserveServiceTest, InferRefusesWhatStreams) {
  Start();
  inference::ModelInferRequest request = Request();
  AddBool(request, "stream", true);
  inference::ModelInferResponse response;
  const grpc::Status status = Call(&Stub::ModelInfer, request, &response);
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(status.error_message().starts_with("stream: true in ModelInfer"))
      << status.error_message();
  ExpectHealthy();
}

TEST_F(KserveServiceTest, DeadlinesAndTimeoutsEndInfer) {
  Start();
  engine_->Hold(true);
  inference::ModelInferRequest request = Request();
  (*request.mutable_parameters())["timeout"].set_uint64_param(100000);
  inference::ModelInferResponse response;
  EXPECT_EQ(Call(&Stub::ModelInfer, request, &response).error_code(),
            StatusCode::DEADLINE_EXCEEDED);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(100));
  EXPECT_EQ(stub_->ModelInfer(&context, Request(), &response).error_code(),
            StatusCode::DEADLINE_EXCEEDED);
  engine_->Hold(false);
  ExpectHealthy();
}

TEST_F(KserveServiceTest, AFullQueueTellsWhenToTryAgain) {
  Start({"limits.retry_pushback_ms=321"}, {.max_live = 0});
  grpc::ClientContext context;
  inference::ModelInferResponse response;
  EXPECT_EQ(stub_->ModelInfer(&context, Request(), &response).error_code(),
            StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
}

TEST_F(KserveServiceTest, ReadinessFollowsTheServer) {
  Start({}, {}, /*ready=*/false);
  const auto expect = [&](bool live, bool ready) {
    inference::ServerLiveResponse server_live;
    EXPECT_TRUE(Call(&Stub::ServerLive, inference::ServerLiveRequest(), &server_live).ok());
    EXPECT_EQ(server_live.live(), live);
    inference::ServerReadyResponse server_ready;
    EXPECT_TRUE(Call(&Stub::ServerReady, inference::ServerReadyRequest(), &server_ready).ok());
    EXPECT_EQ(server_ready.ready(), ready);
    inference::ModelReadyRequest request;
    request.set_name("fake");
    inference::ModelReadyResponse model_ready;
    EXPECT_TRUE(Call(&Stub::ModelReady, request, &model_ready).ok());
    EXPECT_EQ(model_ready.ready(), ready);
    request.set_name("gpt");
    EXPECT_EQ(Call(&Stub::ModelReady, request, &model_ready).error_code(), StatusCode::NOT_FOUND);
  };
  const auto state = [&] {
    inference::RepositoryIndexResponse index;
    EXPECT_TRUE(Call(&Stub::RepositoryIndex, inference::RepositoryIndexRequest(), &index).ok());
    EXPECT_EQ(index.models(0).name(), "fake");
    EXPECT_EQ(index.models(0).version(), "1");
    return index.models(0).state();
  };
  expect(true, false);
  EXPECT_EQ(state(), "LOADING");
  inference::RepositoryIndexRequest only_ready;
  only_ready.set_ready(true);
  inference::RepositoryIndexResponse index;
  ASSERT_TRUE(Call(&Stub::RepositoryIndex, only_ready, &index).ok());
  EXPECT_EQ(index.models_size(), 0);
  inference::ModelConfigRequest config;
  config.set_name("fake");
  inference::ModelConfigResponse config_response;
  EXPECT_EQ(Call(&Stub::ModelConfig, config, &config_response).error_code(),
            StatusCode::UNAVAILABLE);
  serving_.SetReady(&model_);
  expect(true, true);
  EXPECT_EQ(state(), "READY");
  serving_.AnnounceEnd();
  expect(true, false);
  serving_.SetDraining();
  expect(true, false);
  EXPECT_EQ(state(), "UNAVAILABLE");
}

TEST_F(KserveServiceTest, InformationIsOfTheServedModel) {
  Start();
  inference::ServerMetadataResponse server;
  ASSERT_TRUE(Call(&Stub::ServerMetadata, inference::ServerMetadataRequest(), &server).ok());
  EXPECT_EQ(server.name(), "quantd");
  EXPECT_EQ(server.version(), QUANTD_VERSION);

  inference::ModelMetadataRequest request;
  request.set_name("fake");
  inference::ModelMetadataResponse metadata;
  ASSERT_TRUE(Call(&Stub::ModelMetadata, request, &metadata).ok());
  EXPECT_EQ(metadata.name(), "fake");
  EXPECT_EQ(metadata.inputs(0).name(), "text_input");
  const std::pair<const char*, StatusCode> versions[] = {{"1", StatusCode::OK},
                                                         {"2", StatusCode::NOT_FOUND},
                                                         {"99999999999999", StatusCode::NOT_FOUND},
                                                         {"abc", StatusCode::INVALID_ARGUMENT},
                                                         {"-1", StatusCode::INVALID_ARGUMENT}};
  for (const auto& [version, code] : versions) {
    request.set_version(version);
    EXPECT_EQ(Call(&Stub::ModelMetadata, request, &metadata).error_code(), code) << version;
  }
  inference::ModelConfigRequest config_request;
  config_request.set_name("fake");
  inference::ModelConfigResponse config;
  ASSERT_TRUE(Call(&Stub::ModelConfig, config_request, &config).ok());
  EXPECT_EQ(config.config().name(), "fake");
  EXPECT_TRUE(config.config().model_transaction_policy().decoupled());
  config_request.set_name("fake_unary");
  ASSERT_TRUE(Call(&Stub::ModelConfig, config_request, &config).ok());
  EXPECT_EQ(config.config().name(), "fake_unary");
  EXPECT_FALSE(config.config().model_transaction_policy().decoupled());
  config_request.set_name("");
  EXPECT_EQ(Call(&Stub::ModelConfig, config_request, &config).error_code(), StatusCode::NOT_FOUND);
}

TEST_F(KserveServiceTest, StatisticsCountWhatTheEngineFinished) {
  Start();
  statistics_.OnFinished({FinishReason::kStop, {}, 5, 0.25, 0.25, 0.25, 1.0});
  for (const char* name : {"", "fake", "fake_unary"}) {
    inference::ModelStatisticsRequest request;
    request.set_name(name);
    inference::ModelStatisticsResponse response;
    ASSERT_TRUE(Call(&Stub::ModelStatistics, request, &response).ok());
    ASSERT_EQ(response.model_stats_size(), 1);
    EXPECT_EQ(response.model_stats(0).name(), *name == 0 ? "fake" : name);
    EXPECT_EQ(response.model_stats(0).inference_stats().queue().count(), 1u);
    EXPECT_EQ(response.model_stats(0).inference_stats().compute_output().ns(), 250000000u);
  }
}

TEST_F(KserveServiceTest, BytesThatAreNotARequestAreInvalidArgument) {
  Start();
  for (const char* method : {"ModelReady", "ModelMetadata", "ModelInfer", "ModelConfig",
                             "ModelStatistics", "RepositoryIndex"}) {
    for (const std::string& bytes :
         {std::string("\x0a\x20m"), std::string("\x0f\xff\xff"), std::string("\x0a\x02\xff\xfe")}) {
      const grpc::Status status = RawCall(channel_, kService + method, bytes);
      EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT) << method;
      EXPECT_NE(status.error_message().find("malformed request: not a inference."),
                std::string::npos)
          << status.error_message();
    }
  }
  for (const char* method : {"TraceSetting", "SystemSharedMemoryRegister", "RepositoryModelLoad"}) {
    EXPECT_EQ(RawCall(channel_, kService + method, "").error_code(), StatusCode::UNIMPLEMENTED);
  }
  ExpectHealthy();
}

TEST_F(KserveServiceTest, HealthKnowsTheService) {
  Start();
  const auto health = grpc::health::v1::Health::NewStub(channel_);
  for (const bool healthy : {true, false}) {
    server_->SetHealthy(healthy);
    grpc::ClientContext context;
    grpc::health::v1::HealthCheckRequest request;
    request.set_service("inference.GRPCInferenceService");
    grpc::health::v1::HealthCheckResponse response;
    ASSERT_TRUE(health->Check(&context, request, &response).ok());
    EXPECT_EQ(response.status() == grpc::health::v1::HealthCheckResponse::SERVING, healthy);
  }
}

}  // namespace
}  // namespace quantd
