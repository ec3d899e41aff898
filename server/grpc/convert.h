// Conversion between the protocol and the engine's plain values. Pure functions; no gRPC.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "quantd/v1/inference.pb.h"
#include "server/serving.h"

namespace quantd {

inline constexpr int32_t kDefaultMaxTokens = 16;  // the field's default (OpenAI, vLLM)

/// A GenerateRequest in the engine's terms. When `has_text`, `request.prompt_ids` is still empty
/// and `text` is to be encoded.
struct PreparedRequest {
  Request request;
  bool has_text = false;
  std::string text;
  bool add_special_tokens = true;
};

/// What conversion needs to know about the model.
struct ModelFacts {
  std::string name;
  int64_t vocab_size = 0;
  GenerationDefaults defaults;
};
ModelFacts FactsOf(const ServedModel& model);

/// NOT_FOUND unless `name` is empty or the model's.
absl::Status CheckModelName(const std::string& name, const ModelFacts& facts);
/// INVALID_ARGUMENT unless every id is in [0, vocab_size); `field` names the ids in the message.
absl::Status CheckTokenIds(const google::protobuf::RepeatedField<int32_t>& ids, int64_t vocab_size,
                           const std::string& field);

/// Takes the prompt out of `proto`. INVALID_ARGUMENT naming the field, NOT_FOUND for another model.
absl::StatusOr<PreparedRequest> ToPreparedRequest(v1::GenerateRequest&& proto,
                                                  const ModelFacts& facts);

/// Appends `more`, which came later, to `*into`.
void Merge(RequestUpdate&& more, RequestUpdate* into);

/// `with_logprobs`: whether the request asked for them.
v1::GenerateStreamResponse ToStreamResponse(const std::string& request_id, RequestUpdate&& update,
                                            bool with_logprobs);
v1::GenerateResponse ToResponse(const std::string& request_id, RequestUpdate&& update,
                                bool with_logprobs);

v1::GetModelInfoResponse ToModelInfo(const ServedModel& model);
void ToProto(const EngineStats& stats, v1::EngineStats* proto);

}  // namespace quantd
