// How much the service takes and holds: large messages, full queues, clients that do not read,
// connections that grow old.
#include "tests/server/grpc/service_fixture.h"
#include "tests/server/http2_client.h"

#include <chrono>
#include <thread>

namespace quantd {
namespace {

using grpc::StatusCode;
using test::Eventually;
using test::Http2Client;
using test::Letters;
using test::NewChannel;
using test::ServiceTest;

// A connection whose windows hold little, so that a reader that does not read blocks the writer
// soon.
grpc::ChannelArguments SmallWindow() {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 8192);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  return arguments;
}

TEST_F(ServiceTest, OversizedMessageIsResourceExhausted) {
  Start({"limits.max_message_bytes=64KiB"});
  grpc::ClientContext context;
  v1::GenerateResponse response;
  const auto status = stub_->Generate(&context, Request(1, std::string(100 << 10, 'x')), &response);
  EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
  ExpectHealthy();
}

TEST_F(ServiceTest, CompressedMessagesAreRefusedBeforeTheyInflate) {
  Start();
  for (const auto algorithm : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE}) {
    grpc::ClientContext context;
    context.set_compression_algorithm(algorithm);
    v1::GenerateResponse response;
    const auto status = stub_->Generate(&context, Request(1, std::string(1 << 20, 'x')), &response);
    EXPECT_EQ(status.error_code(), StatusCode::UNIMPLEMENTED) << status.error_message();
  }
  ExpectHealthy();
}

TEST_F(ServiceTest, HugeMetadataIsResourceExhausted) {
  Start();
  grpc::ClientContext context;
  context.AddMetadata("x-large", std::string(20 << 10, 'x'));
  v1::GenerateResponse response;
  EXPECT_EQ(stub_->Generate(&context, Request(1), &response).error_code(),
            StatusCode::RESOURCE_EXHAUSTED);
  ExpectHealthy();
}

TEST_F(ServiceTest, FullQueueTellsWhenToTryAgain) {
  Start({"limits.retry_pushback_ms=321"}, {.max_live = 1});
  engine_->Hold(true);
  grpc::ClientContext first_context;
  const auto first = stub_->GenerateStream(&first_context, Request(5));
  ASSERT_TRUE(Eventually([&] { return engine_->live() == 1; }));
  for (const bool with_text : {true, false}) {
    v1::GenerateRequest request = Request(5);
    if (!with_text) request.mutable_token_ids()->add_ids(1);
    grpc::ClientContext context;
    v1::GenerateResponse response;
    const auto status = stub_->Generate(&context, request, &response);
    EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
    const auto& trailers = context.GetServerTrailingMetadata();
    const auto pushback = trailers.find("grpc-retry-pushback-ms");
    ASSERT_NE(pushback, trailers.end());
    EXPECT_EQ(std::string(pushback->second.data(), pushback->second.size()), "321");
  }
  engine_->Hold(false);
  v1::GenerateStreamResponse delta;
  while (first->Read(&delta)) {
  }
  EXPECT_TRUE(first->Finish().ok());
  ExpectHealthy();
}

TEST_F(ServiceTest, FullTokenizerQueueTellsWhenToTryAgain) {
  Start({"limits.max_queued_tokenizations=1", "limits.tokenizer_threads=1"});
  tokenizer_.Block(true);
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>>> streams;
  for (int i = 0; i < 2; ++i) {  // one is being encoded, one waits
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    streams.push_back(stub_->GenerateStream(contexts.back().get(), Request(3)));
    ASSERT_TRUE(Eventually([&] { return server_->live_calls() == i + 1; }));
    std::this_thread::sleep_for(std::chrono::milliseconds(50));  // for the worker to take the first
  }
  grpc::ClientContext context;
  v1::GenerateResponse response;
  EXPECT_EQ(stub_->Generate(&context, Request(1), &response).error_code(),
            StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
  grpc::ClientContext tokenize_context;
  v1::TokenizeRequest tokenize;
  tokenize.set_text("x");
  v1::TokenizeResponse ids;
  EXPECT_EQ(stub_->Tokenize(&tokenize_context, tokenize, &ids).error_code(),
            StatusCode::RESOURCE_EXHAUSTED);
  // Ids need no tokenizer, so they pass.
  v1::GenerateRequest by_ids = Request(3);
  by_ids.mutable_token_ids()->add_ids(1);
  grpc::ClientContext ids_context;
  EXPECT_TRUE(stub_->Generate(&ids_context, by_ids, &response).ok());
  tokenizer_.Block(false);
  for (auto& stream : streams) {
    v1::GenerateStreamResponse delta;
    while (stream->Read(&delta)) {
    }
    EXPECT_TRUE(stream->Finish().ok());
  }
  ExpectHealthy();
}

TEST_F(ServiceTest, APromptBeyondTheContextIsRefusedWithoutBeingTokenized) {
  Start({}, {.max_model_len = 512});
  tokenizer_.Block(true);
  grpc::ClientContext context;
  v1::GenerateResponse response;
  const auto status = stub_->Generate(&context, Request(4, std::string(1 << 20, 'x')), &response);
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(),
            "the prompt's 1048576 or more tokens and max_tokens 4 make at least 1048580, allowed: "
            "the context of 512");
}

