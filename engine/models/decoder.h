// Decoder: the one decoder stack, over Backend ops. Specs and weights come in; architecture names
// do not.
//
// Layer: x += n(o(attention(rope(n(qkv(norm(x))))))); x += n(down(act(gate(norm(x))) *
// up(norm(x)))), where n is a norm that some models have: of the heads of q and k
// (DecoderSpec::qk_norm), of what a branch adds to the stream (branch_norms). The residual stream
// and all activations are in the compute dtype; logits are f32. Activations are allocated once.
// Belongs to the engine thread.
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
  std::vector<const LoadedLinear*> linears() const override;
  void Forward(const Batch& batch, const KvCache& kv, TensorView logits,
               const LinearObserver* observer) override;

 private:
  struct Layer {
    const float* input_norm = nullptr;      // f32 [hidden]
    const float* attention_norm = nullptr;  // f32 [hidden] of the attention's output; may be null
    const float* mlp_input_norm = nullptr;  // f32 [hidden]
    const float* mlp_norm = nullptr;        // f32 [hidden] of the mlp's output; may be null
    const float* q_norm = nullptr;          // f32 [head_dim]; may be null
    const float* k_norm = nullptr;          // as q_norm
    const LoadedGroup* qkv = nullptr;
    const LoadedGroup* o = nullptr;
    const LoadedGroup* gate_up = nullptr;
    const LoadedGroup* down = nullptr;
    AttentionSpec attention;
  };

  Decoder(Backend& backend, DecoderSpec spec, LoadedWeights weights, const DecoderOptions& options);
  absl::Status Allocate();
  AttentionSpec AttentionOf(int64_t layer) const;
  absl::StatusOr<Buffer> MakeRope(const RopeSpec& rope);
  absl::StatusOr<Tensor> Activation(int64_t rows, int64_t cols);
  void Apply(const LoadedGroup& group, TensorView x, TensorView y, const LinearObserver* observer);
  void RunLayer(const Layer& layer, const Batch& batch, const KvLayer& cache,
                const LinearObserver* observer);
  void ComputeLogits(const Batch& batch, TensorView logits, const LinearObserver* observer);

  Backend& backend_;
  const DecoderSpec spec_;
  const LoadedWeights weights_;
  const DecoderOptions options_;
  float embedding_scale_ = 1.0f;
  std::vector<Layer> layers_;
  const float* final_norm_ = nullptr;

  Buffer rope_;           // f32 [max_positions, rotary_dim]
  Buffer sliding_rope_;   // as well, of layers with a window; empty: the same
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
