// config.json and generation_config.json in both of transformers' spellings.
#include "engine/models/decoder_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "kernels/status.h"
#include "tests/engine/models/load_helpers.h"
#include "tests/engine/models/model_runner.h"
#include "tests/engine/models/tiny_model.h"

namespace quantd {
namespace {

using testing_support::TempDir;
using testing_support::WriteFile;

// ---- configs
// ------------------------------------------------------------------------------------------

TEST(DecoderSpec, ReadsBothSpellings) {
  const std::string common =
      R"("architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 2048,
    "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "tie_word_embeddings": true,
    "bos_token_id": 128000, "eos_token_id": [128001, 128008])";
  const std::string scaling = R"("factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3")";
  const auto old_spelling =
      ParseDecoderSpec("{" + common + R"(, "torch_dtype": "bfloat16", "rope_theta": 500000.0,
    "rope_scaling": {)" + scaling +
                           "}}",
                       "config.json");
  const auto new_spelling = ParseDecoderSpec("{" + common + R"(, "dtype": "bfloat16",
    "rope_parameters": {"rope_theta": 500000.0, )" +
                                                 scaling + "}}",
                                             "config.json");
  for (const auto& spec : {old_spelling, new_spelling}) {
    ASSERT_TRUE(spec.ok()) << spec.status();
    EXPECT_EQ(spec->head_dim, 64);
    EXPECT_EQ(spec->dtype, DType::kBF16);
    EXPECT_TRUE(spec->tie_word_embeddings);
    EXPECT_EQ(spec->rope.type, RopeSpec::Type::kLlama3);
    EXPECT_EQ(spec->rope.theta, 500000.0);
    EXPECT_EQ(spec->rope.factor, 32.0);
    EXPECT_EQ(spec->rope.original_max_position_embeddings, 8192.0);
    EXPECT_THAT(spec->eos_token_ids, ::testing::ElementsAre(128001, 128008));
    EXPECT_THAT(spec->bos_token_ids, ::testing::ElementsAre(128000));
  }
}

TEST(DecoderSpec, DefaultsAreTransformers) {
  const auto spec = ParseDecoderSpec(
      R"({"model_type": "llama", "vocab_size": 10, "hidden_size": 64, "intermediate_size": 8,
    "num_hidden_layers": 1, "num_attention_heads": 4, "rope_scaling": null, "eos_token_id": null})",
      "c");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->architecture, "LlamaForCausalLM");
  EXPECT_EQ(spec->num_kv_heads, 4);
  EXPECT_EQ(spec->head_dim, 16);
  EXPECT_EQ(spec->max_position_embeddings, 2048);
  EXPECT_EQ(spec->norm_eps, 1e-6f);
  EXPECT_EQ(spec->dtype, DType::kF32);
  EXPECT_EQ(spec->rope.theta, 10000.0);
  EXPECT_TRUE(spec->eos_token_ids.empty());
}

TEST(GenerationDefaults, ComeFromGenerationConfigWhenItSamples) {
  TempDir dir;
  auto none = ReadGenerationDefaults(dir.path());
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_EQ(none->temperature, 1.0f);
  WriteFile(dir.path() / "generation_config.json",
            R"({"do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": 20,
                "eos_token_id": [7, 9]})");
  auto sampled = ReadGenerationDefaults(dir.path());
  ASSERT_TRUE(sampled.ok()) << sampled.status();
  EXPECT_EQ(sampled->temperature, 0.6f);
  EXPECT_EQ(sampled->top_p, 0.9f);
  EXPECT_EQ(sampled->top_k, 20);
  EXPECT_THAT(sampled->eos_token_ids, ::testing::ElementsAre(7, 9));
}

}  // namespace
}  // namespace quantd
