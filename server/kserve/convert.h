// Conversion between KServe's messages and the server's own values. Pure functions; no gRPC.
#pragma once

#include <chrono>
#include <optional>
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
  bool stream = false;       // the text as it comes; else once, whole
  std::string prefix;        // stands before the text: the prompt, or nothing
  bool empty_final = false;  // the final response of a stream is one of its own, without text
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

/// A response with `text`, or without outputs. `final`: for triton_final_response; absent in the
/// one response of a unary call.
inference::ModelInferResponse ToInferResponse(const std::string& model, const std::string& id,
                                              const std::optional<std::string>& text,
                                              std::optional<bool> final);
/// The last response of a request that failed with `status`.
inference::ModelStreamInferResponse ToErrorResponse(const std::string& model, const std::string& id,
                                                    const absl::Status& status);

/// `name`: one of `model`'s.
inference::ModelMetadataResponse ToMetadata(const std::string& name);
inference::ModelConfig ToConfig(const std::string& name, const std::string& model);
inference::ModelStatistics ToStatistics(const std::string& model,
                                        const ServingStatistics::Snapshot& totals);

}  // namespace quantd::kserve
