// Architecture: one decoder-only transformer of Hugging Face: how its config.json becomes a
// DecoderSpec and what its tensors are called. To add one, write models/<name>.cc (family.h has
// what most share) and add its line to architectures.cc. Plain functions; thread-safe.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "engine/models/config_reader.h"
#include "engine/models/decoder_spec.h"
#include "engine/weights/loader.h"

namespace quantd {

struct Architecture {
  std::string_view name;        // of config.json's `architectures`
  std::string_view model_type;  // for configs without `architectures`
  /// Fills the spec; what is wrong goes to the reader's faults.
  void (*read)(ConfigReader& config, DecoderSpec& spec);
  /// The tensors, in the order the decoder takes them: groups are q,k,v; o; gate,up; down of every
  /// layer. Vectors are, of every layer, the norms of attention's input and, with branch_norms, of
  /// its output; of the mlp's input and, with branch_norms, its output; with qk_norm those of q and
  /// k; then the final norm.
  ExpectedWeights (*weights)(const DecoderSpec& spec);
};

/// nullptr when there is none of that name.
const Architecture* FindArchitecture(std::string_view name, std::string_view model_type);
/// "LlamaForCausalLM, ...", for messages.
std::string SupportedArchitectures();

/// All of them, in the order of docs/models.md.
std::span<const Architecture* const> Architectures();

extern const Architecture kLlama;
extern const Architecture kMistral;
extern const Architecture kQwen2;
extern const Architecture kQwen3;
extern const Architecture kPhi3;
extern const Architecture kGemma2;
extern const Architecture kGemma3;

}  // namespace quantd
