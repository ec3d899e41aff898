// The protocol's messages to engine values and back. Every error names the field as the .proto
// spells it.
#include "server/grpc/convert.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "kernels/status.h"
#include "server/grpc/error_details.h"
#include "server/one_line.h"

namespace quantd {
namespace {

constexpr size_t kMaxRequestIdBytes = 256;

v1::FinishReason ToProto(FinishReason reason) {
  return reason == FinishReason::kLength ? v1::FINISH_REASON_LENGTH : v1::FINISH_REASON_STOP;
}

SamplingParams ToSampling(const v1::SamplingParams& proto, const GenerationDefaults& defaults) {
  SamplingParams p;
  p.temperature = proto.has_temperature() ? proto.temperature() : defaults.temperature;
  p.top_p = proto.has_top_p() ? proto.top_p() : defaults.top_p;
  p.top_k = proto.has_top_k() ? proto.top_k() : defaults.top_k;
  p.min_p = proto.has_min_p() ? proto.min_p() : defaults.min_p;
  if (proto.has_seed()) p.seed = proto.seed();
  p.max_tokens = proto.has_max_tokens() ? proto.max_tokens() : kDefaultMaxTokens;
  p.min_tokens = proto.min_tokens();
  p.stop.assign(proto.stop().begin(), proto.stop().end());
  p.stop_token_ids.assign(proto.stop_token_ids().begin(), proto.stop_token_ids().end());
  p.ignore_eos = proto.ignore_eos();
  p.logprobs = proto.has_logprobs() ? proto.logprobs() : -1;
  p.repetition_penalty =
      proto.has_repetition_penalty() ? proto.repetition_penalty() : defaults.repetition_penalty;
  p.presence_penalty = proto.presence_penalty();
  p.frequency_penalty = proto.frequency_penalty();
  p.logit_bias.assign(proto.logit_bias().begin(), proto.logit_bias().end());
  std::sort(p.logit_bias.begin(), p.logit_bias.end());
  p.allowed_token_ids.assign(proto.allowed_token_ids().begin(), proto.allowed_token_ids().end());
  p.bad_words.assign(proto.bad_words().begin(), proto.bad_words().end());
  p.include_stop_str_in_output = proto.include_stop_str_in_output();
  if (proto.has_n()) p.n = proto.n();
  if (proto.has_prompt_logprobs()) p.prompt_logprobs = proto.prompt_logprobs();
  if (proto.has_prompt_lookup_num_tokens()) {
    p.prompt_lookup_num_tokens = proto.prompt_lookup_num_tokens();
  }
  p.skip_special_tokens = !proto.has_skip_special_tokens() || proto.skip_special_tokens();
  return p;
}

void Fill(const TokenOutput& token, v1::PositionLogprobs* position) {
  position->set_logprob(token.logprob);
  for (const TokenLogprob& alternative : token.top) {
    v1::TokenLogprob* top = position->add_top();
    top->set_token_id(alternative.token_id);
    top->set_logprob(alternative.logprob);
  }
}

// What GenerateResponse, GenerateStreamResponse and Output have in common.
template <typename Message>
void Fill(RequestUpdate&& update, bool with_logprobs, Message& out) {
  out.set_text(std::move(update.text));
  out.mutable_token_ids()->Reserve(static_cast<int>(update.tokens.size()));
  for (const TokenOutput& token : update.tokens) {
    out.add_token_ids(token.token_id);
    if (with_logprobs) Fill(token, out.add_logprobs());
  }
  if (update.finish_reason.has_value() && update.status.ok()) {
    out.set_finish_reason(ToProto(*update.finish_reason));
    out.set_stop_reason(update.stop_reason);
  }
}

void Fill(const Usage& usage, v1::Usage* proto) {
  proto->set_prompt_tokens(usage.prompt_tokens);
  proto->set_cached_tokens(usage.cached_tokens);
  proto->set_completion_tokens(usage.completion_tokens);
}

// A field this build does not know, of a newer client, must not be ignored.
absl::Status CheckKnown(const google::protobuf::Message& message, const std::string& field) {
  const auto& unknown = message.GetReflection()->GetUnknownFields(message);
  if (unknown.empty()) return absl::OkStatus();
  return InvalidField(field, "field number {} is not known here", unknown.field(0).number());
}

absl::Status TakeMessages(v1::GenerateRequest& proto, PreparedRequest* out) {
  if (proto.prompt_case() != v1::GenerateRequest::PROMPT_NOT_SET) {
    return InvalidField("messages", "given beside {}, allowed: one of them",
                        proto.has_text() ? "text" : "token_ids");
  }
  out->messages.reserve(static_cast<size_t>(proto.messages_size()));
  for (v1::ChatMessage& message : *proto.mutable_messages()) {
    if (message.role().empty()) {
      return InvalidField(fmt::format("messages[{}].role", out->messages.size()), "empty");
    }
    ChatMessage& taken = out->messages.emplace_back();
    taken.role = std::move(*message.mutable_role());
    if (message.has_content()) taken.content = std::move(*message.mutable_content());
    taken.fields_json = std::move(*message.mutable_fields_json());
  }
  v1::ChatOptions* chat = proto.mutable_chat();
  if (chat->has_add_generation_prompt()) {
    out->chat.add_generation_prompt = chat->add_generation_prompt();
  }
  out->chat.tools_json = std::move(*chat->mutable_tools_json());
  out->chat.variables_json = std::move(*chat->mutable_variables_json());
  return absl::OkStatus();
}

// What Render says is wrong, with the field it is about: the name that its message begins with,
// else all messages. What takes too long is the request's fault, too: trying again does not help.
absl::Status ChatError(const absl::Status& status) {
  const std::string message = Message(status);
  if (message.starts_with("messages[")) {
    return WithField(InvalidArgument("{}", message), message.substr(0, message.find(':')));
  }
  for (const char* field : {"tools_json", "variables_json"}) {
    if (message.starts_with(std::string(field) + ":")) {
      return WithField(InvalidArgument("chat.{}", message), fmt::format("chat.{}", field));
    }
  }
  return InvalidField("messages", "{}", message);
}

}  // namespace

ModelFacts FactsOf(const ServedModel& model) {
  return {model.name, model.engine->spec().vocab_size, model.engine->defaults()};
}

absl::Status CheckModelName(const std::string& name, const ModelFacts& facts) {
  if (name.empty() || name == facts.name) return absl::OkStatus();
  return NotFound("model: {} is not served here, \"{}\" is", Quoted(name), facts.name);
}

absl::Status CheckTokenIds(const google::protobuf::RepeatedField<int32_t>& ids, int64_t vocab_size,
                           const std::string& field) {
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size) {
      return InvalidField(fmt::format("{}[{}]", field, i), "{} is not in [0, {})", ids[i],
                          vocab_size);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<PreparedRequest> ToPreparedRequest(v1::GenerateRequest&& proto,
                                                  const ModelFacts& facts) {
  RETURN_IF_ERROR(CheckModelName(proto.model(), facts));
  if (proto.request_id().size() > kMaxRequestIdBytes) {
    return InvalidField("request_id", "{} bytes, allowed: at most {}", proto.request_id().size(),
                        kMaxRequestIdBytes);
  }
  PreparedRequest out;
  out.request.id = proto.request_id();
  RETURN_IF_ERROR(CheckKnown(proto, "request"));
  RETURN_IF_ERROR(CheckKnown(proto.sampling(), "sampling"));
  // What costs time with every token is counted before it is copied.
  const struct {
    const char* field;
    int count, most;
  } lists[] = {{"stop", proto.sampling().stop_size(), 16},
               {"bad_words", proto.sampling().bad_words_size(), 128},
               {"logit_bias", static_cast<int>(proto.sampling().logit_bias_size()), 1024}};
  for (const auto& list : lists) {
    if (list.count <= list.most) continue;
    return InvalidField(fmt::format("sampling.{}", list.field), "{} entries, allowed: at most {}",
                        list.count, list.most);
  }
  // Below 0 is the engine's "absent".
  const struct {
    const char* field;
    bool given;
    int32_t value, most;
  } optional[] = {
      {"logprobs", proto.sampling().has_logprobs(), proto.sampling().logprobs(), 20},
      {"prompt_logprobs", proto.sampling().has_prompt_logprobs(),
       proto.sampling().prompt_logprobs(), 20},
      {"prompt_lookup_num_tokens", proto.sampling().has_prompt_lookup_num_tokens(),
       proto.sampling().prompt_lookup_num_tokens(), kMaxDraftTokens},
  };
  for (const auto& o : optional) {
    if (!o.given || o.value >= 0) continue;
    return InvalidField(fmt::format("sampling.{}", o.field), "{}, allowed: absent or 0 to {}",
                        o.value, o.most);
  }
  out.request.sampling = ToSampling(proto.sampling(), facts.defaults);
  if (const absl::Status s = ValidateSampling(out.request.sampling, facts.vocab_size); !s.ok()) {
    const std::string message = "sampling." + Message(s);  // which begins with the field's name
    return WithField(absl::Status(s.code(), message), message.substr(0, message.find(' ')));
  }
  out.request.priority = proto.priority();
  out.request.bypass_prefix_cache = proto.bypass_prefix_cache();
  out.add_special_tokens =
      proto.has_add_special_tokens() ? proto.add_special_tokens() : proto.messages_size() == 0;
  if (proto.messages_size() > 0) {
    RETURN_IF_ERROR(TakeMessages(proto, &out));
    return out;
  }
  if (proto.has_chat()) return InvalidField("chat", "given without messages");
  switch (proto.prompt_case()) {
    case v1::GenerateRequest::kText:
      out.has_text = true;  // an empty one may still come to a begin-of-text token
      out.text = std::move(*proto.mutable_text());
      return out;
    case v1::GenerateRequest::kTokenIds: {
      const auto& ids = proto.token_ids().ids();
      if (ids.empty()) return InvalidField("token_ids.ids", "empty, allowed: at least one id");
      RETURN_IF_ERROR(CheckTokenIds(ids, facts.vocab_size, "token_ids.ids"));
      out.request.prompt_ids.assign(ids.begin(), ids.end());
      return out;
    }
    case v1::GenerateRequest::PROMPT_NOT_SET: break;
  }
  return InvalidField("prompt", "none of text, token_ids and messages is given");
}

absl::StatusOr<std::vector<int32_t>> EncodePrompt(const PreparedRequest& prepared,
                                                  const Tokenizer& tokenizer,
                                                  const ChatTemplate* chat_template,
                                                  int64_t max_model_len) {
  const std::string field = prepared.has_text ? "text" : "messages";
  std::string rendered;
  if (!prepared.has_text) {
    if (chat_template == nullptr) {
      return InvalidField(field, "the model has no chat template that can be used");
    }
    absl::StatusOr<std::string> text = chat_template->Render(prepared.messages, prepared.chat);
    if (!text.ok()) return ChatError(text.status());
    rendered = *std::move(text);
  }
  const std::string& text = prepared.has_text ? prepared.text : rendered;
  if (const int64_t least = tokenizer.MinTokens(text); least >= max_model_len) {
    const int64_t max_tokens = prepared.request.sampling.max_tokens;
    return WithField(
        InvalidArgument("the prompt's {} or more tokens and max_tokens {} make at least {}, "
                        "allowed: the context of {}",
                        least, max_tokens, least + max_tokens, max_model_len),
        "prompt");
  }
  absl::StatusOr<std::vector<int32_t>> ids = tokenizer.Encode(text, prepared.add_special_tokens);
  if (!ids.ok()) return WithField(Annotate(ids.status(), field), field);
  if (ids->empty()) return InvalidField(field, "comes to no token, allowed: at least one");
  return ids;
}

void Merge(RequestUpdate&& more, RequestUpdate* into) {
  into->index = more.index;
  into->text += more.text;
  into->tokens.insert(into->tokens.end(), std::make_move_iterator(more.tokens.begin()),
                      std::make_move_iterator(more.tokens.end()));
  into->prompt_tokens.insert(into->prompt_tokens.end(),
                             std::make_move_iterator(more.prompt_tokens.begin()),
                             std::make_move_iterator(more.prompt_tokens.end()));
  into->usage = more.usage;
  into->finish_reason = more.finish_reason;
  into->stop_reason = std::move(more.stop_reason);
  into->status = std::move(more.status);
}

v1::GenerateStreamResponse ToStreamResponse(const std::string& request_id, RequestUpdate&& update,
                                            bool with_logprobs) {
  v1::GenerateStreamResponse out;
  out.set_request_id(request_id);
  out.set_index(update.index);
  for (const TokenOutput& token : update.prompt_tokens) Fill(token, out.add_prompt_logprobs());
  Fill(update.usage, out.mutable_usage());
  Fill(std::move(update), with_logprobs, out);
  return out;
}

v1::GenerateResponse ToResponse(const std::string& request_id, std::vector<RequestUpdate>&& updates,
                                bool with_logprobs) {
  v1::GenerateResponse out;
  out.set_request_id(request_id);
  Usage usage = updates[0].usage;
  for (size_t i = 1; i < updates.size(); ++i) {
    usage.completion_tokens += updates[i].usage.completion_tokens;
  }
  Fill(usage, out.mutable_usage());
  for (const TokenOutput& token : updates[0].prompt_tokens) Fill(token, out.add_prompt_logprobs());
  Fill(std::move(updates[0]), with_logprobs, out);
  for (size_t i = 1; i < updates.size(); ++i) {
    v1::Output* output = out.add_more_outputs();
    output->set_index(updates[i].index);
    Fill(std::move(updates[i]), with_logprobs, *output);
  }
  return out;
}

v1::GetModelInfoResponse ToModelInfo(const ServedModel& model) {
  const DecoderSpec& spec = model.engine->spec();
  const QuantizationReport& report = model.engine->report();
  const GenerationDefaults& defaults = model.engine->defaults();
  v1::GetModelInfoResponse out;
  out.set_name(model.name);
  out.set_architecture(spec.architecture);
  out.set_parameters(report.parameters);
  out.set_vocab_size(spec.vocab_size);
  out.set_hidden_size(spec.hidden_size);
  out.set_intermediate_size(spec.intermediate_size);
  out.set_num_layers(spec.num_layers);
  out.set_num_heads(spec.num_heads);
  out.set_num_kv_heads(spec.num_kv_heads);
  out.set_head_dim(spec.head_dim);
  out.set_context_length(model.engine->max_model_len());
  v1::Quantization* q = out.mutable_quantization();
  q->set_profile(report.profile_name);
  q->set_profile_hash(report.profile_hash);
  q->set_effective_profile(report.effective_profile);
  for (const QuantizationReport::Group& g : report.groups) {
    v1::Quantization::Group* group = q->add_groups();
    group->set_format(g.format);
    group->set_method(g.method);
    group->set_modules(g.modules);
    group->set_parameters(g.parameters);
    group->set_bytes(g.bytes);
  }
  q->set_bits_per_weight(report.bits_per_weight());
  out.set_resident_bytes(report.resident_bytes);
  out.set_backend(report.backend);
  out.set_compute_dtype(std::string(quantd::ToString(model.compute_dtype)));
  out.set_kv_cache_dtype(std::string(quantd::ToString(model.kv_dtype)));
  if (model.backend != nullptr) {
    for (int i = 0; i < kNumMemoryComponents; ++i) {
      const auto component = static_cast<MemoryComponent>(i);
      v1::MemoryUse* use = out.add_memory();
      use->set_component(std::string(quantd::ToString(component)));
      use->set_bytes(model.backend->memory().Bytes(component));
      if (model.plan != nullptr) use->set_planned_bytes(model.plan->of(component));
    }
    if (model.driver_bytes > 0) {
      v1::MemoryUse* use = out.add_memory();
      use->set_component("driver");
      use->set_bytes(model.driver_bytes);
    }
  }
  v1::GenerationDefaults* d = out.mutable_defaults();
  d->set_temperature(defaults.temperature);
  d->set_top_p(defaults.top_p);
  d->set_top_k(defaults.top_k);
  d->set_min_p(defaults.min_p);
  d->set_repetition_penalty(defaults.repetition_penalty);
  for (const int32_t id : spec.eos_token_ids) d->add_eos_token_ids(id);
  for (const int32_t id : defaults.eos_token_ids) {
    if (std::find(spec.eos_token_ids.begin(), spec.eos_token_ids.end(), id) ==
        spec.eos_token_ids.end()) {
      d->add_eos_token_ids(id);
    }
  }
  d->set_max_tokens(kDefaultMaxTokens);
  out.set_load_seconds(report.seconds);
  return out;
}

void ToProto(const EngineStats& stats, v1::EngineStats* proto) {
  proto->set_waiting(stats.waiting);
  proto->set_running(stats.running);
  proto->set_kv_blocks_total(stats.kv_blocks_total);
  proto->set_kv_blocks_free(stats.kv_blocks_free);
  proto->set_prefix_cache_queries(stats.prefix_cache_queries);
  proto->set_prefix_cache_hits(stats.prefix_cache_hits);
  proto->set_preemptions(stats.preemptions);
  proto->set_prompt_tokens(stats.prompt_tokens);
  proto->set_generation_tokens(stats.generation_tokens);
  proto->set_steps(stats.steps);
  proto->set_draft_tokens(stats.draft_tokens);
  proto->set_accepted_draft_tokens(stats.accepted_draft_tokens);
}

}  // namespace quantd
