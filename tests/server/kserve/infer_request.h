// Requests of the KServe protocol, for its tests.
#pragma once

#include <cstring>
#include <optional>
#include <string>

#include "inference/grpc_service.pb.h"
#include "server/kserve/tensors.h"

namespace quantd::test {

/// Adds an input of shape [1] with these bytes in raw_input_contents.
inline void AddRaw(inference::ModelInferRequest& request, const std::string& name,
                   const std::string& datatype, const std::string& bytes) {
  auto* input = request.add_inputs();
  input->set_name(name);
  input->set_datatype(datatype);
  input->add_shape(1);
  request.add_raw_input_contents(bytes);
}

inline void AddText(inference::ModelInferRequest& request, const std::string& name,
                    const std::string& text) {
  AddRaw(request, name, "BYTES", kserve::EncodeBytes(text));
}

inline void AddBool(inference::ModelInferRequest& request, const std::string& name, bool value) {
  AddRaw(request, name, "BOOL", std::string(1, value ? '\1' : '\0'));
}

/// An INT32, UINT64 or FP32 of the size of `value`.
template <typename T>
void AddNumber(inference::ModelInferRequest& request, const std::string& name,
               const std::string& datatype, T value) {
  std::string bytes(sizeof(value), '\0');
  std::memcpy(bytes.data(), &value, sizeof(value));
  AddRaw(request, name, datatype, bytes);
}

/// A streaming request of `max_tokens` tokens.
inline inference::ModelInferRequest StreamRequest(const std::string& model, const std::string& id,
                                                  int32_t max_tokens,
                                                  const std::string& text = "hello") {
  inference::ModelInferRequest request;
  request.set_model_name(model);
  request.set_id(id);
  AddText(request, "text_input", text);
  AddBool(request, "stream", true);
  AddNumber(request, "max_tokens", "INT32", max_tokens);
  return request;
}

/// The text of a response, without its length; empty where there is none.
inline std::string TextOf(const inference::ModelInferResponse& response) {
  if (response.raw_output_contents_size() == 0) return "";
  return response.raw_output_contents(0).substr(4);
}

/// The bytes of the output `name`; nothing where there is none of `datatype`.
inline std::optional<std::string> OutputOf(const inference::ModelInferResponse& response,
                                           const std::string& name, const std::string& datatype) {
  for (int i = 0; i < response.outputs_size(); ++i) {
    const auto& output = response.outputs(i);
    if (output.name() != name || output.datatype() != datatype) continue;
    return response.raw_output_contents(i);
  }
  return std::nullopt;
}

}  // namespace quantd::test
