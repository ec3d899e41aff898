// Every number that a client sent is compared with the bytes that are there before it is used.
#include "server/kserve/tensors.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <set>

#include "engine/text/utf8.h"
#include "server/grpc/error_details.h"
#include "server/one_line.h"

namespace quantd::kserve {
namespace {

using Request = inference::ModelInferRequest;
using Parameters = google::protobuf::Map<std::string, inference::InferParameter>;

constexpr size_t kLengthBytes = 4;  // before each element of BYTES

// The union of what Triton's vLLM backend and TensorRT-LLM's ensemble take, as far as it has a
// meaning here: docs/triton.md.
constexpr InputSpec kInputs[] = {
    {kTextInput, Datatype::kBytes},
    {"stream", Datatype::kBool},
    {"sampling_parameters", Datatype::kBytes},
    {"exclude_input_in_output", Datatype::kBool},
    {"max_tokens", Datatype::kInt32},
    {"min_tokens", Datatype::kInt32},
    {"min_length", Datatype::kInt32},
    {"temperature", Datatype::kFp32},
    {"top_k", Datatype::kInt32},
    {"top_p", Datatype::kFp32},
    {"repetition_penalty", Datatype::kFp32},
    {"presence_penalty", Datatype::kFp32},
    {"frequency_penalty", Datatype::kFp32},
    {"seed", Datatype::kUint64},
    {"random_seed", Datatype::kUint64},
    {"stop_words", Datatype::kBytes, 16},
    {"bad_words", Datatype::kBytes, 128},
    {"end_id", Datatype::kInt32},
    {"pad_id", Datatype::kInt32},
    {"beam_width", Datatype::kInt32},
    {"return_finish_reason", Datatype::kBool},
    {"return_cumulative_logprob", Datatype::kBool},
    {"return_num_input_tokens", Datatype::kBool},
    {"return_num_output_tokens", Datatype::kBool},
    {"return_logprobs", Datatype::kBool},
};

constexpr OutputSpec kOutputs[] = {
    {kTextOutput, "BYTES", nullptr},
    {kFinishReason, "BYTES", "return_finish_reason"},
    {kCumulativeLogprob, "FP32", "return_cumulative_logprob"},
    {kNumInputTokens, "UINT32", "return_num_input_tokens"},
    {kNumOutputTokens, "UINT32", "return_num_output_tokens"},
};

const InputSpec* Find(const std::string& name) {
  for (const InputSpec& spec : kInputs) {
    if (name == spec.name) return &spec;
  }
  return nullptr;
}

template <typename Spec, size_t N>
std::string NamesOf(const Spec (&specs)[N]) {
  std::string names;
  for (const Spec& spec : specs) names += (names.empty() ? "" : ", ") + std::string(spec.name);
  return names;
}

absl::Status CheckNoParameters(const std::string& field, const Parameters& parameters) {
  if (parameters.empty()) return absl::OkStatus();
  for (const auto& [name, value] : parameters) {
    if (!name.starts_with("shared_memory")) continue;
    return Unimplemented("{}.parameters: {}: there is no shared memory here, send the bytes", field,
                         Quoted(name));
  }
  return InvalidField(field + ".parameters", "{} is not known, allowed: none",
                      Quoted(parameters.begin()->first));
}

// Elements of `shape`: [1] or [1, 1] for one, [n] or [1, n] for a list.
absl::StatusOr<int64_t> CountOf(const InputSpec& spec, const Request::InferInputTensor& tensor) {
  const auto bad = [&] {
    std::string shape;
    for (int i = 0; i < std::min(tensor.shape_size(), 8); ++i) {
      shape += fmt::format("{}{}", i == 0 ? "" : ", ", tensor.shape(i));
    }
    if (tensor.shape_size() > 8) shape += ", ...";
    const std::string allowed = spec.most == 1
                                    ? std::string("[1] or [1, 1]")
                                    : fmt::format("[n] or [1, n], n at most {}", spec.most);
    return InvalidField(spec.name, "shape is [{}], allowed: {}", shape, allowed);
  };
  if (tensor.shape_size() < 1 || tensor.shape_size() > 2) return bad();
  // Each is small before they are multiplied.
  for (const int64_t extent : tensor.shape()) {
    if (extent < 0 || extent > spec.most) return bad();
  }
  const int64_t count = tensor.shape(0) * (tensor.shape_size() == 2 ? tensor.shape(1) : 1);
  if (count > spec.most || (spec.most == 1 && count != 1)) return bad();
  if (tensor.shape_size() == 2 && tensor.shape(0) != 1) return bad();
  return count;
}

template <typename T>
absl::StatusOr<InputValue> RawNumber(const InputSpec& spec, const std::string& raw) {
  if (raw.size() != sizeof(T)) {
    return InvalidField(spec.name, "{} bytes in raw_input_contents, a {} has {}", raw.size(),
                        NameOf(spec.type), sizeof(T));
  }
  T value;  // this machine is little-endian, as the protocol
  std::memcpy(&value, raw.data(), sizeof(T));
  return InputValue(value);
}

absl::Status CheckText(const InputSpec& spec, const std::string& text) {
  const size_t valid = ValidUtf8Prefix(text);
  if (valid == text.size()) return absl::OkStatus();
  return InvalidField(spec.name, "not UTF-8 at byte {}", valid);
}

absl::StatusOr<InputValue> RawElements(const InputSpec& spec, int64_t count,
                                       const std::string& raw) {
  std::vector<std::string> elements;
  size_t read = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t length = 0;
    if (raw.size() - read < kLengthBytes) {
      return InvalidField(spec.name,
                          "{} bytes in raw_input_contents end before the length of element {}",
                          raw.size(), i);
    }
    std::memcpy(&length, raw.data() + read, kLengthBytes);
    read += kLengthBytes;
    if (raw.size() - read < length) {
      return InvalidField(spec.name, "element {} is said to have {} bytes, {} are left", i, length,
                          raw.size() - read);
    }
    RETURN_IF_ERROR(CheckText(spec, elements.emplace_back(raw, read, length)));
    read += length;
  }
  if (read != raw.size()) {
    return InvalidField(spec.name, "{} bytes in raw_input_contents, its {} elements have {}",
                        raw.size(), count, read);
  }
  return InputValue(std::move(elements));
}

absl::StatusOr<InputValue> FromRaw(const InputSpec& spec, int64_t count, const std::string& raw) {
  switch (spec.type) {
    case Datatype::kBool:
      if (raw.size() == 1 && (raw[0] == 0 || raw[0] == 1)) return InputValue(raw[0] == 1);
      return InvalidField(spec.name, "a BOOL is one byte of 0 or 1 in raw_input_contents");
    case Datatype::kInt32: return RawNumber<int32_t>(spec, raw);
    case Datatype::kUint64: return RawNumber<uint64_t>(spec, raw);
    case Datatype::kFp32: return RawNumber<float>(spec, raw);
    case Datatype::kBytes: break;
  }
  return RawElements(spec, count, raw);
}

absl::StatusOr<InputValue> FromContents(const InputSpec& spec, int64_t count,
                                        const inference::InferTensorContents& contents) {
  const int sizes[] = {contents.bool_contents_size(), contents.int_contents_size(),
                       contents.uint64_contents_size(), contents.fp32_contents_size(),
                       contents.bytes_contents_size()};
  int64_t all = contents.int64_contents_size() + contents.uint_contents_size() +
                contents.fp64_contents_size();
  for (const int size : sizes) all += size;
  const int64_t given = sizes[static_cast<size_t>(spec.type)];
  if (given != count || all != count) {
    return InvalidField(spec.name,
                        "{} elements of {} and {} of other types in contents, its shape has {}",
                        given, NameOf(spec.type), all - given, count);
  }
  switch (spec.type) {
    case Datatype::kBool: return InputValue(contents.bool_contents(0));
    case Datatype::kInt32: return InputValue(contents.int_contents(0));
    case Datatype::kUint64: return InputValue(uint64_t{contents.uint64_contents(0)});
    case Datatype::kFp32: return InputValue(contents.fp32_contents(0));
    case Datatype::kBytes: break;
  }
  std::vector<std::string> elements(contents.bytes_contents().begin(),
                                    contents.bytes_contents().end());
  for (const std::string& element : elements) RETURN_IF_ERROR(CheckText(spec, element));
  return InputValue(std::move(elements));
}

absl::Status CheckOutputs(const Request& request) {
  for (int i = 0; i < request.outputs_size(); ++i) {
    const auto& output = request.outputs(i);
    const std::string field = fmt::format("outputs[{}]", i);
    const bool known =
        std::any_of(std::begin(kOutputs), std::end(kOutputs),
                    [&](const OutputSpec& spec) { return output.name() == spec.name; });
    if (!known) {
      return InvalidField(field + ".name", "{} is not known, allowed: {}", Quoted(output.name()),
                          NamesOf(kOutputs));
    }
    RETURN_IF_ERROR(CheckNoParameters(field, output.parameters()));
  }
  return absl::OkStatus();
}

// What can be said of the inputs without a look at their values.
absl::StatusOr<std::vector<const InputSpec*>> CheckInputs(const Request& request) {
  std::vector<const InputSpec*> specs;
  std::set<const InputSpec*> seen;
  for (int i = 0; i < request.inputs_size(); ++i) {
    const auto& input = request.inputs(i);
    const InputSpec* spec = Find(input.name());
    if (spec == nullptr) {
      return InvalidField(fmt::format("inputs[{}].name", i), "{} is not known, allowed: {}",
                          Quoted(input.name()), NamesOf(kInputs));
    }
    if (!seen.insert(spec).second) return InvalidField(spec->name, "given twice");
    specs.push_back(spec);
  }
  for (int i = 0; i < request.inputs_size(); ++i) {
    const auto& input = request.inputs(i);
    const InputSpec& spec = *specs[static_cast<size_t>(i)];
    if (input.datatype() != NameOf(spec.type)) {
      return InvalidField(spec.name, "datatype is {}, allowed: {}", Quoted(input.datatype()),
                          NameOf(spec.type));
    }
    RETURN_IF_ERROR(CheckNoParameters(spec.name, input.parameters()));
  }
  if (!seen.contains(&kInputs[0])) return InvalidField(kTextInput, "missing: it is required");
  return specs;
}

}  // namespace

