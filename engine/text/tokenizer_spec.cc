// Reads and validates tokenizer.json and tokenizer_config.json; see tokenizer_spec.h.
#include "engine/text/tokenizer_spec.h"

#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>
#include <system_error>

#include "kernels/fault_list.h"

namespace quantd {
namespace {

using Json = nlohmann::json;

// GPT-2's pattern, which ByteLevel uses unless use_regex is false.
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// The largest tokenizer.json in use have 35 MB; parsing takes about ten times the size in memory.
constexpr uintmax_t kMaxFileBytes = uintmax_t{256} << 20;
constexpr int kMaxDepth = 8;  // of Sequence in Sequence

absl::StatusOr<Json> ReadJson(const std::filesystem::path& path) {
  std::error_code error;
  const auto kind = std::filesystem::status(path, error);
  if (!std::filesystem::exists(kind)) return NotFound("{}: no such file", path.string());
  if (!std::filesystem::is_regular_file(kind))
    return DataLoss("{}: not a regular file", path.string());
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (error) return DataLoss("{}: {}", path.string(), error.message());
  if (size > kMaxFileBytes) {
    return DataLoss("{}: {} bytes, at most {} are read", path.string(), size, kMaxFileBytes);
  }
  std::string text(size, '\0');
  std::ifstream file(path, std::ios::binary);
  if (!file.read(text.data(), static_cast<std::streamsize>(size))) {
    return DataLoss("{}: cannot read {} bytes", path.string(), size);
  }
  Json json = Json::parse(text, nullptr, false);
  if (json.is_discarded()) return DataLoss("{}: not valid JSON", path.string());
  if (!json.is_object()) return DataLoss("{}: not a JSON object", path.string());
  return json;
}

// One JSON object with the name it has in messages. A key that is absent and one that is null are
// the same, as they are to serde.
class Object {
 public:
  Object(const Json& json, std::string name, FaultList* faults)
      : json_(json), name_(std::move(name)), faults_(faults) {
    if (!json.is_object()) faults->Add("{}: not an object", name_);
  }
  const std::string& name() const { return name_; }
  std::string NameOf(std::string_view key) const { return fmt::format("{}.{}", name_, key); }

  // The value, or null.
  const Json& Get(std::string_view key) const {
    static const Json null;
    if (!json_.is_object()) return null;
    const auto found = json_.find(key);
    return found == json_.end() ? null : *found;
  }
  bool Bool(std::string_view key, bool otherwise) const {
    const Json& value = Get(key);
    if (value.is_boolean()) return value.get<bool>();
    if (!value.is_null()) faults_->Add("{}: not true or false", NameOf(key));
    return otherwise;
  }
  std::optional<std::string> OptionalString(std::string_view key) const {
    const Json& value = Get(key);
    if (value.is_string()) return value.get<std::string>();
    if (!value.is_null()) faults_->Add("{}: not a string", NameOf(key));
    return std::nullopt;
  }
  std::string String(std::string_view key) const {
    if (json_.is_object() && Get(key).is_null()) faults_->Add("{}: missing", NameOf(key));
    return OptionalString(key).value_or("");
  }
  // The elements of an array; none where it is absent.
  const Json& Array(std::string_view key) const {
    static const Json none = Json::array();
    const Json& value = Get(key);
    if (value.is_array()) return value;
    if (!value.is_null()) faults_->Add("{}: not an array", NameOf(key));
    return none;
  }

 private:
  const Json& json_;
  std::string name_;
  FaultList* faults_;
};

class Reader {
 public:
  Reader(TokenizerSpec* spec, FaultList* faults) : spec_(spec), faults_(faults) {}

