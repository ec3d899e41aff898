// Protocol to engine and back: defaults, limits and the names in messages.
#include "server/grpc/convert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <functional>
#include <limits>
#include <set>

#include "kernels/status.h"

namespace quantd {
namespace {

ModelFacts Facts() {
  ModelFacts facts;
  facts.name = "m";
  facts.vocab_size = 100;
  facts.defaults.temperature = 0.25f;
  facts.defaults.top_p = 0.75f;
  facts.defaults.top_k = 11;
  facts.defaults.min_p = 0.125f;
  facts.defaults.repetition_penalty = 1.25f;
  return facts;
}

v1::GenerateRequest Good() {
  v1::GenerateRequest request;
  request.set_text("hello");
  return request;
}

TEST(Convert, AbsentFieldsTakeTheModelsDefaults) {
  const auto prepared = ToPreparedRequest(Good(), Facts());
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  const SamplingParams& s = prepared->request.sampling;
  EXPECT_EQ(s.temperature, 0.25f);
  EXPECT_EQ(s.top_p, 0.75f);
  EXPECT_EQ(s.top_k, 11);
  EXPECT_EQ(s.min_p, 0.125f);
  EXPECT_EQ(s.repetition_penalty, 1.25f);
  EXPECT_EQ(s.presence_penalty, 0.0f);
  EXPECT_EQ(s.n, 1);
  EXPECT_EQ(s.prompt_logprobs, -1);
  EXPECT_EQ(s.prompt_lookup_num_tokens, -1);
  EXPECT_EQ(s.seed, std::nullopt);
  EXPECT_EQ(s.max_tokens, 16);
  EXPECT_EQ(s.min_tokens, 0);
  EXPECT_EQ(s.logprobs, -1);
  EXPECT_FALSE(s.ignore_eos);
  EXPECT_TRUE(s.skip_special_tokens);
  EXPECT_TRUE(prepared->add_special_tokens);
  EXPECT_TRUE(prepared->has_text);
  EXPECT_EQ(prepared->text, "hello");
}

TEST(Convert, ZeroIsNotAbsent) {
  v1::GenerateRequest request = Good();
  v1::SamplingParams* s = request.mutable_sampling();
  s->set_temperature(0);
  s->set_top_k(0);
  s->set_min_p(0);
  s->set_seed(0);
  s->set_logprobs(0);
  s->set_skip_special_tokens(false);
  request.set_add_special_tokens(false);
  const auto prepared = ToPreparedRequest(std::move(request), Facts());
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  EXPECT_EQ(prepared->request.sampling.temperature, 0.0f);
  EXPECT_EQ(prepared->request.sampling.top_k, 0);
  EXPECT_EQ(prepared->request.sampling.min_p, 0.0f);
  EXPECT_EQ(prepared->request.sampling.seed, 0u);
  EXPECT_EQ(prepared->request.sampling.logprobs, 0);
  EXPECT_FALSE(prepared->request.sampling.skip_special_tokens);
  EXPECT_FALSE(prepared->add_special_tokens);
}

TEST(Convert, EveryFieldArrives) {
  v1::GenerateRequest request;
  request.set_request_id("id");
  request.set_model("m");
  for (const int id : {1, 99, 0}) request.mutable_token_ids()->add_ids(id);
  request.set_priority(-3);
  request.set_bypass_prefix_cache(true);
  v1::SamplingParams* s = request.mutable_sampling();
  s->set_temperature(2);
  s->set_top_p(0.5);
  s->set_top_k(3);
  s->set_min_p(1);
  s->set_seed(UINT64_MAX);
  s->set_max_tokens(9);
  s->set_min_tokens(4);
  s->add_stop("x");
  s->add_stop_token_ids(5);
  s->set_ignore_eos(true);
  s->set_logprobs(20);
  s->set_repetition_penalty(1.5);
  s->set_presence_penalty(-2);
  s->set_frequency_penalty(0.5);
  (*s->mutable_logit_bias())[7] = -3;
  (*s->mutable_logit_bias())[2] = 4;
  s->add_allowed_token_ids(8);
  s->add_bad_words("no");
  s->set_include_stop_str_in_output(true);
  s->set_n(3);
  s->set_prompt_logprobs(2);
  s->set_prompt_lookup_num_tokens(5);
  const auto prepared = ToPreparedRequest(std::move(request), Facts());
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  const Request& r = prepared->request;
  EXPECT_EQ(r.id, "id");
  EXPECT_EQ(r.prompt_ids, (std::vector<int32_t>{1, 99, 0}));
  EXPECT_EQ(r.priority, -3);
  EXPECT_TRUE(r.bypass_prefix_cache);
  EXPECT_EQ(r.sampling.temperature, 2.0f);
  EXPECT_EQ(r.sampling.top_p, 0.5f);
  EXPECT_EQ(r.sampling.top_k, 3);
  EXPECT_EQ(r.sampling.min_p, 1.0f);
  EXPECT_EQ(r.sampling.seed, UINT64_MAX);
  EXPECT_EQ(r.sampling.max_tokens, 9);
  EXPECT_EQ(r.sampling.min_tokens, 4);
  EXPECT_EQ(r.sampling.stop, std::vector<std::string>{"x"});
  EXPECT_EQ(r.sampling.stop_token_ids, std::vector<int32_t>{5});
  EXPECT_TRUE(r.sampling.ignore_eos);
  EXPECT_EQ(r.sampling.logprobs, 20);
  EXPECT_EQ(r.sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(r.sampling.presence_penalty, -2.0f);
  EXPECT_EQ(r.sampling.frequency_penalty, 0.5f);
  EXPECT_EQ(r.sampling.logit_bias, (std::vector<std::pair<int32_t, float>>{{2, 4.0f}, {7, -3.0f}}));
  EXPECT_EQ(r.sampling.allowed_token_ids, std::vector<int32_t>{8});
  EXPECT_EQ(r.sampling.bad_words, std::vector<std::string>{"no"});
  EXPECT_TRUE(r.sampling.include_stop_str_in_output);
  EXPECT_EQ(r.sampling.n, 3);
  EXPECT_EQ(r.sampling.prompt_logprobs, 2);
  EXPECT_EQ(r.sampling.prompt_lookup_num_tokens, 5);
  EXPECT_FALSE(prepared->has_text);
}

TEST(Convert, MessagesArriveWithoutTheTokenizersTemplate) {
  v1::GenerateRequest request;
  request.add_messages()->set_role("system");
  v1::ChatMessage* user = request.add_messages();
  user->set_role("user");
  user->set_content("");
  user->set_fields_json("{}");
  request.mutable_chat()->set_add_generation_prompt(false);
  request.mutable_chat()->set_tools_json("[]");
  request.mutable_chat()->set_variables_json("{\"a\": 1}");
  v1::GenerateRequest with_special = request;
  const auto prepared = ToPreparedRequest(std::move(request), Facts());
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  EXPECT_FALSE(prepared->has_text);
  EXPECT_FALSE(prepared->add_special_tokens);
  ASSERT_EQ(prepared->messages.size(), 2u);
  EXPECT_EQ(prepared->messages[0].role, "system");
  EXPECT_EQ(prepared->messages[0].content, std::nullopt);
  EXPECT_EQ(prepared->messages[1].content, "");
  EXPECT_EQ(prepared->messages[1].fields_json, "{}");
  EXPECT_FALSE(prepared->chat.add_generation_prompt);
  EXPECT_EQ(prepared->chat.tools_json, "[]");
  EXPECT_EQ(prepared->chat.variables_json, "{\"a\": 1}");
  with_special.set_add_special_tokens(true);
  EXPECT_TRUE(ToPreparedRequest(std::move(with_special), Facts())->add_special_tokens);
}

struct BadField {
  const char* name;
  std::function<void(v1::GenerateRequest&)> spoil;
  absl::StatusCode code;
  std::vector<std::string> message;
};

TEST(Convert, BadFieldsAreNamedAsTheProtocolSpellsThem) {
  constexpr auto kBad = absl::StatusCode::kInvalidArgument;
  const auto s = [](v1::GenerateRequest& r) { return r.mutable_sampling(); };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  const BadField table[] = {
      {"other model",
       [](auto& r) { r.set_model("z"); },
       absl::StatusCode::kNotFound,
       {"model", "z", "m"}},
      {"long id",
       [](auto& r) { r.set_request_id(std::string(257, 'x')); },
       kBad,
       {"request_id", "257", "256"}},
      {"no prompt", [](auto& r) { r.clear_prompt(); }, kBad, {"prompt", "text", "token_ids"}},
      {"text and messages",
       [](auto& r) { r.add_messages()->set_role("user"); },
       kBad,
       {"messages", "beside text"}},
      {"ids and messages",
       [](auto& r) {
         r.mutable_token_ids()->add_ids(1);
         r.add_messages()->set_role("user");
       },
       kBad,
       {"messages", "beside token_ids"}},
      {"no role",
       [](auto& r) {
         r.clear_prompt();
         r.add_messages()->set_role("user");
         r.add_messages()->set_content("x");
       },
       kBad,
       {"messages[1].role", "empty"}},
      {"chat without messages",
       [](auto& r) { r.mutable_chat(); },
       kBad,
       {"chat", "without messages"}},
      {"no ids", [](auto& r) { r.mutable_token_ids(); }, kBad, {"token_ids.ids", "empty"}},
      {"id -1",
       [](auto& r) { r.mutable_token_ids()->add_ids(-1); },
       kBad,
       {"token_ids.ids[0]", "-1", "100"}},
      {"id 100",
       [](auto& r) { r.mutable_token_ids()->add_ids(100); },
       kBad,
       {"token_ids.ids[0]", "100"}},
      {"temperature -1",
       [&](auto& r) { s(r)->set_temperature(-1); },
       kBad,
       {"sampling.temperature", "-1"}},
      {"temperature nan",
       [&](auto& r) { s(r)->set_temperature(nan); },
       kBad,
       {"sampling.temperature", "nan"}},
      {"temperature inf",
       [&](auto& r) { s(r)->set_temperature(inf); },
       kBad,
       {"sampling.temperature", "inf"}},
      {"top_p 0", [&](auto& r) { s(r)->set_top_p(0); }, kBad, {"sampling.top_p"}},
      {"top_p 1.1", [&](auto& r) { s(r)->set_top_p(1.1f); }, kBad, {"sampling.top_p", "1.1"}},
      {"top_p nan", [&](auto& r) { s(r)->set_top_p(nan); }, kBad, {"sampling.top_p", "nan"}},
      {"top_k -5", [&](auto& r) { s(r)->set_top_k(-5); }, kBad, {"sampling.top_k", "-5"}},
      {"prompt_logprobs -1",
       [&](auto& r) { s(r)->set_prompt_logprobs(-1); },
       kBad,
       {"sampling.prompt_logprobs", "-1"}},
      {"prompt_lookup_num_tokens 17",
       [&](auto& r) { s(r)->set_prompt_lookup_num_tokens(17); },
       kBad,
       {"sampling.prompt_lookup_num_tokens", "17"}},
      {"n 0", [&](auto& r) { s(r)->set_n(0); }, kBad, {"sampling.n", "1 to 128"}},
      {"n of a million", [&](auto& r) { s(r)->set_n(1000000); }, kBad, {"sampling.n", "1000000"}},
      {"repetition_penalty 0",
       [&](auto& r) { s(r)->set_repetition_penalty(0); },
       kBad,
       {"sampling.repetition_penalty", "0"}},
      {"presence_penalty nan",
       [&](auto& r) { s(r)->set_presence_penalty(std::nanf("")); },
       kBad,
       {"sampling.presence_penalty", "nan"}},
      {"frequency_penalty 3",
       [&](auto& r) { s(r)->set_frequency_penalty(3); },
       kBad,
       {"sampling.frequency_penalty", "3"}},
      {"a million logit_biases",
       [&](auto& r) {
         for (int i = 0; i < 1000000; ++i) (*s(r)->mutable_logit_bias())[i] = 1;
       },
       kBad,
       {"sampling.logit_bias", "1000000", "1024"}},
      {"logit_bias of no token",
       [&](auto& r) { (*s(r)->mutable_logit_bias())[100] = 1; },
       kBad,
       {"sampling.logit_bias[100]", "99"}},
      {"allowed_token_ids -1",
       [&](auto& r) { s(r)->add_allowed_token_ids(-1); },
       kBad,
       {"sampling.allowed_token_ids[0]", "-1"}},
      {"an empty bad word",
       [&](auto& r) { s(r)->add_bad_words(""); },
       kBad,
       {"sampling.bad_words[0]"}},
      {"min_p 2", [&](auto& r) { s(r)->set_min_p(2); }, kBad, {"sampling.min_p", "2"}},
      {"max_tokens 0",
       [&](auto& r) { s(r)->set_max_tokens(0); },
       kBad,
       {"sampling.max_tokens", "0"}},
      {"max_tokens -1",
       [&](auto& r) { s(r)->set_max_tokens(-1); },
       kBad,
       {"sampling.max_tokens", "-1"}},
      {"min > max",
       [&](auto& r) { s(r)->set_min_tokens(17); },
       kBad,
       {"sampling.min_tokens", "17"}},
      {"10,000 stops",
       [&](auto& r) {
         for (int i = 0; i < 10000; ++i) s(r)->add_stop("x");
       },
       kBad,
       {"sampling.stop", "10000", "16"}},
      {"1 MB stop",
       [&](auto& r) { s(r)->add_stop(std::string(1 << 20, 'x')); },
       kBad,
       {"sampling.stop", "1048576", "256"}},
      {"empty stop", [&](auto& r) { s(r)->add_stop(""); }, kBad, {"sampling.stop"}},
      {"stop id 100",
       [&](auto& r) { s(r)->add_stop_token_ids(100); },
       kBad,
       {"sampling.stop_token_ids", "100"}},
      {"logprobs -1", [&](auto& r) { s(r)->set_logprobs(-1); }, kBad, {"sampling.logprobs", "-1"}},
      {"logprobs 21",
       [&](auto& r) { s(r)->set_logprobs(21); },
       kBad,
       {"sampling.logprobs", "21", "20"}},
  };
  for (const BadField& row : table) {
    v1::GenerateRequest request = Good();
    row.spoil(request);
    const absl::Status status = ToPreparedRequest(std::move(request), Facts()).status();
    EXPECT_EQ(status.code(), row.code) << row.name << ": " << status;
    for (const std::string& part : row.message) {
      EXPECT_NE(Message(status).find(part), std::string::npos)
          << row.name << ": " << status << " lacks " << part;
    }
  }
}

RequestUpdate Update(const std::string& text, int32_t id) {
  RequestUpdate update;
  update.text = text;
  update.tokens.push_back({id, -0.5f, {{7, -0.25f}, {8, -1.0f}}});
  update.usage = {3, 2, id};
  return update;
}

TEST(Convert, MergedUpdatesLoseNothing) {
  RequestUpdate merged = Update("ab", 1);
  Merge(Update("cd", 2), &merged);
  RequestUpdate last = Update("", 3);
  last.finish_reason = FinishReason::kStop;
  last.stop_reason = "END";
  Merge(std::move(last), &merged);
  const auto proto = ToStreamResponse("id", std::move(merged), true);
  EXPECT_EQ(proto.request_id(), "id");
  EXPECT_EQ(proto.text(), "abcd");
  EXPECT_EQ(std::vector<int32_t>(proto.token_ids().begin(), proto.token_ids().end()),
            (std::vector<int32_t>{1, 2, 3}));
  ASSERT_EQ(proto.logprobs_size(), 3);
  EXPECT_EQ(proto.logprobs(2).logprob(), -0.5f);
  ASSERT_EQ(proto.logprobs(0).top_size(), 2);
  EXPECT_EQ(proto.logprobs(0).top(1).token_id(), 8);
  EXPECT_EQ(proto.logprobs(0).top(1).logprob(), -1.0f);
  EXPECT_EQ(proto.finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(proto.stop_reason(), "END");
  EXPECT_EQ(proto.usage().prompt_tokens(), 3);
  EXPECT_EQ(proto.usage().cached_tokens(), 2);
  EXPECT_EQ(proto.usage().completion_tokens(), 3);
}

TEST(Convert, LogprobsOnlyWhenAskedFor) {
  RequestUpdate update = Update("a", 1);
  update.finish_reason = FinishReason::kLength;
  const auto proto = ToResponse("", {update}, false);
  EXPECT_EQ(proto.logprobs_size(), 0);
  EXPECT_EQ(proto.finish_reason(), v1::FINISH_REASON_LENGTH);
}

TEST(Convert, AResponseHoldsAllOutputs) {
  std::vector<RequestUpdate> updates = {Update("a", 1), Update("b", 2), Update("c", 4)};
  for (int32_t i = 0; i < 3; ++i) {
    updates[static_cast<size_t>(i)].index = i;
    updates[static_cast<size_t>(i)].finish_reason = FinishReason::kStop;
  }
  updates[2].finish_reason = FinishReason::kLength;
  const auto proto = ToResponse("id", std::move(updates), true);
  EXPECT_EQ(proto.text(), "a");
  ASSERT_EQ(proto.more_outputs_size(), 2);
  EXPECT_EQ(proto.more_outputs(0).text(), "b");
  EXPECT_EQ(proto.more_outputs(1).index(), 2);
  EXPECT_EQ(proto.more_outputs(1).token_ids(0), 4);
  EXPECT_EQ(proto.more_outputs(1).logprobs_size(), 1);
  EXPECT_EQ(proto.more_outputs(0).finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(proto.more_outputs(1).finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(proto.usage().prompt_tokens(), 3);
  EXPECT_EQ(proto.usage().completion_tokens(), 7) << "of all outputs";
}

// Names in the first column of the table under "## Sampling".
std::set<std::string> DocumentedFields() {
  std::ifstream page(QUANTD_SOURCE_DIR "/docs/requests.md");
  std::set<std::string> names;
  bool inside = false;
  for (std::string line; std::getline(page, line);) {
    if (line.starts_with("## ")) inside = line == "## Sampling";
    if (!inside || !line.starts_with("| `")) continue;
    names.insert(line.substr(3, line.find('`', 3) - 3));
  }
  return names;
}

TEST(Convert, ThePageOnRequestsListsEveryOption) {
  std::set<std::string> fields;
  const auto* descriptor = v1::SamplingParams::descriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) fields.insert(descriptor->field(i)->name());
  EXPECT_EQ(DocumentedFields(), fields);
}

TEST(Convert, RefusesFieldsOfAnotherVersion) {
  const auto refused = [](v1::GenerateRequest request, const std::string& field) {
    const auto status = ToPreparedRequest(std::move(request), Facts()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(Message(status), field + ": field number 99 is not known here");
  };
  v1::GenerateRequest request;
  request.set_text("a");
  v1::GenerateRequest spoiled = request;
  spoiled.GetReflection()->MutableUnknownFields(&spoiled)->AddVarint(99, 1);
  refused(spoiled, "request");
  spoiled = request;
  v1::SamplingParams* sampling = spoiled.mutable_sampling();
  sampling->GetReflection()->MutableUnknownFields(sampling)->AddLengthDelimited(99, "x");
  refused(spoiled, "sampling");
}

}  // namespace
}  // namespace quantd
