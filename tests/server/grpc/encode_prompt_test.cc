// From a prepared request to token ids: texts, and messages through a chat template.
#include <gtest/gtest.h>

#include "google/rpc/error_details.pb.h"
#include "server/grpc/convert.h"
#include "server/grpc/error_details.h"
#include "tests/server/fake_engine.h"
#include "tests/server/guarded_server.h"

namespace quantd {
namespace {

constexpr const char* kTemplate =
    "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}{{ tools|length if tools }}"
    "{% if stop %}{{ raise_exception('no') }}{% endif %}"
    "{% if go_on %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    "{% endif %}";

class EncodePromptTest : public testing::Test {
 protected:
  EncodePromptTest() {
    prepared_.messages = {{"user", "hi", ""}};
    prepared_.add_special_tokens = false;
  }
  // The text of the ids, a byte each.
  std::string Encoded() {
    const auto ids = EncodePrompt(prepared_, tokenizer_, chat_.get(), context_);
    EXPECT_TRUE(ids.ok()) << ids.status();
    return ids.ok() ? tokenizer_.Decode(*ids, false) : std::string();
  }
  void ExpectRefused(const std::string& field, const std::string& what) {
    const auto ids = EncodePrompt(prepared_, tokenizer_, chat_.get(), context_);
    EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument) << ids.status();
    EXPECT_EQ(Message(ids.status()).rfind(field + ": ", 0), 0u) << ids.status();
    EXPECT_NE(Message(ids.status()).find(what), std::string::npos) << ids.status();
    const auto detail = test::DetailOf<google::rpc::BadRequest>(ToGrpc(ids.status()));
    ASSERT_EQ(detail.field_violations_size(), 1);
    EXPECT_EQ(detail.field_violations(0).field(), field);
  }

  test::ByteTokenizer tokenizer_;
  std::unique_ptr<ChatTemplate> chat_ =
      ChatTemplate::Parse(kTemplate, {{"bos_token", "^"}}).value();
  PreparedRequest prepared_;
  int64_t context_ = 1000;
};

TEST_F(EncodePromptTest, MessagesGoThroughTheChatTemplate) {
  EXPECT_EQ(Encoded(), "^user:hi;>");
  prepared_.chat.add_generation_prompt = false;
  prepared_.chat.tools_json = "[1, 2]";
  EXPECT_EQ(Encoded(), "^user:hi;2");
}

TEST_F(EncodePromptTest, TextDoesNot) {
  prepared_.has_text = true;
  prepared_.text = "{{ text }}";
  EXPECT_EQ(Encoded(), "{{ text }}");
  chat_.reset();
  EXPECT_EQ(Encoded(), "{{ text }}");
  prepared_.text = "";
  ExpectRefused("text", "comes to no token");
}

TEST_F(EncodePromptTest, AnEmptyTextIsWhatTheTokenizerBeginsWith) {
  prepared_.has_text = true;
  prepared_.text = "";
  prepared_.add_special_tokens = true;
  const auto llama = Tokenizer::Load(QUANTD_TEST_DATA "/tokenizers/llama2_bytefallback");
  ASSERT_TRUE(llama.ok()) << llama.status();
  const auto ids = EncodePrompt(prepared_, **llama, nullptr, context_);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(*ids, std::vector<int32_t>{(*llama)->bos_id().value()});
  prepared_.add_special_tokens = false;
  EXPECT_FALSE(EncodePrompt(prepared_, **llama, nullptr, context_).ok());
}

TEST_F(EncodePromptTest, WhatCannotFitTheContextIsRefusedUnread) {
  tokenizer_.Block(true);  // so that encoding it would hang
  context_ = 11;           // "^user:hi;>" and one more
  prepared_.messages[0].content = "hi!";
  prepared_.request.sampling.max_tokens = 3;
  for (const bool as_text : {false, true}) {
    prepared_.has_text = as_text;
    prepared_.text = "0123456789a";
    const auto ids = EncodePrompt(prepared_, tokenizer_, chat_.get(), context_);
    EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(Message(ids.status()),
              "the prompt's 11 or more tokens and max_tokens 3 make at least 14, allowed: the "
              "context of 11");
    EXPECT_EQ(FieldIn(ids.status()), "prompt");
  }
  tokenizer_.Block(false);
  prepared_.text.pop_back();
  EXPECT_TRUE(EncodePrompt(prepared_, tokenizer_, chat_.get(), context_).ok())
      << "the engine says what max_tokens may be";
}

TEST_F(EncodePromptTest, WhatIsWrongIsNamed) {
  prepared_.chat.variables_json = R"({"stop": true})";
  ExpectRefused("messages", "chat template: line 1: no");
  prepared_.chat.variables_json = R"({"go_on": true})";
  ExpectRefused("messages", "the template ");
  prepared_.chat.variables_json = "[";
  ExpectRefused("chat.variables_json", "not valid JSON");
  prepared_.chat.variables_json = "";
  prepared_.chat.tools_json = "{}";
  ExpectRefused("chat.tools_json", "not a JSON array");
  prepared_.messages[0].fields_json = "[";
  ExpectRefused("messages[0].fields_json", "not valid JSON");
  chat_.reset();
  ExpectRefused("messages", "the model has no chat template");
  chat_ = ChatTemplate::Parse("", {}).value();
  prepared_ = PreparedRequest();
  prepared_.messages = {{"user", "hi", ""}};
  ExpectRefused("messages", "comes to no token");
}

}  // namespace
}  // namespace quantd
