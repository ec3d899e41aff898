// The KServe service of `quantd serve` as its own process: bad requests over the wire, after each
// of which the same good request gives the same tokens and nothing is left behind; and what
// Triton's clients really send, byte by byte as it was recorded (tests/clients/record_requests.py).
#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/rpc_method.h>
#include <grpcpp/impl/codegen/sync_stream.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>

#include "google/rpc/error_details.pb.h"
#include "inference/grpc_service.grpc.pb.h"
#include "tests/server/guarded_server.h"
#include "tests/server/kserve/infer_request.h"
#include "tests/server/raw_call.h"

namespace quantd {
namespace {

using grpc::StatusCode;
using inference::ModelInferRequest;
using inference::ModelStreamInferResponse;
using test::AddBool;
using test::AddNumber;
using test::AddRaw;
using test::AddText;
using test::Guarded;

const std::string kKserve = "/inference.GRPCInferenceService/";

struct BadInfer {
  const char* name;
  std::function<void(ModelInferRequest&)> spoil;
  StatusCode code;
  std::string message;  // a part of it
};

std::vector<BadInfer> BadInfers() {
  constexpr auto kBad = StatusCode::INVALID_ARGUMENT;
  const auto sampling = [](const std::string& json) {
    return [json](ModelInferRequest& r) { AddText(r, "sampling_parameters", json); };
  };
  return {
      {"unknown model", [](auto& r) { r.set_model_name("gpt"); }, StatusCode::NOT_FOUND,
       "\"gpt\" is not served here"},
      {"version abc", [](auto& r) { r.set_model_version("abc"); }, kBad, "model_version"},
      {"version 2", [](auto& r) { r.set_model_version("2"); }, StatusCode::NOT_FOUND,
       "model_version"},
      {"no text_input",
       [](auto& r) {
         r.clear_inputs();
         r.clear_raw_input_contents();
       },
       kBad, "text_input: missing"},
      {"empty prompt", [](auto& r) { r.set_raw_input_contents(0, kserve::EncodeBytes("")); }, kBad,
       "text_input: comes to no token"},
      {"prompt beyond the context",
       [](auto& r) { r.set_raw_input_contents(0, kserve::EncodeBytes(std::string(200000, 'x'))); },
       kBad, "512"},
      {"prompt and max_tokens beyond the context",
       [](auto& r) { AddNumber(r, "max_tokens", "INT32", 512); }, kBad, "max_tokens"},
      {"max_tokens 0", [](auto& r) { AddNumber(r, "max_tokens", "INT32", 0); }, kBad,
       "max_tokens is 0"},
      {"max_tokens -1", [](auto& r) { AddNumber(r, "max_tokens", "INT32", -1); }, kBad,
       "max_tokens is -1"},
      {"max_tokens 2^31-1", [](auto& r) { AddNumber(r, "max_tokens", "INT32", INT32_MAX); }, kBad,
       "2147483647"},
      {"temperature nan", [](auto& r) { AddNumber(r, "temperature", "FP32", std::nanf("")); }, kBad,
       "temperature is nan"},
      {"temperature inf", [](auto& r) { AddNumber(r, "temperature", "FP32", HUGE_VALF); }, kBad,
       "temperature is inf"},
      {"temperature -1", [](auto& r) { AddNumber(r, "temperature", "FP32", -1.0f); }, kBad,
       "temperature is -1"},
      {"top_p 0", [](auto& r) { AddNumber(r, "top_p", "FP32", 0.0f); }, kBad, "top_p is 0"},
      {"top_p 1.1", sampling("{\"top_p\": \"1.1\"}"), kBad, "sampling_parameters.top_p is 1.1"},
      {"top_k -5", [](auto& r) { AddNumber(r, "top_k", "INT32", -5); }, kBad, "top_k is -5"},
      {"n of a million", sampling("{\"n\": 1000000}"), kBad, "sampling_parameters.n: is 1000000"},
      {"10,000 stop words",
       [](auto& r) {
         std::string words;
         for (int i = 0; i < 10000; ++i) words += kserve::EncodeBytes("x");
         AddRaw(r, "stop_words", "BYTES", words);
         r.mutable_inputs(r.inputs_size() - 1)->set_shape(0, 10000);
       },
       kBad, "stop_words: shape is [10000]"},
      {"a stop word of 1 MB", [](auto& r) { AddText(r, "stop_words", std::string(1 << 20, 'x')); },
       kBad, "stop_words[0]"},
      {"end_id 4096", [](auto& r) { AddNumber(r, "end_id", "INT32", 4096); }, kBad, "end_id[0]"},
      {"end_id -1", [](auto& r) { AddNumber(r, "end_id", "INT32", -1); }, kBad, "end_id[0]"},
      {"logit_bias of no token", sampling("{\"logit_bias\": {\"-1\": 1}}"), kBad,
       "sampling_parameters.logit_bias[-1]"},
      {"sampling_parameters that are no JSON", sampling("{temperature: 1}"), kBad,
       "not a JSON object"},
      {"sampling_parameters 10,000 deep", sampling("{\"stop\":" + std::string(10000, '[')), kBad,
       "deeper than 4 levels"},
      {"sampling_parameters a million deep", sampling(std::string(1000000, '[')), kBad,
       "deeper than 4 levels"},
      {"an option that is not known", sampling("{\"tempurature\": 1}"), kBad, "\"tempurature\""},
      {"shape of 2^40", [](auto& r) { r.mutable_inputs(0)->set_shape(0, int64_t{1} << 40); }, kBad,
       "text_input: shape is [1099511627776]"},
      {"negative shape", [](auto& r) { r.mutable_inputs(0)->set_shape(0, -4); }, kBad,
       "text_input: shape is [-4]"},
      {"more raw contents than inputs", [](auto& r) { r.add_raw_input_contents("x"); }, kBad,
       "raw_input_contents: "},
      {"fewer raw contents than inputs", [](auto& r) { r.add_inputs()->set_name("top_k"); }, kBad,
       "top_k"},
      {"a length beyond the bytes",
       [](auto& r) {
         r.set_raw_input_contents(0,
                                  "\xff\xff\xff\x7f"
                                  "hello");
       },
       kBad, "said to have 2147483647 bytes, 5 are left"},
      {"invalid UTF-8", [](auto& r) { r.set_raw_input_contents(0, kserve::EncodeBytes("\xff")); },
       kBad, "text_input: not UTF-8"},
      {"datatype mismatch", [](auto& r) { r.mutable_inputs(0)->set_datatype("INT8"); }, kBad,
       "text_input: datatype is \"INT8\""},
      {"duplicate input", [](auto& r) { AddText(r, "text_input", "x"); }, kBad,
       "text_input: given twice"},
      {"10,000 inputs",
       [](auto& r) {
         for (int i = 0; i < 10000; ++i) AddBool(r, "stream", true);
       },
       kBad, "allowed: at most 64"},
      {"shared memory",
       [](auto& r) {
         (*r.mutable_inputs(0)->mutable_parameters())["shared_memory_region"].set_string_param("a");
       },
       StatusCode::UNIMPLEMENTED, "shared_memory_region"},
      {"a parameter that is not known",
       [](auto& r) { (*r.mutable_parameters())["best_of"].set_int64_param(2); }, kBad,
       "parameters: \"best_of\""},
      {"a timeout of 1 us",
       [](auto& r) { (*r.mutable_parameters())["timeout"].set_int64_param(1); },
       StatusCode::DEADLINE_EXCEEDED, ""},
  };
}

ModelInferRequest GoodInfer() {
  ModelInferRequest request;
  request.set_model_name("demo");
  request.set_id("7");
  AddText(request, "text_input", "Once upon a time");
  return request;
}

void SendBadInfers(Guarded& guarded) {
  const auto stub = inference::GRPCInferenceService::NewStub(guarded.client().channel());
  for (const BadInfer& row : BadInfers()) {
    ModelInferRequest request = GoodInfer();
    row.spoil(request);
    grpc::ClientContext context;
    inference::ModelInferResponse response;
    const grpc::Status unary = stub->ModelInfer(&context, request, &response);
    EXPECT_EQ(unary.error_code(), row.code) << row.name << ": " << unary.error_message();
    EXPECT_NE(unary.error_message().find(row.message), std::string::npos)
        << row.name << ": " << unary.error_message() << " lacks " << row.message;
    EXPECT_LT(unary.error_message().size(), 1000u) << row.name;
    if (row.code == StatusCode::INVALID_ARGUMENT) {
      EXPECT_EQ(test::DetailOf<google::rpc::BadRequest>(unary).field_violations_size(), 1)
          << row.name;
    }
    // On a stream that another request shares.
    grpc::ClientContext stream_context;
    const auto stream = stub->ModelStreamInfer(&stream_context);
    ModelInferRequest good = GoodInfer();
    good.set_id("good");
    EXPECT_TRUE(stream->Write(good));
    EXPECT_TRUE(stream->Write(request));
    stream->WritesDone();
    ModelStreamInferResponse answer;
    int errors = 0, texts = 0;
    while (stream->Read(&answer)) {
      if (answer.error_message().empty()) {
        EXPECT_EQ(answer.infer_response().id(), "good") << row.name;
        ++texts;
      } else {
        EXPECT_EQ(answer.infer_response().id(), "7") << row.name;
        if (row.code != StatusCode::DEADLINE_EXCEEDED) {
          EXPECT_EQ(answer.error_message(), unary.error_message()) << row.name;
        }
        ++errors;
      }
    }
    EXPECT_TRUE(stream->Finish().ok()) << row.name;
    EXPECT_EQ(errors, 1) << row.name;
    EXPECT_EQ(texts, 1) << row.name;
    guarded.ExpectUnharmed(row.name);
  }
  {
    ModelInferRequest request = GoodInfer();
    AddBool(request, "stream", true);
    grpc::ClientContext context;
    inference::ModelInferResponse response;
    EXPECT_EQ(stub->ModelInfer(&context, request, &response).error_code(),
              StatusCode::INVALID_ARGUMENT);
    guarded.ExpectUnharmed("stream in ModelInfer");
  }
  for (const int milliseconds : {0, 1, 5}) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::milliseconds(milliseconds));
    const auto stream = stub->ModelStreamInfer(&context);
    for (int i = 0; i < 8; ++i) {
      stream->Write(test::StreamRequest("demo", std::to_string(i), 400));
    }
    ModelStreamInferResponse answer;
    while (stream->Read(&answer)) {
    }
    EXPECT_EQ(stream->Finish().error_code(), StatusCode::DEADLINE_EXCEEDED);
    guarded.ExpectUnharmed("a stream with a deadline of " + std::to_string(milliseconds) + " ms");
  }
}

