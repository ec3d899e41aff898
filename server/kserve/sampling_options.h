// SamplingOptions: what a KServe request says about sampling, in inputs, in the JSON of
// sampling_parameters and in parameters, gathered into quantd.v1's SamplingParams, which is then
// checked where those of quantd.v1 are. No gRPC.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "inference/grpc_service.pb.h"
#include "quantd/v1/inference.pb.h"
#include "server/kserve/tensors.h"

namespace quantd::kserve {

/// Bytes of sampling_parameters at most, and how deep its values may nest.
inline constexpr size_t kMaxSamplingJsonBytes = 1 << 20;
inline constexpr int kMaxSamplingJsonDepth = 4;

class SamplingOptions {
 public:
  /// Where a field of SamplingParams came from, as the request spells it: "random_seed",
  /// "sampling_parameters.seed", "parameters.seed".
  using Origins = std::map<std::string, std::string>;

  /// Takes `value` of the input `origin` for the field `name`. INVALID_ARGUMENT when the field was
  /// set already.
  absl::Status SetInput(const std::string& name, const InputValue& value,
                        const std::string& origin);
  /// Takes a JSON object whose keys are names of SamplingParams. Numbers and booleans may be
  /// strings, null is absent, "stop" may be one string, top_k -1 is off. INVALID_ARGUMENT naming
  /// the key: not JSON, too long or deep, a key that is unknown or there twice, a value of another
  /// type or out of its type's range, n other than 1, log probabilities (no output carries them).
  absl::Status SetJson(const std::string& text);
  /// Takes a parameter of the request, by the same rules.
  absl::Status SetParameter(const std::string& name, const inference::InferParameter& value);

  const v1::SamplingParams& params() const { return params_; }
  const Origins& origins() const { return origins_; }

  /// `status`, which speaks of quantd.v1's fields, in the names of the request.
  static absl::Status Translate(const absl::Status& status, const Origins& origins);

 private:
  absl::Status Note(const std::string& name, const std::string& origin);

  v1::SamplingParams params_;
  Origins origins_;
};

}  // namespace quantd::kserve
