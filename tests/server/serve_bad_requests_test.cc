// Bad requests over the wire to `quantd serve` as its own process: malformed, out of range, too
// large, or not what HTTP/2 allows. Each is answered by name, after each the same good request
// gives the same tokens, and nothing is left behind.
#include <google/protobuf/descriptor.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <functional>
#include <limits>
#include <regex>

#include "google/rpc/error_details.pb.h"
#include "tests/server/guarded_server.h"
#include "tests/server/http2_client.h"
#include "tests/server/http_get.h"
#include "tests/server/raw_call.h"

namespace quantd {
namespace {

using google::rpc::BadRequest;
using grpc::StatusCode;
using test::CallHeaders;
using test::Client;
using test::DetailOf;
using test::Greedy;
using test::Guarded;
using test::Headers;
using test::Http2Client;
using test::RawCall;

constexpr char kGenerate[] = "/quantd.v1.Inference/Generate";

struct BadRow {
  std::string name;
  std::function<void(v1::GenerateRequest&)> spoil;
  StatusCode code;
  std::string message;     // a part of it
  std::string field = "";  // of the BadRequest, where it is not `message`
};

std::vector<BadRow> BadRequests() {
  constexpr auto kBad = StatusCode::INVALID_ARGUMENT;
  const auto s = [](v1::GenerateRequest& r) { return r.mutable_sampling(); };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  return {
      {"unknown model", [](auto& r) { r.set_model("gpt"); }, StatusCode::NOT_FOUND, "model"},
      {"model name of 1 MB", [](auto& r) { r.set_model(std::string(1 << 20, 'm')); },
       StatusCode::NOT_FOUND, "model"},
      {"request id of 1 MB", [](auto& r) { r.set_request_id(std::string(1 << 20, 'i')); }, kBad,
       "request_id"},
      {"no prompt", [](auto& r) { r.clear_prompt(); }, kBad, "prompt"},
      {"empty prompt", [](auto& r) { r.set_text(""); }, kBad, "text"},
      {"prompt beyond the context",
       [](auto& r) {
         for (int i = 0; i < 600; ++i) r.mutable_token_ids()->add_ids(5);
       },
       kBad, "512", "prompt"},
      {"long text beyond the context", [](auto& r) { r.set_text(std::string(200000, 'x')); }, kBad,
       "512", "prompt"},
      {"prompt and max_tokens beyond the context", [=](auto& r) { s(r)->set_max_tokens(512); },
       kBad, "max_tokens", "sampling.max_tokens"},
      {"max_tokens 0", [=](auto& r) { s(r)->set_max_tokens(0); }, kBad, "sampling.max_tokens"},
      {"max_tokens -1", [=](auto& r) { s(r)->set_max_tokens(-1); }, kBad, "sampling.max_tokens"},
      {"max_tokens 2^31-1", [=](auto& r) { s(r)->set_max_tokens(INT32_MAX); }, kBad, "2147483647",
       "sampling.max_tokens"},
      {"temperature nan", [=](auto& r) { s(r)->set_temperature(nan); }, kBad,
       "sampling.temperature"},
      {"temperature inf", [=](auto& r) { s(r)->set_temperature(HUGE_VALF); }, kBad,
       "sampling.temperature"},
      {"temperature -1", [=](auto& r) { s(r)->set_temperature(-1); }, kBad, "sampling.temperature"},
      {"top_p 0", [=](auto& r) { s(r)->set_top_p(0); }, kBad, "sampling.top_p"},
      {"top_p 1.1", [=](auto& r) { s(r)->set_top_p(1.1f); }, kBad, "sampling.top_p"},
      {"top_p nan", [=](auto& r) { s(r)->set_top_p(nan); }, kBad, "sampling.top_p"},
      {"top_k -5", [=](auto& r) { s(r)->set_top_k(-5); }, kBad, "sampling.top_k"},
      {"n of a million", [=](auto& r) { s(r)->set_n(1000000); }, kBad, "1000000", "sampling.n"},
      {"n 0", [=](auto& r) { s(r)->set_n(0); }, kBad, "sampling.n"},
      {"allowed tokens that end the text, before min_tokens",
       [=](auto& r) {
         s(r)->add_allowed_token_ids(7);
         s(r)->add_stop_token_ids(7);
         s(r)->set_min_tokens(2);
       },
       kBad, "min_tokens 2", "sampling.allowed_token_ids"},
      {"repetition_penalty -1", [=](auto& r) { s(r)->set_repetition_penalty(-1); }, kBad,
       "sampling.repetition_penalty"},
      {"presence_penalty 3", [=](auto& r) { s(r)->set_presence_penalty(3); }, kBad,
       "sampling.presence_penalty"},
      {"frequency_penalty nan", [=](auto& r) { s(r)->set_frequency_penalty(nan); }, kBad,
       "sampling.frequency_penalty"},
      {"100,000 logit biases",
       [=](auto& r) {
         for (int i = 0; i < 100000; ++i) (*s(r)->mutable_logit_bias())[i] = 1;
       },
       kBad, "1024", "sampling.logit_bias"},
      {"logit_bias of no token", [=](auto& r) { (*s(r)->mutable_logit_bias())[-1] = 1; }, kBad,
       "sampling.logit_bias[-1]"},
      {"logit_bias inf", [=](auto& r) { (*s(r)->mutable_logit_bias())[5] = HUGE_VALF; }, kBad,
       "sampling.logit_bias[5]"},
      {"allowed_token_ids beyond the vocabulary",
       [=](auto& r) { s(r)->add_allowed_token_ids(1 << 30); }, kBad,
       "sampling.allowed_token_ids[0]"},
      {"10,000 bad words",
       [=](auto& r) {
         for (int i = 0; i < 10000; ++i) s(r)->add_bad_words("x");
       },
       kBad, "128", "sampling.bad_words"},
      {"an empty bad word", [=](auto& r) { s(r)->add_bad_words(""); }, kBad,
       "sampling.bad_words[0]"},
      {"prompt_logprobs -1", [=](auto& r) { s(r)->set_prompt_logprobs(-1); }, kBad,
       "sampling.prompt_logprobs"},
      {"prompt_lookup_num_tokens 17", [=](auto& r) { s(r)->set_prompt_lookup_num_tokens(17); },
       kBad, "sampling.prompt_lookup_num_tokens"},
      {"a sampling option that is not known",
       [=](auto& r) { s(r)->GetReflection()->MutableUnknownFields(s(r))->AddVarint(1000, 1); },
       kBad, "field number 1000", "sampling"},
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
       StatusCode::RESOURCE_EXHAUSTED, "larger than max"},
  };
}

// Whether `path` ("sampling.stop[3]") leads to a field, or a oneof, of a GenerateRequest.
bool IsField(const std::string& path) {
  const google::protobuf::Descriptor* message = v1::GenerateRequest::descriptor();
  static const std::regex kPart(R"(([a-z_]+)(?:\[-?\d+\])?(?:\.|$))");
  size_t read = 0;
  for (std::sregex_iterator part(path.begin(), path.end(), kPart), end; part != end; ++part) {
    if (message == nullptr) return false;
    read += static_cast<size_t>(part->length());
    const auto* field = message->FindFieldByName((*part)[1]);
    if (field == nullptr && message->FindOneofByName((*part)[1]) == nullptr) return false;
    message = field != nullptr ? field->message_type() : nullptr;
  }
  return !path.empty() && read == path.size();
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
    EXPECT_LT(unary.error_message().size(), 1000u) << row.name;
    if (row.code == StatusCode::INVALID_ARGUMENT) {
      const BadRequest detail = DetailOf<BadRequest>(unary);
      ASSERT_EQ(detail.field_violations_size(), 1) << row.name;
      const std::string& field = detail.field_violations(0).field();
      EXPECT_TRUE(IsField(field)) << field;
      EXPECT_TRUE(field.starts_with(row.field.empty() ? row.message : row.field))
          << row.name << ": " << field;
      EXPECT_EQ(detail.field_violations(0).description(), unary.error_message()) << row.name;
    }
    grpc::ClientContext context;
    const auto reader = client.stub().GenerateStream(&context, request);
    v1::GenerateStreamResponse delta;
    EXPECT_FALSE(reader->Read(&delta)) << row.name;
    const grpc::Status stream = reader->Finish();
    EXPECT_EQ(stream.error_code(), row.code) << row.name;
    EXPECT_EQ(stream.error_message(), unary.error_message()) << row.name;
    guarded.ExpectUnharmed(row.name);
  }
}