  // OK with faults added for what is malformed, UNIMPLEMENTED for what is not supported.
  absl::Status Read(const Json& json) {
    ReadAddedTokens(json);
    RETURN_IF_ERROR(ReadNormalizer(Value(json, "normalizer"), "normalizer", 0));
    bool byte_level = false;
    RETURN_IF_ERROR(
        ReadPreTokenizer(Value(json, "pre_tokenizer"), "pre_tokenizer", 0, &byte_level));
    if (!byte_level) return Unsupported("pre_tokenizer", "one that does not end in ByteLevel");
    RETURN_IF_ERROR(ReadPostProcessor(Value(json, "post_processor"), "post_processor", 0));
    const Object decoder(Value(json, "decoder"), "decoder", faults_);
    const std::string kind = decoder.String("type");
    if (faults_->empty() && kind != "ByteLevel") return Unsupported("decoder", kind);
    return ReadModel(Value(json, "model"));
  }

 private:
  static const Json& Value(const Json& json, std::string_view key) {
    static const Json null;
    const auto found = json.find(key);
    return found == json.end() ? null : *found;
  }
  static absl::Status Unsupported(std::string_view where, std::string_view what) {
    return Unimplemented("{}: {} is not supported", where, what);
  }
  absl::Status CheckDepth(const std::string& name, int depth) const {
    if (depth <= kMaxDepth) return absl::OkStatus();
    return Unimplemented("{}: more than {} Sequences in each other", name, kMaxDepth);
  }

  std::optional<int32_t> Id(const Json& value, const std::string& name) {
    if (value.is_number_unsigned() && value.get<uint64_t>() < kMaxTokens) {
      return static_cast<int32_t>(value.get<uint64_t>());
    }
    faults_->Add("{}: {} is not a token id (0 to {})", name,
                 value.is_number() ? value.dump() : value.type_name(), kMaxTokens - 1);
    return std::nullopt;
  }

  void ReadAddedTokens(const Json& json) {
    const Json& tokens = Object(json, "tokenizer.json", faults_).Array("added_tokens");
    for (size_t i = 0; i < tokens.size(); ++i) {
      const Object object(tokens[i], fmt::format("added_tokens[{}]", i), faults_);
      AddedTokenSpec token;
      token.content = object.String("content");
      token.single_word = object.Bool("single_word", false);
      token.lstrip = object.Bool("lstrip", false);
      token.rstrip = object.Bool("rstrip", false);
      token.special = object.Bool("special", false);
      token.normalized = object.Bool("normalized", !token.special);
      const std::optional<int32_t> id = Id(object.Get("id"), object.NameOf("id"));
      if (!id || token.content.empty()) continue;  // an empty one is ignored, as by tokenizers
      token.id = *id;
      spec_->added_tokens.push_back(std::move(token));
    }
  }

  absl::Status ReadNormalizer(const Json& json, const std::string& name, int depth) {
    if (json.is_null()) return absl::OkStatus();
    RETURN_IF_ERROR(CheckDepth(name, depth));
    const Object object(json, name, faults_);
    const std::string kind = object.String("type");
    if (kind == "Sequence") {
      const Json& parts = object.Array("normalizers");
      for (size_t i = 0; i < parts.size(); ++i) {
        RETURN_IF_ERROR(
            ReadNormalizer(parts[i], fmt::format("{}.normalizers[{}]", name, i), depth + 1));
      }
    } else if (kind == "NFC") {
      spec_->normalizers.push_back(NormalizationForm::kNfc);
    } else if (kind == "NFD") {
      spec_->normalizers.push_back(NormalizationForm::kNfd);
    } else if (kind == "NFKC") {
      spec_->normalizers.push_back(NormalizationForm::kNfkc);
    } else if (kind == "NFKD") {
      spec_->normalizers.push_back(NormalizationForm::kNfkd);
    } else if (!kind.empty()) {
      return Unsupported(name, kind);
    }
    return absl::OkStatus();
  }

