// The kinds of normalizers; see normalizer_chain.h.
#include "engine/text/normalizer_chain.h"

#include <utility>

#include "engine/text/normalizer.h"
#include "engine/text/replace.h"
#include "kernels/status.h"

namespace quantd {
namespace {

// A space becomes three bytes in the files in use; steps that multiply a text again and again are
// made to exhaust memory.
constexpr size_t kMaxGrowth = 16;
constexpr size_t kMaxSmall = size_t{1} << 20;
constexpr int64_t kMostShrink = 1 << 10;  // beyond it a bound tells nothing

}  // namespace

absl::StatusOr<NormalizerChain> NormalizerChain::Create(const std::vector<NormalizerStep>& steps) {
  NormalizerChain chain;
  for (const NormalizerStep& step : steps) {
    Stage stage{step, std::nullopt};
    if (step.kind == NormalizerStep::Kind::kReplace && !step.literal) {
      ASSIGN_OR_RETURN(stage.regex, Regex::Compile(step.pattern, false));
      Regex::Scratch scratch;
      if (stage.regex->MatchesNothing(&scratch)) {
        return Unimplemented("pattern {:?}: replacing a match of no character is not supported",
                             step.pattern);
      }
    }
    chain.stages_.push_back(std::move(stage));
  }
  return chain;
}

absl::StatusOr<std::string> NormalizerChain::Normalize(std::string_view text,
                                                       Regex::Scratch* scratch) const {
  const size_t limit = kMaxGrowth * text.size() + kMaxSmall;
  const auto too_large = [&] {
    return InvalidArgument("the normalizers make more than {} bytes of {}", limit, text.size());
  };
  std::string current(text);
  for (const Stage& stage : stages_) {
    std::string out;
    bool fits = true;
    switch (stage.step.kind) {
      case NormalizerStep::Kind::kForm: {
        ASSIGN_OR_RETURN(out, quantd::Normalize({stage.step.form}, current));
        break;
      }
      case NormalizerStep::Kind::kPrepend:
        if (!current.empty()) out = stage.step.content + current;
        break;
      case NormalizerStep::Kind::kReplace:
        if (!stage.regex) {
          fits = AppendReplaced(current, stage.step.pattern, stage.step.content, limit, &out);
          break;
        }
        RETURN_IF_ERROR(
            stage.regex->Split(current, scratch, [&](std::string_view part, bool is_match) {
              out += is_match ? std::string_view(stage.step.content) : part;
              return out.size() <= limit ? absl::OkStatus() : too_large();
            }));
    }
    if (!fits || out.size() > limit) return too_large();
    current = std::move(out);
  }
  return current;
}

std::optional<int64_t> NormalizerChain::MostShrink() const {
  int64_t most = 1;
  for (const Stage& stage : stages_) {
    const NormalizerStep& step = stage.step;
    if (step.kind == NormalizerStep::Kind::kForm) most *= kMostNormalizedBytes;
    const bool grows = step.literal && step.content.size() >= step.pattern.size();
    if (step.kind == NormalizerStep::Kind::kReplace && !grows) return std::nullopt;
    if (most > kMostShrink) return std::nullopt;
  }
  return most;
}

}  // namespace quantd
