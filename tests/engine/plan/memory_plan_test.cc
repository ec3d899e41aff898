// The plan against the ledger: what PlanMemory says from headers is what a backend books.
#include "engine/plan/memory_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/models/architecture.h"
#include "engine/weights/profile.h"

namespace quantd {
namespace {

using ::testing::DoubleNear;

std::string ConfigJson(const std::string& values) {
  return R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float16",
             "hidden_act": "silu", "rms_norm_eps": 1e-5, )" +
         values + "}";
}

const char kLlama2_7B[] =
    R"("hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
       "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
       "max_position_embeddings": 4096, "tie_word_embeddings": false)";

MemoryPlan PlanOf(const std::string& config, const std::string& profile_name, PlanBackend backend) {
  const auto spec = ParseDecoderSpec(ConfigJson(config), "config.json");
  EXPECT_TRUE(spec.ok()) << spec.status();
  const auto profile = LoadProfile(profile_name);
  EXPECT_TRUE(profile.ok()) << profile.status();
  WeightLoaderOptions options;
  options.profile = *profile;
  options.compute_dtype = profile->ComputeDType(spec->dtype);
  const ExpectedWeights expected =
      FindArchitecture(spec->architecture, spec->model_type)->weights(*spec);
  const auto weights = PlanWeightsOnLoad(expected, spec->dtype, options);
  EXPECT_TRUE(weights.ok()) << weights.status();
  PlanDevice device;
  device.backend = backend;
  return PlanMemory(*spec, expected, *weights, options.compute_dtype,
                    profile->kv_dtype.value_or(options.compute_dtype), {}, device);
}

// Computed by hand: 32 layers of 202,375,168 linear parameters, twice 131,072,000 of embedding and
// head in 16 bits, 266,240 norms in f32; nf4 64 elements a scale of 4 bytes, double quantization a
// byte a scale and 4 bytes for 256 of them.
TEST(MemoryPlan, Llama2SevenBillionTakesWhatIsKnown) {
  const auto gigabytes = [](const char* profile) {
    return static_cast<double>(PlanOf(kLlama2_7B, profile, PlanBackend::kCuda).weights()) * 1e-9;
  };
  EXPECT_THAT(gigabytes("fp16"), DoubleNear(13.48, 0.005));
  EXPECT_THAT(gigabytes("bf16"), DoubleNear(13.48, 0.005));
  EXPECT_THAT(gigabytes("fp32"), DoubleNear(26.96, 0.005));
  EXPECT_THAT(gigabytes("int8"), DoubleNear(7.00, 0.015));
  EXPECT_THAT(gigabytes("nf4"), DoubleNear(4.17, 0.005));
  EXPECT_THAT(gigabytes("nf4-dq"), DoubleNear(3.87, 0.005));
}

TEST(MemoryPlan, KvTokensAreWholeBlocksBesideTheRest) {
  const MemoryPlan plan = PlanOf(kLlama2_7B, "nf4", PlanBackend::kCuda);
  EXPECT_EQ(plan.kv_bytes_per_token, 2 * 32 * 4096 * 2);
  const int64_t rest = plan.weights() + plan.workspace();
  const int64_t block = 16 * plan.kv_bytes_per_token;
  EXPECT_EQ(plan.KvTokensIn(rest, 16), 0);
  EXPECT_EQ(plan.KvTokensIn(rest + block, 16), 0) << "the reserved block";
  EXPECT_EQ(plan.KvTokensIn(rest + 3 * block - 1, 16), 16);
  EXPECT_EQ(plan.KvTokensIn(rest + 3 * block, 16), 32);
  EXPECT_EQ(plan.KvTokensIn(0, 16), 0);
  EXPECT_EQ(plan.WithKvTokens(32, 16).total(), rest + 3 * block);
  EXPECT_EQ(plan.WithKvTokens(17, 16).total(), rest + 3 * block);
}

TEST(MemoryPlan, ATiedHeadIsReadOnceMoreAndHeldOnce) {
  const std::string tied =
      R"("hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1,
         "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 1000,
         "max_position_embeddings": 64, "tie_word_embeddings": )";
  const MemoryPlan one = PlanOf(tied + "true", "bf16", PlanBackend::kRef);
  const MemoryPlan two = PlanOf(tied + "false", "bf16", PlanBackend::kRef);
  EXPECT_EQ(one.of(MemoryComponent::kHead), 0);
  EXPECT_EQ(two.of(MemoryComponent::kHead), 1000 * 256 * 2);
  EXPECT_EQ(one.bytes_read_per_step, two.bytes_read_per_step);
  EXPECT_EQ(two.parameters - one.parameters, 1000 * 256);
}

}  // namespace
}  // namespace quantd