// What no stub makes: bytes that are not the method's message, and methods that there are not.
void SendBadBytes(Guarded& guarded) {
  constexpr auto kBad = StatusCode::INVALID_ARGUMENT;
  const std::string malformed = "malformed request: not a quantd.v1.";
  const struct {
    const char* name;
    const char* method;
    std::string bytes;
    StatusCode code;
    std::string message;  // a part of it
  } rows[] = {
      {"truncated", "/quantd.v1.Inference/GenerateStream", "\x1a\x20hel", kBad, malformed},
      {"illegal wire type", kGenerate, "\x0f\xff\xff", kBad, malformed},
      {"invalid UTF-8 in text", kGenerate, "\x1a\x03\xff\xfe\x41", kBad, "not UTF-8"},
      {"surrogate in text", "/quantd.v1.Inference/GenerateStream", "\x1a\x03\xed\xa0\x80", kBad,
       "not UTF-8"},
      {"invalid UTF-8 to tokenize", "/quantd.v1.Inference/Tokenize", "\x12\x02\xc3\x28", kBad,
       malformed + "TokenizeRequest"},
      {"a token id of -1 to detokenize", "/quantd.v1.Inference/Detokenize",
       "\x12\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", kBad, "-1 is not in [0, 4096)"},
      {"information of an unknown model", "/quantd.v1.Inference/GetModelInfo", "\x0a\x03gpt",
       StatusCode::NOT_FOUND, "\"gpt\" is not served here"},
      {"unknown method", "/quantd.v1.Inference/Train", "", StatusCode::UNIMPLEMENTED, ""},
      {"unknown service", "/quantd.v9.Inference/Generate", "", StatusCode::UNIMPLEMENTED, ""},
  };
  for (const auto& row : rows) {
    const grpc::Status status = RawCall(guarded.client().channel(), row.method, row.bytes);
    EXPECT_EQ(status.error_code(), row.code) << row.name << ": " << status.error_message();
    EXPECT_NE(status.error_message().find(row.message), std::string::npos)
        << row.name << ": " << status.error_message() << " lacks " << row.message;
    guarded.ExpectUnharmed(row.name);
  }
}

