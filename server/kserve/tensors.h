// The tensors of a KServe request: which there are, and their checked values. Pure functions; no
// gRPC.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "inference/grpc_service.pb.h"

namespace quantd::kserve {

/// Types of elements; on the wire one byte of 0 or 1, little-endian numbers, or lengths and bytes.
enum class Datatype : uint8_t { kBool, kInt32, kUint64, kFp32, kBytes };
/// As requests spell it: "BOOL", "INT32", "UINT64", "FP32", "BYTES".
std::string_view NameOf(Datatype type);

/// An input that a request may have.
struct InputSpec {
  const char* name;
  Datatype type;
  int64_t most = 1;  // elements; more than 1 only of kBytes: a list
};
/// All of them. The first one, text_input, is required.
std::span<const InputSpec> InputSpecs();
inline constexpr char kTextInput[] = "text_input";

/// An output that a response may have, of shape [1].
struct OutputSpec {
  const char* name;
  const char* datatype;  // "BYTES", "FP32", "UINT32"
  const char* asked_by;  // the BOOL input that asks for it; null: it is always there
};
/// All of them. The first one is text_output.
std::span<const OutputSpec> OutputSpecs();
inline constexpr char kTextOutput[] = "text_output";
inline constexpr char kFinishReason[] = "finish_reason";
inline constexpr char kCumulativeLogprob[] = "cumulative_logprob";
inline constexpr char kNumInputTokens[] = "num_input_tokens";
inline constexpr char kNumOutputTokens[] = "num_output_tokens";

/// Inputs and requested outputs of a request at most.
inline constexpr int kMaxTensors = 64;

/// An input's value: of kBytes its elements, valid UTF-8; of the others the one element.
using InputValue = std::variant<bool, int32_t, uint64_t, float, std::vector<std::string>>;
/// By name.
using InputValues = std::map<std::string, InputValue, std::less<>>;

/// Decodes the inputs of `request`, from raw_input_contents or typed contents. INVALID_ARGUMENT
/// naming the input (or inputs[i], raw_input_contents, outputs[i]): too many, a name that is
/// unknown or there twice, another datatype, a shape that is not the input's, bytes that are too
/// few or too many for it, text that is not UTF-8, no text_input, an output that there is not.
/// UNIMPLEMENTED for shared memory.
absl::StatusOr<InputValues> DecodeTensors(const inference::ModelInferRequest& request);

/// An element as raw_output_contents have it.
std::string EncodeBytes(std::string_view element);
/// A UINT32 or an FP32 so.
template <typename T>
std::string EncodeNumber(T value) {
  static_assert(sizeof(T) == 4);
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));  // this machine is little-endian, as the protocol
  return bytes;
}

}  // namespace quantd::kserve