TEST(KserveProcess, BadRequestsAreNamedAndLeaveNothingBehind) {
  Guarded guarded({"served_model_name=demo"});
  ASSERT_TRUE(guarded.ready()) << guarded.server().process().err();
  SendBadInfers(guarded);  // warms up what gRPC keeps, too
  guarded.HoldToIdle();
  SendBadInfers(guarded);
}

TEST(KserveProcess, AClientThatGoesAwayFreesAllOfItsStream) {
  Guarded guarded({"served_model_name=demo"});
  ASSERT_TRUE(guarded.ready()) << guarded.server().process().err();
  for (int round = 0; round < 10; ++round) {
    const auto channel = test::NewChannel(guarded.server().grpc());
    const auto stub = inference::GRPCInferenceService::NewStub(channel);
    grpc::ClientContext context;
    const auto stream = stub->ModelStreamInfer(&context);
    for (int i = 0; i < 12; ++i) {
      EXPECT_TRUE(stream->Write(test::StreamRequest("demo", std::to_string(i), 400)));
    }
    ModelStreamInferResponse answer;
    if (round % 2 == 0) {
      EXPECT_TRUE(stream->Read(&answer));
    }
    context.TryCancel();
    stream->Finish();
    guarded.ExpectServing("a stream of 12 requests that was cancelled");
  }
}

