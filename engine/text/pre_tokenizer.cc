// Splits in sequence; see pre_tokenizer.h. The rules are those of Hugging Face's tokenizers.
#include "engine/text/pre_tokenizer.h"

#include <string>
#include <utility>

#include "engine/text/replace.h"
#include "kernels/status.h"

namespace quantd {
namespace {

using Next = absl::FunctionRef<absl::Status(std::string_view)>;

// Joins matches, and what lies between them, to pieces as `behavior` says. Parts come in order and
// without gaps.
class Joiner {
 public:
  Joiner(SplitBehavior behavior, Next next) : behavior_(behavior), next_(next) {}

  absl::Status Add(std::string_view part, bool is_match) {
    switch (behavior_) {
      case SplitBehavior::kRemoved: return is_match ? absl::OkStatus() : next_(part);
      case SplitBehavior::kIsolated: return next_(part);
      case SplitBehavior::kContiguous:
        if (!held_.empty() && held_is_match_ == is_match) return Extend(part);
        break;
      case SplitBehavior::kMergedWithPrevious:
        // A match joins what is no match itself: of several in a row only the first.
        if (is_match && !held_.empty() && !held_is_match_) {
          RETURN_IF_ERROR(Extend(part));
          held_is_match_ = true;
          return absl::OkStatus();
        }
        break;
      case SplitBehavior::kMergedWithNext:
        if (!is_match && !held_.empty() && held_is_match_) {
          RETURN_IF_ERROR(Extend(part));
          held_is_match_ = false;
          return absl::OkStatus();
        }
        break;
    }
    RETURN_IF_ERROR(Finish());
    held_ = part;
    held_is_match_ = is_match;
    return absl::OkStatus();
  }
  absl::Status Finish() {
    const std::string_view piece = std::exchange(held_, {});
    return piece.empty() ? absl::OkStatus() : next_(piece);
  }

 private:
  absl::Status Extend(std::string_view part) {
    held_ = std::string_view(held_.data(), held_.size() + part.size());
    return absl::OkStatus();
  }

  SplitBehavior behavior_;
  Next next_;
  std::string_view held_;  // may still grow
  bool held_is_match_ = false;
};

// Spaces of `text` by `replacement`, which is put before it where `prefix` asks for it.
std::string Metaspaced(std::string_view text, std::string_view replacement, bool prefix) {
  std::string out = Replaced(text, " ", replacement);
  if (prefix && !out.starts_with(replacement)) out.insert(0, replacement);
  return out;
}

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::Create(const std::vector<PreTokenizerStep>& steps) {
  PreTokenizer result;
  for (const PreTokenizerStep& step : steps) {
    Stage stage{step, std::nullopt};
    if (step.kind == PreTokenizerStep::Kind::kSplit) {
      ASSIGN_OR_RETURN(stage.regex, Regex::Compile(step.pattern, step.literal));
    }
    result.stages_.push_back(std::move(stage));
  }
  return result;
}

absl::Status PreTokenizer::Run(size_t stage, std::string_view text, bool at_start,
                               Regex::Scratch* scratch, Emit emit) const {
  if (stage == stages_.size()) {
    if (!text.empty()) emit(text);
    return absl::OkStatus();
  }
  const auto& [step, regex] = stages_[stage];
  switch (step.kind) {
    case PreTokenizerStep::Kind::kPrefixSpace: {
      if (text.starts_with(' ')) break;
      std::string prefixed(1, ' ');
      prefixed += text;
      return Run(stage + 1, prefixed, at_start, scratch, emit);
    }
    case PreTokenizerStep::Kind::kMetaspace: {
      using Prepend = PreTokenizerStep::Prepend;
      const bool prefix =
          step.prepend == Prepend::kAlways || (step.prepend == Prepend::kFirst && at_start);
      return Run(stage + 1, Metaspaced(text, step.replacement, prefix), at_start, scratch, emit);
    }
    case PreTokenizerStep::Kind::kSplit: {
      const auto next = [&](std::string_view piece) {
        return Run(stage + 1, piece, at_start && piece.data() == text.data(), scratch, emit);
      };
      Joiner joiner(step.behavior, next);
      RETURN_IF_ERROR(regex->Split(text, scratch, [&](std::string_view part, bool is_match) {
        return joiner.Add(part, is_match != stages_[stage].step.invert);
      }));
      return joiner.Finish();
    }
  }
  return Run(stage + 1, text, at_start, scratch, emit);
}

}  // namespace quantd
