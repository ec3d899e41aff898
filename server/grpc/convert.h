// Conversion between the protocol and the engine's plain values. Pure functions; no gRPC.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/text/chat_template.h"
#include "quantd/v1/inference.pb.h"
#include "server/serving.h"

namespace quantd {

inline constexpr int32_t kDefaultMaxTokens = 16;  // the field's default (OpenAI, vLLM)

/// A GenerateRequest in the engine's terms. When `has_text`, `request.prompt_ids` is still empty
/// and `text` is to be encoded; when `messages` is not empty, the chat template makes the text.
struct PreparedRequest {
  Request request;
  bool has_text = false;
  std::string text;
  std::vector<ChatMessage> messages;
  ChatOptions chat;
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

/// Token ids of a prompt that is text or messages. Takes time linear in it, a second at most.
/// INVALID_ARGUMENT naming the field: no chat template (null), one that refuses the messages or
/// takes too long, a text that comes to no token. So is one whose size alone says that it is beyond
/// the context of `max_model_len` tokens, as the engine would say: before the time is spent.
absl::StatusOr<std::vector<int32_t>> EncodePrompt(const PreparedRequest& prepared,
                                                  const Tokenizer& tokenizer,
                                                  const ChatTemplate* chat_template,
                                                  int64_t max_model_len);

/// Appends `more`, which came later, to `*into`.
void Merge(RequestUpdate&& more, RequestUpdate* into);

/// `with_logprobs`: whether the request asked for them.
v1::GenerateStreamResponse ToStreamResponse(const std::string& request_id, RequestUpdate&& update,
                                            bool with_logprobs);
/// `updates`: the whole of each output, at least one.
v1::GenerateResponse ToResponse(const std::string& request_id, std::vector<RequestUpdate>&& updates,
                                bool with_logprobs);

v1::GetModelInfoResponse ToModelInfo(const ServedModel& model);
void ToProto(const EngineStats& stats, v1::EngineStats* proto);

}  // namespace quantd