grpc::Status GenerateOn(Client& client, grpc::ClientContext& context,
                        const v1::GenerateRequest& request) {
  v1::GenerateResponse response;
  return client.stub().Generate(&context, request, &response);
}

// Calls that are well formed and still more than the server takes.
void SendBadCalls(Guarded& guarded) {
  {  // a bomb of zeros
    Client bomber(guarded.server().grpc());
    grpc::ClientContext context;
    context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
    const int64_t peak = guarded.server().MemoryBytes("VmHWM");
    const grpc::Status status = GenerateOn(bomber, context, Greedy(1, std::string(64 << 20, 'x')));
    EXPECT_EQ(status.error_code(), StatusCode::UNIMPLEMENTED) << status.error_message();
    EXPECT_NE(status.error_message().find("gzip"), std::string::npos) << status.error_message();
    EXPECT_LT(guarded.server().MemoryBytes("VmHWM") - peak, 16 << 20) << "it was inflated";
  }
  guarded.ExpectUnharmed("gzip bomb");
  {
    Client client(guarded.server().grpc());
    grpc::ClientContext context;
    context.AddMetadata("x-large", std::string(20 << 10, 'x'));
    const grpc::Status status = GenerateOn(client, context, Greedy(1));
    EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
    EXPECT_NE(status.error_message().find("metadata"), std::string::npos) << status.error_message();
  }
  guarded.ExpectUnharmed("20 KB of metadata");
  {  // connections that never speak, and one that speaks nonsense
    std::vector<int> sockets;
    for (int i = 0; i < 20; ++i) sockets.push_back(test::ConnectTcp(guarded.server().grpc()));
    const std::string nonsense(3000, '?');
    EXPECT_GT(write(sockets[0], nonsense.data(), nonsense.size()), 0);
    guarded.ExpectServing("connections without a preface");
    for (const int fd : sockets) close(fd);
  }
  guarded.ExpectUnharmed("connections without a preface, closed");
  // Deadlines: on a connection that there is already, so that the calls reach the server before
  // they are late. (And gRPC's client can leave one open that is made after its channel has gone.)
  Client& client = guarded.client();
  for (const int milliseconds : {0, 1, 5}) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::milliseconds(milliseconds));
    EXPECT_EQ(GenerateOn(client, context, Greedy(480)).error_code(), StatusCode::DEADLINE_EXCEEDED);
    guarded.ExpectUnharmed("a deadline of " + std::to_string(milliseconds) + " ms");
  }
  {
    std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
    std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>>> streams;
    for (int i = 0; i < 40; ++i) {
      contexts.push_back(std::make_unique<grpc::ClientContext>());
      contexts.back()->set_deadline(std::chrono::system_clock::now() +
                                    std::chrono::milliseconds(1 + i % 10));
      streams.push_back(client.stub().GenerateStream(contexts.back().get(), Greedy(480)));
    }
    for (const auto& stream : streams) {
      v1::GenerateStreamResponse delta;
      while (stream->Read(&delta)) {
      }
      EXPECT_EQ(stream->Finish().error_code(), StatusCode::DEADLINE_EXCEEDED);
    }
  }
  guarded.ExpectUnharmed("forty streams with deadlines of 1 to 10 ms");
}

