// Guarded: `quantd serve` as its own process, with a baseline to hold it to after anything that is
// done to it; and the client for that.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "google/rpc/status.pb.h"
#include "quantd/v1/inference.grpc.pb.h"
#include "tests/server/eventually.h"
#include "tests/server/process.h"

namespace quantd::test {

/// A request whose answer is always the same, of exactly `max_tokens` tokens.
v1::GenerateRequest Greedy(int32_t max_tokens, const std::string& text = "Once upon a time");

/// A connection of its own, and the calls on it.
class Client {
 public:
  explicit Client(const std::string& address,
                  grpc::ChannelArguments arguments = grpc::ChannelArguments());

  grpc::Status Generate(const v1::GenerateRequest& request, std::vector<int32_t>* ids);
  v1::GetServerInfoResponse Info();
  v1::Inference::Stub& stub() { return *stub_; }
  const std::shared_ptr<grpc::Channel>& channel() { return channel_; }

 private:
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

/// The google.rpc detail of type `Detail` that came with `status`; empty when there is none.
template <class Detail>
Detail DetailOf(const grpc::Status& status) {
  google::rpc::Status details;
  Detail detail;
  if (details.ParseFromString(status.error_details())) {
    for (const auto& any : details.details()) {
      if (any.UnpackTo(&detail)) return detail;
    }
  }
  return Detail();
}

/// A server with its baseline: what a good request gives, and what an idle server holds.
class Guarded {
 public:
  explicit Guarded(const std::vector<std::string>& overrides = {});
  bool ready() const { return server_.ready(); }
  ServerProcess& server() { return server_; }
  Client& client() { return *client_; }

  /// A good request gives the same tokens as at first; then no request is live, and every KV block
  /// is free.
  void ExpectServing(const std::string& after);
  /// The same, and, after HoldToIdle, there are no more open files and threads than before.
  void ExpectUnharmed(const std::string& after);

  /// What the idle server has open now is what it may have after anything that is done to it.
  void HoldToIdle();
  /// HoldToIdle, once connections and calls at the same time have made gRPC start what it keeps
  /// (pollers, executors).
  void WarmUp();

 private:
  ServerProcess server_;
  int files_ = -1;  // of HoldToIdle; -1: not held
  ThreadCount threads_;
  std::unique_ptr<Client> client_;
  std::vector<int32_t> tokens_;
  int64_t free_blocks_ = 0;
};

}  // namespace quantd::test