std::string_view NameOf(Datatype type) {
  constexpr std::string_view kNames[] = {"BOOL", "INT32", "UINT64", "FP32", "BYTES"};
  return kNames[static_cast<size_t>(type)];
}

std::span<const InputSpec> InputSpecs() { return kInputs; }
std::span<const OutputSpec> OutputSpecs() { return kOutputs; }

absl::StatusOr<InputValues> DecodeTensors(const Request& request) {
  if (request.inputs_size() > kMaxTensors) {
    return InvalidField("inputs", "{} tensors, allowed: at most {}", request.inputs_size(),
                        kMaxTensors);
  }
  if (request.outputs_size() > kMaxTensors) {
    return InvalidField("outputs", "{} tensors, allowed: at most {}", request.outputs_size(),
                        kMaxTensors);
  }
  ASSIGN_OR_RETURN(const std::vector<const InputSpec*> specs, CheckInputs(request));
  RETURN_IF_ERROR(CheckOutputs(request));
  std::vector<int64_t> counts;
  for (size_t i = 0; i < specs.size(); ++i) {
    ASSIGN_OR_RETURN(counts.emplace_back(),
                     CountOf(*specs[i], request.inputs(static_cast<int>(i))));
  }
  const bool raw = request.raw_input_contents_size() > 0;
  if (raw && request.raw_input_contents_size() != request.inputs_size()) {
    return InvalidField("raw_input_contents", "{} entries for {} inputs, allowed: none or as many",
                        request.raw_input_contents_size(), request.inputs_size());
  }
  InputValues values;
  for (size_t i = 0; i < specs.size(); ++i) {
    const auto& input = request.inputs(static_cast<int>(i));
    if (raw && input.has_contents()) {
      return InvalidField(specs[i]->name,
                          "given in contents and in raw_input_contents, allowed: one");
    }
    ASSIGN_OR_RETURN(
        values[specs[i]->name],
        raw ? FromRaw(*specs[i], counts[i], request.raw_input_contents(static_cast<int>(i)))
            : FromContents(*specs[i], counts[i], input.contents()));
  }
  return values;
}

std::string EncodeBytes(std::string_view element) {
  const auto length = static_cast<uint32_t>(element.size());
  std::string bytes(kLengthBytes, '\0');
  std::memcpy(bytes.data(), &length, kLengthBytes);
  return bytes.append(element);
}

}  // namespace quantd::kserve
