// Reads and validates tokenizer.json and tokenizer_config.json; see tokenizer_spec.h.
#include "engine/text/tokenizer_spec.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>
#include <system_error>

#include "engine/text/model_file.h"
#include "engine/text/sentencepiece_model.h"
#include "engine/text/utf8.h"
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
  ASSIGN_OR_RETURN(const std::string text, ReadModelFile(path, kMaxFileBytes));
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

// Of an added token everything but its id.
AddedTokenSpec ReadAddedToken(const Object& object) {
  AddedTokenSpec token;
  token.content = object.String("content");
  token.single_word = object.Bool("single_word", false);
  token.lstrip = object.Bool("lstrip", false);
  token.rstrip = object.Bool("rstrip", false);
  token.special = object.Bool("special", false);
  token.normalized = object.Bool("normalized", !token.special);
  return token;
}

class Reader {
 public:
  Reader(TokenizerSpec* spec, FaultList* faults) : spec_(spec), faults_(faults) {}

  // OK with faults added for what is malformed, UNIMPLEMENTED for what is not supported.
  absl::Status Read(const Json& json) {
    ReadAddedTokens(json);
    RETURN_IF_ERROR(ReadNormalizer(Value(json, "normalizer"), "normalizer", 0));
    spec_->byte_level = false;
    RETURN_IF_ERROR(ReadPreTokenizer(Value(json, "pre_tokenizer"), "pre_tokenizer", 0));
    RETURN_IF_ERROR(ReadPostProcessor(Value(json, "post_processor"), "post_processor", 0));
    bool fused = false;
    RETURN_IF_ERROR(ReadDecoder(Value(json, "decoder"), "decoder", 0, &fused));
    if (faults_->empty() && spec_->decoder.byte_level != spec_->byte_level) {
      return Unsupported("decoder", spec_->byte_level ? "one other than ByteLevel after ByteLevel"
                                                      : "ByteLevel without its pre_tokenizer");
    }
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
      AddedTokenSpec token = ReadAddedToken(object);
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
      AddForm(NormalizationForm::kNfc);
    } else if (kind == "NFD") {
      AddForm(NormalizationForm::kNfd);
    } else if (kind == "NFKC") {
      AddForm(NormalizationForm::kNfkc);
    } else if (kind == "NFKD") {
      AddForm(NormalizationForm::kNfkd);
    } else if (kind == "Prepend") {
      NormalizerStep step;
      step.kind = NormalizerStep::Kind::kPrepend;
      step.content = object.String("prepend");
      spec_->normalizers.push_back(std::move(step));
    } else if (kind == "Replace") {
      NormalizerStep step;
      step.kind = NormalizerStep::Kind::kReplace;
      RETURN_IF_ERROR(ReadPattern(object, &step.pattern, &step.literal));
      step.content = object.String("content");
      spec_->normalizers.push_back(std::move(step));
    } else if (!kind.empty()) {
      return Unsupported(name, kind);
    }
    return absl::OkStatus();
  }

  void AddForm(NormalizationForm form) {
    NormalizerStep step;
    step.form = form;
    spec_->normalizers.push_back(std::move(step));
  }

  // {"String": "..."} or {"Regex": "..."}.
  absl::Status ReadPattern(const Object& object, std::string* pattern, bool* literal) {
    const Object json(object.Get("pattern"), object.NameOf("pattern"), faults_);
    *literal = json.Get("Regex").is_null();
    *pattern = json.String(*literal ? "String" : "Regex");
    if (!faults_->empty() || !pattern->empty()) return absl::OkStatus();
    return Unsupported(object.NameOf("pattern"), "an empty pattern");
  }

  absl::Status ReadPreTokenizer(const Json& json, const std::string& name, int depth) {
    if (json.is_null()) return absl::OkStatus();
    RETURN_IF_ERROR(CheckDepth(name, depth));
    const Object object(json, name, faults_);
    const std::string kind = object.String("type");
    // After ByteLevel the text is in another alphabet, which the patterns here would not see.
    if (spec_->byte_level) return Unsupported(name, fmt::format("{} after ByteLevel", kind));
    PreTokenizerStep step;
    if (kind == "Sequence") {
      const Json& parts = object.Array("pretokenizers");
      for (size_t i = 0; i < parts.size(); ++i) {
        RETURN_IF_ERROR(
            ReadPreTokenizer(parts[i], fmt::format("{}.pretokenizers[{}]", name, i), depth + 1));
      }
    } else if (kind == "ByteLevel") {
      spec_->byte_level = true;
      if (object.Bool("add_prefix_space", true)) {
        step.kind = PreTokenizerStep::Kind::kPrefixSpace;
        spec_->pre_tokenizers.push_back(step);
      }
      if (object.Bool("use_regex", true)) AddSplit(kGpt2Pattern, SplitBehavior::kIsolated);
    } else if (kind == "Digits") {
      const bool each = object.Bool("individual_digits", false);
      AddSplit("\\p{N}", each ? SplitBehavior::kIsolated : SplitBehavior::kContiguous);
    } else if (kind == "Metaspace") {
      return ReadMetaspace(object);
    } else if (kind == "Split") {
      RETURN_IF_ERROR(ReadPattern(object, &step.pattern, &step.literal));
      step.invert = object.Bool("invert", false);
      const std::string behavior = object.String("behavior");
      if (!faults_->empty()) return absl::OkStatus();
      constexpr std::string_view kBehaviors[] = {"Removed", "Isolated", "Contiguous",
                                                 "MergedWithPrevious", "MergedWithNext"};
      const auto* found = std::find(std::begin(kBehaviors), std::end(kBehaviors), behavior);
      if (found == std::end(kBehaviors)) return Unsupported(object.NameOf("behavior"), behavior);
      step.behavior = static_cast<SplitBehavior>(found - std::begin(kBehaviors));
      spec_->pre_tokenizers.push_back(std::move(step));
    } else if (!kind.empty()) {
      return Unsupported(name, kind);
    }
    return absl::OkStatus();
  }

  void AddSplit(std::string_view pattern, SplitBehavior behavior, bool literal = false) {
    PreTokenizerStep step;
    step.pattern = pattern;
    step.behavior = behavior;
    step.literal = literal;
    spec_->pre_tokenizers.push_back(std::move(step));
  }

  absl::Status ReadMetaspace(const Object& object) {
    using Prepend = PreTokenizerStep::Prepend;
    PreTokenizerStep step;
    step.kind = PreTokenizerStep::Kind::kMetaspace;
    step.replacement = object.String("replacement");
    const std::string scheme = object.OptionalString("prepend_scheme").value_or("always");
    const bool split = object.Bool("split", true);
    const bool prefix = object.Bool("add_prefix_space", true);  // what files of 2023 have
    if (!faults_->empty()) return absl::OkStatus();
    if (step.replacement.empty() || NextUtf8(step.replacement).size != step.replacement.size()) {
      return Unsupported(object.NameOf("replacement"), "one that is not one character");
    }
    if (!prefix || scheme == "never") {
      step.prepend = Prepend::kNever;
    } else if (scheme == "first") {
      step.prepend = Prepend::kFirst;
    } else if (scheme != "always") {
      return Unsupported(object.NameOf("prepend_scheme"), scheme);
    }
    const std::string replacement = step.replacement;
    spec_->pre_tokenizers.push_back(std::move(step));
    if (split) AddSplit(replacement, SplitBehavior::kMergedWithNext, true);
    return absl::OkStatus();
  }

  // `*fused`: the tokens before this decoder are one text.
  absl::Status ReadDecoder(const Json& json, const std::string& name, int depth, bool* fused) {
    RETURN_IF_ERROR(CheckDepth(name, depth));
    const Object object(json, name, faults_);
    const std::string kind = object.String("type");
    TextDecoderSpec& decoder = spec_->decoder;
    using Edit = TextDecoderSpec::Edit;
    const bool per_token = !decoder.byte_fallback && !*fused && !decoder.byte_level;
    if (kind == "Sequence") {
      const Json& parts = object.Array("decoders");
      for (size_t i = 0; i < parts.size(); ++i) {
        RETURN_IF_ERROR(
            ReadDecoder(parts[i], fmt::format("{}.decoders[{}]", name, i), depth + 1, fused));
      }
      return absl::OkStatus();
    }
    if (kind == "Fuse" && !decoder.byte_level) {
      *fused = true;
      return absl::OkStatus();
    }
    if (kind == "ByteLevel" && per_token && decoder.edits.empty()) {
      decoder.byte_level = true;
      return absl::OkStatus();
    }
    if (kind == "ByteFallback" && per_token) {
      decoder.byte_fallback = true;
      return absl::OkStatus();
    }
    if (kind == "Replace" && per_token) {
      Edit edit;
      bool literal = true;
      RETURN_IF_ERROR(ReadPattern(object, &edit.pattern, &literal));
      edit.content = object.String("content");
      if (!literal) return Unsupported(object.NameOf("pattern"), "a Regex");
      decoder.edits.push_back(std::move(edit));
      return absl::OkStatus();
    }
    if (kind == "Metaspace" && per_token) {
      const bool never = !object.Bool("add_prefix_space", true) ||
                         object.OptionalString("prepend_scheme").value_or("always") == "never";
      decoder.edits.push_back({never ? Edit::Kind::kReplace : Edit::Kind::kMetaspace,
                               object.String("replacement"), " "});
      if (faults_->empty() && decoder.edits.back().pattern.empty()) {
        return Unsupported(object.NameOf("replacement"), "an empty one");
      }
      return absl::OkStatus();
    }
    if (kind == "Strip" && *fused && decoder.strip.empty()) {
      decoder.strip = object.String("content");
      const Json &start = object.Get("start"), &stop = object.Get("stop");
      if (faults_->empty() && (!start.is_number_unsigned() || start > 1000 || stop != 0)) {
        return Unsupported(name, "Strip with this start or stop");
      }
      decoder.strip_start = faults_->empty() ? start.get<int32_t>() : 0;
      if (decoder.strip.empty()) return Unsupported(object.NameOf("content"), "an empty one");
      return absl::OkStatus();
    }
    if (!faults_->empty()) return absl::OkStatus();
    constexpr std::string_view kKnown[] = {"Fuse",    "ByteLevel", "ByteFallback",
                                           "Replace", "Metaspace", "Strip"};
    const bool known = std::find(std::begin(kKnown), std::end(kKnown), kind) != std::end(kKnown);
    return Unsupported(name, known ? fmt::format("{} at this place", kind) : kind);
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
    spec_->bpe.byte_fallback = object.Bool("byte_fallback", false);
    if (spec_->bpe.byte_fallback && spec_->byte_level) {
      return Unsupported("model.byte_fallback", "true beside ByteLevel");
    }
    spec_->bpe.fuse_unk = object.Bool("fuse_unk", false);
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

// What transformers' tokenizers of SentencePiece models take from tokenizer_config.json beside the
// model: further tokens, and which tokens surround a text.
void ApplyConfigToModel(const Json& config, TokenizerSpec* spec, FaultList* faults) {
  const Object object(config, "tokenizer_config.json", faults);
  const Json& added = object.Get("added_tokens_decoder");
  if (!added.is_null() && !added.is_object()) {
    faults->Add("{}: not an object", object.NameOf("added_tokens_decoder"));
  } else if (added.is_object()) {
    for (const auto& [key, value] : added.items()) {
      const Object entry(value, fmt::format("added_tokens_decoder.{}", key), faults);
      AddedTokenSpec token = ReadAddedToken(entry);
      int32_t id = 0;
      const auto parsed = std::from_chars(key.data(), key.data() + key.size(), id);
      if (parsed.ec != std::errc() || parsed.ptr != key.data() + key.size() || id < 0 ||
          id >= kMaxTokens) {
        faults->Add("{}: not a token id (0 to {})", entry.name(), kMaxTokens - 1);
        continue;
      }
      token.id = id;
      // The file's flags take the place of the model's.
      std::erase_if(spec->added_tokens, [&](const AddedTokenSpec& t) { return t.id == token.id; });
      if (!token.content.empty()) spec->added_tokens.push_back(std::move(token));
    }
  }
  // Since transformers 4.31 `legacy: false` puts a space only before the text's very first word.
  if (!object.Bool("legacy", true) && !spec->normalizers.empty() &&
      spec->normalizers.front().kind == NormalizerStep::Kind::kPrepend) {
    PreTokenizerStep step;
    step.kind = PreTokenizerStep::Kind::kMetaspace;
    step.replacement = spec->normalizers.front().content;
    step.prepend = PreTokenizerStep::Prepend::kFirst;
    spec->pre_tokenizers.push_back(std::move(step));
    spec->normalizers.clear();
  }
}

// bos_token and eos_token around the text, as LlamaTokenizer and GemmaTokenizer have them.
void MakeTemplate(const Json& config, TokenizerSpec* spec, FaultList* faults) {
  const Object object(config, "tokenizer_config.json", faults);
  const auto add = [&](bool wanted, const std::optional<std::string>& token,
                       std::vector<int32_t>* ids) {
    if (!wanted || !token) return;
    for (const auto& [spelling, id] : spec->bpe.vocab) {
      if (spelling == *token) return ids->push_back(id);
    }
    for (const AddedTokenSpec& added : spec->added_tokens) {
      if (added.content == *token) return ids->push_back(added.id);
    }
  };
  add(object.Bool("add_bos_token", true), spec->bos_token, &spec->template_before);
  add(object.Bool("add_eos_token", false), spec->eos_token, &spec->template_after);
}

absl::Status ReadTokenizerJson(const std::filesystem::path& path, TokenizerSpec* spec) {
  FaultList faults;
  ASSIGN_OR_RETURN(const Json json, ReadJson(path));
  const absl::Status status = Reader(spec, &faults).Read(json);
  // A malformed part can look like an unsupported one, so faults come first.
  RETURN_IF_ERROR(faults.ToStatus(absl::StatusCode::kDataLoss, spec->path));
  return Annotate(status, spec->path);
}

}  // namespace

