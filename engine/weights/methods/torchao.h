// What config.json or a profile says of torchao: one of its config classes with fields. See
// torchao.cc for the tensors, torchao_config.cc for the keys.
#pragma once

#include <string>

#include "engine/weights/method_options.h"
#include "engine/weights/methods/method.h"
#include "kernels/quant/activation.h"

namespace quantd {

struct TorchAoSettings : MethodSettings {
  enum class Type {
    kInt4WeightOnly,
    kInt8WeightOnly,
    kInt8DynamicActivationInt8Weight,
    kFloat8WeightOnly,
    kFloat8DynamicActivationFloat8Weight,
    kIntxWeightOnly,
    kInt8DynamicActivationIntxWeight,
    kOther,  // of checkpoints only: the tensors say what they are
  };
  Type type = Type::kOther;
  int bits = 8;            // kIntx...
  int32_t group_size = 0;  // columns that share a scale; 0: a row
  bool whole = false;      // PerTensor: one scale for the weight
  bool symmetric = true;   // of kIntx...'s weights
  bool symmetric_activation = true;

  std::string_view label() const override { return "torchao"; }
  std::string ToYaml() const override;
  std::string Describe() const override;
};

/// "Int8WeightOnlyConfig"; empty for kOther.
std::string_view ClassName(TorchAoSettings::Type type);
/// The class of the tensors that a config of this type makes; empty for kOther.
std::string_view TensorClass(TorchAoSettings::Type type);

/// Reads quant_type; faults go to the reader's list. In profiles it may also be the name of the
/// class, with the fields beside it.
void ReadTorchAo(const OptionReader& reader, OptionSource source, TorchAoSettings& settings);

/// How activations are quantized to int8 per token as Int8Tensor does, and to fp8 as Float8Tensor.
ActivationQuant TorchAoInt8Activation(bool symmetric);
ActivationQuant TorchAoFp8Activation();
/// As IntxUnpackedToInt8Tensor's "int8_asym_per_token".
ActivationQuant TorchAoIntxActivation();

}  // namespace quantd
