#include "engine/models/decoder.h"

#include <cmath>

#include "engine/models/rope.h"
#include "kernels/quant/rounding.h"
#include "kernels/status.h"

namespace quantd {

Decoder::Decoder(Backend& backend, DecoderSpec spec, LoadedWeights weights,
                 const DecoderOptions& options)
    : backend_(backend), spec_(std::move(spec)), weights_(std::move(weights)), options_(options) {
  WithRounding(options_.compute_dtype,
               [&](const auto& round) { embedding_scale_ = round(spec_.embedding_scale); });
  const size_t num_layers = static_cast<size_t>(spec_.num_layers);
  const size_t layer_vectors = 2 + (spec_.branch_norms ? 2 : 0) + (spec_.qk_norm ? 2 : 0);
  QUANTD_CHECK(weights_.groups.size() == 4 * num_layers &&
                   weights_.vectors.size() == layer_vectors * num_layers + 1,
               "{} groups and {} vectors for {} layers", weights_.groups.size(),
               weights_.vectors.size(), num_layers);
  size_t next = 0;
  const auto vector = [&](bool has) {
    return has ? weights_.vectors[next++].as<float>() : nullptr;
  };
  for (size_t i = 0; i < num_layers; ++i) {
    Layer& layer = layers_.emplace_back();
    layer.input_norm = vector(true);
    layer.attention_norm = vector(spec_.branch_norms);
    layer.mlp_input_norm = vector(true);
    layer.mlp_norm = vector(spec_.branch_norms);
    layer.q_norm = vector(spec_.qk_norm);
    layer.k_norm = vector(spec_.qk_norm);
    const LoadedGroup* groups = &weights_.groups[4 * i];
    layer.qkv = groups;
    layer.o = groups + 1;
    layer.gate_up = groups + 2;
    layer.down = groups + 3;
    layer.attention = AttentionOf(static_cast<int64_t>(i));
  }
  final_norm_ = vector(true);
}

AttentionSpec Decoder::AttentionOf(int64_t layer) const {
  AttentionSpec attention;
  attention.num_heads = static_cast<int32_t>(spec_.num_heads);
  attention.num_kv_heads = static_cast<int32_t>(spec_.num_kv_heads);
  attention.head_dim = static_cast<int32_t>(spec_.head_dim);
  attention.scale = spec_.attention_scale > 0.0f
                        ? spec_.attention_scale
                        : 1.0f / std::sqrt(static_cast<float>(spec_.head_dim));
  attention.window = spec_.window(layer);
  attention.softcap = spec_.attention_softcap;
  attention.rotary_dim = static_cast<int32_t>(spec_.rotary_dim());
  return attention;
}

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Create(Backend& backend, DecoderSpec spec,
                                                         LoadedWeights weights,
                                                         const DecoderOptions& options) {
  if (options.max_rows < 1 || options.max_logit_rows < 1 || options.max_positions < 1) {
    return InvalidArgument("max_rows {}, max_logit_rows {} and max_positions {} must be positive",
                           options.max_rows, options.max_logit_rows, options.max_positions);
  }
  std::unique_ptr<Decoder> decoder(
      new Decoder(backend, std::move(spec), std::move(weights), options));
  RETURN_IF_ERROR(decoder->Allocate());
  return decoder;
}

absl::StatusOr<Tensor> Decoder::Activation(int64_t rows, int64_t cols) {
  const size_t bytes = static_cast<size_t>(rows * cols) * SizeOf(options_.compute_dtype);
  Tensor tensor;
  ASSIGN_OR_RETURN(tensor.buffer, backend_.Allocate(bytes, MemoryComponent::kActivations));
  tensor.view = TensorView(options_.compute_dtype, tensor.buffer.data(), rows, cols);
  return tensor;
}

absl::StatusOr<Buffer> Decoder::MakeRope(const RopeSpec& rope) {
  const std::vector<float> table = RopeTable(rope, spec_.rotary_dim(), options_.max_positions);
  const size_t bytes = table.size() * sizeof(float);
  ASSIGN_OR_RETURN(Buffer buffer, backend_.Allocate(bytes, MemoryComponent::kNorms));
  backend_.Upload(table.data(), bytes, buffer.data());
  return buffer;
}

absl::Status Decoder::Allocate() {
  ASSIGN_OR_RETURN(rope_, MakeRope(spec_.rope));
  if (spec_.sliding_rope) {
    ASSIGN_OR_RETURN(sliding_rope_, MakeRope(*spec_.sliding_rope));
  }
  const int64_t rows = options_.max_rows;
  const int64_t heads = spec_.num_heads + 2 * spec_.num_kv_heads;
  ASSIGN_OR_RETURN(residual_, Activation(rows, spec_.hidden_size));
  ASSIGN_OR_RETURN(normed_, Activation(rows, spec_.hidden_size));
  ASSIGN_OR_RETURN(qkv_, Activation(rows, heads * spec_.head_dim));
  ASSIGN_OR_RETURN(attended_, Activation(rows, spec_.num_heads * spec_.head_dim));
  ASSIGN_OR_RETURN(branch_, Activation(rows, spec_.hidden_size));
  ASSIGN_OR_RETURN(gate_up_, Activation(rows, 2 * spec_.intermediate_size));
  ASSIGN_OR_RETURN(gated_, Activation(rows, spec_.intermediate_size));
  ASSIGN_OR_RETURN(last_residual_, Activation(options_.max_logit_rows, spec_.hidden_size));
  ASSIGN_OR_RETURN(last_branch_, Activation(options_.max_logit_rows, spec_.hidden_size));
  return absl::OkStatus();
}

std::vector<const LoadedLinear*> Decoder::linears() const {
  std::vector<const LoadedLinear*> out;
  for (const LoadedGroup& group : weights_.groups) {
    for (const LoadedLinear& part : group) out.push_back(&part);
  }
  for (const LoadedLinear& part : weights_.head) out.push_back(&part);
  if (weights_.head.empty()) out.push_back(&weights_.embedding);  // tied
  return out;
}

// The parts of a group write neighbouring columns of `y`, so a split group needs no other code.
void Decoder::Apply(const LoadedGroup& group, TensorView x, TensorView y,
                    const LinearObserver* observer) {
  int64_t column = 0;
  for (const LoadedLinear& part : group) {
    const TensorView out = y.Cols(column, part.weight->n());
    backend_.Linear(*part.weight, part.activation, x, part.bias.as<float>(), out);
    if (observer != nullptr) (*observer)(*part.weight, x, out);
    column += part.weight->n();
  }
  QUANTD_CHECK(column == y.cols, "{} of {} columns", column, y.cols);
}

// Takes the normed stream in normed_, leaves the mlp's output in branch_ (not added to the stream
// yet).
void Decoder::RunLayer(const Layer& layer, const Batch& batch, const KvLayer& cache,
                       const LinearObserver* observer) {
  const int64_t rows = static_cast<int64_t>(batch.token_ids.size());
  const int64_t q_cols = spec_.num_heads * spec_.head_dim;
  const int64_t kv_cols = spec_.num_kv_heads * spec_.head_dim;
  const TensorView residual = residual_.view.Rows(0, rows);
  const TensorView normed = normed_.view.Rows(0, rows);
  const TensorView qkv = qkv_.view.Rows(0, rows);
  const TensorView attended = attended_.view.Rows(0, rows);
  const TensorView branch = branch_.view.Rows(0, rows);
  const TensorView gate_up = gate_up_.view.Rows(0, rows);
  const TensorView gated = gated_.view.Rows(0, rows);

  Apply(*layer.qkv, normed, qkv, observer);
  const TensorView q = qkv.Cols(0, q_cols), k = qkv.Cols(q_cols, kv_cols);
  const AttentionSpec& attention = layer.attention;
  if (spec_.qk_norm) {
    backend_.NormHeads(q, k, layer.q_norm, layer.k_norm, spec_.norm_eps, attention);
  }
  const Buffer& rope = attention.window > 0 && spec_.sliding_rope ? sliding_rope_ : rope_;
  backend_.RopeAndStoreKv(q, k, qkv.Cols(q_cols + kv_cols, kv_cols), rope.as<float>(), attention,
                          batch.attention, cache);
  backend_.Attention(q, attention, batch.attention, cache, attended);
  Apply(*layer.o, attended, branch, observer);
  if (layer.attention_norm != nullptr) {
    backend_.RmsNorm(branch, layer.attention_norm, spec_.norm_eps, branch);
  }

  backend_.AddRmsNorm(residual, branch, layer.mlp_input_norm, spec_.norm_eps, normed);
  Apply(*layer.gate_up, normed, gate_up, observer);
  backend_.GatedActivation(gate_up, spec_.activation, gated);
  Apply(*layer.down, gated, branch, observer);
  if (layer.mlp_norm != nullptr) {
    backend_.RmsNorm(branch, layer.mlp_norm, spec_.norm_eps, branch);
  }
}

// The last addition, the final norm and the head, only for the rows whose logits are wanted.
void Decoder::ComputeLogits(const Batch& batch, TensorView logits, const LinearObserver* observer) {
  const int64_t rows = static_cast<int64_t>(batch.token_ids.size());
  const int64_t num_logits = static_cast<int64_t>(batch.logit_rows.size());
  const TensorView residual = last_residual_.view.Rows(0, num_logits);
  const TensorView branch = last_branch_.view.Rows(0, num_logits);
  backend_.GatherRows(residual_.view.Rows(0, rows), batch.logit_rows, residual);
  backend_.GatherRows(branch_.view.Rows(0, rows), batch.logit_rows, branch);
  const TensorView normed = normed_.view.Rows(0, num_logits);  // its rows are no longer needed
  backend_.AddRmsNorm(residual, branch, final_norm_, spec_.norm_eps, normed);
  if (!weights_.head.empty()) {
    Apply(weights_.head, normed, logits, observer);
  } else {
    const PackedWeight& head = *weights_.embedding.weight;  // tied
    backend_.Linear(head, ActivationQuant{}, normed, nullptr, logits);
    if (observer != nullptr) (*observer)(head, normed, logits);
  }
  if (spec_.logit_softcap > 0.0f) backend_.SoftCap(logits, spec_.logit_softcap);
}

void Decoder::Forward(const Batch& batch, const KvCache& kv, TensorView logits,
                      const LinearObserver* observer) {
  const int64_t rows = static_cast<int64_t>(batch.token_ids.size());
  const int64_t num_logits = static_cast<int64_t>(batch.logit_rows.size());
  QUANTD_CHECK(rows <= options_.max_rows, "{} rows, at most {}", rows, options_.max_rows);
  QUANTD_CHECK(num_logits <= options_.max_logit_rows && num_logits <= rows,
               "{} logit rows, at most {} of {} rows", num_logits, options_.max_logit_rows, rows);
  QUANTD_CHECK(num_logits == 0 || (logits.rows == num_logits && logits.cols == spec_.vocab_size),
               "logits [{}, {}] for [{}, {}]", logits.rows, logits.cols, num_logits,
               spec_.vocab_size);
  if (rows == 0) return;

  const TensorView residual = residual_.view.Rows(0, rows);
  const TensorView normed = normed_.view.Rows(0, rows);
  backend_.Embed(*weights_.embedding.weight, batch.token_ids, embedding_scale_, residual);
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (i == 0) {
      backend_.RmsNorm(residual, layers_[i].input_norm, spec_.norm_eps, normed);
    } else {
      backend_.AddRmsNorm(residual, branch_.view.Rows(0, rows), layers_[i].input_norm,
                          spec_.norm_eps, normed);
    }
    RunLayer(layers_[i], batch, kv.layer(static_cast<int64_t>(i)), observer);
  }
  if (num_logits > 0) ComputeLogits(batch, logits, observer);
}

}  // namespace quantd
