// ServiceTest: a stub of quantd.v1.Inference before a server on a fake engine.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "quantd/v1/inference.grpc.pb.h"
#include "tests/server/fake_server.h"

namespace quantd::test {

class ServiceTest : public FakeServerTest {
 protected:
  void Start(std::vector<std::string> overrides = {},
             FakeEngine::Options options = FakeEngine::Options(), bool ready = true) {
    StartServer(std::move(overrides), options, ready);
    stub_ = v1::Inference::NewStub(channel_);
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
    ExpectNothingLeft();
  }

  std::unique_ptr<v1::Inference::Stub> stub_;
};

}  // namespace quantd::test