// ---- recorded requests

std::string FileBytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::vector<std::filesystem::path> Recorded() {
  std::vector<std::filesystem::path> files;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(QUANTD_TEST_DATA) / "kserve")) {
    if (entry.path().extension() == ".bin") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

// The text of all responses to one message on a stream; the last one of them is final.
std::string StreamRaw(const std::shared_ptr<grpc::Channel>& channel, const std::string& bytes) {
  using Buffers = grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>;
  const std::string path = kKserve + "ModelStreamInfer";
  const grpc::internal::RpcMethod method(path.c_str(), grpc::internal::RpcMethod::BIDI_STREAMING);
  grpc::ClientContext context;
  const std::unique_ptr<grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>> stream(
      Buffers::Create(channel.get(), method, &context));
  const grpc::Slice slice(bytes);
  EXPECT_TRUE(stream->Write(grpc::ByteBuffer(&slice, 1)));
  stream->WritesDone();
  std::string text;
  grpc::ByteBuffer buffer;
  ModelStreamInferResponse answer;
  while (stream->Read(&buffer)) {
    EXPECT_TRUE(
        grpc::SerializationTraits<ModelStreamInferResponse>::Deserialize(&buffer, &answer).ok());
    EXPECT_EQ(answer.error_message(), "");
    text += test::TextOf(answer.infer_response());
  }
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_TRUE(answer.infer_response().parameters().at("triton_final_response").bool_param());
  return text;
}

// perf_analyzer and tritonclient cannot be asked in CI; what they sent can be sent again.
TEST(KserveProcess, RecordedRequestsOfTritonsClientsAreServed) {
  Guarded guarded({"served_model_name=demo"});
  ASSERT_TRUE(guarded.ready()) << guarded.server().process().err();
  const auto channel = guarded.client().channel();
  int streams = 0, calls = 0;
  for (const std::filesystem::path& path : Recorded()) {
    SCOPED_TRACE(path.filename().string());
    // <client>.<method>.<number>.bin
    const std::string method = path.stem().stem().extension().string().substr(1);
    const std::string bytes = FileBytes(path);
    if (method == "ModelStreamInfer") {
      EXPECT_NE(StreamRaw(channel, bytes), "");
      ++streams;
    } else {
      std::string response;
      const grpc::Status status =
          test::RawCall(channel, kKserve + method, bytes, nullptr, &response);
      EXPECT_TRUE(status.ok()) << status.error_message();
      EXPECT_NE(response, "");
      ++calls;
    }
  }
  EXPECT_GE(streams, 8);
  EXPECT_GE(calls, 12);
  guarded.ExpectServing("the recorded requests");
}

}  // namespace
}  // namespace quantd
