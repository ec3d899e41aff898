// A server on a fake engine, and a stub of its KServe service.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "inference/grpc_service.grpc.pb.h"
#include "server/kserve/statistics.h"
#include "tests/server/fake_server.h"
#include "tests/server/kserve/infer_request.h"

namespace quantd::test {

class KserveTest : public FakeServerTest {
 protected:
  void Start(std::vector<std::string> overrides = {},
             FakeEngine::Options options = FakeEngine::Options(), bool ready = true) {
    model_.statistics = &statistics_;
    StartServer(std::move(overrides), options, ready);
    stub_ = inference::GRPCInferenceService::NewStub(channel_);
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
    EXPECT_EQ(TextOf(response), Letters(16));
    ExpectNothingLeft();
  }

  ServingStatistics statistics_{nullptr};
  std::unique_ptr<inference::GRPCInferenceService::Stub> stub_;
};

}  // namespace quantd::test
