// Requests and options: what they become, and what is refused, in the request's own names.
#include "server/kserve/convert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "engine/admission.h"
#include "server/grpc/error_details.h"
#include "tests/server/kserve/infer_request.h"

namespace quantd::kserve {
namespace {

using inference::ModelInferRequest;
using test::AddBool;
using test::AddNumber;
using test::AddRaw;
using test::AddText;

ModelFacts Facts() {
  ModelFacts facts;
  facts.name = "m";
  facts.vocab_size = 1000;
  return facts;
}

ModelInferRequest Plain() {
  ModelInferRequest request;
  request.set_model_name("m");
  AddText(request, "text_input", "hello");
  return request;
}

ModelInferRequest WithJson(const std::string& json) {
  ModelInferRequest request = Plain();
  AddText(request, "sampling_parameters", json);
  return request;
}

TEST(KserveConvert, InputsOfTensorRtLlm) {
  ModelInferRequest request = Plain();
  request.set_id("7");
  AddBool(request, "stream", true);
  AddBool(request, "exclude_input_in_output", true);
  AddNumber(request, "max_tokens", "INT32", 20);
  AddNumber(request, "min_length", "INT32", 3);
  AddNumber(request, "temperature", "FP32", 0.7f);
  AddNumber(request, "top_k", "INT32", 40);
  AddNumber(request, "top_p", "FP32", 0.9f);
  AddNumber(request, "repetition_penalty", "FP32", 1.1f);
  AddNumber(request, "presence_penalty", "FP32", 0.1f);
  AddNumber(request, "frequency_penalty", "FP32", 0.2f);
  AddNumber(request, "random_seed", "UINT64", ~uint64_t{0});
  AddNumber(request, "end_id", "INT32", 5);
  AddNumber(request, "pad_id", "INT32", 6);
  AddNumber(request, "beam_width", "INT32", 1);
  AddText(request, "stop_words", "END");
  AddText(request, "bad_words", "no");
  const auto out = ToInferRequest(request, Facts());
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_TRUE(out->stream);
  EXPECT_EQ(out->prefix, "");
  EXPECT_TRUE(out->prepared.has_text);
  EXPECT_EQ(out->prepared.text, "hello");
  EXPECT_EQ(out->prepared.request.id, "7");
  const SamplingParams& p = out->prepared.request.sampling;
  EXPECT_EQ(p.max_tokens, 20);
  EXPECT_EQ(p.min_tokens, 3);
  EXPECT_EQ(p.temperature, 0.7f);
  EXPECT_EQ(p.top_k, 40);
  EXPECT_EQ(p.top_p, 0.9f);
  EXPECT_EQ(p.repetition_penalty, 1.1f);
  EXPECT_EQ(p.presence_penalty, 0.1f);
  EXPECT_EQ(p.frequency_penalty, 0.2f);
  EXPECT_EQ(p.seed, ~uint64_t{0});
  EXPECT_EQ(p.stop_token_ids, std::vector<int32_t>{5});
  EXPECT_EQ(p.stop, std::vector<std::string>{"END"});
  EXPECT_EQ(p.bad_words, std::vector<std::string>{"no"});
}

TEST(KserveConvert, SamplingParametersOfVllm) {
  const auto out = ToInferRequest(
      WithJson(R"({"max_tokens": "16", "min_tokens": 16.0, "temperature": "0.5", "top_k": -1,
                   "seed": 18446744073709551615, "stop": "END", "stop_token_ids": [1, "2"],
                   "ignore_eos": "True", "skip_special_tokens": false, "logit_bias": {"7": -1.5},
                   "bad_words": ["a", "b"], "min_p": 0.1, "n": 1, "presence_penalty": null})"),
      Facts());
  ASSERT_TRUE(out.ok()) << out.status();
  const SamplingParams& p = out->prepared.request.sampling;
  EXPECT_EQ(p.max_tokens, 16);
  EXPECT_EQ(p.min_tokens, 16);
  EXPECT_EQ(p.temperature, 0.5f);
  EXPECT_EQ(p.top_k, 0);
  EXPECT_EQ(p.seed, ~uint64_t{0});
  EXPECT_EQ(p.stop, std::vector<std::string>{"END"});
  EXPECT_EQ(p.stop_token_ids, (std::vector<int32_t>{1, 2}));
  EXPECT_TRUE(p.ignore_eos);
  EXPECT_FALSE(p.skip_special_tokens);
  EXPECT_EQ(p.logit_bias.at(0), (std::pair<int32_t, float>{7, -1.5f}));
  EXPECT_EQ(p.bad_words, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(p.min_p, 0.1f);
  EXPECT_EQ(p.presence_penalty, 0.0f);
}

TEST(KserveConvert, ParametersOfTheRequest) {
  ModelInferRequest request = Plain();
  auto& parameters = *request.mutable_parameters();
  parameters["max_tokens"].set_int64_param(9);
  parameters["temperature"].set_double_param(0.5);
  parameters["seed"].set_int64_param(4);
  parameters["ignore_eos"].set_bool_param(true);
  parameters["stop"].set_string_param("END");
  parameters["priority"].set_uint64_param(3);
  parameters["timeout"].set_int64_param(1500);
  parameters["triton_enable_empty_final_response"].set_bool_param(true);
  const auto out = ToInferRequest(request, Facts());
  ASSERT_TRUE(out.ok()) << out.status();
  const SamplingParams& p = out->prepared.request.sampling;
  EXPECT_EQ(p.max_tokens, 9);
  EXPECT_EQ(p.temperature, 0.5f);
  EXPECT_EQ(p.seed, 4u);
  EXPECT_TRUE(p.ignore_eos);
  EXPECT_EQ(p.stop, std::vector<std::string>{"END"});
  EXPECT_EQ(out->prepared.request.priority, 2);
  EXPECT_EQ(out->timeout, std::chrono::microseconds(1500));
  EXPECT_TRUE(out->empty_final);
}

TEST(KserveConvert, ThePromptStandsBeforeATextThatComesAtOnce) {
  const struct {
    bool stream;
    std::optional<bool> exclude;
    std::string prefix;
  } rows[] = {{false, std::nullopt, "hello"},
              {false, false, "hello"},
              {false, true, ""},
              {true, std::nullopt, ""},
              {true, true, ""}};
  for (const auto& row : rows) {
    ModelInferRequest request = Plain();
    AddBool(request, "stream", row.stream);
    if (row.exclude.has_value()) AddBool(request, "exclude_input_in_output", *row.exclude);
    const auto out = ToInferRequest(request, Facts());
    ASSERT_TRUE(out.ok()) << out.status();
    EXPECT_EQ(out->prefix, row.prefix);
  }
}

std::string Nested(const std::string& open, const std::string& close, int depth) {
  std::string text = "{\"stop\": ";
  for (int i = 0; i < depth; ++i) text += open;
  for (int i = 0; i < depth; ++i) text += close;
  return text + "}";
}

TEST(KserveConvert, BadOptionsAreNamedAsTheRequestSpellsThem) {
  const struct {
    std::string json;
    std::string message;  // a part of it
  } rows[] = {
      {"", "sampling_parameters: \"\" is not a JSON object"},
      {"[]", "not a JSON object"},
      {"{\"max_tokens\": 1", "not a JSON object"},
      {"{\"temperature\": NaN}", "not a JSON object"},
      {Nested("[", "]", 10000), "deeper than 4 levels"},
      {Nested("{\"a\":", "}", 10000), "deeper than 4 levels"},
      {std::string(100000, '['), "deeper than 4 levels"},
      {std::string(kMaxSamplingJsonBytes + 1, ' '), "allowed: at most 1048576"},
      {R"({"max_tokens": 1, "max_tokens": 2})", "the key \"max_tokens\" is there twice"},
      {R"({"best_of": 2})", "\"best_of\" is not an option of sampling"},
      {R"({"n": 2})", "sampling_parameters.n: is 2, allowed: 1"},
      {R"({"n": 1000000})", "sampling_parameters.n: is 1000000"},
      {R"({"logprobs": 1})", "sampling_parameters.logprobs: no output"},
      {R"({"prompt_logprobs": 1})", "sampling_parameters.prompt_logprobs: no output"},
      {R"({"max_tokens": 0})", "sampling_parameters.max_tokens is 0, allowed: 1 or more"},
      {R"({"max_tokens": 2147483648})", "sampling_parameters.max_tokens: is \"2147483648\""},
      {R"({"max_tokens": 1.5})", "sampling_parameters.max_tokens: is \"1.5\""},
      {R"({"max_tokens": "many"})", "sampling_parameters.max_tokens: is \"many\""},
      {R"({"max_tokens": [1]})", "sampling_parameters.max_tokens"},
      {R"({"max_tokens": true})", "sampling_parameters.max_tokens"},
      {R"({"temperature": "nan"})", "sampling_parameters.temperature is nan"},
      {R"({"temperature": 1e300})", "sampling_parameters.temperature is inf"},
      {R"({"temperature": -1})", "sampling_parameters.temperature is -1"},
      {R"({"top_p": 0})", "sampling_parameters.top_p is 0"},
      {R"({"top_p": 1.1})", "sampling_parameters.top_p is 1.1"},
      {R"({"top_k": -5})", "sampling_parameters.top_k is -5"},
      {R"({"seed": -1})", "sampling_parameters.seed: is \"-1\""},
      {R"({"ignore_eos": 1})", "sampling_parameters.ignore_eos: is \"1\", allowed: true or false"},
      {R"({"stop": [1]})", "sampling_parameters.stop"},
      {R"({"stop": [""]})", "sampling_parameters.stop[0]"},
      {R"({"stop_token_ids": 5})", "a list of token ids"},
      {R"({"stop_token_ids": [1000]})", "sampling_parameters.stop_token_ids[0]"},
      {R"({"stop_token_ids": [-1]})", "sampling_parameters.stop_token_ids[0]"},
      {R"({"logit_bias": {"x": 1}})", "sampling_parameters.logit_bias"},
      {R"({"logit_bias": {"1000": 1}})", "sampling_parameters.logit_bias[1000]"},
      {R"({"logit_bias": [1]})", "sampling_parameters.logit_bias"},
  };
  for (const auto& row : rows) {
    const absl::Status status = ToInferRequest(WithJson(row.json), Facts()).status();
    const std::string shown = row.json.substr(0, 60);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << shown << ": " << status;
    EXPECT_NE(Message(status).find(row.message), std::string::npos)
        << shown << ": " << status << " lacks " << row.message;
    EXPECT_TRUE(FieldIn(status).value_or("").starts_with("sampling_parameters")) << status;
  }
}

TEST(KserveConvert, WhatElseIsWrongIsNamed) {
  const struct {
    const char* name;
    std::function<void(ModelInferRequest&)> spoil;
    absl::StatusCode code;
    std::string message;  // begins with it
  } rows[] = {
      {"no model", [](auto& r) { r.clear_model_name(); }, absl::StatusCode::kNotFound,
       "model: \"\" is not served here, \"m\" is"},
      {"another model", [](auto& r) { r.set_model_name("gpt"); }, absl::StatusCode::kNotFound,
       "model: \"gpt\""},
      {"a stream of the model that answers once",
       [](auto& r) {
         r.set_model_name("m_unary");
         AddBool(r, "stream", true);
       },
       absl::StatusCode::kInvalidArgument, "stream: true for \"m_unary\""},
      {"version 2", [](auto& r) { r.set_model_version("2"); }, absl::StatusCode::kNotFound,
       "model_version: \"2\""},
      {"version abc", [](auto& r) { r.set_model_version("abc"); },
       absl::StatusCode::kInvalidArgument, "model_version: \"abc\" is not a number"},
      {"id of 1 MB", [](auto& r) { r.set_id(std::string(1 << 20, 'i')); },
       absl::StatusCode::kInvalidArgument, "id: 1048576 bytes"},
      {"max_tokens 0", [](auto& r) { AddNumber(r, "max_tokens", "INT32", 0); },
       absl::StatusCode::kInvalidArgument, "max_tokens is 0"},
      {"min_length above max_tokens", [](auto& r) { AddNumber(r, "min_length", "INT32", 17); },
       absl::StatusCode::kInvalidArgument, "min_length is 17, allowed: 0 to max_tokens (16)"},
      {"temperature nan", [](auto& r) { AddNumber(r, "temperature", "FP32", std::nanf("")); },
       absl::StatusCode::kInvalidArgument, "temperature is nan"},
      {"end_id beyond the vocabulary", [](auto& r) { AddNumber(r, "end_id", "INT32", 1000); },
       absl::StatusCode::kInvalidArgument, "end_id[0] is 1000"},
      {"an empty stop word", [](auto& r) { AddText(r, "stop_words", ""); },
       absl::StatusCode::kInvalidArgument, "stop_words[0]"},
      {"beams", [](auto& r) { AddNumber(r, "beam_width", "INT32", 4); },
       absl::StatusCode::kInvalidArgument, "beam_width: is 4, allowed: 1"},
      {"the prompt in a stream",
       [](auto& r) {
         AddBool(r, "stream", true);
         AddBool(r, "exclude_input_in_output", false);
       },
       absl::StatusCode::kInvalidArgument, "exclude_input_in_output: false with stream"},
      {"an option by two names",
       [](auto& r) {
         AddNumber(r, "seed", "UINT64", uint64_t{1});
         AddNumber(r, "random_seed", "UINT64", uint64_t{1});
       },
       absl::StatusCode::kInvalidArgument, "random_seed: given beside seed"},
      {"an option in input and JSON",
       [](auto& r) {
         AddNumber(r, "max_tokens", "INT32", 5);
         AddText(r, "sampling_parameters", "{\"max_tokens\": 5}");
       },
       absl::StatusCode::kInvalidArgument,
       "sampling_parameters.max_tokens: given beside max_tokens"},
      {"an unknown parameter", [](auto& r) { (*r.mutable_parameters())["sequence_id"]; },
       absl::StatusCode::kInvalidArgument, "parameters: \"sequence_id\""},
      {"a parameter without a value", [](auto& r) { (*r.mutable_parameters())["seed"]; },
       absl::StatusCode::kInvalidArgument, "parameters.seed: has no value"},
      {"a negative priority",
       [](auto& r) { (*r.mutable_parameters())["priority"].set_int64_param(-1); },
       absl::StatusCode::kInvalidArgument, "parameters.priority"},
      {"a priority of 2^63",
       [](auto& r) { (*r.mutable_parameters())["priority"].set_uint64_param(uint64_t{1} << 63); },
       absl::StatusCode::kInvalidArgument, "parameters.priority"},
      {"a timeout that is text",
       [](auto& r) { (*r.mutable_parameters())["timeout"].set_string_param("1"); },
       absl::StatusCode::kInvalidArgument, "parameters.timeout"},
  };
  for (const auto& row : rows) {
    ModelInferRequest request = Plain();
    row.spoil(request);
    const absl::Status status = ToInferRequest(request, Facts()).status();
    EXPECT_EQ(status.code(), row.code) << row.name << ": " << status;
    EXPECT_TRUE(Message(status).starts_with(row.message)) << row.name << ": " << status;
  }
}

TEST(KserveConvert, LaterErrorsAreInTheNamesOfTheRequest) {
  const SamplingOptions::Origins origins = {{"max_tokens", "parameters.max_tokens"}};
  const auto translate = [&](const char* message, const char* field) {
    return SamplingOptions::Translate(WithField(absl::InvalidArgumentError(message), field),
                                      origins);
  };
  const absl::Status empty = translate("text: comes to no token", "text");
  EXPECT_EQ(Message(empty), "text_input: comes to no token");
  EXPECT_EQ(FieldIn(empty), "text_input");
  const absl::Status length = translate("the prompt of 5 tokens", "sampling.max_tokens");
  EXPECT_EQ(Message(length), "the prompt of 5 tokens");
  EXPECT_EQ(FieldIn(length), "parameters.max_tokens");
  EXPECT_EQ(FieldIn(translate("the prompt", "prompt")), "text_input");
  EXPECT_TRUE(SamplingOptions::Translate(absl::OkStatus(), origins).ok());
  const absl::Status later = WithRetryAfter(absl::ResourceExhaustedError("full"), 30);
  EXPECT_EQ(RetryAfter(SamplingOptions::Translate(later, origins)), 30);
}

TEST(KserveConvert, OutputsAreThoseAskedFor) {
  ModelInferRequest request = Plain();
  const auto nothing = ToInferRequest(request, Facts());
  ASSERT_TRUE(nothing.ok()) << nothing.status();
  EXPECT_TRUE(nothing->outputs.empty());
  EXPECT_EQ(nothing->prepared.request.sampling.logprobs, -1);
  for (const OutputSpec& spec : OutputSpecs()) {
    if (spec.asked_by != nullptr) AddBool(request, spec.asked_by, true);
  }
  const auto all = ToInferRequest(request, Facts());
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(all->outputs, (std::set<std::string>{"finish_reason", "cumulative_logprob",
                                                 "num_input_tokens", "num_output_tokens"}));
  EXPECT_EQ(all->prepared.request.sampling.logprobs, 0) << "which the sum is made of";
  ModelInferRequest named = Plain();
  AddBool(named, "return_finish_reason", false);
  AddBool(named, "return_num_input_tokens", true);
  for (const OutputSpec& spec : OutputSpecs()) named.add_outputs()->set_name(spec.name);
  const auto one = ToInferRequest(named, Facts());
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_EQ(one->outputs, std::set<std::string>{"num_input_tokens"});
  AddBool(named, "return_logprobs", true);
  EXPECT_EQ(FieldIn(ToInferRequest(named, Facts()).status()), "return_logprobs");
}

TEST(KserveConvert, EachResponseHasWhatCameSinceTheLast) {
  InferRequest request;
  request.prefix = "hello";
  request.outputs = {"finish_reason", "cumulative_logprob", "num_input_tokens",
                     "num_output_tokens"};
  InferResponses responses("m", "7", request);
  RequestUpdate update;
  update.text = " a";
  update.tokens = {{1, -0.5f, {}}, {2, -0.25f, {}}};
  update.usage = {3, 0, 2};
  const auto first = responses.Next(update, false);
  EXPECT_EQ(test::OutputOf(first, "text_output", "BYTES"), EncodeBytes("hello a"));
  EXPECT_EQ(test::OutputOf(first, "finish_reason", "BYTES"), EncodeBytes("None"));
  EXPECT_EQ(test::OutputOf(first, "cumulative_logprob", "FP32"), EncodeNumber(-0.75f));
  EXPECT_EQ(test::OutputOf(first, "num_input_tokens", "UINT32"), EncodeNumber(uint32_t{3}));
  EXPECT_EQ(test::OutputOf(first, "num_output_tokens", "UINT32"), EncodeNumber(uint32_t{2}));
  update.text = " b";
  update.tokens = {{3, -1.0f, {}}};
  update.usage.completion_tokens = 3;
  update.finish_reason = FinishReason::kLength;
  const auto last = responses.Next(update, true);
  EXPECT_EQ(test::OutputOf(last, "text_output", "BYTES"), EncodeBytes(" b"));
  EXPECT_EQ(test::OutputOf(last, "finish_reason", "BYTES"), EncodeBytes("length"));
  EXPECT_EQ(test::OutputOf(last, "cumulative_logprob", "FP32"), EncodeNumber(-1.75f));
  EXPECT_EQ(test::OutputOf(last, "num_output_tokens", "UINT32"), EncodeNumber(uint32_t{1}));
  EXPECT_EQ(last.id(), "7");
  EXPECT_EQ(responses.Final().outputs_size(), 0);
}

TEST(KserveConvert, MetadataAndConfigSayTheSame) {
  const auto metadata = ToMetadata("m");
  const auto config = ToConfig("m", "m");
  ASSERT_EQ(metadata.inputs_size(), config.input_size());
  for (int i = 0; i < config.input_size(); ++i) {
    EXPECT_EQ(metadata.inputs(i).name(), config.input(i).name());
    EXPECT_EQ(metadata.inputs(i).shape(0), config.input(i).dims(0));
    EXPECT_EQ(config.input(i).optional(), config.input(i).name() != "text_input");
    EXPECT_NE(config.input(i).data_type(), inference::TYPE_INVALID);
  }
  ASSERT_EQ(metadata.outputs_size(), config.output_size());
  for (int i = 0; i < config.output_size(); ++i) {
    EXPECT_EQ(metadata.outputs(i).name(), config.output(i).name());
  }
  EXPECT_EQ(config.output(0).data_type(), inference::TYPE_STRING);
  EXPECT_EQ(config.output(2).data_type(), inference::TYPE_FP32);
  EXPECT_EQ(config.output(3).data_type(), inference::TYPE_UINT32);
  EXPECT_EQ(metadata.versions(0), "1");
  EXPECT_TRUE(config.model_transaction_policy().decoupled());
  const auto unary = ToConfig(UnaryName("m"), "m");
  EXPECT_EQ(unary.name(), "m_unary");
  EXPECT_FALSE(unary.model_transaction_policy().decoupled());
}

TEST(ServingStatistics, CountsWhatFinishedAndPassesItOn) {
  struct Next : EngineObserver {
    void OnFinished(const Finished&) override { ++finished; }
    void OnStep(int32_t) override { ++steps; }
    int finished = 0, steps = 0;
  } next;
  ServingStatistics statistics(&next);
  EngineObserver::Finished f;
  f.reason = FinishReason::kLength;
  f.queue_seconds = 0.5;
  f.prefill_seconds = 1;
  f.decode_seconds = 2;
  f.total_seconds = 3.75;
  statistics.OnStep(3);
  statistics.OnFinished(f);
  statistics.OnFinished(f);
  f.reason = FinishReason::kCancelled;
  statistics.OnFinished(f);
  EXPECT_EQ(next.finished, 3);
  EXPECT_EQ(next.steps, 1);
  const inference::ModelStatistics stats = ToStatistics("m", statistics.Read());
  EXPECT_GT(stats.last_inference(), 1700000000000u);
  EXPECT_EQ(stats.inference_count(), 2u);
  EXPECT_EQ(stats.execution_count(), 1u);
  const auto& s = stats.inference_stats();
  EXPECT_EQ(s.success().count(), 2u);
  EXPECT_EQ(s.success().ns(), 7500000000u);
  EXPECT_EQ(s.fail().count(), 1u);
  for (const auto* duration :
       {&s.queue(), &s.compute_input(), &s.compute_infer(), &s.compute_output()}) {
    EXPECT_EQ(duration->count(), 2u);  // perf_analyzer aborts unless these are equal
  }
  EXPECT_EQ(
      s.queue().ns() + s.compute_input().ns() + s.compute_infer().ns() + s.compute_output().ns(),
      s.success().ns());
}

}  // namespace
}  // namespace quantd::kserve
