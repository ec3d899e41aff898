// Model: one decoder with packed weights; Forward turns a step's rows into logits.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "engine/kv_cache.h"
#include "engine/models/decoder_spec.h"
#include "kernels/backend.h"

namespace quantd {

/// One step's flattened inputs. Arrays are in backend memory and stay at fixed addresses.
struct Batch {
  std::span<const int32_t> token_ids;   // [rows]
  std::span<const int32_t> logit_rows;  // [num_logits] rows whose logits are wanted
  AttentionBatch attention;             // positions, slots, seq_of_row: [rows]
};

struct LoadedLinear;

/// Called after a Linear with its input and output, for calibration and error measurement.
using LinearObserver =
    std::function<void(const PackedWeight& weight, const TensorView& x, const TensorView& y)>;

class Model {
 public:
  virtual ~Model() = default;
  virtual const DecoderSpec& spec() const = 0;
  virtual DType compute_dtype() const = 0;
  /// Most rows one Forward takes; fixed when the model was built (its activations are allocated
  /// once).
  virtual int64_t max_rows() const = 0;
  /// Most rows of logits one Forward makes.
  virtual int64_t max_logit_rows() const { return max_rows(); }

  /// The weights that Forward multiplies with, in its order, for measuring them by themselves.
  virtual std::vector<const LoadedLinear*> linears() const { return {}; }

  /// logits [num_logits, vocab] f32 = the decoder over `batch`, whose K and V go to `kv`.
  /// Engine thread only. No allocation.
  virtual void Forward(const Batch& batch, const KvCache& kv, TensorView logits,
                       const LinearObserver* observer = nullptr) = 0;
};

}  // namespace quantd
