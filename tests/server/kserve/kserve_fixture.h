// A server on a fake engine, and a stub of its KServe service.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "inference/grpc_service.grpc.pb.h"
#include "server/grpc/grpc_server.h"
#include "server/kserve/statistics.h"
#include "tests/server/eventually.h"
#include "tests/server/fake_engine.h"
#include "tests/server/kserve/infer_request.h"
#include "tests/server/raw_call.h"

namespace quantd::test {

/// 'a', 'b', ...: what FakeEngine says.
inline std::string LettersOf(int n) {
  std::string text;
  for (int i = 0; i < n; ++i) text.push_back(static_cast<char>('a' + i % 26));
  return text;
}

class KserveTest : public testing::Test {
 protected:
  void Start(std::vector<std::string> overrides = {},
             FakeEngine::Options options = FakeEngine::Options(), bool ready = true) {
    overrides.insert(overrides.begin(),
                     {"model=fake", "served_model_name=fake", "listen.grpc=127.0.0.1:0"});
    engine_ = std::make_unique<FakeEngine>(options);
    model_.name = "fake";
    model_.engine = engine_.get();
    model_.tokenizer = &tokenizer_;
    model_.statistics = &statistics_;
    const auto config = LoadServerConfig("", overrides);
    ASSERT_TRUE(config.ok()) << config.status();
    auto server = GrpcServer::Start(*config, serving_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = std::move(*server);
    if (ready) serving_.SetReady(&model_);
    channel_ = NewChannel(server_->address());
    stub_ = inference::GRPCInferenceService::NewStub(channel_);
  }
  void TearDown() override {
    tokenizer_.Block(false);
    server_.reset();
  }
  /// Nothing is left behind, and another client's request works.
  void ExpectHealthy() {
    const auto fresh = inference::GRPCInferenceService::NewStub(NewChannel(server_->address()));
    inference::ModelInferRequest request;
    request.set_model_name("fake");
    AddText(request, "text_input", "hello");
    AddBool(request, "exclude_input_in_output", true);
    grpc::ClientContext context;
    inference::ModelInferResponse response;
    const grpc::Status status = fresh->ModelInfer(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(TextOf(response), LettersOf(16));
    EXPECT_TRUE(Eventually([&] { return server_->live_calls() == 0 && engine_->live() == 0; }))
        << server_->live_calls() << " calls, " << engine_->live() << " requests";
  }

  ByteTokenizer tokenizer_;
  std::unique_ptr<FakeEngine> engine_;
  ServingStatistics statistics_{nullptr};
  ServedModel model_;
  Serving serving_;
  std::unique_ptr<GrpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<inference::GRPCInferenceService::Stub> stub_;
};

}  // namespace quantd::test
