// A chat template, over a conversation with everything that templates look for: what it makes is
// text, and small, or it is refused.
#include "engine/text/chat_template.h"
#include "engine/text/utf8.h"
#include "tests/fuzz/fuzz_target.h"

namespace quantd {
namespace {

FUZZ_TARGET(chat_template) {
  static const std::vector<ChatMessage> messages = {
      {"system", " Be brief.\n", ""},
      {"user", "Wh\xc3\xb6? <think>x</think>", R"({"name": "n"})"},
      {"assistant", std::nullopt,
       R"({"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"a": [1, 2.5]}}}]})"},
      {"tool", "{}", ""}};
  static const ChatOptions options = {true, R"([{"type": "function", "function": {"name": "f"}}])",
                                      R"({"enable_thinking": false})"};
  const auto chat = ChatTemplate::Parse(fuzz::Text(bytes), {{"bos_token", "<s>"}});
  if (!chat.ok()) return;
  jinja::RenderOptions limits;
  limits.max_steps = 200'000;
  limits.max_bytes = int64_t{8} << 20;
  const auto text = (*chat)->Render(messages, options, limits);
  if (!text.ok()) return;
  QUANTD_CHECK(text->size() < size_t{16} << 20, "{} bytes", text->size());
  QUANTD_CHECK(ValidUtf8Prefix(*text) == text->size(), "a text that is not UTF-8");
}

}  // namespace
}  // namespace quantd
