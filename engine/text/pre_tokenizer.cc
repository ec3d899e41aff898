// Splits in sequence; see pre_tokenizer.h.
#include "engine/text/pre_tokenizer.h"

#include <string>
#include <utility>

#include "kernels/status.h"

namespace quantd {

absl::StatusOr<PreTokenizer> PreTokenizer::Create(const PreTokenizerSpec& spec) {
  PreTokenizer result;
  for (const SplitSpec& split : spec.splits) {
    ASSIGN_OR_RETURN(Regex regex, Regex::Compile(split.pattern, split.literal));
    result.stages_.push_back(
        {std::move(regex), split.removed && !split.invert, split.removed && split.invert});
  }
  result.add_prefix_space_ = spec.add_prefix_space;
  result.prefix_stage_ = result.stages_.size();
  if (!spec.gpt2_pattern.empty()) {
    ASSIGN_OR_RETURN(Regex regex, Regex::Compile(spec.gpt2_pattern, false));
    result.stages_.push_back({std::move(regex), false, false});
  }
  return result;
}

absl::Status PreTokenizer::Run(size_t stage, std::string_view text, Regex::Scratch* scratch,
                               Emit emit) const {
  std::string prefixed;
  if (stage == prefix_stage_ && add_prefix_space_ && !text.starts_with(' ')) {
    prefixed.reserve(text.size() + 1);
    prefixed += ' ';
    prefixed += text;
    text = prefixed;
  }
  if (stage == stages_.size()) {
    emit(text);
    return absl::OkStatus();
  }
  const Stage& current = stages_[stage];
  return current.regex.Split(text, scratch, [&](std::string_view part, bool is_match) {
    if (is_match ? current.remove_matches : current.remove_others) return absl::OkStatus();
    return Run(stage + 1, part, scratch, emit);
  });
}

}  // namespace quantd
