// StepBuffers: one step's flattened inputs and its sampling, at fixed addresses of the backend.
//
// Everything is allocated once (component kWorkspace). Fill turns a StepPlan into the arrays of a
// Batch and uploads them in one piece, whose layout the step's shape alone decides; ids the host
// has not seen yet are fed back on the device from the samples of the step before, which is why
// samples and results exist twice (slot = step modulo 2).
//
// Padding: a backend may ask for more rows than the plan has. Those are sequences of their own at
// position 0, whose K and V go to the reserved block 0 and which are never sampled.
//
// Engine thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/models/model.h"
#include "engine/scheduler.h"
#include "kernels/backend.h"

namespace quantd {

struct StepLimits {
  int32_t max_rows = 0;    // tokens of a step
  int32_t max_seqs = 0;    // entries of a step
  int32_t max_logits = 0;  // rows of logits of a step
  int32_t max_blocks = 0;  // of one sequence
  int32_t block_size = 0;
  int64_t vocab_size = 0;
  int32_t max_logprobs = 20;  // of one row
};

class StepBuffers {
 public:
  static constexpr int kSlots = 2;

  static absl::StatusOr<std::unique_ptr<StepBuffers>> Create(Backend& backend,
                                                             const StepLimits& limits);

  /// Lays out `plan` and uploads it; tokens of pending samples come from the other slot's samples.
  void Fill(const StepPlan& plan, int slot);
  /// What Fill uploaded, padding included. The spans are valid until the next Fill.
  const Batch& batch() const { return batch_; }
  const StepShape& shape() const { return shape_; }
  /// Logits [shape().logits, vocab] f32 of the step filled last.
  TensorView logits() const { return logits_.Rows(0, shape_.logits); }

  /// Host values of a slot: parameters to set before Sample (all of them), results to read after
  /// Backend::Wait.
  std::span<SampleParams> params(int slot) { return slots_[static_cast<size_t>(slot)].params; }
  std::span<const SampleResult> results(int slot) const {
    return slots_[static_cast<size_t>(slot)].results;
  }
  /// Draws the tokens of the step filled last into `slot`.
  void Sample(int slot);

 private:
  struct Slot {
    std::span<int32_t> sampled;         // backend memory [max_logits]
    std::vector<SampleParams> params;   // [max_logits]
    std::vector<SampleResult> results;  // [max_logits]
    std::vector<TokenLogprob> top;      // [max_logits, max_logprobs]
  };
  // Where the arrays of a step begin in arrays_, in int32s.
  struct Layout {
    size_t token_ids, positions, slots, seq_of_row, feedback, logit_rows, block_tables, end;
  };
  static Layout LayoutOf(const StepShape& shape);

  explicit StepBuffers(Backend& backend, const StepLimits& limits)
      : backend_(backend), limits_(limits) {}
  // The shape of `plan`, padded as the backend wants it and the buffers allow.
  StepShape ShapeFor(const StepPlan& plan) const;
  // Writes the rows that belong to no request behind the first `rows`.
  void FillPadding(const Layout& layout, size_t rows, size_t seqs);

  Backend& backend_;
  const StepLimits limits_;
  Buffer ids_buffer_;            // all int32 arrays: of a step, then the samples
  std::vector<int32_t> arrays_;  // what Fill uploads to the beginning of ids_buffer_
  Buffer logits_buffer_;
  TensorView logits_;  // [max_logits, vocab] f32
  Slot slots_[kSlots];
  Batch batch_;
  StepShape shape_;
  int32_t num_sampled_ = 0;  // rows of logits that are not padding
};

}  // namespace quantd
