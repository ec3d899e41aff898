// `quantd serve` as its own process, reached over TCP: what it answers, refuses and survives. After
// every bad thing the same good request gives the same tokens and nothing is left behind.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>
#include <thread>

#include "engine/request.h"
#include "quantd/v1/inference.grpc.pb.h"
#include "tests/server/http_get.h"
#include "tests/server/process.h"
#include "tests/server/raw_call.h"

namespace quantd {
namespace {

using grpc::StatusCode;
using test::NewChannel;
using test::Process;
using test::RawCall;
using test::ServerProcess;

v1::GenerateRequest Greedy(int32_t max_tokens, const std::string& text = "Once upon a time") {
  v1::GenerateRequest request;
  request.set_text(text);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_ignore_eos(true);
  return request;
}

class Client {
 public:
  explicit Client(const std::string& address,
                  grpc::ChannelArguments arguments = grpc::ChannelArguments())
      : channel_(NewChannel(address, arguments)), stub_(v1::Inference::NewStub(channel_)) {}

  grpc::Status Generate(const v1::GenerateRequest& request, std::vector<int32_t>* ids) {
    grpc::ClientContext context;
    v1::GenerateResponse response;
    const grpc::Status status = stub_->Generate(&context, request, &response);
    ids->assign(response.token_ids().begin(), response.token_ids().end());
    return status;
  }
  v1::GetServerInfoResponse Info() {
    grpc::ClientContext context;
    v1::GetServerInfoResponse info;
    EXPECT_TRUE(stub_->GetServerInfo(&context, {}, &info).ok());
    return info;
  }
  v1::Inference::Stub& stub() { return *stub_; }
  const std::shared_ptr<grpc::Channel>& channel() { return channel_; }

