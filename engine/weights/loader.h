// WeightLoader: a checkpoint's tensors become a backend's packed weights, one matrix at a time.
//
// Model code declares what it expects; the loader first checks every tensor of the checkpoint
// against that and reports all faults in one message, then packs: source view -> QuantizedMatrix ->
// Backend::PackRows, and gives the source pages back. Runs on one thread.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/weights/methods/method.h"
#include "engine/weights/profile.h"
#include "engine/weights/safetensors.h"
#include "kernels/backend.h"

namespace quantd {

/// A linear layer "<module>.weight" [n, k], with "<module>.bias" [n] if `bias`.
struct ExpectedLinear {
  std::string module;
  int64_t n = 0;
  int64_t k = 0;
  bool bias = false;
};

/// Linears that read the same input and may become one weight: q, k, v; or gate, up; or one alone.
using ExpectedGroup = std::vector<ExpectedLinear>;

struct ExpectedVector {
  std::string tensor;  // "model.norm.weight"
  int64_t size = 0;
  float offset = 0.0f;  // added to every element, in f32
};

/// Everything a model reads. `groups` and `vectors` come back in the same order.
struct ExpectedWeights {
  ExpectedLinear embedding;            // module "model.embed_tokens": [vocab, hidden]
  std::optional<ExpectedLinear> head;  // absent when it is tied to the embedding
  std::string tied_head;               // then: the name it would have, "lm_head"
  std::vector<ExpectedGroup> groups;
  std::vector<ExpectedVector> vectors;
};

/// One packed weight, of one module or of several fused ones.
struct LoadedLinear {
  std::unique_ptr<PackedWeight> weight;
  ActivationQuant activation;
  Buffer bias;  // f32 [n]; empty when there is none
};

/// The parts of an ExpectedGroup, in order: one when all could be fused, at most one per module.
using LoadedGroup = std::vector<LoadedLinear>;

struct LoadedWeights {
  LoadedLinear embedding;
  LoadedGroup head;  // empty: the embedding is the head
  std::vector<LoadedGroup> groups;
  std::vector<Buffer> vectors;  // f32

  struct Module {
    std::string method;  // "none", "bitsandbytes_4bit", ...
    QuantFormat format;
    int64_t modules = 0;     // fused into this weight
    int64_t parameters = 0;  // n * k
    int64_t bytes = 0;       // resident
  };
  std::vector<Module> modules;  // every packed weight
  int64_t parameters = 0;       // biases and norms included
  int64_t resident_bytes = 0;
  int64_t peak_bytes = 0;            // largest sum of packed bytes and matrices in flight
  int64_t largest_matrix_bytes = 0;  // of a QuantizedMatrix, or of an aligned copy of its source
  std::vector<std::string> accepted_extras;
};

struct WeightLoaderOptions {
  QuantProfile profile;                       // how full-precision modules are quantized
  std::optional<MethodOptions> prequantized;  // config.json's quantization_config
  DType compute_dtype = DType::kBF16;         // of weights that are not quantized
  /// Source bytes done and in all, and the module at hand; may be empty.
  std::function<void(int64_t done, int64_t total, const std::string& module)> on_progress;
};

struct WeightsPlan;  // weight_check.h

/// DATA_LOSS with all faults: of names, shapes and dtypes, before anything is allocated; where
/// there is none, of values (not finite, codes and zero points out of range). One a module, the
/// first, and one for its bias. UNIMPLEMENTED for stored variants or formats without a kernel,
/// INVALID_ARGUMENT when the profile does not suit the model, RESOURCE_EXHAUSTED.
absl::StatusOr<LoadedWeights> LoadWeights(const Checkpoint& checkpoint,
                                          const ExpectedWeights& expected,
                                          const WeightLoaderOptions& options, Backend& backend);
/// The same of what PlanWeights has made of these arguments: only values are still to be checked.
absl::StatusOr<LoadedWeights> LoadPlannedWeights(const Checkpoint& checkpoint,
                                                 const ExpectedWeights& expected,
                                                 const WeightLoaderOptions& options,
                                                 const WeightsPlan& plan, Backend& backend);

}  // namespace quantd