  absl::Status ReadPreTokenizer(const Json& json, const std::string& name, int depth,
                                bool* byte_level) {
    if (json.is_null()) return absl::OkStatus();
    RETURN_IF_ERROR(CheckDepth(name, depth));
    const Object object(json, name, faults_);
    const std::string kind = object.String("type");
    // After ByteLevel the text is in another alphabet, which the patterns here would not see.
    if (*byte_level) return Unsupported(name, fmt::format("{} after ByteLevel", kind));
    PreTokenizerSpec& spec = spec_->pre_tokenizer;
    if (kind == "Sequence") {
      const Json& parts = object.Array("pretokenizers");
      for (size_t i = 0; i < parts.size(); ++i) {
        RETURN_IF_ERROR(ReadPreTokenizer(parts[i], fmt::format("{}.pretokenizers[{}]", name, i),
                                         depth + 1, byte_level));
      }
    } else if (kind == "ByteLevel") {
      *byte_level = true;
      spec.add_prefix_space = object.Bool("add_prefix_space", true);
      if (object.Bool("use_regex", true)) spec.gpt2_pattern = kGpt2Pattern;
    } else if (kind == "Split") {
      return ReadSplit(object);
    } else if (!kind.empty()) {
      return Unsupported(name, kind);
    }
    return absl::OkStatus();
  }

  absl::Status ReadSplit(const Object& object) {
    SplitSpec split;
    const Object pattern(object.Get("pattern"), object.NameOf("pattern"), faults_);
    split.literal = pattern.Get("Regex").is_null();
    split.pattern = pattern.String(split.literal ? "String" : "Regex");
    const std::string behavior = object.String("behavior");
    split.removed = behavior == "Removed";
    split.invert = object.Bool("invert", false);
    if (!faults_->empty()) return absl::OkStatus();
    if (!split.removed && behavior != "Isolated") {
      return Unsupported(object.NameOf("behavior"), behavior);
    }
    if (split.pattern.empty()) return Unsupported(object.NameOf("pattern"), "an empty pattern");
    spec_->pre_tokenizer.splits.push_back(std::move(split));
    return absl::OkStatus();
  }

  absl::Status ReadPostProcessor(const Json& json, const std::string& name, int depth) {
    if (json.is_null()) return absl::OkStatus();
    RETURN_IF_ERROR(CheckDepth(name, depth));
    const Object object(json, name, faults_);
    const std::string kind = object.String("type");
    if (kind == "Sequence") {
      const Json& parts = object.Array("processors");
      for (size_t i = 0; i < parts.size(); ++i) {
        RETURN_IF_ERROR(
            ReadPostProcessor(parts[i], fmt::format("{}.processors[{}]", name, i), depth + 1));
      }
    } else if (kind == "TemplateProcessing") {
      return ReadTemplate(object);
    } else if (!kind.empty() && kind != "ByteLevel") {  // ByteLevel moves offsets only
      return Unsupported(name, kind);
    }
    return absl::OkStatus();
  }

  absl::Status ReadTemplate(const Object& object) {
    std::vector<int32_t> before, after;
    int sequences = 0;
    const Json& single = object.Array("single");
    for (size_t i = 0; i < single.size(); ++i) {
      const std::string name = fmt::format("{}[{}]", object.NameOf("single"), i);
      const Json& special = Object(single[i], name, faults_).Get("SpecialToken");
      if (special.is_null()) {
        const Object sequence(Value(single[i], "Sequence"), name + ".Sequence", faults_);
        const std::string id = sequence.String("id");
        if (faults_->empty() && id != "A") return Unsupported(name, fmt::format("Sequence {}", id));
        ++sequences;
        continue;
      }
      const std::string token = Object(special, name + ".SpecialToken", faults_).String("id");
      const Object tokens(object.Get("special_tokens"), object.NameOf("special_tokens"), faults_);
      const Object entry(tokens.Get(token), tokens.NameOf(token), faults_);
      for (const Json& value : entry.Array("ids")) {
        const std::optional<int32_t> id = Id(value, entry.NameOf("ids"));
        if (id) (sequences == 0 ? before : after).push_back(*id);
      }
    }
    if (faults_->empty() && sequences != 1) {
      return Unsupported(object.NameOf("single"), fmt::format("a text {} times", sequences));
    }
    // A later processor wraps what an earlier one made.
    spec_->template_before.insert(spec_->template_before.begin(), before.begin(), before.end());
    spec_->template_after.insert(spec_->template_after.end(), after.begin(), after.end());
    return absl::OkStatus();
  }