TEST_F(ServiceTest, SlowReaderHoldsTheEngineBackAndLosesNothing) {
  Start({"limits.stream_backlog_tokens=32"},
        {.width = 1000, .step = std::chrono::microseconds(20)});
  const auto stub = v1::Inference::NewStub(NewChannel(server_->address(), SmallWindow()));
  const int total = 4000;  // 4 MB
  grpc::ClientContext context;
  const auto reader = stub->GenerateStream(&context, Request(total));
  ASSERT_TRUE(Eventually([&] { return engine_->stalled_steps() > 100; }));
  const int64_t made = engine_->tokens();
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_EQ(engine_->tokens(), made) << "the engine goes on for a reader that does not read";
  EXPECT_LT(made, 1500);
  // Another client is not held back.
  grpc::ClientContext other_context;
  v1::GenerateResponse other;
  EXPECT_TRUE(stub_->Generate(&other_context, Request(10), &other).ok());
  v1::GenerateStreamResponse delta;
  int tokens = 0;
  int merged = 0;
  std::string text;
  while (reader->Read(&delta)) {
    for (const int32_t id : delta.token_ids()) EXPECT_EQ(id, 'a' + tokens++ % 26);
    if (delta.token_ids_size() > 1) ++merged;
    EXPECT_LE(delta.token_ids_size(), 32 + 1);
    text += delta.text();
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(tokens, total);
  EXPECT_EQ(text.size(), 1000u * total);
  EXPECT_GT(merged, 0);
  EXPECT_EQ(delta.finish_reason(), v1::FINISH_REASON_LENGTH);
}

TEST_F(ServiceTest, StalledReaderIsCutOff) {
  Start({"timeouts.stall_seconds=0.2"}, {.width = 1000, .step = std::chrono::microseconds(20)});
  const auto stub = v1::Inference::NewStub(NewChannel(server_->address(), SmallWindow()));
  grpc::ClientContext context;
  const auto reader = stub->GenerateStream(&context, Request(100000));
  ASSERT_TRUE(Eventually([&] { return engine_->cancels() == 1 && engine_->live() == 0; }));
  ASSERT_TRUE(Eventually([&] { return server_->live_calls() == 0; })) << "the stream itself stays";
  v1::GenerateStreamResponse delta;
  while (reader->Read(&delta)) {
  }
  const grpc::Status status = reader->Finish();
  // Its end may have come too late behind the data it never read: then the stream was reset.
  EXPECT_TRUE(status.error_code() == StatusCode::RESOURCE_EXHAUSTED ||
              status.error_code() == StatusCode::CANCELLED)
      << status.error_code();
}

TEST_F(ServiceTest, AnOldConnectionIsGivenUpWhenItsCallsHaveEnded) {
  Start({"timeouts.max_connection_age_seconds=0.2"}, {.step = std::chrono::milliseconds(2)});
  grpc::ClientContext context;
  v1::GenerateResponse response;
  ASSERT_TRUE(stub_->Generate(&context, Request(400), &response).ok());
  EXPECT_EQ(response.text(), Letters(400));
  EXPECT_TRUE(Eventually([&] { return channel_->GetState(false) != GRPC_CHANNEL_READY; }));
  ExpectHealthy();
}

TEST_F(ServiceTest, StalledReaderThatWakesUpInTimeLearnsWhy) {
  Start({"timeouts.stall_seconds=0.5"}, {.width = 1000, .step = std::chrono::microseconds(20)});
  const auto stub = v1::Inference::NewStub(NewChannel(server_->address(), SmallWindow()));
  grpc::ClientContext context;
  const auto reader = stub->GenerateStream(&context, Request(100000));
  ASSERT_TRUE(Eventually([&] { return engine_->cancels() == 1; }));
  v1::GenerateStreamResponse delta;
  while (reader->Read(&delta)) {
  }
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_NE(status.error_message().find("reader stalled"), std::string::npos);
  EXPECT_TRUE(Eventually([&] { return server_->live_calls() == 0; }));
}

TEST_F(ServiceTest, AnAnswerThatNobodyTakesIsGivenUp) {
  Start({"timeouts.stall_seconds=0.2"});
  Http2Client client(server_->address());
  // SETTINGS: an initial window of 0 bytes, so that no answer can leave.
  ASSERT_TRUE(client.Send({Http2Client::kSettings, 0, 0, std::string("\0\4\0\0\0\0", 6)}));
  v1::DetokenizeRequest request;
  request.add_token_ids('a');
  ASSERT_TRUE(client.SendCall(1, test::CallHeaders("/quantd.v1.Inference/Detokenize"),
                              request.SerializeAsString()));
  EXPECT_EQ(client.EndOf(1), StatusCode::CANCELLED) << "it is kept for ever";
  ExpectHealthy();
}

TEST_F(ServiceTest, TheTextOfTokensIsNoLongerThanAMessage) {
  class LongTokens : public test::ByteTokenizer {
    std::string Decode(std::span<const int32_t> ids, bool) const override {
      return std::string(3 * ids.size(), 'x');
    }
  };
  const LongTokens tokenizer;
  Start({"limits.max_message_bytes=64KiB"}, {}, /*ready=*/false);
  model_.tokenizer = &tokenizer;
  serving_.SetReady(&model_);
  v1::DetokenizeRequest request;
  for (int i = 0; i < 30000; ++i) request.add_token_ids(1);
  grpc::ClientContext context;
  v1::DetokenizeResponse response;
  const grpc::Status status = stub_->Detokenize(&context, request, &response);
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(),
            "token_ids: their text has 90000 bytes, allowed: 65536 (limits.max_message_bytes)");
}

}  // namespace
}  // namespace quantd