absl::StatusOr<TokenizerSpec> ReadTokenizerSpec(const std::filesystem::path& dir) {
  TokenizerSpec spec;
  std::filesystem::path path = dir / "tokenizer.json";
  std::error_code error;
  const bool sentencepiece = !std::filesystem::exists(path, error) &&
                             std::filesystem::exists(dir / "tokenizer.model", error);
  if (sentencepiece) path = dir / "tokenizer.model";
  spec.path = path.string();
  if (sentencepiece) {
    ASSIGN_OR_RETURN(const std::string bytes, ReadModelFile(path, kMaxFileBytes));
    RETURN_IF_ERROR(Annotate(ParseSentencePieceModel(bytes, &spec), spec.path));
  } else {
    RETURN_IF_ERROR(ReadTokenizerJson(path, &spec));
  }
  const std::filesystem::path config_path = dir / "tokenizer_config.json";
  Json config = Json::object();
  if (std::filesystem::exists(config_path, error)) {
    ASSIGN_OR_RETURN(config, ReadJson(config_path));
  } else if (!sentencepiece) {
    return spec;
  }
  FaultList faults;
  if (auto bos = ConfigToken(config, "bos_token", &faults)) spec.bos_token = std::move(bos);
  if (auto eos = ConfigToken(config, "eos_token", &faults)) spec.eos_token = std::move(eos);
  if (sentencepiece) {
    ApplyConfigToModel(config, &spec, &faults);
    MakeTemplate(config, &spec, &faults);
  }
  RETURN_IF_ERROR(faults.ToStatus(absl::StatusCode::kDataLoss, config_path.string()));
  return spec;
}

}  // namespace quantd