// What gRPC's own client refuses to send.
void SendBadFrames(Guarded& guarded) {
  const std::string good = Greedy(4).SerializeAsString();
  {  // the hand-written client is not what is refused
    Http2Client client(guarded.server().grpc());
    ASSERT_TRUE(client.SendCall(1, CallHeaders(kGenerate), good));
    ASSERT_EQ(client.EndOf(1), 0);
  }
  const std::pair<std::string, std::string> large = {"x-large", std::string(9 << 10, 'x')};
  const auto headers = [](std::initializer_list<std::pair<std::string, std::string>> replaced) {
    Headers result = CallHeaders(kGenerate);
    for (const auto& [name, value] : replaced) {
      std::erase_if(result, [&](const auto& header) { return header.first == name; });
      const bool pseudo = name[0] == ':';  // these stand in front
      result.insert(pseudo ? result.begin() : result.end(), {name, value});
    }
    return result;
  };
  const struct {
    const char* name;
    Headers headers;
  } rows[] = {
      {"bad base64 in a -bin header", headers({{"x-trace-bin", "%%% not base64 %%%"}})},
      {"base64 of an impossible length in a -bin header", headers({{"x-trace-bin", "AAAAA"}})},
      {"te: x before large headers", headers({{"te", "x"}, large})},
      {"te: x after large headers", headers({large, {"te", "x"}})},
      {"a nonsense scheme and large headers", headers({{":scheme", "gopher"}, large})},
      {"no path",
       [&] {
         Headers without = headers({});
         std::erase_if(without, [](const auto& header) { return header.first == ":path"; });
         return without;
       }()},
      {"a deadline that has passed", headers({{"grpc-timeout", "1n"}})},
  };
  for (const auto& row : rows) {
    {
      Http2Client client(guarded.server().grpc());
      EXPECT_TRUE(client.SendCall(1, row.headers, good)) << row.name;
      const int end = client.EndOf(1);
      EXPECT_NE(end, 0) << row.name << ": was taken";
      EXPECT_NE(end, -2) << row.name << ": was not answered";
    }
    guarded.ExpectUnharmed(row.name);
  }
  {  // too many pings: told to go away, and the connection closed, with the call on it
    Http2Client client(guarded.server().grpc());
    EXPECT_TRUE(client.SendCall(1, CallHeaders(kGenerate), Greedy(480).SerializeAsString()));
    for (int i = 0; i < 50 && client.Send({Http2Client::kPing, 0, 0, "12345678"}); ++i) {
    }
    std::pair<uint32_t, std::string> away;
    while (const auto frame = client.Read()) {
      if (frame->type == Http2Client::kGoAway) away = test::GoAwayOf(*frame);
    }
    EXPECT_EQ(away.first, 11u) << "ENHANCE_YOUR_CALM";
    EXPECT_EQ(away.second, "too_many_pings");
    EXPECT_TRUE(client.closed());
  }
  guarded.ExpectUnharmed("a flood of pings");
}

void SendEverythingBad(Guarded& guarded) {
  SendBadRequests(guarded);
  SendBadBytes(guarded);
  SendBadCalls(guarded);
  SendBadFrames(guarded);
}

TEST(ServeBadRequests, AreNamedAndLeaveNothingBehind) {
  Guarded guarded;
  ASSERT_TRUE(guarded.ready()) << guarded.server().process().err();
  // The first round also warms up what gRPC keeps (pollers, executors): nothing of the second may
  // add to it.
  SendEverythingBad(guarded);
  guarded.HoldToIdle();
  SendEverythingBad(guarded);
  EXPECT_EQ(guarded.server().process().err().find("libprotobuf"), std::string::npos)
      << "a client can write to stderr";
}

// gRPC's own client holds its pings back to one a second. The slowest backend keeps it waiting for
// longer than the server stands that.
TEST(ServeBadRequests, ClientThatKeepsAliveTooEagerlyLosesItsCall) {
  Guarded guarded({"backend=ref"});
  ASSERT_TRUE(guarded.ready()) << guarded.server().process().err();
  {
    grpc::ChannelArguments eager;
    eager.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 100);
    eager.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    Client client(guarded.server().grpc(), eager);
    grpc::ClientContext context;
    const grpc::Status status = GenerateOn(client, context, Greedy(480));
    EXPECT_EQ(status.error_code(), StatusCode::UNAVAILABLE) << status.error_message();
    EXPECT_NE(status.error_message().find("ping"), std::string::npos) << status.error_message();
  }
  guarded.ExpectUnharmed("a client that keeps alive too eagerly");
}

}  // namespace
}  // namespace quantd
