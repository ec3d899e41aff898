// FakeServerTest: the gRPC server in process, over TCP, on a fake engine.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "server/grpc/grpc_server.h"
#include "tests/server/eventually.h"
#include "tests/server/fake_engine.h"
#include "tests/server/raw_call.h"

namespace quantd::test {

/// 'a', 'b', ...: what FakeEngine says.
inline std::string Letters(int n) {
  std::string text;
  for (int i = 0; i < n; ++i) text.push_back(static_cast<char>('a' + i % 26));
  return text;
}

class FakeServerTest : public testing::Test {
 protected:
  /// Starts a server of the model "fake" and connects `channel_`; `ready` false leaves it loading.
  void StartServer(std::vector<std::string> overrides,
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
  }
  void TearDown() override {
    tokenizer_.Block(false);
    server_.reset();
  }
  void ExpectNothingLeft() {
    EXPECT_TRUE(Eventually([&] { return server_->live_calls() == 0 && engine_->live() == 0; }))
        << server_->live_calls() << " calls, " << engine_->live() << " requests";
  }

  ByteTokenizer tokenizer_;
  std::unique_ptr<FakeEngine> engine_;
  ServedModel model_;
  Serving serving_;
  std::unique_ptr<GrpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

}  // namespace quantd::test
