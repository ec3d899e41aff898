// Evaluator: measures one profile of a model on a text, beside a reference.
//
//   windows of tokens ─▶ model and reference, chunk by chunk ─▶ ScoreTokens ─▶ WindowScore
//                     └▶ LinearTaps on a few of them ─▶ LinearErrors
//   a few prompts ─▶ the reference's greedy continuations ─▶ how far the model goes along
//
// Logits of a chunk are compared and forgotten: memory does not grow with the text. Belongs to one
// thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/eval/eval_result.h"
#include "engine/eval/eval_text.h"
#include "engine/sequence_runner.h"

namespace quantd {

/// A loaded model; all must outlive the Evaluator.
struct EvalTarget {
  Backend* backend = nullptr;
  Model* model = nullptr;
  DType kv_dtype = DType::kBF16;
};

struct EvalSettings {
  int threads = 1;              // that compare logits
  int64_t context = 512;        // of the windows
  int64_t linear_windows = 4;   // on which outputs of linears are compared
  int64_t linear_rows = 16;     // of each
  int64_t greedy_prompts = 16;  // beginnings of windows
  int64_t greedy_prompt_tokens = 32;
  int64_t greedy_tokens = 64;
  int64_t decode_steps = 32;    // timed, from the first token on,
  double decode_seconds = 1.0;  // again and again for so long: a step of a small model is short
};

class Evaluator {
 public:
  /// `reference`: empty where nothing is compared. `text` must outlive it. RESOURCE_EXHAUSTED when
  /// a KV cache of one window does not fit.
  static absl::StatusOr<std::unique_ptr<Evaluator>> Create(const EvalText& text,
                                                           const EvalSettings& settings,
                                                           EvalTarget target,
                                                           std::optional<EvalTarget> reference);

  /// Scores one window. DATA_LOSS when the logits are not finite, FAILED_PRECONDITION when the
  /// reference's are not; errors of Backend::Synchronize.
  absl::StatusOr<WindowScore> Score(int64_t window);
  /// Fills decode speed and, with a reference, errors of linears and greedy lengths. Errors of
  /// LinearErrors::Result and Backend::Synchronize.
  absl::Status Measure(ProfileFacts* facts);

 private:
  struct Side {
    EvalTarget target;
    std::unique_ptr<SequenceRunner> runner;
  };

  Evaluator(const EvalText& text, const EvalSettings& settings)
      : text_(text), settings_(settings) {}
  static absl::StatusOr<Side> MakeSide(EvalTarget target, int64_t context);
  /// Runs `ids` from the beginning, without an interest in their logits.
  static absl::Status Prefill(Side& side, std::span<const int32_t> ids);
  absl::StatusOr<std::vector<LinearError>> CompareLinears();
  absl::StatusOr<std::vector<int64_t>> GreedyLengths();
  absl::StatusOr<int64_t> GreedyLength(std::span<const int32_t> prompt);
  absl::StatusOr<double> DecodeSpeed();
  /// Up to `count` windows, evenly spread, of at least `tokens`.
  std::vector<const EvalWindow*> Spread(int64_t count, int64_t tokens) const;

  const EvalText& text_;
  const EvalSettings settings_;
  Side model_;
  std::optional<Side> reference_;
};

}  // namespace quantd
