// Settings of bitsandbytes: BitsAndBytesConfig of transformers. See bitsandbytes.cc.
#pragma once

#include "engine/weights/method_options.h"
#include "kernels/quant/codecs.h"

namespace quantd {

struct BitsAndBytesSettings : MethodSettings {
  int bits = 4;
  // 4-bit
  Codec codec = Codec::kFp4;  // bnb_4bit_quant_type
  bool double_quant = false;  // bnb_4bit_use_double_quant
  int32_t block_size = 64;
  // 8-bit
  float threshold = 6.0f;  // llm_int8_threshold; 0: no outlier decomposition

  std::string_view label() const override;
  std::string ToYaml() const override;
  std::string Describe() const override;
};

}  // namespace quantd
