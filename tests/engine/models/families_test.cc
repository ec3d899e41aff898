// What the config.json of each family means: windows, caps, ropes; and that docs/models.md names
// the families there are.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "engine/models/architecture.h"
#include "engine/models/rope.h"
#include "kernels/status.h"
#include "tests/engine/models/model_runner.h"
#include "tests/engine/models/tiny_model.h"

namespace quantd {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing_support::ReadFile;

const std::filesystem::path kData = QUANTD_TEST_DATA;

/// A config of 4 layers and what `more` says, each member with a comma in front.
std::string ConfigOf(const std::string& architecture, const std::string& more) {
  return R"({"architectures": [")" + architecture + R"("], "vocab_size": 96, "hidden_size": 64,
      "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
      "max_position_embeddings": 512)" +
         more + "}";
}

DecoderSpec Parse(const std::string& architecture, const std::string& more = "") {
  auto spec = ParseDecoderSpec(ConfigOf(architecture, more), "config.json");
  EXPECT_TRUE(spec.ok()) << spec.status();
  return spec.ok() ? *spec : DecoderSpec();
}

std::string Refusal(const std::string& architecture, const std::string& more) {
  const auto spec = ParseDecoderSpec(ConfigOf(architecture, more), "config.json");
  return spec.ok() ? "" : Message(spec.status());
}

TEST(Families, NullWindowsAreNoneAndAbsentOnesTransformersDefault) {
  EXPECT_THAT(Parse("MistralForCausalLM").windows, Each(4096));
  EXPECT_THAT(Parse("MistralForCausalLM", R"(, "sliding_window": null)").windows, Each(0));
  EXPECT_THAT(Parse("MistralForCausalLM", R"(, "sliding_window": 77)").windows, Each(77));
  EXPECT_THAT(Parse("Phi3ForCausalLM").windows, Each(0));
  EXPECT_THAT(Parse("Phi3ForCausalLM", R"(, "sliding_window": 2047)").windows, Each(2047));
  EXPECT_EQ(Parse("LlamaForCausalLM", R"(, "sliding_window": 77)").window(3), 0);
  EXPECT_THAT(Refusal("MistralForCausalLM", R"(, "sliding_window": 0)"),
              HasSubstr("sliding_window: 0 must be positive"));
}

TEST(Families, QwenWindowsBeginAtALayerIfTheyAreUsed) {
  for (const char* name : {"Qwen2ForCausalLM", "Qwen3ForCausalLM"}) {
    const std::string window = R"(, "sliding_window": 32, "max_window_layers": 3)";
    EXPECT_THAT(Parse(name, window).windows, Each(0)) << name;
    EXPECT_THAT(Parse(name, window + R"(, "use_sliding_window": true)").windows,
                ElementsAre(0, 0, 0, 32));
    EXPECT_THAT(Parse(name, window + R"(, "use_sliding_window": true, "layer_types":
        ["sliding_attention", "full_attention", "full_attention", "sliding_attention"])")
                    .windows,
                ElementsAre(32, 0, 0, 32));
    EXPECT_THAT(Refusal(name, window + R"(, "layer_types":
        ["full_attention", "sliding_attention", "full_attention", "full_attention"])"),
                HasSubstr("layer 1 is sliding_attention without a sliding_window"));
    EXPECT_THAT(Refusal(name, R"(, "layer_types": ["full_attention"])"),
                HasSubstr("layer_types: [\"full_attention\"] is not a list of 4"));
    EXPECT_THAT(Refusal(name, R"(, "layer_types":
        ["full_attention", "chunked_attention", "full_attention", "full_attention"])"),
                HasSubstr("layer_types: \"chunked_attention\" is not supported"));
  }
}

