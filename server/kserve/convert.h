// Conversion between KServe's messages and the server's own values. Pure functions; no gRPC.
#pragma once

#include <chrono>
#include <optional>
#include <set>
#include <string>

#include "absl/status/statusor.h"
#include "inference/grpc_service.pb.h"
#include "server/grpc/convert.h"
#include "server/kserve/sampling_options.h"
#include "server/kserve/statistics.h"

namespace quantd::kserve {

inline constexpr char kModelVersion[] = "1";
inline constexpr size_t kMaxIdBytes = 256;

/// The same model, published a second time as one that answers every request once: perf_analyzer
/// sends ModelInfer to no model that is said to stream.
std::string UnaryName(const std::string& model);

/// A ModelInferRequest, checked.
struct InferRequest {
  PreparedRequest prepared;
  bool stream = false;            // the text as it comes; else once, whole
  std::string prefix;             // stands before the text: the prompt, or nothing
  bool empty_final = false;       // the final response of a stream is one of its own, without text
  std::set<std::string> outputs;  // names of those it asks for, beside text_output
  std::optional<std::chrono::microseconds> timeout;
  SamplingOptions::Origins origins;  // for Translate of later errors
};

/// NOT_FOUND unless `name` is the model's (either one) and `version` "" or "1"; INVALID_ARGUMENT
/// for a version that is not a number.
absl::Status CheckModel(const std::string& name, const std::string& version,
                        const ModelFacts& facts);

/// INVALID_ARGUMENT naming the input or parameter, UNIMPLEMENTED for shared memory, NOT_FOUND for
/// another model.
absl::StatusOr<InferRequest> ToInferRequest(const inference::ModelInferRequest& proto,
                                            const ModelFacts& facts);

/// The responses of one request, in order.
class InferResponses {
 public:
  /// Takes what is about responses from `request`. `model`: as the request spells it.
  InferResponses(std::string model, std::string id, InferRequest& request);

  /// A response with what `update` has brought since the last one. `final`: for
  /// triton_final_response; absent in the one response of a unary call.
  inference::ModelInferResponse Next(const RequestUpdate& update, std::optional<bool> final);
  /// The final response, without outputs.
  inference::ModelInferResponse Final() const;
  /// The final response of a request that failed with `status`, which speaks of quantd.v1's fields.
  inference::ModelStreamInferResponse Error(const absl::Status& status) const;
  /// `status` in the names of the request.
  absl::Status Translate(const absl::Status& status) const;

 private:
  std::string model_;
  std::string id_;
  std::string prefix_;  // of the first response
  std::set<std::string> outputs_;
  SamplingOptions::Origins origins_;
  int32_t completion_tokens_ = 0;  // of the responses so far
  double cumulative_logprob_ = 0;
};

/// The last response of a request that failed with `status`.
inference::ModelStreamInferResponse ToErrorResponse(const std::string& model, const std::string& id,
                                                    const absl::Status& status);

/// `name`: one of `model`'s.
inference::ModelMetadataResponse ToMetadata(const std::string& name);
inference::ModelConfig ToConfig(const std::string& name, const std::string& model);
inference::ModelStatistics ToStatistics(const std::string& model,
                                        const ServingStatistics::Snapshot& totals);

}  // namespace quantd::kserve
