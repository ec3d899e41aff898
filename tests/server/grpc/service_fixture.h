// ServiceTest: the gRPC service in process, over TCP, on a fake engine.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "quantd/v1/inference.grpc.pb.h"
#include "server/grpc/grpc_server.h"
#include "tests/server/eventually.h"
#include "tests/server/fake_engine.h"
#include "tests/server/raw_call.h"

namespace quantd::test {

/// What the fake engine writes.
inline std::string Letters(int n) {
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

  ByteTokenizer tokenizer_;
  std::unique_ptr<FakeEngine> engine_;
  ServedModel model_;
  Serving serving_;
  std::unique_ptr<GrpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

}  // namespace quantd::test
