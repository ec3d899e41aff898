// Decoder: the one decoder stack, over Backend ops. Specs and weights come in; architecture names
// do not.
//
// Layer: x += o(attention(rope(qkv(norm(x))))); x += down(silu(gate(norm(x))) * up(norm(x))). The
// residual stream and all activations are in the compute dtype; logits are f32. Activations are
// allocated once. Belongs to the engine thread.
#pragma once

#include <memory>
#include <vector>

#include "engine/models/model.h"
#include "engine/weights/loader.h"

namespace quantd {

struct DecoderOptions {
  DType compute_dtype = DType::kBF16;
  int64_t max_rows = 512;       // rows of one Forward
  int64_t max_logit_rows = 64;  // rows of logits of one Forward
  int64_t max_positions = 0;    // rope table length
};

class Decoder : public Model {
 public:
  /// `weights` in the order of Architecture::weights. RESOURCE_EXHAUSTED when activations do not
  /// fit.
  static absl::StatusOr<std::unique_ptr<Decoder>> Create(Backend& backend, DecoderSpec spec,
                                                         LoadedWeights weights,
                                                         const DecoderOptions& options);

  const DecoderSpec& spec() const override { return spec_; }
  DType compute_dtype() const override { return options_.compute_dtype; }
  int64_t max_rows() const override { return options_.max_rows; }
  int64_t max_logit_rows() const override { return options_.max_logit_rows; }
  void Forward(const Batch& batch, const KvCache& kv, TensorView logits,
               const LinearObserver* observer) override;

 private:
  struct Layer {
    const float* input_norm = nullptr;  // f32 [hidden]
    const float* post_norm = nullptr;   // f32 [hidden], between attention and mlp
    const LoadedGroup* qkv = nullptr;
    const LoadedGroup* o = nullptr;
    const LoadedGroup* gate_up = nullptr;
    const LoadedGroup* down = nullptr;
  };

  Decoder(Backend& backend, DecoderSpec spec, LoadedWeights weights, const DecoderOptions& options);
  absl::Status Allocate();
  absl::StatusOr<Tensor> Activation(int64_t rows, int64_t cols);
  void Apply(const LoadedGroup& group, TensorView x, TensorView y, const LinearObserver* observer);
  void RunLayer(const Layer& layer, const Batch& batch, const KvLayer& cache,
                const LinearObserver* observer);
  void ComputeLogits(const Batch& batch, TensorView logits, const LinearObserver* observer);

  Backend& backend_;
  const DecoderSpec spec_;
  const LoadedWeights weights_;
  const DecoderOptions options_;
  const AttentionSpec attention_;
  std::vector<Layer> layers_;
  const float* final_norm_ = nullptr;

  Buffer rope_;           // f32 [max_positions, head_dim]
  Tensor residual_;       // [max_rows, hidden] the stream
  Tensor normed_;         // [max_rows, hidden]
  Tensor qkv_;            // [max_rows, (heads + 2 * kv_heads) * head_dim]
  Tensor attended_;       // [max_rows, heads * head_dim]
  Tensor branch_;         // [max_rows, hidden] what a branch adds to the stream
  Tensor gate_up_;        // [max_rows, 2 * intermediate]
  Tensor gated_;          // [max_rows, intermediate]
  Tensor last_residual_;  // [max_logit_rows, hidden]
  Tensor last_branch_;    // [max_logit_rows, hidden]
};

}  // namespace quantd
