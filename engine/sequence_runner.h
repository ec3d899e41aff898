// SequenceRunner: one sequence at a time through a Model, without scheduler and sampler: the logits
// of given tokens, for `quantd logits` and for measuring quality.
//
// Holds a KV cache of one context and the arrays of a step, all allocated when it is made. Belongs
// to one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/models/model.h"

namespace quantd {

class SequenceRunner {
 public:
  /// For sequences of at most `max_tokens`; a step takes as many rows as the model gives logits
  /// for. `backend` and `model` must outlive it. RESOURCE_EXHAUSTED when the KV cache does not fit.
  static absl::StatusOr<std::unique_ptr<SequenceRunner>> Create(Backend& backend, Model& model,
                                                                DType kv_dtype, int64_t max_tokens);

  /// Most tokens one Append takes.
  int64_t max_rows() const { return max_rows_; }

  /// Forgets the tokens: the next Append begins a sequence.
  void Restart() { length_ = 0; }

  /// Logits f32 [ids.size(), vocab] of the next tokens, in host memory until the next call. CHECKs
  /// max_rows and max_tokens; ids must be of the vocabulary. Errors of Backend::Synchronize.
  absl::StatusOr<std::span<const float>> Append(std::span<const int32_t> ids,
                                                const LinearObserver* observer = nullptr);

 private:
  SequenceRunner(Backend& backend, Model& model) : backend_(backend), model_(model) {}

  Backend& backend_;
  Model& model_;
  int64_t max_tokens_ = 0;
  int64_t max_rows_ = 0;
  int64_t length_ = 0;  // tokens in the cache
  std::unique_ptr<KvCache> kv_;
  Buffer steps_;   // i32 [5, max_rows]: ids, rows, positions, slots, sequences
  Buffer table_;   // i32 [blocks]
  Buffer logits_;  // f32 [max_rows, vocab]
  std::vector<float> host_logits_;
};

}  // namespace quantd