TEST(Families, BiasesAndHeadNormsAreThoseOfTheFamily) {
  const DecoderSpec qwen2 = Parse("Qwen2ForCausalLM");
  EXPECT_TRUE(qwen2.qkv_bias && !qwen2.o_bias && !qwen2.qk_norm);
  EXPECT_EQ(qwen2.head_dim, 16);
  const DecoderSpec qwen3 = Parse("Qwen3ForCausalLM");
  EXPECT_TRUE(!qwen3.qkv_bias && !qwen3.o_bias && qwen3.qk_norm);
  EXPECT_EQ(qwen3.head_dim, 128);  // transformers' default
  const DecoderSpec biased = Parse("Qwen3ForCausalLM", R"(, "attention_bias": true)");
  EXPECT_TRUE(biased.qkv_bias && biased.o_bias);
}

TEST(Families, GemmaTakesItsCapsScalesAndNorms) {
  const DecoderSpec gemma2 = Parse("Gemma2ForCausalLM", R"(, "query_pre_attn_scalar": 144)");
  EXPECT_THAT(gemma2.windows, ElementsAre(4096, 0, 4096, 0));
  EXPECT_EQ(gemma2.attention_softcap, 50.0f);
  EXPECT_EQ(gemma2.logit_softcap, 30.0f);
  EXPECT_EQ(gemma2.attention_scale, 1.0f / 12.0f);
  EXPECT_EQ(gemma2.embedding_scale, 8.0f);
  EXPECT_EQ(gemma2.norm_offset, 1.0f);
  EXPECT_EQ(gemma2.activation, Activation::kGeluTanh);
  EXPECT_TRUE(gemma2.branch_norms && gemma2.tie_word_embeddings && !gemma2.qk_norm);
  EXPECT_EQ(Parse("Gemma2ForCausalLM", R"(, "attn_logit_softcapping": null)").attention_softcap,
            0.0f);
  EXPECT_EQ(Parse("Gemma2ForCausalLM", R"(, "final_logit_softcapping": null)").logit_softcap, 0.0f);
  EXPECT_THAT(Refusal("Gemma2ForCausalLM", R"(, "use_bidirectional_attention": true)"),
              HasSubstr("use_bidirectional_attention: true is not supported"));
}

TEST(Families, Gemma3HasARopeForEachKindOfLayerInBothSpellings) {
  const DecoderSpec older = Parse("Gemma3ForCausalLM", R"(, "sliding_window": 128,
      "sliding_window_pattern": 3, "rope_theta": 500000.0, "rope_local_base_freq": 20000.0,
      "rope_scaling": {"rope_type": "linear", "factor": 8.0})");
  const DecoderSpec newer = Parse("Gemma3ForCausalLM", R"(, "sliding_window": 128,
      "layer_types": ["sliding_attention", "sliding_attention", "full_attention",
                      "sliding_attention"],
      "rope_parameters": {
          "full_attention": {"rope_type": "linear", "rope_theta": 500000.0, "factor": 8.0},
          "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0}})");
  for (const DecoderSpec& spec : {older, newer}) {
    EXPECT_THAT(spec.windows, ElementsAre(128, 128, 0, 128));
    EXPECT_EQ(spec.rope.type, RopeSpec::Type::kLinear);
    EXPECT_EQ(spec.rope.theta, 500000.0);
    ASSERT_TRUE(spec.sliding_rope.has_value());
    EXPECT_EQ(spec.sliding_rope->type, RopeSpec::Type::kDefault);
    EXPECT_EQ(spec.sliding_rope->theta, 20000.0);
    EXPECT_EQ(spec.attention_softcap, 0.0f);
    EXPECT_TRUE(spec.qk_norm && spec.branch_norms);
  }
  EXPECT_THAT(Refusal("Gemma3ForCausalLM", R"(, "rope_parameters": {"rope_theta": 1e6})"),
              HasSubstr("rope_parameters: supported only by layer type"));
}

TEST(Families, YarnServesTheContextItStretchesTo) {
  const std::string yarn = R"(, "rope_scaling": {"type": "yarn", "factor": 4.0,
      "original_max_position_embeddings": 400})";
  EXPECT_EQ(Parse("Qwen2ForCausalLM", yarn).max_position_embeddings, 1600);
  EXPECT_EQ(Parse("Qwen2ForCausalLM").max_position_embeddings, 512);
}

