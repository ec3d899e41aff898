// MemoryPlan: the bytes a model will take under a profile, by component, before anything is loaded.
//
//   WeightsPlan (headers, or config.json alone)  ->  PlanMemory  ->  MemoryPlan
//
// The components are MemoryAccount's, and a plan is what the account says once every op has run at
// its largest. Weights and KV cache are exact; workspace and activations are those of the largest
// step the limits allow. What belongs to no component (a CUDA context, the library's code) is not
// in a plan: selection.h leaves room for it. Pure functions.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "engine/models/decoder_spec.h"
#include "engine/plan/packed_bytes.h"
#include "engine/weights/loader.h"
#include "engine/weights/weight_check.h"
#include "kernels/memory_account.h"

namespace quantd {

/// What a server is told about its steps; the names are EngineOptions'.
struct PlanLimits {
  int64_t max_num_seqs = 16;
  int64_t max_num_batched_tokens = 512;
  int64_t max_logit_rows = 32;  // rows of logits of a step
  int64_t max_model_len = 0;    // 0: the model's max_position_embeddings
  int64_t block_size = 16;      // tokens
};

struct PlanDevice {
  PlanBackend backend = PlanBackend::kCpu;
  int64_t memory_bytes = 0;     // that may be taken; 0: not known
  double bytes_per_second = 0;  // read from its memory; 0: not known
  int threads = 1;              // of cpu
  std::string isa = "avx2";     // of cpu: DeviceInfo::isa
  /// cuda: most bytes of a slab that a matrix is dequantized to. The backend takes 1/256 of the
  /// device's memory, 32 to 256 MiB.
  int64_t slab_bytes = int64_t{256} << 20;
  /// cuda: e4m3 activations are multiplied as codes: compute capability 8.9, and determinism that
  /// is not batch_invariant.
  bool multiplies_fp8 = true;
};

struct MemoryPlan {
  std::array<int64_t, kNumMemoryComponents> bytes{};  // the KV cache: see WithKvTokens
  int64_t kv_bytes_per_token = 0;                     // all layers
  int64_t parameters = 0;
  int64_t load_peak_host = 0;    // while loading: of ours, not the page cache
  int64_t load_peak_device = 0;  // cuda; else the weights are on the host
  /// What a step reads of weights: all but the embedding, of which it reads a few rows.
  int64_t bytes_read_per_step = 0;

  int64_t of(MemoryComponent c) const { return bytes[static_cast<size_t>(c)]; }
  /// Everything resident of the model: codes, scales, embedding, head, norms and rope tables.
  int64_t weights() const;
  /// Activations, logits, step arrays, scratch of kernels.
  int64_t workspace() const;
  int64_t total() const;
  /// Tokens of KV cache that `memory` holds beside the rest, whole blocks of `block_size`, less the
  /// reserved block; 0 when not one fits.
  int64_t KvTokensIn(int64_t memory, int64_t block_size) const;
  /// The same plan with a KV cache of `tokens` and a reserved block.
  MemoryPlan WithKvTokens(int64_t tokens, int64_t block_size) const;
};

/// `weights`: of the same model. `compute`: dtype of activations; `kv`: of the cache.
MemoryPlan PlanMemory(const DecoderSpec& spec, const ExpectedWeights& expected,
                      const WeightsPlan& weights, DType compute, DType kv, const PlanLimits& limits,
                      const PlanDevice& device);

}  // namespace quantd
