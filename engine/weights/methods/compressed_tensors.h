// What config.json says of a compressed-tensors checkpoint: its groups, and which module belongs to
// which. See compressed_tensors.cc for the tensors.
#pragma once

#include <string>
#include <vector>

#include "engine/weights/method_options.h"
#include "engine/weights/option_map.h"
#include "kernels/quant/activation.h"

namespace quantd {

/// One of config_groups, checked: what is not supported has been refused.
struct CompressedTensorsGroup {
  enum class Format { kPacked, kInt, kFloat, kNvfp4 };
  enum class Strategy { kTensor, kChannel, kGroup, kBlock };

  std::string name;
  std::vector<std::string> targets;  // names, "re:" expressions or the class "Linear"
  Format format = Format::kPacked;
  int bits = 0;
  Strategy strategy = Strategy::kChannel;
  int32_t group_size = 0;                     // kGroup: columns
  int32_t block_rows = 0, block_columns = 0;  // kBlock
  bool symmetric = true;
  bool has_column_order = false;  // actorder "group": weight_g_idx

  ActivationQuant activation;  // scale and zero point of static ones are in the checkpoint
  bool static_activation = false;
  bool symmetric_activation = true;
};

struct CompressedTensorsSettings : MethodSettings {
  std::vector<CompressedTensorsGroup> groups;
  std::vector<std::string> ignore;
  bool has_kv_scales = false;  // kv_cache_scheme

  /// nullptr when no group targets `module` or it is ignored. As compressed-tensors 0.20's
  /// apply_quantization_config: an exact name goes before a "re:" expression (the first in
  /// alphabetical order that matches from the start of the name), that before the class; of two
  /// groups with one target the later counts.
  const CompressedTensorsGroup* GroupOf(const std::string& module) const;

  std::string_view label() const override { return "compressed-tensors"; }
  std::string ToYaml() const override;
  std::string Describe() const override;
};

/// Reads a quantization_config; faults go to the reader's list.
void ReadCompressedTensors(const OptionReader& reader, CompressedTensorsSettings& settings);

/// The format of config.json: "pack-quantized".
std::string_view ToString(CompressedTensorsGroup::Format format);

}  // namespace quantd