// Phi-3's first configs said su; some with yarn meant the same.
TEST(Families, LongRopeHasTwoOlderNames) {
  const std::string factors = R"("short_factor": [1, 1, 1, 1, 1, 1, 1, 2],
      "long_factor": [1, 2, 3, 4, 5, 6, 7, 8]}, "original_max_position_embeddings": 128)";
  const auto frequencies = [&](const std::string& name, int64_t context) {
    const DecoderSpec spec =
        Parse("Phi3ForCausalLM", R"(, "rope_scaling": {"type": ")" + name + R"(", )" + factors);
    EXPECT_EQ(spec.rope.type, RopeSpec::Type::kLongRope) << name;
    return RopeFrequencies(spec.rope, 16, context);
  };
  for (const int64_t context : {128, 129}) {
    EXPECT_EQ(frequencies("su", context), frequencies("longrope", context));
    EXPECT_EQ(frequencies("yarn", context), frequencies("longrope", context));
  }
  EXPECT_NE(frequencies("su", 128), frequencies("su", 129));
}

// tests/reference/rope.py
TEST(Rope, FrequenciesAreTransformersOwn) {
  const auto golden = nlohmann::json::parse(ReadFile(kData / "rope_frequencies.json"));
  for (const auto& entry : golden["entries"]) {
    const std::string name = entry["name"];
    const auto spec = ParseDecoderSpec(entry["config"].dump(), name);
    ASSERT_TRUE(spec.ok()) << spec.status();
    const auto expect = [&](const RopeSpec& rope, const nlohmann::json& expected) {
      const std::vector<float> frequencies =
          RopeFrequencies(rope, spec->rotary_dim(), entry["length"]);
      ASSERT_EQ(frequencies.size(), expected["frequencies"].size()) << name;
      for (size_t i = 0; i < frequencies.size(); ++i) {
        const float exact = expected["frequencies"][i];
        EXPECT_NEAR(frequencies[i], exact, 4 * 0x1p-24 * exact) << name << ", pair " << i;
      }
      EXPECT_NEAR(rope.attention_factor, expected["attention_factor"].get<double>(), 1e-12) << name;
    };
    expect(spec->rope, entry["full"]);
    if (entry.contains("sliding")) expect(*spec->sliding_rope, entry["sliding"]);
  }
}

TEST(Rope, AttentionFactorMultipliesCosinesAndSines) {
  RopeSpec rope;
  const std::vector<float> plain = RopeTable(rope, 8, 10);
  rope.type = RopeSpec::Type::kYarn;
  rope.attention_factor = 1.5;
  const std::vector<float> scaled = RopeTable(rope, 8, 10);  // factor 1: the same frequencies
  for (size_t i = 0; i < plain.size(); ++i) EXPECT_EQ(scaled[i], 1.5f * plain[i]);
}

TEST(Families, AreThoseOfTheDocumentation) {
  std::istringstream page(
      ReadFile(std::filesystem::path(QUANTD_SOURCE_DIR) / "docs" / "models.md"));
  std::vector<std::string> documented, registered;
  for (std::string line; std::getline(page, line);) {
    const size_t end = line.find("` |", line.find("` |") + 1);  // of the second column
    if (line.rfind("| `", 0) == 0 && line.find("ForCausalLM` | `") != std::string::npos) {
      documented.push_back(line.substr(0, end + 3));
    }
  }
  for (const Architecture* a : Architectures()) {
    registered.push_back(fmt::format("| `{}` | `{}` |", a->name, a->model_type));
  }
  EXPECT_EQ(documented, registered);
}

}  // namespace
}  // namespace quantd
