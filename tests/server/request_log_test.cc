// A request's line, as text and as JSON, and the real process's log.
#include "server/request_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "server/security/api_keys.h"
#include "tests/engine/models/tiny_model.h"
#include "tests/server/guarded_server.h"
#include "tests/server/raw_call.h"

namespace quantd {
namespace {

using testing::AnyOf;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

RequestLine Line() {
  RequestLine line;
  line.id = "r1";
  line.caller = "team-a";
  line.status = "OK";
  line.finish_reason = "length";
  line.prompt_tokens = 5;
  line.completion_tokens = 7;
  line.first_token_seconds = 0.25;
  line.seconds = 1.5;
  return line;
}

TEST(RequestLog, TextSaysWhatTheRequestTook) {
  EXPECT_EQ(ToText(Line()),
            "request r1 of team-a: OK, 5 + 7 tokens, length, first token after 0.250 s, 1.500 s");
  RequestLine line = Line();
  line.caller = "";
  line.status = "CANCELLED";
  line.error = "cancelled by the client";
  line.first_token_seconds.reset();
  line.peer = "ipv4:10.0.0.7:40112";
  line.prompt = "a \"b\"\n\xff";
  line.output = "c";
  EXPECT_EQ(ToText(line),
            "request r1: CANCELLED (cancelled by the client), from ipv4:10.0.0.7:40112, 5 + 7 "
            "tokens, length, 1.500 s, "
            "prompt \"a \\\"b\\\"\\n\xEF\xBF\xBD\", output \"c\"");
}

TEST(RequestLog, WhatAClientWroteIsNoOtherLine) {
  RequestLine line = Line();
  line.id = "a\n2026-01-01 info request b: OK\x1b[2J\x7f";
  line.error = "messages[0]\r\n\u009b2J\u2028\u202e";
  const std::string text = ToText(line);
  for (const char c : text) EXPECT_TRUE(c >= ' ' && c <= '~') << text;
  EXPECT_THAT(text, HasSubstr("request \"a\\n2026-01-01"));
  line.id = "r7 of admin: OK, 9 + 9 tokens";
  EXPECT_THAT(ToText(line), HasSubstr("request \"r7 of admin: OK, 9 + 9 tokens\" of team-a"));
  line.id = std::string(2 << 20, 'a');
  EXPECT_LT(ToText(line).size(), 600u);
  EXPECT_LT(ToJsonMembers(line).size(), 800u);
  line.error = std::string(4 << 20, '\1');
  EXPECT_LT(ToText(line).size(), 40000u);
  EXPECT_LT(ToJsonMembers(line).size(), 40000u);
  const absl::Status invalid = absl::InvalidArgumentError("stop[0]: \"secret\" is too long");
  EXPECT_EQ(ErrorForLog(invalid, false), "stop[0]");
  EXPECT_EQ(ErrorForLog(invalid, true), "stop[0]: \"secret\" is too long");
  EXPECT_EQ(ErrorForLog(absl::UnavailableError("a: b"), false), "a: b");
  EXPECT_EQ(ErrorForLog(absl::OkStatus(), true), "");
}

TEST(RequestLog, JsonHasTheSameAsMembers) {
  RequestLine line = Line();
  line.id = "a \"quoted\" id\n";
  const auto object = nlohmann::json::parse("{" + ToJsonMembers(line) + "}");
  EXPECT_EQ(object["request_id"], "a \"quoted\" id\n");
  EXPECT_EQ(object["caller"], "team-a");
  EXPECT_EQ(object["completion_tokens"], 7);
  EXPECT_EQ(object["first_token_seconds"], 0.25);
  EXPECT_FALSE(object.contains("prompt"));
  EXPECT_FALSE(object.contains("error"));
}

// The objects of a JSON log.
std::vector<nlohmann::json> Objects(const std::string& text) {
  std::vector<nlohmann::json> objects;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    objects.push_back(nlohmann::json::parse(line, nullptr, false));
    EXPECT_FALSE(objects.back().is_discarded()) << line;
  }
  return objects;
}

TEST(RequestLogProcess, EveryLineIsAnObjectAndEveryRequestHasOne) {
  for (const bool prompts : {false, true}) {
    test::ServerProcess server(
        {"log.format=json", prompts ? "log.prompts=true" : "log.level=info"});
    ASSERT_TRUE(server.ready());
    test::Client client(server.grpc());
    v1::GenerateRequest request = test::Greedy(4, "Once upon a secret");
    request.set_request_id("my \"own\" id");
    std::vector<int32_t> ids;
    ASSERT_TRUE(client.Generate(request, &ids).ok());
    request.mutable_sampling()->set_max_tokens(1000000);
    EXPECT_FALSE(client.Generate(request, &ids).ok());
    server.process().Signal(SIGTERM);
    ASSERT_EQ(server.process().Wait(), 0);
    const std::string log = server.process().err();
    std::vector<nlohmann::json> requests;
    for (const nlohmann::json& object : Objects(log)) {
      EXPECT_TRUE(object.contains("time") && object.contains("level")) << object;
      if (object["message"] == "request") requests.push_back(object);
    }
    ASSERT_EQ(requests.size(), 2u) << log;
    EXPECT_EQ(requests[0]["request_id"], "my \"own\" id");
    EXPECT_EQ(requests[0]["status"], "OK");
    EXPECT_EQ(requests[0]["completion_tokens"], 4);
    EXPECT_EQ(requests[0]["finish_reason"], "length");
    EXPECT_GT(requests[0]["first_token_seconds"], 0.0);
    EXPECT_EQ(requests[1]["status"], "INVALID_ARGUMENT");
    if (prompts) {
      EXPECT_EQ(requests[0]["prompt"], "Once upon a secret");
    } else {
      EXPECT_THAT(log, Not(HasSubstr("secret"))) << "prompts are private";
    }
  }
}

TEST(RequestLogProcess, EveryCallWithoutItsKeyHasALineThatSaysFromWhere) {
  testing_support::TempDir dir;
  const auto keys = dir.path() / "keys.yaml";
  testing_support::WriteFile(keys, "keys:\n" + MakeApiKey("team-a")->entry);
  test::ServerProcess server({"log.format=json", "security.api_keys=" + keys.string()});
  ASSERT_TRUE(server.ready());
  const auto channel = test::NewChannel(server.grpc());
  const std::vector<std::string> methods = {"/quantd.v1.Inference/Generate",
                                            "/quantd.v1.Inference/GenerateStream",
                                            "/quantd.v1.Inference/Tokenize",
                                            "/quantd.v1.Inference/GetModelInfo",
                                            "/inference.GRPCInferenceService/ModelInfer",
                                            "/inference.GRPCInferenceService/ModelStreamInfer",
                                            "/inference.GRPCInferenceService/ModelStatistics"};
  for (const std::string& method : methods) {
    EXPECT_EQ(test::RawCall(channel, method, "").error_code(), grpc::StatusCode::UNAUTHENTICATED)
        << method;
  }
  server.process().Signal(SIGTERM);
  ASSERT_EQ(server.process().Wait(), 0);
  size_t lines = 0;
  for (const nlohmann::json& object : Objects(server.process().err())) {
    if (object["message"] != "request") continue;
    ++lines;
    EXPECT_EQ(object["status"], "UNAUTHENTICATED");
    EXPECT_EQ(object["request_id"], "-");
    EXPECT_THAT(object.value("peer", ""), StartsWith("ipv4:127.0.0.1:"));
  }
  EXPECT_EQ(lines, methods.size());
}

TEST(RequestLogProcess, ItsLastLineIsAnObjectTooWhenServeFails) {
  const std::vector<std::string> common = {"serve", "--listen", "127.0.0.1:0",    "--http",
                                           "",      "--set",    "log.format=json"};
  for (const std::vector<std::string>& more : std::vector<std::vector<std::string>>{
           {"--model", "/no/model\x1b[2J", "--set", "log.level=info"},
           {"--model", "/no/model\x1b[2J", "--set", "log.level=off"},
           {"--model", "/no/model\x1b[2J", "--set", "limits.no_such_key=1"}}) {
    std::vector<std::string> arguments = common;
    arguments.insert(arguments.end(), more.begin(), more.end());
    const test::Finished run = test::RunQuantd(arguments);
    EXPECT_EQ(run.code, 1);
    const std::vector<nlohmann::json> objects = Objects(run.err);
    ASSERT_FALSE(objects.empty()) << run.err;
    EXPECT_EQ(objects.back()["level"], "critical");
    EXPECT_THAT(objects.back()["message"],
                AnyOf(HasSubstr("/no/model\\x1b[2J"), HasSubstr("limits.no_such_key")));
  }
}

TEST(RequestLogProcess, ALogThatNobodyReadsHoldsNothingUp) {
  test::ServerProcess server;
  ASSERT_TRUE(server.ready());
  server.process().StopReading();
  test::Client client(server.grpc());
  v1::GenerateRequest request = test::Greedy(1, "Once");
  request.set_request_id(std::string(250, 'x'));
  std::vector<int32_t> ids;
  for (int i = 0; i < 300; ++i) {  // lines of more bytes than a pipe has
    ASSERT_TRUE(client.Generate(request, &ids).ok());
  }
  server.process().Signal(SIGTERM);
  EXPECT_EQ(server.process().Wait(), 0);
}

}  // namespace
}  // namespace quantd
