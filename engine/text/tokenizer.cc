// The BPE tokenizer: its stages in sequence. See tokenizer.h.
#include "engine/text/tokenizer.h"

#include <algorithm>
#include <utility>

#include "engine/text/added_tokens.h"
#include "engine/text/bpe.h"
#include "engine/text/normalizer_chain.h"
#include "engine/text/pre_tokenizer.h"
#include "engine/text/token_joiner.h"
#include "engine/text/token_text.h"
#include "engine/text/tokenizer_spec.h"
#include "engine/text/utf8.h"
#include "engine/text/vocabulary.h"
#include "kernels/ceil_div.h"
#include "kernels/status.h"

namespace quantd {
namespace {

constexpr size_t kMaxTextBytes = size_t{1} << 30;  // symbols are numbered by int32

class BpeTokenizer final : public Tokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(const TokenizerSpec& spec) {
    FaultList faults;
    std::unique_ptr<BpeTokenizer> tokenizer(new BpeTokenizer);
    tokenizer->vocabulary_ = Vocabulary::Create(spec, &faults);
    tokenizer->bpe_ = Bpe::Create(spec, tokenizer->vocabulary_, &faults);
    tokenizer->ignore_merges_ = spec.bpe.ignore_merges;
    tokenizer->FindNamed(spec, &faults);
    RETURN_IF_ERROR(faults.ToStatus(absl::StatusCode::kDataLoss, spec.path));
    const int missing = spec.byte_level ? tokenizer->bpe_.MissingBytes() : 0;
    if (spec.bpe.unk_token && missing > 0) {
      return Unimplemented(
          "{}: model.unk_token {:?} is not supported where bytes have no token ({} here)",
          spec.path, *spec.bpe.unk_token, missing);
    }
    auto pre_tokenizer = PreTokenizer::Create(spec.pre_tokenizers);
    if (!pre_tokenizer.ok()) return Annotate(pre_tokenizer.status(), spec.path);
    tokenizer->pre_tokenizer_.emplace(std::move(pre_tokenizer).value());

    auto normalizers = NormalizerChain::Create(spec.normalizers);
    if (!normalizers.ok()) return Annotate(normalizers.status(), spec.path);
    tokenizer->normalizers_ = std::move(normalizers).value();
    tokenizer->decoder_ = spec.decoder;
    tokenizer->join_rules_ = {!spec.byte_level, spec.decoder.strip, spec.decoder.strip_start};
    Regex::Scratch scratch;
    size_t longest = 0;  // of the patterns that are looked for in the normalized text
    for (const AddedTokenSpec& token : spec.added_tokens) {
      if (token.model_symbol) {
        tokenizer->added_normalized_.Add(token, token.content);
        longest = std::max(longest, token.content.size());
      } else if (token.normalized) {
        ASSIGN_OR_RETURN(const std::string pattern,
                         tokenizer->normalizers_.Normalize(token.content, &scratch));
        tokenizer->added_normalized_.Add(token, pattern);
        longest = std::max(longest, pattern.size());
        // Decoded as it is looked for, as by tokenizers since 0.22.
        if (!spec.byte_level) tokenizer->vocabulary_.Respell(spec.decoder, token.id, pattern);
      } else {
        tokenizer->added_raw_.Add(token, token.content);
      }
    }
    tokenizer->FindReach(spec, longest);
    return tokenizer;
  }

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              bool add_special_tokens) const override {
    if (text.size() > kMaxTextBytes) {
      return InvalidArgument("text has {} bytes, at most {} are allowed", text.size(),
                             kMaxTextBytes);
    }
    if (const size_t valid = ValidUtf8Prefix(text); valid != text.size()) {
      return InvalidArgument("text is not valid UTF-8 at byte {}", valid);
    }
    std::vector<int32_t> ids;
    if (add_special_tokens) ids = template_before_;
    Scratch scratch;
    std::vector<TextSegment> segments;
    added_raw_.Split(text, &segments);
    for (const TextSegment& segment : segments) {
      if (segment.id >= 0) {
        ids.push_back(segment.id);
      } else {
        const bool at_start = segment.text.data() == text.data();
        RETURN_IF_ERROR(EncodeRaw(segment.text, at_start, &scratch, &ids));
      }
    }
    if (add_special_tokens) ids.insert(ids.end(), template_after_.begin(), template_after_.end());
    return ids;
  }

  int64_t MinTokens(std::string_view text) const override {
    return reach_ == 0 ? 0 : CeilDiv(static_cast<int64_t>(text.size()), reach_);
  }

  std::string_view TokenBytes(int32_t id) const override { return vocabulary_.Bytes(id); }
  bool IsSpecial(int32_t id) const override { return vocabulary_.IsSpecial(id); }
  bool IsByteToken(int32_t id) const override { return vocabulary_.IsByte(id); }
  std::string FirstTokenBytes(int32_t id) const override {
    return EditToken(decoder_, vocabulary_.Spelling(id), true);
  }
  const JoinRules& join_rules() const override { return join_rules_; }
  std::optional<int32_t> TokenToId(std::string_view token) const override {
    return vocabulary_.Find(token);
  }
  int32_t vocab_size() const override { return vocabulary_.size(); }
  std::optional<int32_t> bos_id() const override { return bos_id_; }
  std::optional<int32_t> eos_id() const override { return eos_id_; }

