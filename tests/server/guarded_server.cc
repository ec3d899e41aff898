#include "tests/server/guarded_server.h"

#include <gtest/gtest.h>

#include <thread>
#include <utility>

#include "tests/server/raw_call.h"

namespace quantd::test {
namespace {

// gRPC's two executors may each have two threads for each core, and keep them.
const int kGrpcSlack = 4 * static_cast<int>(std::thread::hardware_concurrency()) + 4;

}  // namespace

v1::GenerateRequest Greedy(int32_t max_tokens, const std::string& text) {
  v1::GenerateRequest request;
  request.set_text(text);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_ignore_eos(true);
  return request;
}

Client::Client(const std::string& address, grpc::ChannelArguments arguments)
    : channel_(NewChannel(address, std::move(arguments))),
      stub_(v1::Inference::NewStub(channel_)) {}

grpc::Status Client::Generate(const v1::GenerateRequest& request, std::vector<int32_t>* ids) {
  grpc::ClientContext context;
  v1::GenerateResponse response;
  const grpc::Status status = stub_->Generate(&context, request, &response);
  ids->assign(response.token_ids().begin(), response.token_ids().end());
  return status;
}

v1::GetServerInfoResponse Client::Info() {
  grpc::ClientContext context;
  v1::GetServerInfoResponse info;
  EXPECT_TRUE(stub_->GetServerInfo(&context, {}, &info).ok());
  return info;
}

Guarded::Guarded(const std::vector<std::string>& overrides) : server_(overrides) {
  if (!server_.ready()) return;
  client_ = std::make_unique<Client>(server_.grpc());
  EXPECT_TRUE(client_->Generate(Greedy(24), &tokens_).ok());
  EXPECT_EQ(tokens_.size(), 24u);
  free_blocks_ = client_->Info().stats().kv_blocks_total();
}

void Guarded::ExpectServing(const std::string& after) {
  std::vector<int32_t> ids;
  const grpc::Status status = client_->Generate(Greedy(24), &ids);
  EXPECT_TRUE(status.ok()) << after << ": " << status.error_message();
  EXPECT_EQ(ids, tokens_) << "other tokens after: " << after;
  v1::GetServerInfoResponse info;
  EXPECT_TRUE(Eventually([&] {
    info = client_->Info();
    return info.live_requests() == 0 && info.stats().running() == 0 &&
           info.stats().waiting() == 0 && info.stats().kv_blocks_free() == free_blocks_;
  })) << after
      << ": " << info.ShortDebugString();
}

void Guarded::ExpectUnharmed(const std::string& after) {
  ExpectServing(after);
  if (files_ < 0) return;
  EXPECT_TRUE(Eventually([&] { return server_.OpenFiles() <= files_; }))
      << after << ": " << files_ << " files before, " << server_.OpenFiles() << " after";
  ThreadCount now;
  EXPECT_TRUE(Eventually([&] {
    now = server_.Threads();
    return now.own <= threads_.own && now.grpc <= threads_.grpc + kGrpcSlack;
  })) << after
      << ": " << threads_.own << " threads and " << threads_.grpc << " of gRPC before, " << now.own
      << " and " << now.grpc << " after";
}

void Guarded::HoldToIdle() {
  ExpectServing("what came before");
  // Connections that a client just closed are still being closed here: two readings that agree.
  int files = 0;
  EXPECT_TRUE(Eventually([&] {
    const int now = server_.OpenFiles();
    const bool settled = std::exchange(files, now) == now;
    if (!settled) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    return settled;
  }));
  files_ = files;
  threads_ = server_.Threads();
}

void Guarded::WarmUp() {
  std::vector<std::thread> clients;
  for (int i = 0; i < 12; ++i) {
    clients.emplace_back([this] {
      Client client(server_.grpc());
      std::vector<int32_t> ids;
      for (int round = 0; round < 3; ++round) client.Generate(Greedy(8), &ids);  // or is refused
    });
  }
  for (std::thread& client : clients) client.join();
  HoldToIdle();
}

}  // namespace quantd::test