  absl::Status ReadModel(const Json& json) {
    const Object object(json, "model", faults_);
    if (!json.is_object()) return absl::OkStatus();
    // Files of 2020 have no type; those with merges are BPE.
    const std::string kind = object.OptionalString("type").value_or("BPE");
    if (kind != "BPE") return Unsupported("model", kind);
    for (const std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      const std::string value = object.OptionalString(key).value_or("");
      if (!value.empty()) return Unsupported(object.NameOf(key), fmt::format("{:?}", value));
    }
    const Json& dropout = object.Get("dropout");
    if (!dropout.is_null() && dropout != 0) return Unsupported("model.dropout", dropout.dump());
    if (object.Bool("byte_fallback", false)) return Unsupported("model.byte_fallback", "true");
    spec_->bpe.ignore_merges = object.Bool("ignore_merges", false);
    spec_->bpe.unk_token = object.OptionalString("unk_token");

    const Json& vocab = object.Get("vocab");
    if (!vocab.is_object() || vocab.empty()) {
      faults_->Add("model.vocab: not an object with tokens");
      return absl::OkStatus();
    }
    spec_->bpe.vocab.reserve(vocab.size());
    for (const auto& [token, value] : vocab.items()) {
      const std::optional<int32_t> id = Id(value, fmt::format("model.vocab[{:?}]", token));
      if (id) spec_->bpe.vocab.emplace_back(token, *id);
    }
    const Json& merges = object.Get("merges");
    if (!merges.is_array()) {
      faults_->Add("model.merges: not an array");
      return absl::OkStatus();
    }
    spec_->bpe.merges.reserve(merges.size());
    for (size_t i = 0; i < merges.size(); ++i) ReadMerge(merges[i], i);
    return absl::OkStatus();
  }

  // "left right", or ["left", "right"] since tokenizers 0.20.
  void ReadMerge(const Json& json, size_t index) {
    if (json.is_array() && json.size() == 2 && json[0].is_string() && json[1].is_string()) {
      spec_->bpe.merges.emplace_back(json[0].get<std::string>(), json[1].get<std::string>());
      return;
    }
    if (json.is_string()) {
      const auto& text = json.get_ref<const std::string&>();
      if (text.starts_with("#version")) return;
      const size_t space = text.find(' ');
      if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
        spec_->bpe.merges.emplace_back(text.substr(0, space), text.substr(space + 1));
        return;
      }
    }
    faults_->Add("model.merges[{}]: not a pair of tokens", index);
  }

  TokenizerSpec* spec_;
  FaultList* faults_;
};

// bos_token and the like: a string, or an object with "content".
std::optional<std::string> ConfigToken(const Json& config, const char* key, FaultList* faults) {
  const Object object(config, "tokenizer_config.json", faults);
  const Json& value = object.Get(key);
  if (value.is_object()) return Object(value, object.NameOf(key), faults).OptionalString("content");
  return object.OptionalString(key);
}

}  // namespace

absl::StatusOr<TokenizerSpec> ReadTokenizerSpec(const std::filesystem::path& dir) {
  TokenizerSpec spec;
  const std::filesystem::path path = dir / "tokenizer.json";
  spec.path = path.string();
  FaultList faults;
  {
    ASSIGN_OR_RETURN(const Json json, ReadJson(path));
    const absl::Status status = Reader(&spec, &faults).Read(json);
    // A malformed part can look like an unsupported one, so faults come first.
    RETURN_IF_ERROR(Annotate(faults.ToStatus(absl::StatusCode::kDataLoss), spec.path));
    RETURN_IF_ERROR(Annotate(status, spec.path));
  }
  const std::filesystem::path config_path = dir / "tokenizer_config.json";
  std::error_code error;
  if (!std::filesystem::exists(config_path, error)) return spec;
  ASSIGN_OR_RETURN(const Json config, ReadJson(config_path));
  spec.bos_token = ConfigToken(config, "bos_token", &faults);
  spec.eos_token = ConfigToken(config, "eos_token", &faults);
  RETURN_IF_ERROR(Annotate(faults.ToStatus(absl::StatusCode::kDataLoss), config_path.string()));
  return spec;
}

}  // namespace quantd
