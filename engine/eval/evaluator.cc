#include "engine/eval/evaluator.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "engine/eval/linear_errors.h"
#include "engine/eval/significant.h"
#include "engine/eval/token_scores.h"
#include "kernels/status.h"

namespace quantd {
namespace {

double Seconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
}

// A journal of all tokens stays readable and small, and a figure is the same whether it went
// through one or not.
float Rounded(float value) {
  return static_cast<float>(RoundSignificant(static_cast<double>(value), 4));
}

std::span<const int32_t> Part(std::span<const int32_t> ids, int64_t first, int64_t count) {
  return ids.subspan(static_cast<size_t>(first), static_cast<size_t>(count));
}

}  // namespace

absl::StatusOr<Evaluator::Side> Evaluator::MakeSide(EvalTarget target, int64_t context) {
  Side side;
  side.target = target;
  ASSIGN_OR_RETURN(side.runner, SequenceRunner::Create(*target.backend, *target.model,
                                                       target.kv_dtype, context));
  return side;
}

absl::StatusOr<std::unique_ptr<Evaluator>> Evaluator::Create(const EvalText& text,
                                                             const EvalSettings& settings,
                                                             EvalTarget target,
                                                             std::optional<EvalTarget> reference) {
  std::unique_ptr<Evaluator> evaluator(new Evaluator(text, settings));
  ASSIGN_OR_RETURN(evaluator->model_, MakeSide(target, settings.context));
  if (reference) {
    ASSIGN_OR_RETURN(evaluator->reference_, MakeSide(*reference, settings.context));
  }
  return evaluator;
}

absl::StatusOr<WindowScore> Evaluator::Score(int64_t index) {
  const EvalWindow& window = text_.windows[static_cast<size_t>(index)];
  const std::vector<int32_t> ids = text_.Ids(window);
  const int64_t vocab = model_.target.model->spec().vocab_size;
  WindowScore score;
  score.window = index;
  score.tokens = window.scored();
  score.bytes = window.bytes;
  // The last token predicts nothing that is known.
  const int64_t length = window.length - 1;
  score.rows = length;
  model_.runner->Restart();
  int64_t step = model_.runner->max_rows();
  if (reference_) {
    reference_->runner->Restart();
    step = std::min(step, reference_->runner->max_rows());
  }
  for (int64_t first = 0; first < length; first += step) {
    const int64_t count = std::min(step, length - first);
    const auto start = std::chrono::steady_clock::now();
    ASSIGN_OR_RETURN(std::span<const float> logits, model_.runner->Append(Part(ids, first, count)));
    score.seconds += Seconds(start);
    std::span<const float> reference;
    if (reference_) {
      ASSIGN_OR_RETURN(reference, reference_->runner->Append(Part(ids, first, count)));
    }
    // Row r predicts token r + 1.
    const int64_t skip = std::clamp<int64_t>(window.first_scored - 1 - first, 0, count);
    if (skip == count) continue;
    logits = logits.subspan(static_cast<size_t>(skip * vocab));
    if (reference_) reference = reference.subspan(static_cast<size_t>(skip * vocab));
    const auto scores = ScoreTokens(logits, reference, Part(ids, first + skip + 1, count - skip),
                                    vocab, settings_.threads);
    for (size_t i = 0; i < scores.size(); ++i) {
      const TokenScore& s = scores[i];
      const int64_t token = first + skip + static_cast<int64_t>(i) + 1;
      if (!std::isfinite(s.reference_nll)) {
        return FailedPrecondition(
            "the reference's logits are not finite at token {} of window {}: its compute dtype "
            "does not suit the model",
            token, index);
      }
      if (!std::isfinite(s.nll) || !std::isfinite(s.kl)) {
        return DataLoss(
            "the logits are not finite at token {} of window {}: the weights or the compute dtype "
            "do not suit the model",
            token, index);
      }
      score.nll += static_cast<double>(s.nll);
      if (!reference_) continue;
      score.reference_nll += static_cast<double>(s.reference_nll);
      score.top1 += s.top1 ? 1 : 0;
      score.top5 += s.top5;
      score.kl.push_back(Rounded(s.kl));
    }
  }
  return score;
}

absl::Status Evaluator::Measure(ProfileFacts* facts) {
  ASSIGN_OR_RETURN(facts->decode_tokens_per_second, DecodeSpeed());
  if (!reference_) return absl::OkStatus();
  ASSIGN_OR_RETURN(facts->linears, CompareLinears());
  ASSIGN_OR_RETURN(facts->greedy_lengths, GreedyLengths());
  return absl::OkStatus();
}

std::vector<const EvalWindow*> Evaluator::Spread(int64_t count, int64_t tokens) const {
  std::vector<const EvalWindow*> long_enough;
  for (const EvalWindow& window : text_.windows) {
    if (window.length >= tokens) long_enough.push_back(&window);
  }
  const int64_t available = static_cast<int64_t>(long_enough.size());
  if (available <= count) return long_enough;
  std::vector<const EvalWindow*> spread;
  for (int64_t i = 0; i < count; ++i) {
    spread.push_back(long_enough[static_cast<size_t>(i * available / count)]);
  }
  return spread;
}