 private:
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

template <class Condition>
bool Eventually(Condition condition, double seconds = 10) {
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  while (!condition()) {
    if (Clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return true;
}

// A server with its baseline: what a good request gives, and what an idle server holds.
class Guarded {
 public:
  explicit Guarded(const std::vector<std::string>& overrides = {}) : server_(overrides) {
    if (!server_.ready()) return;
    client_ = std::make_unique<Client>(server_.grpc());
    EXPECT_TRUE(client_->Generate(Greedy(24), &tokens_).ok());
    EXPECT_EQ(tokens_.size(), 24u);
    free_blocks_ = client_->Info().stats().kv_blocks_total();
  }
  bool ready() const { return server_.ready(); }
  ServerProcess& server() { return server_; }
  Client& client() { return *client_; }
  const std::vector<int32_t>& tokens() const { return tokens_; }

  void ExpectUnharmed(const std::string& after) {
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

 private:
  ServerProcess server_;
  std::unique_ptr<Client> client_;
  std::vector<int32_t> tokens_;
  int64_t free_blocks_ = 0;
};

struct BadRow {
  std::string name;
  std::function<void(v1::GenerateRequest&)> spoil;
  StatusCode code;
  std::string message;  // a part of it
};

std::vector<BadRow> BadRequests() {
  constexpr auto kBad = StatusCode::INVALID_ARGUMENT;
  const auto s = [](v1::GenerateRequest& r) { return r.mutable_sampling(); };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  return {
      {"unknown model", [](auto& r) { r.set_model("gpt"); }, StatusCode::NOT_FOUND, "model"},
      {"no prompt", [](auto& r) { r.clear_prompt(); }, kBad, "prompt"},
      {"empty prompt", [](auto& r) { r.set_text(""); }, kBad, "text"},
      {"prompt beyond the context",
       [](auto& r) {
         for (int i = 0; i < 600; ++i) r.mutable_token_ids()->add_ids(5);
       },
       kBad, "512"},
      {"long text beyond the context", [](auto& r) { r.set_text(std::string(200000, 'x')); }, kBad,
       "512"},
      {"prompt and max_tokens beyond the context", [=](auto& r) { s(r)->set_max_tokens(512); },
       kBad, "max_tokens"},
      {"max_tokens 0", [=](auto& r) { s(r)->set_max_tokens(0); }, kBad, "sampling.max_tokens"},
      {"max_tokens -1", [=](auto& r) { s(r)->set_max_tokens(-1); }, kBad, "sampling.max_tokens"},
      {"max_tokens 2^31-1", [=](auto& r) { s(r)->set_max_tokens(INT32_MAX); }, kBad, "2147483647"},
      {"temperature nan", [=](auto& r) { s(r)->set_temperature(nan); }, kBad,
       "sampling.temperature"},
      {"temperature inf", [=](auto& r) { s(r)->set_temperature(HUGE_VALF); }, kBad,
       "sampling.temperature"},
      {"temperature -1", [=](auto& r) { s(r)->set_temperature(-1); }, kBad, "sampling.temperature"},
      {"top_p 0", [=](auto& r) { s(r)->set_top_p(0); }, kBad, "sampling.top_p"},
      {"top_p 1.1", [=](auto& r) { s(r)->set_top_p(1.1f); }, kBad, "sampling.top_p"},
      {"top_p nan", [=](auto& r) { s(r)->set_top_p(nan); }, kBad, "sampling.top_p"},
      {"top_k -5", [=](auto& r) { s(r)->set_top_k(-5); }, kBad, "sampling.top_k"},
      {"10,000 stop strings",
       [=](auto& r) {
         for (int i = 0; i < 10000; ++i) s(r)->add_stop("x");
       },
       kBad, "sampling.stop"},
      {"stop string of 1 MB", [=](auto& r) { s(r)->add_stop(std::string(1 << 20, 'x')); }, kBad,
       "sampling.stop"},
      {"logprobs 1,000,000", [=](auto& r) { s(r)->set_logprobs(1000000); }, kBad,
       "sampling.logprobs"},
      {"token id -1", [](auto& r) { r.mutable_token_ids()->add_ids(-1); }, kBad,
       "token_ids.ids[0]"},
      {"token id 4096", [](auto& r) { r.mutable_token_ids()->add_ids(4096); }, kBad,
       "token_ids.ids[0]"},
      {"stop id 4096", [=](auto& r) { s(r)->add_stop_token_ids(4096); }, kBad,
       "sampling.stop_token_ids"},
      {"message of 5 MB", [](auto& r) { r.set_text(std::string(5 << 20, 'x')); },
       StatusCode::RESOURCE_EXHAUSTED, ""},
  };
}

// Every bad request, by the unary and the streaming method; `guarded` is checked after each.
void SendBadRequests(Guarded& guarded) {
  Client& client = guarded.client();
  for (const BadRow& row : BadRequests()) {
    v1::GenerateRequest request = Greedy(8);
    row.spoil(request);
    std::vector<int32_t> ids;
    const grpc::Status unary = client.Generate(request, &ids);
    EXPECT_EQ(unary.error_code(), row.code) << row.name << ": " << unary.error_message();
    EXPECT_NE(unary.error_message().find(row.message), std::string::npos)
        << row.name << ": " << unary.error_message() << " lacks " << row.message;
    grpc::ClientContext context;
    const auto reader = client.stub().GenerateStream(&context, request);
    v1::GenerateStreamResponse delta;
    EXPECT_FALSE(reader->Read(&delta)) << row.name;
    EXPECT_EQ(reader->Finish().error_code(), row.code) << row.name;
    guarded.ExpectUnharmed(row.name);
  }
}

void SendBadBytes(Guarded& guarded) {
  struct Row {
    const char* name;
    const char* method;
    std::string bytes;
    StatusCode code;
  };
  const Row rows[] = {
      {"truncated", "/quantd.v1.Inference/GenerateStream", "\x1a\x20hel",
       StatusCode::INVALID_ARGUMENT},
      {"illegal wire type", "/quantd.v1.Inference/Generate", "\x0f\xff\xff",
       StatusCode::INVALID_ARGUMENT},
      {"invalid UTF-8 in text", "/quantd.v1.Inference/Generate", "\x1a\x03\xff\xfe\x41",
       StatusCode::INVALID_ARGUMENT},
      {"surrogate in text", "/quantd.v1.Inference/GenerateStream", "\x1a\x03\xed\xa0\x80",
       StatusCode::INVALID_ARGUMENT},
      {"unknown method", "/quantd.v1.Inference/Train", "", StatusCode::UNIMPLEMENTED},
      {"unknown service", "/inference.GRPCInferenceService/ModelInfer", "",
       StatusCode::UNIMPLEMENTED},
  };
  for (const Row& row : rows) {
    EXPECT_EQ(RawCall(guarded.client().channel(), row.method, row.bytes).error_code(), row.code)
        << row.name;
    guarded.ExpectUnharmed(row.name);
  }
  {  // a bomb of zeros
    Client bomber(guarded.server().grpc());
    grpc::ClientContext context;
    context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
    v1::GenerateResponse response;
    const auto status =
        bomber.stub().Generate(&context, Greedy(1, std::string(64 << 20, 'x')), &response);
    EXPECT_EQ(status.error_code(), StatusCode::UNIMPLEMENTED) << status.error_message();
    guarded.ExpectUnharmed("gzip bomb");
  }
  {
    Client client(guarded.server().grpc());
    grpc::ClientContext context;
    context.AddMetadata("x-large", std::string(20 << 10, 'x'));
    v1::GenerateResponse response;
    EXPECT_EQ(client.stub().Generate(&context, Greedy(1), &response).error_code(),
              StatusCode::RESOURCE_EXHAUSTED);
    guarded.ExpectUnharmed("20 KB of metadata");
  }
  {  // connections that never speak, and one that speaks nonsense
    std::vector<int> sockets;
    for (int i = 0; i < 20; ++i) sockets.push_back(test::ConnectTcp(guarded.server().grpc()));
    const std::string nonsense(3000, '?');
    EXPECT_GT(write(sockets[0], nonsense.data(), nonsense.size()), 0);
    guarded.ExpectUnharmed("connections without a preface");
    for (const int fd : sockets) close(fd);
  }
  for (const int milliseconds : {0, 1, 5}) {
    Client client(guarded.server().grpc());
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::milliseconds(milliseconds));
    v1::GenerateResponse response;
    EXPECT_EQ(client.stub().Generate(&context, Greedy(480), &response).error_code(),
              StatusCode::DEADLINE_EXCEEDED);
    guarded.ExpectUnharmed("a deadline of " + std::to_string(milliseconds) + " ms");
  }
}

TEST(ServeProcess, BadRequestsAreNamedAndLeaveNothingBehind) {
  Guarded guarded;
  ASSERT_TRUE(guarded.ready()) << guarded.server().process().err();
  // The first round also warms up what gRPC keeps (pollers, executors): the second must not add to
  // it.
  SendBadRequests(guarded);
  SendBadBytes(guarded);
  int files = 0;
  EXPECT_TRUE(Eventually([&] {  // connections that the client just closed
    const int now = guarded.server().OpenFiles();
    return std::exchange(files, now) == now;
  }));
  const int threads = guarded.server().Threads();
  SendBadRequests(guarded);
  SendBadBytes(guarded);
  EXPECT_TRUE(Eventually([&] { return guarded.server().OpenFiles() <= files; }))
      << files << " files before, " << guarded.server().OpenFiles() << " after";
  EXPECT_TRUE(Eventually([&] { return guarded.server().Threads() <= threads + 2; }))
      << threads << " threads before, " << guarded.server().Threads() << " after";
  EXPECT_EQ(guarded.server().process().err().find("libprotobuf"), std::string::npos)
      << "a client can write to stderr";
}

TEST(ServeProcess, TextOverTcpIsTheTextInProcess) {
  ServerProcess server;
  ASSERT_TRUE(server.ready()) << server.process().err();
  const std::vector<std::string> common = {"--prompt", "It was a dark and", "--temperature",
                                           "0",        "--max-tokens",      "60"};
  std::vector<std::string> local = {"generate", "--model", test::DemoModel(), "--profile",
                                    "nf4-dq"};
  std::vector<std::string> remote = {"generate", "--target", server.grpc()};
  local.insert(local.end(), common.begin(), common.end());
  remote.insert(remote.end(), common.begin(), common.end());
  const test::Finished here = test::RunQuantd(local);
  const test::Finished there = test::RunQuantd(remote);
  ASSERT_EQ(here.code, 0) << here.err;
  ASSERT_EQ(there.code, 0) << there.err;
  EXPECT_GT(here.out.size(), 60u);
  EXPECT_EQ(here.out, there.out);
  for (const test::Finished& run : {here, there}) {
    for (const char* part : {"model ", "demo/model | profile nf4-dq | ", " bits/weight | resident ",
                             " MB | ", " tokens, ", " tok/s\n"}) {
      EXPECT_NE(run.err.find(part), std::string::npos) << run.err << " lacks " << part;
    }
  }
  // The same seed draws the same, the streamed deltas are the unary text.
  Client client(server.grpc());
  v1::GenerateRequest request = Greedy(50);
  request.mutable_sampling()->set_temperature(1.0f);
  request.mutable_sampling()->set_seed(7);
  grpc::ClientContext unary_context;
  v1::GenerateResponse whole;
  ASSERT_TRUE(client.stub().Generate(&unary_context, request, &whole).ok());
  grpc::ClientContext context;
  const auto reader = client.stub().GenerateStream(&context, request);
  v1::GenerateStreamResponse delta;
  std::string text;
  int responses = 0;
  for (; reader->Read(&delta); ++responses) text += delta.text();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(text, whole.text());
  EXPECT_GT(responses, 5) << "streaming comes in pieces";
  EXPECT_GT(delta.usage().prompt_tokens(), 0);
}

TEST(ServeProcess, HttpPortAndInformationTellTheTruth) {
  ServerProcess server;
  ASSERT_TRUE(server.ready()) << server.process().err();
  EXPECT_EQ(test::HttpGet(server.http(), "/livez").status, 200);
  EXPECT_EQ(test::HttpGet(server.http(), "/readyz").status, 200);
  EXPECT_EQ(test::RunQuantd({"health", "--target", server.grpc()}).code, 0);
  EXPECT_EQ(
      test::RunQuantd({"health", "--target", server.grpc(), "--service", "quantd.v1.Inference"})
          .code,
      0);
  EXPECT_EQ(test::RunQuantd({"health", "--target", server.grpc(), "--service", "nobody"}).code, 1);
  Client client(server.grpc());
  std::vector<int32_t> ids;
  ASSERT_TRUE(client.Generate(Greedy(30), &ids).ok());
  const std::string page = test::HttpGet(server.http(), "/metrics").body;
  const std::string labels = "{model_name=\"" + test::DemoModel() + "\",profile=\"nf4-dq\"}";
  for (const std::string& line : {"quantd_generation_tokens_total" + labels + " 30\n",
                                  "quantd_time_to_first_token_seconds_count" + labels + " 1\n",
                                  "quantd_inter_token_latency_seconds_count" + labels + " 29\n",
                                  "quantd_request_generation_tokens_sum" + labels + " 30\n",
                                  "quantd_num_requests_running" + labels + " 0\n"}) {
    EXPECT_NE(page.find(line), std::string::npos) << page << "\nlacks " << line;
  }
  grpc::ClientContext context;
  v1::GetModelInfoResponse info;
  ASSERT_TRUE(client.stub().GetModelInfo(&context, {}, &info).ok());
  EXPECT_EQ(info.architecture(), "LlamaForCausalLM");
  EXPECT_EQ(info.vocab_size(), 4096);
  EXPECT_EQ(info.context_length(), 512);
  EXPECT_EQ(info.quantization().profile(), "nf4-dq");
  EXPECT_EQ(info.quantization().profile_hash().size(), 16u);
  EXPECT_NE(info.quantization().effective_profile().find("nf4"), std::string::npos);
  int64_t bytes = 0;
  int64_t modules = 0;
  for (const auto& group : info.quantization().groups()) {
    bytes += group.bytes();
    modules += group.modules();
  }
  EXPECT_EQ(modules, 6 * 7 + 2);  // seven linears a layer, embedding and head
  EXPECT_LE(bytes, info.resident_bytes());
  EXPECT_GT(info.quantization().bits_per_weight(), 4.0);
  EXPECT_LT(info.quantization().bits_per_weight(), 16.0);
  EXPECT_EQ(info.memory_size(), 8);
}

TEST(ServeProcess, CancelStormLeavesNothingBehind) {
  Guarded guarded;
  ASSERT_TRUE(guarded.ready());
  std::vector<std::thread> clients;
  std::atomic<int> cancelled{0};
  for (int i = 0; i < 10; ++i) {
    clients.emplace_back([&, i] {
      Client client(guarded.server().grpc());
      for (int round = 0; round < 50; ++round) {
        grpc::ClientContext context;
        const auto reader =
            client.stub().GenerateStream(&context, Greedy(400, "storm " + std::to_string(i)));
        v1::GenerateStreamResponse delta;
        if (round % 3 == 0) reader->Read(&delta);
        if (round % 3 == 1) std::this_thread::sleep_for(std::chrono::milliseconds(round % 7));
        context.TryCancel();
        while (reader->Read(&delta)) {
        }
        if (reader->Finish().error_code() == StatusCode::CANCELLED) ++cancelled;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(cancelled, 500);
  guarded.ExpectUnharmed("500 cancelled streams");
}

TEST(ServeProcess, ClientKilledMidStreamFreesItsBlocks) {
  Guarded guarded;
  ASSERT_TRUE(guarded.ready());
  Process client({"generate", "--target", guarded.server().grpc(), "--prompt", "Once",
                  "--max-tokens", "500", "--ignore-eos"});
  ASSERT_TRUE(Eventually([&] { return !client.out().empty(); }));
  client.Signal(SIGKILL);
  EXPECT_EQ(client.Wait(), 128 + SIGKILL);
  guarded.ExpectUnharmed("a killed client");
}

TEST(ServeProcess, StalledReaderIsCutOffAndOthersAreNotHeldUp) {
  Guarded guarded({"timeouts.stall_seconds=0.3", "limits.stream_backlog_tokens=4"});
  ASSERT_TRUE(guarded.ready());
  grpc::ChannelArguments small;
  small.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 8192);
  small.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  Client slow(guarded.server().grpc(), small);
  v1::GenerateRequest request = Greedy(500);
  request.set_request_id(std::string(256, 'x'));
  request.mutable_sampling()->set_logprobs(20);
  grpc::ClientContext context;
  const auto reader = slow.stub().GenerateStream(&context, request);
  EXPECT_TRUE(Eventually([&] { return guarded.client().Info().live_requests() == 1; }));
  guarded.ExpectUnharmed("a stalled reader");  // waits until its blocks are free
  v1::GenerateStreamResponse delta;
  int tokens = 0;
  while (reader->Read(&delta)) tokens += delta.token_ids_size();
  const auto code = reader->Finish().error_code();
  EXPECT_TRUE(code == StatusCode::RESOURCE_EXHAUSTED || code == StatusCode::CANCELLED) << code;
  EXPECT_LT(tokens, 500);
}

TEST(ServeProcess, FullQueueIsResourceExhaustedWithPushback) {
  Guarded guarded({"limits.max_queued_requests=2", "scheduler.max_num_seqs=1"});
  ASSERT_TRUE(guarded.ready());
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>>> streams;
  for (int i = 0; i < 12; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    streams.push_back(guarded.client().stub().GenerateStream(contexts.back().get(), Greedy(200)));
  }
  int refused = 0;
  for (size_t i = 0; i < streams.size(); ++i) {
    v1::GenerateStreamResponse delta;
    int tokens = 0;
    while (streams[i]->Read(&delta)) tokens += delta.token_ids_size();
    const grpc::Status status = streams[i]->Finish();
    if (status.ok()) {
      EXPECT_EQ(tokens, 200);
      continue;
    }
    ++refused;
    EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
    EXPECT_EQ(contexts[i]->GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
  }
  EXPECT_GE(refused, 1);
  EXPECT_LE(refused, 10);  // two may wait
  guarded.ExpectUnharmed("a full queue");
}

// Streams that run while the server is told to stop.
struct Load {
  Load(const std::string& address, int streams, int32_t tokens) {
    for (int i = 0; i < streams; ++i) {
      threads.emplace_back([this, address, tokens] {
        Client client(address);
        grpc::ClientContext context;
        const auto reader = client.stub().GenerateStream(&context, Greedy(tokens));
        v1::GenerateStreamResponse delta;
        int count = 0;
        while (reader->Read(&delta)) {
          if (count == 0) ++started;
          count += delta.token_ids_size();
        }
        const grpc::Status status = reader->Finish();
        if (status.ok() && count == tokens) ++complete;
        if (status.error_code() == StatusCode::UNAVAILABLE) ++unavailable;
      });
    }
  }
  void Join() {
    for (std::thread& thread : threads) thread.join();
  }
  std::atomic<int> started{0};
  std::atomic<int> complete{0};
  std::atomic<int> unavailable{0};
  std::vector<std::thread> threads;
};

TEST(ServeProcess, SigtermUnderLoadFinishesWhatRunsAndExitsWithZero) {
  ServerProcess server({"timeouts.pre_drain_seconds=0.2"});
  ASSERT_TRUE(server.ready());
  Load load(server.grpc(), 8, 300);
  ASSERT_TRUE(Eventually([&] { return load.started == 8; }));
  server.process().Signal(SIGTERM);
  EXPECT_TRUE(server.process().WaitFor("draining"));
  EXPECT_EQ(test::RunQuantd({"health", "--target", server.grpc()}).code, 1)
      << "NOT_SERVING at once";
  load.Join();
  EXPECT_EQ(load.complete, 8);
  EXPECT_EQ(server.process().Wait(), 0);
  EXPECT_NE(server.process().err().find("drained: 0 requests were cancelled"), std::string::npos)
      << server.process().err();
}

TEST(ServeProcess, SecondSignalCancelsWhatIsLeftAtOnceAndExitsWithZero) {
  ServerProcess server({"scheduler.max_num_seqs=2"});
  ASSERT_TRUE(server.ready());
  Load load(server.grpc(), 40, 480);
  ASSERT_TRUE(Eventually([&] { return load.started >= 1; }));
  server.process().Signal(SIGINT);
  ASSERT_TRUE(server.process().WaitFor("draining"));
  const auto start = Clock::now();
  server.process().Signal(SIGTERM);
  EXPECT_EQ(server.process().Wait(), 0);
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(3));
  load.Join();
  EXPECT_GT(load.unavailable, 0);
}

TEST(ServeProcess, DrainTimeoutCancelsWhatIsLeft) {
  ServerProcess server({"timeouts.drain_seconds=0.1", "scheduler.max_num_seqs=1"});
  ASSERT_TRUE(server.ready());
  Load load(server.grpc(), 20, 480);
  ASSERT_TRUE(Eventually([&] { return load.started >= 1; }));
  server.process().Signal(SIGTERM);
  EXPECT_EQ(server.process().Wait(), 0);
  load.Join();
  EXPECT_LT(load.complete, 20);
  EXPECT_EQ(server.process().err().find("drained: 0 requests"), std::string::npos)
      << server.process().err();
}

TEST(ServeProcess, SigtermWhileLoadingExitsWithZero) {
  bool while_loading = false;
  for (const int milliseconds : {0, 30, 100}) {
    ServerProcess server({}, /*wait_ready=*/false);
    EXPECT_FALSE(server.grpc().empty()) << "the port opens before the model is loaded";
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
    server.process().Signal(SIGTERM);
    EXPECT_EQ(server.process().Wait(), 0) << milliseconds << " ms";
    while_loading |= server.process().err().find("signal while loading") != std::string::npos;
  }
  EXPECT_TRUE(while_loading);
}

TEST(ServeProcess, PortInUseIsOneLineAndExitCodeOne) {
  ServerProcess first;
  ASSERT_TRUE(first.ready());
  const test::Finished second =
      test::RunQuantd({"serve", "--model", test::DemoModel(), "--listen", first.grpc(), "--http",
                       "127.0.0.1:0", "--set", "log.level=off"});
  EXPECT_EQ(second.code, 1);
  EXPECT_EQ(second.err, "quantd: listen.grpc: " + first.grpc() + " cannot be bound (in use?)\n");
}

}  // namespace
}  // namespace quantd