 private:
  struct Scratch {
    Regex::Scratch regex;
    Bpe::Scratch bpe;
    std::vector<TextSegment> segments;
  };

  BpeTokenizer() = default;

  // The tokens that other parts of the files name.
  void FindNamed(const TokenizerSpec& spec, FaultList* faults) {
    template_before_ = spec.template_before;
    template_after_ = spec.template_after;
    for (const auto* ids : {&template_before_, &template_after_}) {
      for (const int32_t id : *ids) {
        if (!vocabulary_.Exists(id)) faults->Add("post_processor: no token has id {}", id);
      }
    }
    const auto find = [&](const char* key, const std::optional<std::string>& token) {
      const std::optional<int32_t> id = token ? vocabulary_.Find(*token) : std::nullopt;
      if (token && !id) faults->Add("{} {:?} of tokenizer_config.json is not a token", key, *token);
      return id;
    };
    bos_id_ = find("bos_token", spec.bos_token);
    eos_id_ = find("eos_token", spec.eos_token);
  }

  // Sets reach_, or leaves it where a part of a text may come to nothing, or a token may stand for
  // any number of characters. `longest`: of the added tokens in the normalized text.
  void FindReach(const TokenizerSpec& spec, size_t longest) {
    const bool strips =
        std::any_of(spec.added_tokens.begin(), spec.added_tokens.end(),
                    [](const AddedTokenSpec& token) { return token.lstrip || token.rstrip; });
    const bool removes =
        std::any_of(spec.pre_tokenizers.begin(), spec.pre_tokenizers.end(), [](const auto& step) {
          return step.kind == PreTokenizerStep::Kind::kSplit &&
                 step.behavior == SplitBehavior::kRemoved;
        });
    // A character without a token of its own or of its bytes is left out, or one of several that
    // are one unknown token.
    if (strips || removes || bpe_.MissingBytes() > 0) return;
    const std::optional<int64_t> shrink = normalizers_.MostShrink();
    if (!shrink) return;
    // A token that was merged is spelled like what it stands for (a byte of byte fallback with more
    // letters than that), and so is one that is the whole of a piece.
    for (const auto& [spelling, id] : spec.bpe.vocab) {
      longest = std::max(longest, spec.byte_level ? TokenBytes(id).size() : spelling.size());
    }
    reach_ = static_cast<int64_t>(longest) * *shrink;
    for (const AddedTokenSpec& token : spec.added_tokens) {
      reach_ = std::max(reach_, static_cast<int64_t>(token.content.size()));
    }
  }

  // Text without added tokens of the raw kind. `at_start`: the whole text begins with it.
  absl::Status EncodeRaw(std::string_view text, bool at_start, Scratch* scratch,
                         std::vector<int32_t>* ids) const {
    std::string normalized;
    if (!normalizers_.empty()) {
      ASSIGN_OR_RETURN(normalized, normalizers_.Normalize(text, &scratch->regex));
      text = normalized;
    }
    scratch->segments.clear();
    added_normalized_.Split(text, &scratch->segments);
    for (const TextSegment& segment : scratch->segments) {
      if (segment.id >= 0) {
        ids->push_back(segment.id);
        continue;
      }
      const bool first = at_start && segment.text.data() == text.data();
      RETURN_IF_ERROR(
          pre_tokenizer_->Split(segment.text, first, &scratch->regex, [&](std::string_view piece) {
            const std::optional<int32_t> whole =
                ignore_merges_ ? vocabulary_.FindPiece(piece) : std::nullopt;
            if (whole) {
              ids->push_back(*whole);
            } else {
              bpe_.Encode(piece, &scratch->bpe, ids);
            }
          }));
    }
    return absl::OkStatus();
  }

  Vocabulary vocabulary_;
  AddedTokens added_raw_;
  NormalizerChain normalizers_;
  AddedTokens added_normalized_;
  std::optional<PreTokenizer> pre_tokenizer_;  // set by Create
  bool ignore_merges_ = false;
  Bpe bpe_;
  TextDecoderSpec decoder_;
  JoinRules join_rules_;
  std::vector<int32_t> template_before_;
  std::vector<int32_t> template_after_;
  std::optional<int32_t> bos_id_;
  std::optional<int32_t> eos_id_;
  int64_t reach_ = 0;  // bytes of a text that one token may stand for; 0: not known
};

}  // namespace

const JoinRules& Tokenizer::join_rules() const {
  static const JoinRules any_bytes;
  return any_bytes;
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  TokenJoiner joiner(*this, false);
  std::string text;
  for (const int32_t id : ids) {
    if (!skip_special_tokens || !IsSpecial(id)) joiner.Push(id, &text);
  }
  joiner.Finish(&text);
  return text;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::filesystem::path& dir) {
  ASSIGN_OR_RETURN(const TokenizerSpec spec, ReadTokenizerSpec(dir));
  return BpeTokenizer::Create(spec);
}

}  // namespace quantd