absl::Status Evaluator::Prefill(Side& side, std::span<const int32_t> ids) {
  side.runner->Restart();
  while (!ids.empty()) {
    const auto step = ids.first(std::min(ids.size(), static_cast<size_t>(side.runner->max_rows())));
    RETURN_IF_ERROR(side.runner->Append(step).status());
    ids = ids.subspan(step.size());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<LinearError>> Evaluator::CompareLinears() {
  const int64_t rows =
      std::min({settings_.linear_rows, model_.runner->max_rows(), reference_->runner->max_rows()});
  ASSIGN_OR_RETURN(LinearErrors errors,
                   LinearErrors::Create(*model_.target.backend, *model_.target.model, rows));
  for (const EvalWindow* window : Spread(settings_.linear_windows, 2 * rows)) {
    // Rows of the middle: the first token of a sequence is like no other in most models.
    const std::vector<int32_t> ids = text_.Ids(*window);
    const int64_t middle = window->length / 2;
    const auto run = [&](Side& side, const LinearTap& tap) -> absl::Status {
      RETURN_IF_ERROR(Prefill(side, Part(ids, 0, middle)));
      return side.runner->Append(Part(ids, middle, rows), tap.observer()).status();
    };
    const LinearTap reference(*reference_->target.backend, rows);
    const LinearTap profile(*model_.target.backend, rows);
    RETURN_IF_ERROR(run(*reference_, reference));
    RETURN_IF_ERROR(run(model_, profile));
    RETURN_IF_ERROR(errors.Add(reference, profile));
  }
  return errors.Result();
}

absl::StatusOr<std::vector<int64_t>> Evaluator::GreedyLengths() {
  std::vector<int64_t> lengths;
  const int64_t prompt =
      std::min(settings_.greedy_prompt_tokens, settings_.context - settings_.greedy_tokens);
  if (prompt < 1) return lengths;
  for (const EvalWindow* window : Spread(settings_.greedy_prompts, prompt)) {
    ASSIGN_OR_RETURN(const int64_t length, GreedyLength(Part(text_.Ids(*window), 0, prompt)));
    lengths.push_back(length);
  }
  return lengths;
}

// As long as both have chosen the same tokens, both have the same history: they can walk together,
// and the first step at which they choose differently is where their texts part.
absl::StatusOr<int64_t> Evaluator::GreedyLength(std::span<const int32_t> prompt) {
  const size_t vocab = static_cast<size_t>(model_.target.model->spec().vocab_size);
  const auto choose = [&](Side& side, int32_t last) -> absl::StatusOr<int32_t> {
    ASSIGN_OR_RETURN(const auto logits, side.runner->Append(std::span(&last, 1)));
    return Likeliest(logits.first(vocab));
  };
  RETURN_IF_ERROR(Prefill(model_, prompt.first(prompt.size() - 1)));
  RETURN_IF_ERROR(Prefill(*reference_, prompt.first(prompt.size() - 1)));
  const std::vector<int32_t>& ends = model_.target.model->spec().eos_token_ids;
  int32_t last = prompt.back();
  for (int64_t length = 0; length < settings_.greedy_tokens; ++length) {
    ASSIGN_OR_RETURN(const int32_t reference, choose(*reference_, last));
    ASSIGN_OR_RETURN(const int32_t model, choose(model_, last));
    if (model != reference) return length;
    if (std::find(ends.begin(), ends.end(), model) != ends.end()) break;  // both end here
    last = reference;
  }
  return settings_.greedy_tokens;
}

absl::StatusOr<double> Evaluator::DecodeSpeed() {
  const std::vector<int32_t> ids = text_.Ids(text_.windows.front());
  const int64_t steps = std::min(settings_.decode_steps, settings_.context - 1);
  std::vector<double> seconds;
  const auto begin = std::chrono::steady_clock::now();
  do {
    RETURN_IF_ERROR(Prefill(model_, Part(ids, 0, 1)));
    for (int64_t i = 0; i < steps; ++i) {
      const int32_t id = ids[static_cast<size_t>(i) % ids.size()];
      const auto start = std::chrono::steady_clock::now();
      RETURN_IF_ERROR(model_.runner->Append(std::span(&id, 1)).status());
      seconds.push_back(Seconds(start));
    }
  } while (steps > 0 && Seconds(begin) < settings_.decode_seconds);
  if (seconds.empty()) return 0.0;
  const auto median = seconds.begin() + static_cast<int64_t>(seconds.size() / 2);
  std::nth_element(seconds.begin(), median, seconds.end());
  return 1.0 / *median;
}

}  // namespace quantd
