// The prompt and the options go through quantd.v1's GenerateRequest, so that there is one place
// where requests are checked.
#include "server/kserve/convert.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "kernels/check.h"
#include "server/grpc/error_details.h"
#include "server/one_line.h"

namespace quantd::kserve {
namespace {

constexpr char kPlatform[] = "quantd";

// An input that sets an option of sampling of another name, or of the same.
struct OptionInput {
  const char* input;
  const char* option;
};
constexpr OptionInput kOptionInputs[] = {
    {"max_tokens", "max_tokens"},
    {"min_tokens", "min_tokens"},
    {"min_length", "min_tokens"},
    {"temperature", "temperature"},
    {"top_k", "top_k"},
    {"top_p", "top_p"},
    {"repetition_penalty", "repetition_penalty"},
    {"presence_penalty", "presence_penalty"},
    {"frequency_penalty", "frequency_penalty"},
    {"seed", "seed"},
    {"random_seed", "seed"},
    {"stop_words", "stop"},
    {"bad_words", "bad_words"},
    {"end_id", "stop_token_ids"},
};

template <typename T>
std::optional<T> ValueOf(const InputValues& values, const char* name) {
  const auto found = values.find(name);
  if (found == values.end()) return std::nullopt;
  return std::get<T>(found->second);
}

const std::string* TextOf(const InputValues& values, const char* name) {
  const auto found = values.find(name);
  if (found == values.end()) return nullptr;
  return &std::get<std::vector<std::string>>(found->second).front();
}

// What a configuration calls a datatype of requests.
inference::DataType ConfigTypeOf(std::string_view datatype) {
  const std::string name =
      fmt::format("TYPE_{}", datatype == "BYTES" ? std::string_view("STRING") : datatype);
  inference::DataType type = inference::TYPE_INVALID;
  QUANTD_CHECK(inference::DataType_Parse(name, &type), "{} is not in model_config.proto", name);
  return type;
}

inference::ModelInferResponse EmptyResponse(const std::string& model, const std::string& id,
                                            std::optional<bool> final) {
  inference::ModelInferResponse out;
  out.set_model_name(model);
  out.set_model_version(kModelVersion);
  out.set_id(id);
  if (final.has_value()) {
    (*out.mutable_parameters())["triton_final_response"].set_bool_param(*final);
  }
  return out;
}

absl::StatusOr<uint64_t> ToCount(const std::string& name, const inference::InferParameter& value) {
  if (value.has_uint64_param()) return value.uint64_param();
  if (value.has_int64_param() && value.int64_param() >= 0) {
    return static_cast<uint64_t>(value.int64_param());
  }
  return InvalidField(fmt::format("parameters.{}", name), "not a whole number of 0 or more");
}

absl::Status TakeParameters(const inference::ModelInferRequest& proto, InferRequest* out,
                            v1::GenerateRequest* request, SamplingOptions* options) {
  for (const auto& [name, value] : proto.parameters()) {
    if (name == "triton_enable_empty_final_response") {
      if (!value.has_bool_param())
        return InvalidField(fmt::format("parameters.{}", name), "not a boolean");
      out->empty_final = value.bool_param();
    } else if (name == "priority") {
      ASSIGN_OR_RETURN(const uint64_t level, ToCount(name, value));
      if (level > std::numeric_limits<int32_t>::max()) {
        return InvalidField("parameters.priority", "is {}, allowed: at most {}", level,
                            std::numeric_limits<int32_t>::max());
      }
      // Triton's 0 is the default and 1 the most urgent one: here these are the same.
      request->set_priority(level == 0 ? 0 : static_cast<int32_t>(level - 1));
    } else if (name == "timeout") {
      ASSIGN_OR_RETURN(const uint64_t microseconds, ToCount(name, value));
      // A year, which is no limit, instead of a number that overflows a clock.
      constexpr uint64_t kLongest = uint64_t{365} * 24 * 3600 * 1000000;
      if (microseconds > 0) {
        out->timeout = std::chrono::microseconds(std::min(microseconds, kLongest));
      }
    } else {
      RETURN_IF_ERROR(options->SetParameter(name, value));
    }
  }
  return absl::OkStatus();
}

absl::Status TakeInputs(const InputValues& values, InferRequest* out, SamplingOptions* options) {
  for (const OptionInput& o : kOptionInputs) {
    const auto found = values.find(o.input);
    if (found == values.end()) continue;
    RETURN_IF_ERROR(options->SetInput(o.option, found->second, o.input));
  }
  if (const std::string* json = TextOf(values, "sampling_parameters"); json != nullptr) {
    RETURN_IF_ERROR(options->SetJson(*json));
  }
  const int32_t beams = ValueOf<int32_t>(values, "beam_width").value_or(1);
  if (beams != 1) return InvalidField("beam_width", "is {}, allowed: 1 (no beam search)", beams);
  // pad_id says what stands where there is no token: here nothing does.
  out->stream = ValueOf<bool>(values, "stream").value_or(false);
  const auto exclude = ValueOf<bool>(values, "exclude_input_in_output");
  if (out->stream && exclude == false) {
    return InvalidField("exclude_input_in_output", "false with stream, allowed: true or absent");
  }
  if (ValueOf<bool>(values, "return_logprobs").value_or(false)) {
    return InvalidField("return_logprobs",
                        "true, allowed: false or absent; quantd.v1 has log probabilities");
  }
  // As Triton's vLLM backend: a text that comes at once begins with its prompt unless told not to.
  if (!exclude.value_or(out->stream)) out->prefix = *TextOf(values, kTextInput);
  return absl::OkStatus();
}

// Asked for by inputs, as of Triton's vLLM backend: perf_analyzer names every output that there is.
std::set<std::string> OutputsOf(const InputValues& values) {
  std::set<std::string> names;
  for (const OutputSpec& spec : OutputSpecs()) {
    if (spec.asked_by != nullptr && ValueOf<bool>(values, spec.asked_by).value_or(false)) {
      names.insert(spec.name);
    }
  }
  return names;
}

void Fill(const ServingStatistics::Total& total, inference::StatisticDuration* duration) {
  duration->set_count(total.count);
  duration->set_ns(static_cast<uint64_t>(total.seconds * 1e9));
}

}  // namespace

std::string UnaryName(const std::string& model) { return model + "_unary"; }

absl::Status CheckModel(const std::string& name, const std::string& version,
                        const ModelFacts& facts) {
  if (name != facts.name && name != UnaryName(facts.name)) {
    return NotFound("model: {} is not served here, {} is", Quoted(name), Quoted(facts.name));
  }
  if (version.empty() || version == kModelVersion) return absl::OkStatus();
  if (version.find_first_not_of("0123456789") != std::string::npos) {
    return InvalidField("model_version", "{} is not a number, allowed: \"\" or \"{}\"",
                        Quoted(version), kModelVersion);
  }
  return NotFound("model_version: {} is not served here, \"{}\" is", Quoted(version),
                  kModelVersion);
}

absl::StatusOr<InferRequest> ToInferRequest(const inference::ModelInferRequest& proto,
                                            const ModelFacts& facts) {
  RETURN_IF_ERROR(CheckModel(proto.model_name(), proto.model_version(), facts));
  if (proto.id().size() > kMaxIdBytes) {
    return InvalidField("id", "{} bytes, allowed: at most {}", proto.id().size(), kMaxIdBytes);
  }
  ASSIGN_OR_RETURN(const InputValues values, DecodeTensors(proto));
  InferRequest out;
  v1::GenerateRequest request;
  SamplingOptions options;
  RETURN_IF_ERROR(TakeInputs(values, &out, &options));
  if (out.stream && proto.model_name() != facts.name) {
    return InvalidField("stream",
                        "true for {}, which answers once, allowed: false or absent; {} streams",
                        Quoted(proto.model_name()), Quoted(facts.name));
  }
  RETURN_IF_ERROR(TakeParameters(proto, &out, &request, &options));
  request.set_request_id(proto.id());
  request.set_text(*TextOf(values, kTextInput));
  out.outputs = OutputsOf(values);
  *request.mutable_sampling() = options.params();
  if (out.outputs.contains(kCumulativeLogprob)) request.mutable_sampling()->set_logprobs(0);
  absl::StatusOr<PreparedRequest> prepared = ToPreparedRequest(std::move(request), facts);
  if (!prepared.ok()) return SamplingOptions::Translate(prepared.status(), options.origins());
  out.prepared = *std::move(prepared);
  out.origins = options.origins();
  return out;
}

InferResponses::InferResponses(std::string model, std::string id, InferRequest& request)
    : model_(std::move(model)),
      id_(std::move(id)),
      prefix_(std::move(request.prefix)),
      outputs_(std::move(request.outputs)),
      origins_(std::move(request.origins)) {}

inference::ModelInferResponse InferResponses::Next(const RequestUpdate& update,
                                                   std::optional<bool> final) {
  inference::ModelInferResponse out = EmptyResponse(model_, id_, final);
  const auto add = [&out](const OutputSpec& spec, std::string raw) {
    auto* output = out.add_outputs();
    output->set_name(spec.name);
    output->set_datatype(spec.datatype);
    output->add_shape(1);
    // Never typed contents: perf_analyzer reads raw ones without a look.
    out.add_raw_output_contents(std::move(raw));
  };
  for (const TokenOutput& token : update.tokens) cumulative_logprob_ += token.logprob;
  const int32_t before = std::exchange(completion_tokens_, update.usage.completion_tokens);
  for (const OutputSpec& spec : OutputSpecs()) {
    const std::string_view name = spec.name;
    if (name == kTextOutput) {
      add(spec, EncodeBytes(std::exchange(prefix_, std::string()) + update.text));
    } else if (!outputs_.contains(spec.name)) {
      continue;
    } else if (name == kFinishReason) {  // "None" until the last, as the vLLM backend's
      add(spec, EncodeBytes(update.finish_reason.has_value() ? ToString(*update.finish_reason)
                                                             : std::string_view("None")));
    } else if (name == kCumulativeLogprob) {
      add(spec, EncodeNumber(static_cast<float>(cumulative_logprob_)));
    } else if (name == kNumInputTokens) {
      add(spec, EncodeNumber(static_cast<uint32_t>(update.usage.prompt_tokens)));
    } else if (name == kNumOutputTokens) {
      add(spec, EncodeNumber(static_cast<uint32_t>(completion_tokens_ - before)));
    }
  }
  return out;
}

inference::ModelInferResponse InferResponses::Final() const {
  return EmptyResponse(model_, id_, true);
}

inference::ModelStreamInferResponse InferResponses::Error(const absl::Status& status) const {
  return ToErrorResponse(model_, id_, Translate(status));
}

absl::Status InferResponses::Translate(const absl::Status& status) const {
  return SamplingOptions::Translate(status, origins_);
}

inference::ModelStreamInferResponse ToErrorResponse(const std::string& model, const std::string& id,
                                                    const absl::Status& status) {
  inference::ModelStreamInferResponse out;
  out.set_error_message(ToGrpc(status).error_message());
  if (out.error_message().empty()) out.set_error_message("failed");  // empty would be no error
  *out.mutable_infer_response() = EmptyResponse(model, id, true);
  // The protocol's error is text alone: a program needs the code.
  (*out.mutable_infer_response()->mutable_parameters())["grpc_status"].set_string_param(
      absl::StatusCodeToString(status.code()));
  return out;
}

inference::ModelMetadataResponse ToMetadata(const std::string& name) {
  inference::ModelMetadataResponse out;
  out.set_name(name);
  out.add_versions(std::string(kModelVersion));
  out.set_platform(kPlatform);
  for (const InputSpec& spec : InputSpecs()) {
    auto* input = out.add_inputs();
    input->set_name(spec.name);
    input->set_datatype(std::string(NameOf(spec.type)));
    input->add_shape(spec.most == 1 ? 1 : -1);
  }
  for (const OutputSpec& spec : OutputSpecs()) {
    auto* output = out.add_outputs();
    output->set_name(spec.name);
    output->set_datatype(spec.datatype);
    output->add_shape(1);
  }
  return out;
}

inference::ModelConfig ToConfig(const std::string& name, const std::string& model) {
  inference::ModelConfig out;
  out.set_name(name);
  out.set_backend(kPlatform);
  out.set_max_batch_size(0);
  for (const InputSpec& spec : InputSpecs()) {
    inference::ModelInput* input = out.add_input();
    input->set_name(spec.name);
    input->set_data_type(ConfigTypeOf(NameOf(spec.type)));
    input->add_dims(spec.most == 1 ? 1 : -1);
    input->set_optional(spec.name != std::string_view(kTextInput));
  }
  for (const OutputSpec& spec : OutputSpecs()) {
    inference::ModelOutput* output = out.add_output();
    output->set_name(spec.name);
    output->set_data_type(ConfigTypeOf(spec.datatype));
    output->add_dims(1);
  }
  out.mutable_model_transaction_policy()->set_decoupled(name == model);
  return out;
}

inference::ModelStatistics ToStatistics(const std::string& model,
                                        const ServingStatistics::Snapshot& totals) {
  inference::ModelStatistics out;
  out.set_name(model);
  out.set_version(kModelVersion);
  out.set_last_inference(static_cast<uint64_t>(totals.last_finished_ms));
  out.set_inference_count(totals.success.count);
  out.set_execution_count(totals.steps);
  inference::InferStatistics* stats = out.mutable_inference_stats();
  Fill(totals.success, stats->mutable_success());
  Fill(totals.fail, stats->mutable_fail());
  Fill(totals.queue, stats->mutable_queue());
  Fill(totals.prefill, stats->mutable_compute_input());
  Fill(totals.decode, stats->mutable_compute_infer());
  Fill(totals.rest, stats->mutable_compute_output());
  return out;
}

}  // namespace quantd::kserve
