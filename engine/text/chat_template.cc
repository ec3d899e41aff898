// Where a model folder keeps its chat template, and what the template is given; see
// chat_template.h.
#include "engine/text/chat_template.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "engine/text/model_file.h"
#include "engine/text/utf8.h"
#include "kernels/status.h"

namespace quantd {
namespace {

using Json = nlohmann::json;
using jinja::DictData;
using jinja::Value;

constexpr uintmax_t kMaxFileBytes = uintmax_t{64} << 20;
// As transformers names them; templates that name others get what is not defined.
constexpr const char* kSpecialTokens[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                          "pad_token", "cls_token", "mask_token"};

using Text = std::optional<std::string>;

// The text of a file; nothing where there is none.
absl::StatusOr<Text> ReadFile(const std::filesystem::path& path) {
  absl::StatusOr<std::string> text = ReadModelFile(path, kMaxFileBytes);
  if (absl::IsNotFound(text.status())) return Text();
  if (!text.ok()) return text.status();
  return Text(*std::move(text));
}

// A JSON object; null where there is no file.
absl::StatusOr<Json> ReadJson(const std::filesystem::path& path) {
  ASSIGN_OR_RETURN(const Text text, ReadFile(path));
  if (!text) return Json();
  Json json = Json::parse(*text, nullptr, false);
  if (!json.is_object()) return DataLoss("{}: not a JSON object", path.string());
  return json;
}

const Json& Get(const Json& object, const char* key) {
  static const Json null;
  if (!object.is_object()) return null;
  const auto found = object.find(key);
  return found == object.end() ? null : *found;
}

// A special token is a string, or an object with its content.
std::optional<std::string> TokenText(const Json& json) {
  if (json.is_string()) return json.get<std::string>();
  const Json& content = Get(json, "content");
  if (content.is_string()) return content.get<std::string>();
  return std::nullopt;
}

using NamedSources = std::vector<std::pair<std::string, std::string>>;

// The value of a `chat_template` key: a template, or a list of named ones.
absl::StatusOr<NamedSources> Sources(const Json& json, const std::string& where) {
  if (json.is_string()) return NamedSources{{"default", json.get<std::string>()}};
  NamedSources sources;
  if (!json.is_array()) return DataLoss("{}: neither a template nor a list of them", where);
  for (size_t i = 0; i < json.size(); ++i) {
    const Json &name = Get(json[i], "name"), &source = Get(json[i], "template");
    if (!name.is_string() || !source.is_string()) {
      return DataLoss("{}[{}]: no name and template", where, i);
    }
    sources.emplace_back(name.get<std::string>(), source.get<std::string>());
  }
  return sources;
}

// chat_template.jinja and additional_chat_templates/NAME.jinja; empty without the first.
absl::StatusOr<NamedSources> SourceFiles(const std::filesystem::path& dir) {
  NamedSources sources;
  ASSIGN_OR_RETURN(Text text, ReadFile(dir / "chat_template.jinja"));
  if (!text) return sources;
  sources.emplace_back("default", *std::move(text));
  std::error_code error;
  std::vector<std::filesystem::path> paths;
  for (const auto& entry :
       std::filesystem::directory_iterator(dir / "additional_chat_templates", error)) {
    if (entry.path().extension() == ".jinja") paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  for (const auto& path : paths) {
    ASSIGN_OR_RETURN(Text more, ReadFile(path));
    if (more) sources.emplace_back(path.stem().string(), *std::move(more));
  }
  return sources;
}

// The message as a dict, as transformers hands it on: without nulls, its reasoning under the names
// that templates look for.
absl::StatusOr<Value> ToValue(const ChatMessage& message, size_t index) {
  DictData dict;
  dict.entries.emplace_back(Value::Of(std::string("role")), Value::Of(message.role));
  if (message.content) {
    dict.entries.emplace_back(Value::Of(std::string("content")), Value::Of(*message.content));
  }
  if (!message.fields_json.empty()) {
    const std::string name = fmt::format("messages[{}].fields_json", index);
    ASSIGN_OR_RETURN(const Value fields, jinja::FromJson(message.fields_json, name));
    const jinja::Dict* more = fields.As<jinja::Dict>();
    if (more == nullptr) return InvalidArgument("{}: not a JSON object", name);
    constexpr size_t kMaxFields = 1000;
    if ((*more)->entries.size() > kMaxFields) {
      return InvalidArgument("{}: more than {} fields", name, kMaxFields);
    }
    for (const auto& [key, value] : (*more)->entries) dict.Set(key, value);
  }
  std::erase_if(dict.entries, [](const auto& entry) { return entry.second.none(); });
  for (const std::string_view name : {"reasoning_content", "thinking", "reasoning"}) {
    const Value* found = dict.Find(name);
    if (found == nullptr) continue;
    const Value reasoning = *found;
    if (dict.Find("thinking") == nullptr) {
      dict.entries.insert(dict.entries.begin(), {Value::Of(std::string("thinking")), reasoning});
    }
    dict.Set(Value::Of(std::string("reasoning_content")), reasoning);
    break;
  }
  return jinja::MakeDict(std::move(dict));
}

}  // namespace

absl::Status ChatTemplate::Add(const std::string& name, std::string_view source) {
  if (const size_t valid = ValidUtf8Prefix(source); valid != source.size()) {
    return DataLoss("the template \"{}\" is not valid UTF-8 at byte {}", name, valid);
  }
  absl::StatusOr<std::unique_ptr<jinja::Template>> parsed = jinja::Template::Parse(source);
  if (!parsed.ok()) {
    return Annotate(parsed.status(),
                    name == "default" ? "chat template" : fmt::format("chat template {:?}", name));
  }
  templates_.emplace_back(name, *std::move(parsed));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Parse(std::string_view source,
                                                                  const Names& special_tokens) {
  std::unique_ptr<ChatTemplate> chat(new ChatTemplate);
  RETURN_IF_ERROR(chat->Add("default", source));
  for (const auto& [name, token] : special_tokens) {
    chat->special_tokens_.Set(name, Value::Of(token));
  }
  return chat;
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Load(const std::filesystem::path& dir) {
  ASSIGN_OR_RETURN(const Json config, ReadJson(dir / "tokenizer_config.json"));
  ASSIGN_OR_RETURN(NamedSources sources, SourceFiles(dir));
  std::string where = (dir / "chat_template.jinja").string();
  if (sources.empty()) {
    ASSIGN_OR_RETURN(const Json processor, ReadJson(dir / "chat_template.json"));
    const bool own = !Get(processor, "chat_template").is_null();
    const Json& json = Get(own ? processor : config, "chat_template");
    where = (dir / (own ? "chat_template.json" : "tokenizer_config.json")).string();
    if (json.is_null()) {
      return NotFound(
          "{}: the model has no chat template (neither chat_template.jinja nor "
          "chat_template in tokenizer_config.json)",
          dir.string());
    }
    ASSIGN_OR_RETURN(sources, Sources(json, where + ": chat_template"));
  }
  std::unique_ptr<ChatTemplate> chat(new ChatTemplate);
  for (const auto& [name, source] : sources) {
    RETURN_IF_ERROR(Annotate(chat->Add(name, source), where));
  }
  ASSIGN_OR_RETURN(const Json map, ReadJson(dir / "special_tokens_map.json"));
  for (const char* name : kSpecialTokens) {
    std::optional<std::string> token = TokenText(Get(config, name));
    if (!token) token = TokenText(Get(map, name));
    if (token) chat->special_tokens_.Set(name, Value::Of(*std::move(token)));
  }
  return chat;
}

absl::StatusOr<std::string> ChatTemplate::Render(std::span<const ChatMessage> messages,
                                                 const ChatOptions& options,
                                                 const jinja::RenderOptions& limits) const {
  jinja::Bindings variables = special_tokens_;
  std::vector<Value> list;
  for (size_t i = 0; i < messages.size(); ++i) {
    ASSIGN_OR_RETURN(Value message, ToValue(messages[i], i));
    list.push_back(std::move(message));
  }
  ASSIGN_OR_RETURN(Value all, jinja::MakeList(std::move(list)));
  Value tools;
  if (!options.tools_json.empty()) {
    ASSIGN_OR_RETURN(tools, jinja::FromJson(options.tools_json, "tools_json"));
    if (!tools.Is<jinja::List>()) return InvalidArgument("tools_json: not a JSON array");
  }
  variables.Set("documents", Value());
  if (!options.variables_json.empty()) {
    ASSIGN_OR_RETURN(const Value more, jinja::FromJson(options.variables_json, "variables_json"));
    const jinja::Dict* dict = more.As<jinja::Dict>();
    if (dict == nullptr || (*dict)->entries.size() > 1000) {
      return InvalidArgument("variables_json: not a JSON object of at most 1000 variables");
    }
    for (const auto& [key, value] : (*dict)->entries) variables.Set(*key.text(), value);
  }
  const bool with_tools = !tools.none();
  variables.Set("messages", std::move(all));
  variables.Set("tools", std::move(tools));
  variables.Set("add_generation_prompt", Value::Of(options.add_generation_prompt));

  const jinja::Template* chosen = nullptr;
  for (const std::string_view wanted : {"tool_use", "default"}) {
    if (chosen != nullptr || (wanted == "tool_use" && !with_tools)) continue;
    for (const auto& [name, candidate] : templates_) {
      if (name == wanted) chosen = candidate.get();
    }
  }
  if (chosen == nullptr) {
    std::string names;
    for (const auto& [name, candidate] : templates_) names += (names.empty() ? "" : ", ") + name;
    return InvalidArgument("the model has chat templates named {}, but none \"default\"", names);
  }
  absl::StatusOr<std::string> text = chosen->Render(variables, limits);
  if (!text.ok()) return Annotate(text.status(), "chat template");
  return text;
}

}  // namespace quantd
