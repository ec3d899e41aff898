// ChatTemplate: a conversation to the text that the model was trained to continue, by the Jinja
// template that comes with the model. What `messages` of a request and `generate --chat` go
// through, before the tokenizer. Immutable after loading, safe from any thread.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/jinja/template.h"

namespace quantd {

struct ChatMessage {
  std::string role;
  std::optional<std::string> content;
  // Further fields, a JSON object or empty: tool_calls, name, reasoning_content, or a content of
  // several parts. A field of the same name takes the place of role and content; null leaves a
  // field out.
  std::string fields_json;
};

struct ChatOptions {
  // End with what begins the model's answer.
  bool add_generation_prompt = true;
  // The functions that the model may call: a JSON array of their schemas, or empty.
  std::string tools_json;
  // Further variables of the template (enable_thinking, documents, ...): a JSON object, or empty.
  std::string variables_json;
};

class ChatTemplate {
 public:
  /// The template of a model folder: chat_template.jinja (and additional_chat_templates/*.jinja),
  /// else `chat_template` of chat_template.json or of tokenizer_config.json, one or a list of named
  /// ones; and the special tokens of tokenizer_config.json and special_tokens_map.json, which
  /// templates name (bos_token, eos_token, ...). NOT_FOUND without one, DATA_LOSS for a file that
  /// is broken, and the errors of jinja::Template::Parse; the message names the file.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Load(const std::filesystem::path& dir);

  using Names = std::vector<std::pair<std::string, std::string>>;
  /// One template, and its special tokens by name.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Parse(std::string_view source,
                                                             const Names& special_tokens);

  /// The text as transformers' apply_chat_template makes it. With tools, the template named
  /// "tool_use" where there is one, else "default". INVALID_ARGUMENT naming the message or option
  /// that is not JSON, or with the line and what the template raises; UNIMPLEMENTED naming what of
  /// Jinja is not supported; RESOURCE_EXHAUSTED when the template takes too many steps or bytes.
  absl::StatusOr<std::string> Render(std::span<const ChatMessage> messages,
                                     const ChatOptions& options,
                                     const jinja::RenderOptions& limits = {}) const;

 private:
  ChatTemplate() = default;
  absl::Status Add(const std::string& name, std::string_view source);

  std::vector<std::pair<std::string, std::unique_ptr<jinja::Template>>> templates_;
  jinja::Bindings special_tokens_;
};

}  // namespace quantd
