// `quantd serve` as its own process, reached over TCP: what it answers, and how it behaves under
// load, with clients that misbehave, and when it is told to stop.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>

#include "engine/request.h"
#include "google/rpc/error_details.pb.h"
#include "tests/engine/models/tiny_model.h"
#include "tests/server/guarded_server.h"
#include "tests/server/http_get.h"

namespace quantd {
namespace {

using grpc::StatusCode;
using test::Client;
using test::DetailOf;
using test::Eventually;
using test::Greedy;
using test::Guarded;
using test::Process;
using test::ServerProcess;

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

TEST(ServeProcess, OutputsGuessesAndLogprobsAreTheSameStreamedAndWhole) {
  Guarded guarded({"scheduler.prompt_lookup_num_tokens=4"});
  ASSERT_TRUE(guarded.ready());
  v1::GenerateRequest request = Greedy(40, "It was a dark and stormy night. It was a dark and");
  v1::SamplingParams* sampling = request.mutable_sampling();
  sampling->set_temperature(0.7f);
  sampling->set_seed(11);
  sampling->set_n(3);
  sampling->set_prompt_logprobs(1);
  v1::Inference::Stub& stub = guarded.client().stub();
  grpc::ClientContext unary_context;
  v1::GenerateResponse whole;
  ASSERT_TRUE(stub.Generate(&unary_context, request, &whole).ok());
  ASSERT_EQ(whole.more_outputs_size(), 2);

  grpc::ClientContext context;
  const auto reader = stub.GenerateStream(&context, request);
  std::vector<std::string> texts(3);
  std::vector<v1::FinishReason> ends(3);
  std::vector<float> prompt;
  for (v1::GenerateStreamResponse delta; reader->Read(&delta);) {
    const auto index = static_cast<size_t>(delta.index());
    texts.at(index) += delta.text();
    EXPECT_EQ(ends[index], v1::FINISH_REASON_UNSPECIFIED) << "a response after the last";
    ends[index] = delta.finish_reason();
    for (const auto& position : delta.prompt_logprobs()) prompt.push_back(position.logprob());
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(texts[0], whole.text());
  EXPECT_EQ(ends[0], whole.finish_reason());
  for (int i = 0; i < 2; ++i) {
    const auto index = static_cast<size_t>(i) + 1;
    EXPECT_EQ(texts[index], whole.more_outputs(i).text());
    EXPECT_EQ(ends[index], whole.more_outputs(i).finish_reason());
    EXPECT_NE(texts[index], texts[0]) << "random numbers of its own";
  }
  ASSERT_EQ(prompt.size(), static_cast<size_t>(whole.usage().prompt_tokens()) - 1);
  for (size_t i = 0; i < prompt.size(); ++i) {
    EXPECT_EQ(prompt[i], whole.prompt_logprobs(static_cast<int>(i)).logprob());
    EXPECT_LT(prompt[i], 0.0f);
  }

  // Without guesses: the same text; and there were some.
  sampling->set_prompt_lookup_num_tokens(0);
  grpc::ClientContext plain_context;
  v1::GenerateResponse plain;
  ASSERT_TRUE(stub.Generate(&plain_context, request, &plain).ok());
  EXPECT_EQ(plain.text(), whole.text());
  EXPECT_EQ(plain.more_outputs(1).text(), whole.more_outputs(1).text());
  EXPECT_GT(guarded.client().Info().stats().draft_tokens(), 0);
  guarded.ExpectServing("several outputs");
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

TEST(ServeProcess, HttpPortCanBeLeftOut) {
  Process process({"serve", "--model", test::DemoModel(), "--listen", "127.0.0.1:0", "--http", ""});
  ASSERT_TRUE(process.WaitFor("ready after"));
  EXPECT_EQ(process.err().find("(http)"), std::string::npos) << process.err();
  process.Signal(SIGTERM);
  EXPECT_EQ(process.Wait(), 0);
}

TEST(ServeProcess, CancelStormLeavesNothingBehind) {
  constexpr int kClients = 10;
  constexpr int kRounds = 500;
  Guarded guarded;
  ASSERT_TRUE(guarded.ready());
  guarded.WarmUp();
  std::vector<std::thread> clients;
  std::atomic<int> cancelled{0};
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back([&, i] {
      Client client(guarded.server().grpc());
      for (int round = 0; round < kRounds; ++round) {
        grpc::ClientContext context;
        const auto reader =
            client.stub().GenerateStream(&context, Greedy(400, "storm " + std::to_string(i)));
        v1::GenerateStreamResponse delta;
        if (round % 3 == 0) reader->Read(&delta);
        if (round % 3 == 1) std::this_thread::sleep_for(std::chrono::milliseconds(round % 7));
        context.TryCancel();
        while (reader->Read(&delta)) {
        }
        const grpc::Status status = reader->Finish();
        if (status.error_code() == StatusCode::CANCELLED) ++cancelled;
        EXPECT_EQ(status.error_code(), StatusCode::CANCELLED)
            << "client " << i << ", round " << round << ": " << status.error_message();
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(cancelled, kClients * kRounds);
  guarded.ExpectUnharmed("5000 cancelled streams");
}

TEST(ServeProcess, ClientKilledMidStreamFreesItsBlocks) {
  Guarded guarded;
  ASSERT_TRUE(guarded.ready());
  guarded.WarmUp();
  Process client({"generate", "--target", guarded.server().grpc(), "--prompt", "Once",
                  "--max-tokens", "500", "--ignore-eos"});
  ASSERT_TRUE(Eventually([&] { return !client.out().empty(); }));
  client.Signal(SIGKILL);
  EXPECT_EQ(client.Wait(), 128 + SIGKILL);
  guarded.ExpectUnharmed("a killed client");
}

TEST(ServeProcess, CancellingAQueuedRequestTakesItOutOfTheQueue) {
  Guarded guarded({"scheduler.max_num_seqs=1"});
  ASSERT_TRUE(guarded.ready());
  guarded.WarmUp();
  grpc::ClientContext running_context;
  const auto running = guarded.client().stub().GenerateStream(&running_context, Greedy(480));
  v1::GenerateStreamResponse delta;
  ASSERT_TRUE(running->Read(&delta));
  grpc::ClientContext queued_context;
  const auto queued = guarded.client().stub().GenerateStream(&queued_context, Greedy(480, "Two"));
  ASSERT_TRUE(Eventually([&] { return guarded.client().Info().stats().waiting() == 1; }));
  queued_context.TryCancel();
  EXPECT_FALSE(queued->Read(&delta));
  EXPECT_EQ(queued->Finish().error_code(), StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually([&] { return guarded.client().Info().live_requests() <= 1; }));
  int tokens = 1;
  while (running->Read(&delta)) tokens += delta.token_ids_size();
  EXPECT_TRUE(running->Finish().ok()) << "the other request was not meant";
  EXPECT_EQ(tokens, 480);
  guarded.ExpectUnharmed("a cancelled queued request");
}

TEST(ServeProcess, StalledReaderIsCutOffAndOthersAreNotHeldUp) {
  Guarded guarded({"timeouts.stall_seconds=0.3", "limits.stream_backlog_tokens=4"});
  ASSERT_TRUE(guarded.ready());
  guarded.WarmUp();
  {
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
    guarded.ExpectServing("a stalled reader");  // waits until its blocks are free
    v1::GenerateStreamResponse delta;
    int tokens = 0;
    while (reader->Read(&delta)) tokens += delta.token_ids_size();
    const grpc::Status status = reader->Finish();
    const StatusCode code = status.error_code();
    EXPECT_TRUE(code == StatusCode::RESOURCE_EXHAUSTED || code == StatusCode::CANCELLED) << code;
    if (code == StatusCode::RESOURCE_EXHAUSTED) {
      EXPECT_NE(status.error_message().find("reader stalled"), std::string::npos)
          << status.error_message();
    }
    EXPECT_LT(tokens, 500);
  }
  guarded.ExpectUnharmed("a stalled reader that is gone");
}

TEST(ServeProcess, FullQueueIsResourceExhaustedWithPushback) {
  Guarded guarded({"limits.max_queued_requests=2", "scheduler.max_num_seqs=1"});
  ASSERT_TRUE(guarded.ready());
  guarded.WarmUp();
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
    EXPECT_NE(status.error_message().find(" requests are waiting, allowed: "), std::string::npos)
        << status.error_message();
    EXPECT_EQ(contexts[i]->GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
    EXPECT_GT(DetailOf<google::rpc::RetryInfo>(status).retry_delay().nanos(), 0);
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
#ifdef _GLIBCXX_TSAN  // a thirtieth of the speed, on one core
  constexpr int32_t kTokens = 40;
#else
  constexpr int32_t kTokens = 300;
#endif
  ServerProcess server({"timeouts.pre_drain_seconds=0.2", "timeouts.drain_seconds=120"});
  ASSERT_TRUE(server.ready());
  Load load(server.grpc(), 8, kTokens);
  ASSERT_TRUE(Eventually([&] { return load.started == 8; }));
  server.process().Signal(SIGTERM);
  EXPECT_TRUE(server.process().WaitFor("draining"));
  EXPECT_EQ(test::RunQuantd({"health", "--target", server.grpc()}).code, 1)
      << "NOT_SERVING at once";
  Client late(server.grpc());
  std::vector<int32_t> ids;
  grpc::Status refused;
  EXPECT_TRUE(Eventually([&] {  // after the time for load balancers to notice
    refused = late.Generate(Greedy(1), &ids);
    return !refused.ok();
  }));
  EXPECT_EQ(refused.error_code(), StatusCode::UNAVAILABLE);
  EXPECT_EQ(refused.error_message(), "the server is draining");
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
  const std::string log = server.process().err();
  const auto number_after = [&](const std::string& words) {
    const size_t at = log.find(words);
    return at == std::string::npos ? -1 : std::atoi(log.c_str() + at + words.size());
  };
  EXPECT_GE(number_after("second signal: cancelling "), 1) << log;
  EXPECT_EQ(number_after("drained: "), number_after("second signal: cancelling ")) << log;
}

TEST(ServeProcess, SighupDrainsUnlessItWasIgnored) {
  for (const bool ignored : {false, true}) {
    // As nohup starts a process.
    const auto before = signal(SIGHUP, ignored ? SIG_IGN : SIG_DFL);
    ServerProcess server;
    signal(SIGHUP, before);
    ASSERT_TRUE(server.ready());
    server.process().Signal(SIGHUP);
    if (ignored) {
      std::vector<int32_t> ids;
      EXPECT_TRUE(Client(server.grpc()).Generate(Greedy(4), &ids).ok());
      EXPECT_EQ(server.process().err().find("signal: "), std::string::npos);
      server.process().Signal(SIGTERM);
    }
    EXPECT_EQ(server.process().Wait(), 0);
    EXPECT_TRUE(server.process().WaitFor("drained: 0 requests")) << server.process().err();
  }
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
  EXPECT_EQ(load.complete + load.unavailable, 20) << "another server may be asked";
  EXPECT_EQ(server.process().err().find("drained: 0 requests"), std::string::npos)
      << server.process().err();
}

TEST(ServeProcess, AFailedDeviceEndsTheProcessWhenEveryRequestKnows) {
#ifndef QUANTD_HAS_CUDA_EMULATION
  GTEST_SKIP() << "the emulated device is not built in";
#endif
  testing_support::TempDir dir;
  const auto model = dir.path() / "model", failure = dir.path() / "failure";
  std::filesystem::create_directory(model);
  testing_support::TinyModelOptions shape;
  shape.vocab_size = 4096;  // of the demo model's tokenizer
  testing_support::WriteTinyModel(model, shape);
  for (const char* file : {"tokenizer.json", "tokenizer_config.json"}) {
    std::filesystem::copy_file(std::filesystem::path(test::DemoModel()) / file, model / file);
  }
  setenv("QUANTD_EMULATION_FAILURE", failure.c_str(), 1);
  ServerProcess server({"model=" + model.string(), "backend=cuda-emulated"});
  unsetenv("QUANTD_EMULATION_FAILURE");
  ASSERT_TRUE(server.ready()) << server.process().err();
  Load load(server.grpc(), 3, 60);
  ASSERT_TRUE(Eventually([&] { return load.started == 3; }));
  testing_support::WriteFile(failure, "");
  load.Join();
  EXPECT_EQ(load.unavailable, 3);
  EXPECT_EQ(server.process().Wait(), 1);
  EXPECT_TRUE(server.process().WaitFor("the device failed: a failure was ordered"))
      << server.process().err();
}

TEST(ServeProcess, RequestsWhileLoadingAreUnavailableAndHarmNothing) {
  const std::vector<int32_t> expected = [] {
    ServerProcess server;
    std::vector<int32_t> ids;
    if (server.ready()) Client(server.grpc()).Generate(Greedy(24), &ids);
    return ids;
  }();
  ASSERT_EQ(expected.size(), 24u);
  bool while_loading = false;
  for (int attempt = 0; attempt < 20 && !while_loading; ++attempt) {  // it loads in a moment
    ServerProcess server({}, /*wait_ready=*/false);
    Client client(server.grpc());
    std::vector<int32_t> ids;
    EXPECT_TRUE(Eventually([&] {
      const grpc::Status status = client.Generate(Greedy(24), &ids);
      if (status.ok()) return true;
      while_loading = true;
      EXPECT_EQ(status.error_code(), StatusCode::UNAVAILABLE);
      EXPECT_NE(status.error_message().find("the model is loading"), std::string::npos)
          << status.error_message();
      return false;
    }));
    EXPECT_EQ(ids, expected);
    EXPECT_EQ(client.Info().stats().kv_blocks_free(), client.Info().stats().kv_blocks_total());
  }
  EXPECT_TRUE(while_loading);
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
  EXPECT_EQ(second.err, "quantd: listen.grpc: " + first.grpc() +
                            " cannot be bound (in use, or not of this machine?)\n");
}

}  // namespace
}  // namespace quantd
