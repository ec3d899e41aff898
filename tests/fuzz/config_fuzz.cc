// A model folder's config.json, generation_config.json and quantization_config.
#include "engine/models/decoder_spec.h"
#include "engine/weights/quantization_options.h"
#include "tests/fuzz/fuzz_target.h"

namespace quantd {
namespace {

FUZZ_TARGET(config) {
  static const fuzz::Folder folder;
  const std::string json = fuzz::Text(bytes);
  folder.Write("config.json", json);
  folder.Write("generation_config.json", json);
  const auto spec = ParseDecoderSpec(json, "config.json");
  if (spec.ok()) {
    QUANTD_CHECK(spec->num_heads % spec->num_kv_heads == 0 && spec->head_dim > 0 &&
                     spec->hidden_size > 0 && spec->vocab_size > 0,
                 "a spec that no decoder can run");
  }
  (void)ReadGenerationDefaults(folder.path());
  const auto options = ReadQuantizationConfig(folder.path());
  if (options.ok() && options->has_value()) (void)Describe(**options);
}

}  // namespace
}  // namespace quantd
