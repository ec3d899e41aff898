// Chat templates: every recorded rendering of transformers byte for byte, what is refused, and that
// whatever a template does, it ends.
#include "engine/text/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "kernels/status.h"
#include "tests/engine/text/tiny_tokenizer.h"

namespace quantd::test {
namespace {

using OrderedJson = nlohmann::ordered_json;
using absl::StatusCode;
using testing::HasSubstr;

const OrderedJson& Recorded() {
  static const OrderedJson recorded =
      OrderedJson::parse(ReadText(QUANTD_TEST_DATA "/chat_templates.json"));
  return recorded;
}

ChatTemplate::Names Tokens() {
  ChatTemplate::Names tokens;
  for (const auto& [name, token] : Recorded()["tokens"].items()) {
    tokens.emplace_back(name, token.get<std::string>());
  }
  return tokens;
}

std::vector<ChatMessage> Messages(const OrderedJson& json) {
  std::vector<ChatMessage> messages;
  for (OrderedJson fields : json) {
    ChatMessage message;
    message.role = fields["role"].get<std::string>();
    fields.erase("role");
    if (fields.contains("content") && fields["content"].is_string()) {
      message.content = fields["content"].get<std::string>();
      fields.erase("content");
    }
    if (!fields.empty()) message.fields_json = fields.dump();
    messages.push_back(std::move(message));
  }
  return messages;
}

jinja::RenderOptions AtRecordedTime() {
  const OrderedJson& now = Recorded()["now"];
  std::tm time{};
  time.tm_year = now[0].get<int>() - 1900;
  time.tm_mon = now[1].get<int>() - 1;
  time.tm_mday = now[2].get<int>();
  time.tm_hour = now[3].get<int>();
  time.tm_min = now[4].get<int>();
  time.tm_sec = now[5].get<int>();
  time.tm_wday = (now[6].get<int>() + 1) % 7;
  time.tm_yday = now[7].get<int>() - 1;
  jinja::RenderOptions options;
  options.now = time;
  return options;
}

absl::StatusOr<std::string> RenderSource(const std::string& source,
                                         jinja::RenderOptions options = AtRecordedTime()) {
  auto chat = ChatTemplate::Parse(source, Tokens());
  if (!chat.ok()) return chat.status();
  return (*chat)->Render(Messages(Recorded()["messages"]["chat"]), {}, options);
}

TEST(ChatTemplate, RendersWhatTransformersRenders) {
  int rendered = 0, refused = 0;
  for (const OrderedJson& c : Recorded()["cases"]) {
    SCOPED_TRACE(c["name"].get<std::string>());
    const OrderedJson& source = Recorded()["templates"][c["template"].get<std::string>()];
    const auto chat = ChatTemplate::Parse(source.get<std::string>(), Tokens());
    ASSERT_TRUE(chat.ok()) << chat.status();
    ChatOptions options;
    options.add_generation_prompt = c["add_generation_prompt"].get<bool>();
    if (c["tools"].get<bool>()) options.tools_json = Recorded()["tools"].dump();
    options.variables_json = c["variables"].dump();
    const OrderedJson& messages = Recorded()["messages"][c["messages"].get<std::string>()];
    const auto text = (*chat)->Render(Messages(messages), options, AtRecordedTime());
    if (c["expected"].is_null()) {
      EXPECT_EQ(text.status().code(), StatusCode::kInvalidArgument) << text.status();
      ++refused;
    } else {
      ASSERT_TRUE(text.ok()) << text.status();
      EXPECT_EQ(*text, c["expected"].get<std::string>());
      ++rendered;
    }
  }
  EXPECT_GT(rendered, 150);
  EXPECT_GT(refused, 20);
}

TEST(ChatTemplate, TheLanguageIsJinjas) {
  for (const OrderedJson& snippet : Recorded()["snippets"]) {
    const auto source = snippet["source"].get<std::string>();
    const auto text = RenderSource(source);
    if (snippet["expected"].is_null()) {
      EXPECT_FALSE(text.ok()) << source << "\n" << *text;
    } else {
      EXPECT_TRUE(text.ok()) << source << "\n" << text.status();
      if (text.ok()) {
        EXPECT_EQ(*text, snippet["expected"].get<std::string>()) << source;
      }
    }
  }
}

TEST(ChatTemplate, ErrorsSayWhereAndWhat) {
  const struct {
    std::string source;
    StatusCode code;
    std::string message;
  } cases[] = {
      {"\n{{ raise_exception('roles must alternate') }}", StatusCode::kInvalidArgument,
       "chat template: line 2: roles must alternate"},
      {"{{ x.y }}", StatusCode::kInvalidArgument, "line 1: 'x' is undefined"},
      {"a\nb {% for m in messages %}\n{{ m.tool_calls[0] }}{% endfor %}",
       StatusCode::kInvalidArgument, "line 3: 'dict object' has no attribute 'tool_calls'"},
      {"{{ [].append(1) }}", StatusCode::kInvalidArgument, "'append' of 'list' object is unsafe"},
      {"{{ ''.__class__.__mro__ }}", StatusCode::kInvalidArgument, "'__class__'"},
      {"{{ 1|pprint }}", StatusCode::kUnimplemented, "the filter 'pprint' is not supported"},
      {"{{ 1 is prime }}", StatusCode::kUnimplemented, "the test 'prime' is not supported"},
      {"{% include 'x' %}", StatusCode::kUnimplemented, "line 1: the tag 'include'"},
      {"{% for x in y %}", StatusCode::kInvalidArgument, "expected {% endfor %}"},
      {"{{ 1 +", StatusCode::kInvalidArgument, "a tag without }}"},
      {"{{ 9223372036854775807 + 1 }}", StatusCode::kInvalidArgument, "needs more than 64 bits"},
      {"\xFF", StatusCode::kDataLoss, "not valid UTF-8 at byte 0"},
  };
  for (const auto& c : cases) {
    const auto text = RenderSource(c.source);
    EXPECT_EQ(text.status().code(), c.code) << c.source << " " << text.status();
    EXPECT_THAT(Message(text.status()), HasSubstr(c.message));
  }
}

TEST(ChatTemplate, MessagesAndOptionsMustBeJson) {
  const auto chat = ChatTemplate::Parse("{{ messages|tojson }}", {}).value();
  const auto message = [&](const std::string& fields) {
    return Message(chat->Render(std::vector<ChatMessage>{{"user", "x", fields}}, {}).status());
  };
  EXPECT_THAT(message("{"), HasSubstr("messages[0].fields_json: not valid JSON"));
  EXPECT_THAT(message("[1]"), HasSubstr("messages[0].fields_json: not a JSON object"));
  EXPECT_THAT(message("{\"a\": 9223372036854775808}"), HasSubstr("larger than"));
  EXPECT_THAT(message("{\"a\": " + std::string(200, '[') + std::string(200, ']') + "}"),
              HasSubstr("more than 100 values in each other"));
  EXPECT_THAT(message(std::string(300000, '[')), HasSubstr("fields_json"));
  ChatOptions options;
  options.tools_json = "{}";
  EXPECT_THAT(Message(chat->Render({}, options).status()), HasSubstr("tools_json: not a JSON"));
  options.tools_json = "";
  options.variables_json = "3";
  EXPECT_THAT(Message(chat->Render({}, options).status()), HasSubstr("variables_json: not a JSON"));
}

TEST(ChatTemplate, FieldsReplaceAndRemove) {
  const auto chat = ChatTemplate::Parse("{{ messages|tojson }}", {}).value();
  const std::vector<ChatMessage> messages = {
      {"assistant", "x", R"({"content": null, "name": "n", "n": 1, "f": 1.0})"},
      {"assistant", std::nullopt, R"({"role": "tool", "reasoning": "r"})"}};
  EXPECT_EQ(chat->Render(messages, {}).value(),
            R"([{"role": "assistant", "name": "n", "n": 1, "f": 1.0}, )"
            R"({"thinking": "r", "role": "tool", "reasoning": "r", "reasoning_content": "r"}])");
}

// Each would take forever, all memory or all stack.
TEST(ChatTemplate, WhateverATemplateDoesItEnds) {
  const auto times = [](int n, const std::string& text) {
    std::string out;
    for (int i = 0; i < n; ++i) out += text;
    return out;
  };
  const std::string loops = "{% for a in range(99999) %}";
  const std::string doubling = "{% set ns = namespace(s='xy', l=[1]) %}{% for i in range(200) %}";
  const std::string hostile[] = {
      loops + loops + loops + "{% endfor %}{% endfor %}{% endfor %}",
      doubling + "{% set ns.s = ns.s + ns.s %}{% endfor %}",
      doubling + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
      doubling + "{% set ns.l = ns.l + ns.l %}{% endfor %}",
      doubling + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
      "{% set ns = namespace(l=1) %}{% for i in range(99) %}{% set ns.l = [ns.l, ns.l] %}{% endfor "
      "%}"
      "{{ ns.l == ns.l }}{{ ns.l|tojson }}",
      doubling + "{% set ns.s = ns.s.replace('', ns.s) %}{% endfor %}",
      doubling + "{% set ns.s = ns.s.join([ns.s, ns.s]) %}{% endfor %}",
      doubling + "{% set ns.s = (ns.s, ns.s)|join %}{% endfor %}",
      doubling + "{% set ns.s = ns.s|indent(1000, true) ~ '\\n' ~ ns.s %}{% endfor %}",
      doubling + "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
      "{{ 'a' * 999999999999 }}",
      "{{ [1] * 999999999999 }}",
      "{{ 'a'.ljust(999999999999) }}",
      "{{ ('a' * 9999999).replace('a', 'b' * 9999999) }}",
      "{{ [1, 2]|tojson(indent=999999) }}",
      "{{ ([1] * 100000)|unique|list }}{{ range(100000)|unique|list|length }}",
      "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
      "{% macro f(n) %}{{ f(n)|upper|trim ~ (f(n)) }}{% endmacro %}{{ f(1) }}",
      "{% macro f() %}{% call f() %}x{% endcall %}{% endmacro %}{{ f() }}",
      "{% macro f(a=f()) %}{% endmacro %}{{ f() }}",
      "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
      "{{ " + times(5000, "(") + "1" + times(5000, ")") + " }}",
      "{{ " + times(5000, "[") + times(5000, "]") + " }}",
      "{{ " + times(50000, "not ") + "1 }}",
      "{{ " + times(50000, "- ") + "1 }}",
      "{{ 1" + times(50000, " + 1") + " }}",
      "{{ 1" + times(50000, " if 1 else 1") + " }}",
      "{{ x" + times(50000, ".x") + " }}",
      "{{ 1" + times(50000, "|abs") + " }}",
      "{{ 1" + times(50000, " is number") + " }}",
      "{{ x" + times(50000, "()") + " }}",
      times(5000, "{% if 1 %}") + times(5000, "{% endif %}"),
      times(5000, "{% for x in y %}") + times(5000, "{% endfor %}"),
      "{% set " + times(5000, "(") + "a" + times(5000, ")") + " = 1 %}",
      std::string(2 << 20, 'x'),
      "{{ strftime_now('%c' * 100000) }}",
      "{% set a = 'ab' * 400000 %}{% for i in range(99999) %}{{ a.rfind('b' * 400000) }}{% endfor "
      "%}",
      "{% set a = 'a' * 400000 %}{% for i in range(99999) %}{{ a.split(a[1:] + 'b')|length }}{% "
      "endfor %}",
      "{% set ns = namespace() %}{% for i in range(99999) %}{% set m = namespace(n=ns.n) %}"
      "{% set ns.n = m %}{% set ns.me = ns %}{% endfor %}{% for x in range(99999) %}"
      "{% for y in range(99999) %}{% endfor %}{% endfor %}",
  };
  for (const std::string& source : hostile) {
    const auto text = RenderSource(source);
    EXPECT_FALSE(text.ok()) << source.substr(0, 120);
    const StatusCode code = text.status().code();
    EXPECT_TRUE(code == StatusCode::kResourceExhausted || code == StatusCode::kInvalidArgument)
        << source.substr(0, 120) << ": " << text.status();
    EXPECT_LT(Message(text.status()).size(), 1000u);
  }
  // What holds itself is let go of at the end.
  EXPECT_TRUE(RenderSource("{% set ns = namespace() %}{% set ns.me = [ns, {'x': ns}] %}").ok());
}

TEST(ChatTemplate, BudgetsGrowWithTheInput) {
  const auto chat =
      ChatTemplate::Parse("{% for m in messages %}{{ m.content|trim|upper }}{% endfor %}", {});
  const std::vector<ChatMessage> messages(40, {"user", std::string(1 << 20, 'x'), ""});
  EXPECT_EQ((*chat)->Render(messages, {}).value().size(), size_t{40} << 20);
}

TEST(ChatTemplate, LoadsWhatAFolderHas) {
  const TestFolder folder;
  const auto render = [&](const ChatOptions& options = {}) -> std::string {
    const auto chat = ChatTemplate::Load(folder.path());
    if (!chat.ok()) return Message(chat.status());
    const auto text = (*chat)->Render(std::vector<ChatMessage>{{"user", "x", ""}}, options);
    return text.ok() ? *text : Message(text.status());
  };
  EXPECT_EQ(ChatTemplate::Load(folder.path()).status().code(), StatusCode::kNotFound);
  EXPECT_THAT(render(), HasSubstr("no chat template"));
  folder.Write("special_tokens_map.json",
               R"({"bos_token": "<m>", "eos_token": {"content": "</m>"}})");
  folder.Write(
      "tokenizer_config.json",
      R"({"chat_template": "{{ bos_token }}C{{ eos_token }}{{ pad_token }}", "bos_token": "<c>"})");
  EXPECT_EQ(render(), "<c>C</m>");
  folder.Write("tokenizer_config.json", R"({"chat_template": [
      {"name": "tool_use", "template": "T{{ tools|length }}"},
      {"name": "default", "template": "D{{ thinking }}"}]})");
  EXPECT_EQ(render(), "D");
  EXPECT_EQ(render({true, "[1, 2]", ""}), "T2");
  EXPECT_EQ(render({true, "", R"({"thinking": 1})"}), "D1");
  folder.Write("chat_template.json", R"({"chat_template": "P"})");
  EXPECT_EQ(render(), "P");
  folder.Write("chat_template.jinja", "J{% if messages %}\n{% endif %}\n");
  EXPECT_EQ(render(), "J");
  std::filesystem::create_directory(folder.path() / "additional_chat_templates");
  folder.Write("additional_chat_templates/tool_use.jinja", "A");
  EXPECT_EQ(render({true, "[]", ""}), "A");
  EXPECT_EQ(render(), "J");

  folder.Write("chat_template.jinja", "{% if %}");
  EXPECT_THAT(render(), HasSubstr("chat_template.jinja: chat template: line 1: expected an"));
  std::filesystem::remove(folder.path() / "chat_template.jinja");
  std::filesystem::remove(folder.path() / "chat_template.json");
  folder.Write("tokenizer_config.json", R"({"chat_template": 5})");
  EXPECT_THAT(render(), HasSubstr("tokenizer_config.json: chat_template: neither"));
  folder.Write("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": ""}]})");
  EXPECT_THAT(render(), HasSubstr("templates named rag, but none \"default\""));
}

}  // namespace
}  // namespace quantd::test
