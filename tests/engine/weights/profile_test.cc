// Profiles: the shipped ones, Hugging Face's defaults, which module gets what, and every fault by
// message.
#include "engine/weights/profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/weights/methods/bitsandbytes.h"
#include "engine/weights/module_match.h"
#include "engine/weights/nearest.h"
#include "kernels/status.h"

namespace quantd {
namespace {

using ::testing::HasSubstr;

const BitsAndBytesSettings& Settings(const MethodOptions& options) {
  return SettingsOf<BitsAndBytesSettings>(options);
}

QuantProfile Parsed(const std::string& yaml) {
  auto profile = ParseProfile(yaml, "profiles/x.yaml");
  EXPECT_TRUE(profile.ok()) << profile.status();
  return profile.ok() ? *profile : QuantProfile();
}

TEST(Profile, EveryShippedProfileParsesAndRoundTrips) {
  const std::vector<std::string> names = BuiltInProfiles();
  EXPECT_THAT(
      names, ::testing::ElementsAre("bf16", "fp16", "fp32", "fp4", "fp4-dq", "fp8", "hqq2", "hqq3",
                                    "hqq4", "hqq8", "int8", "int8-no-outliers", "metal4", "nf4",
                                    "nf4-dq", "torchao-fp8-dynamic", "torchao-int4", "torchao-int8",
                                    "torchao-int8-dynamic"));
  std::vector<std::string> hashes;
  for (const std::string& name : names) {
    auto profile = LoadProfile(name);
    ASSERT_TRUE(profile.ok()) << profile.status();
    EXPECT_EQ(profile->name, name);
    EXPECT_FALSE(profile->description.empty()) << name;
    auto again = ParseProfile(profile->ToYaml(), "again");
    ASSERT_TRUE(again.ok()) << again.status() << "\n" << profile->ToYaml();
    EXPECT_EQ(again->ToYaml(), profile->ToYaml());
    EXPECT_EQ(again->Hash(), profile->Hash());
    EXPECT_EQ(profile->Hash().size(), 16u);
    hashes.push_back(profile->Hash());
    auto file = LoadProfile(std::string(QUANTD_SOURCE_DIR) + "/configs/profiles/" + name + ".yaml");
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(file->ToYaml(), profile->ToYaml());
  }
  std::sort(hashes.begin(), hashes.end());
  EXPECT_EQ(std::unique(hashes.begin(), hashes.end()), hashes.end()) << "two profiles do the same";
}

TEST(Profile, HashIgnoresNameAndDescriptionOnly) {
  const QuantProfile a = Parsed("name: a\ndescription: one\ndtype: bfloat16\n");
  EXPECT_EQ(a.Hash(), Parsed("name: b\ndtype: bfloat16\n").Hash());
  EXPECT_NE(a.Hash(), Parsed("dtype: float16\n").Hash());
  EXPECT_NE(a.Hash(), Parsed("dtype: bfloat16\nkv_cache: {dtype: float32}\n").Hash());
  EXPECT_NE(a.Hash(), Parsed("dtype: bfloat16\nengine: {llm_int8_outlier_scope: call}\n").Hash());
  // Stable over versions: it is stored and compared by others.
  EXPECT_EQ(a.Hash(), "02652e940d6bbbd5");
}

TEST(Profile, ShippedProfilesSayWhatTheirNamesSay) {
  const auto dq = LoadProfile("nf4-dq");
  ASSERT_TRUE(dq.ok());
  EXPECT_EQ(dq->quantization.label(), "bitsandbytes_4bit");
  EXPECT_EQ(Settings(dq->quantization).codec, Codec::kNf4);
  EXPECT_TRUE(Settings(dq->quantization).double_quant);
  EXPECT_EQ(dq->ComputeDType(DType::kF32), DType::kBF16);
  const auto int8 = LoadProfile("int8-no-outliers");
  ASSERT_TRUE(int8.ok());
  EXPECT_EQ(int8->quantization.label(), "bitsandbytes_8bit");
  EXPECT_EQ(Settings(int8->quantization).threshold, 0.0f);
  EXPECT_EQ(int8->ComputeDType(DType::kF16), DType::kF16);
  const auto fp32 = LoadProfile("fp32");
  ASSERT_TRUE(fp32.ok());
  EXPECT_EQ(fp32->ComputeDType(DType::kBF16), DType::kF32);
}

TEST(Profile, AbsentKeysTakeHuggingFacesDefaults) {
  const QuantProfile four = Parsed("quantization: {load_in_4bit: true}\n");
  EXPECT_EQ(four.name, "x");
  EXPECT_EQ(Settings(four.quantization).codec, Codec::kFp4);
  EXPECT_FALSE(Settings(four.quantization).double_quant);
  EXPECT_EQ(four.quantization.compute_dtype, DType::kF32);
  EXPECT_EQ(Settings(four.quantization).block_size, 64);
  EXPECT_FALSE(four.kv_dtype.has_value());
  EXPECT_EQ(four.outlier_scope, ActivationQuant::OutlierScope::kRow);
  const QuantProfile eight =
      Parsed("quantization: {quant_method: bitsandbytes, load_in_8bit: true}\n");
  EXPECT_EQ(Settings(eight.quantization).threshold, 6.0f);
  const QuantProfile nothing = Parsed("name: plain\n");
  EXPECT_EQ(nothing.quantization.label(), "none");
  EXPECT_EQ(nothing.ComputeDType(DType::kF16), DType::kF16);
}

TEST(Profile, TakesAnInt8KvCacheAndPrintsIt) {
  const QuantProfile p = Parsed("dtype: bfloat16\nkv_cache: {dtype: int8}\n");
  EXPECT_EQ(p.kv_dtype, DType::kI8);
  EXPECT_THAT(p.ToYaml(), HasSubstr("kv_cache:\n  dtype: int8\n"));
  EXPECT_EQ(Parsed(p.ToYaml()).Hash(), p.Hash());
  EXPECT_NE(Parsed("dtype: bfloat16\n").Hash(), p.Hash());
}

// What transformers writes into config.json can be pasted whole.
TEST(Profile, AcceptsAPastedBitsAndBytesConfig) {
  const QuantProfile p = Parsed(R"(
quantization:
  _load_in_4bit: true
  _load_in_8bit: false
  bnb_4bit_compute_dtype: bfloat16
  bnb_4bit_quant_storage: bfloat16
  bnb_4bit_quant_type: nf4
  bnb_4bit_use_double_quant: true
  llm_int8_enable_fp32_cpu_offload: false
  llm_int8_has_fp16_weight: false
  llm_int8_skip_modules: null
  llm_int8_threshold: 6.0
  load_in_4bit: true
  load_in_8bit: false
  quant_method: bitsandbytes
)");
  EXPECT_EQ(p.quantization.label(), "bitsandbytes_4bit");
  EXPECT_EQ(Settings(p.quantization).codec, Codec::kNf4);
  EXPECT_TRUE(Settings(p.quantization).double_quant);
}

TEST(Profile, SkipsTheHeadTiedModulesAndTheList) {
  const QuantProfile p = Parsed(
      "quantization: {load_in_4bit: true, llm_int8_skip_modules: [down_proj, "
      "'re:.*layers\\.0\\..*q_proj']}\n");
  const auto method = [&](const std::string& m, bool tied = false) {
    return std::string(p.For(m, tied).label());
  };
  EXPECT_EQ(method("model.layers.0.mlp.up_proj"), "bitsandbytes_4bit");
  EXPECT_EQ(method("model.layers.0.mlp.up_proj", true), "none");
  EXPECT_EQ(method("model.layers.0.mlp.down_proj"), "none");
  EXPECT_EQ(method("model.layers.0.self_attn.q_proj"), "none");
  EXPECT_EQ(method("model.layers.1.self_attn.q_proj"), "bitsandbytes_4bit");
  EXPECT_EQ(method("lm_head"), "none");
  EXPECT_EQ(method("text.lm_head"), "none");
  EXPECT_EQ(method("my_lm_head_proj"), "bitsandbytes_4bit");
  EXPECT_EQ(p.For("lm_head", false).compute_dtype, DType::kF32);
}

TEST(Profile, TheFirstMatchingOverrideWinsEvenOverSkips) {
  const QuantProfile p = Parsed(R"(
quantization: {load_in_4bit: true, bnb_4bit_quant_type: nf4, bnb_4bit_compute_dtype: bfloat16}
overrides:
  - {match: lm_head, quantization: {load_in_8bit: true}}
  - {match: 're:.*\.mlp\..*', quantization: {load_in_8bit: true, llm_int8_threshold: 5}}
  - {match: mlp.up_proj, quantization: {quant_method: none}}
  - {match: k_proj, dtype: float32, quantization: {quant_method: none}}
)");
  EXPECT_EQ(p.For("lm_head", false).label(), "bitsandbytes_8bit");
  EXPECT_EQ(p.For("lm_head", true).label(), "bitsandbytes_8bit");
  EXPECT_EQ(Settings(p.For("model.layers.0.mlp.up_proj", false)).threshold, 5.0f);
  EXPECT_EQ(p.For("model.layers.0.self_attn.q_proj", false).label(), "bitsandbytes_4bit");
  EXPECT_EQ(p.For("model.layers.0.self_attn.k_proj", false).compute_dtype, DType::kF32);
  EXPECT_EQ(p.For("xk_proj", false).label(),
            "bitsandbytes_4bit");  // a dotted suffix, not any suffix
  const auto again = ParseProfile(p.ToYaml(), "again");
  ASSERT_TRUE(again.ok()) << again.status() << p.ToYaml();
  EXPECT_EQ(again->ToYaml(), p.ToYaml());
}

TEST(ModuleMatch, SkipRuleIsHuggingFaces) {
  EXPECT_TRUE(SkipMatches("lm_head", "lm_head"));
  EXPECT_TRUE(SkipMatches("model.layers.0", "model.layers.0.mlp.up_proj"));    // prefix up to a dot
  EXPECT_FALSE(SkipMatches("model.layers.1", "model.layers.10.mlp.up_proj"));  // not up to a dot
  EXPECT_TRUE(SkipMatches("up_proj", "model.layers.0.mlp.up_proj"));           // suffix
  EXPECT_TRUE(SkipMatches("_proj", "model.layers.0.mlp.up_proj"));  // suffix without a dot
  EXPECT_TRUE(SkipMatches("model.layers.[01]", "model.layers.1.mlp.up_proj"));  // an expression
  EXPECT_FALSE(SkipMatches("layers.0", "model.layers.0.mlp.up_proj"));  // neither start nor end
  EXPECT_TRUE(SkipMatches("re:.*mlp.*", "model.layers.0.mlp.up_proj"));
}

// Takes microseconds; a backtracking matcher would never return.
TEST(ModuleMatch, HostilePatternsTakePolynomialTime) {
  const std::string name(200, 'a');
  EXPECT_FALSE(SkipMatches("re:(a+)+b", name));
  EXPECT_FALSE(OverrideMatches("re:(a|a)*(a|a)*b", name));
  EXPECT_FALSE(OverrideMatches("re:(.*)*x", name));
  EXPECT_FALSE(SkipMatches("re:.*", std::string(kMaxModuleLength + 1, 'a')));
  EXPECT_FALSE(CheckSkipPattern(std::string(kMaxPatternLength + 1, 'a')).ok());
}

TEST(NearestName, FindsTheLikelyOne) {
  constexpr std::string_view kNames[] = {"load_in_4bit", "load_in_8bit", "quant_method"};
  EXPECT_EQ(NearestName("load_in_4bits", kNames), "load_in_4bit");
  EXPECT_EQ(NearestName("quantmethod", kNames), "quant_method");
}

struct Fault {
  const char* yaml;
  absl::StatusCode code;
  std::vector<std::string> messages;
};

TEST(Profile, ReportsEveryFaultByKeyAndValue) {
  constexpr auto kBad = absl::StatusCode::kInvalidArgument;
  constexpr auto kNotSupported = absl::StatusCode::kUnimplemented;
  const std::vector<Fault> table = {
      {"quantization: {load_in_4bit: true, bnb_4bit_quant_type: nf3}",
       kBad,
       {"profiles/x.yaml: quantization.bnb_4bit_quant_type: \"nf3\" is not one of nf4, fp4"}},
      {"quantisation: {load_in_4bit: true}",
       kBad,
       {"quantisation: unknown key; the nearest known one is \"quantization\""}},
      {"quantization: {load_in_4bits: true, quant_method: bitsandbytes}",
       kBad,
       {"quantization.load_in_4bits: unknown key; the nearest known one is \"load_in_4bit\"",
        "neither of load_in_4bit"}},
      {"quantization: {quant_method: bitsandbytes}",
       kBad,
       {"neither of load_in_4bit and load_in_8bit"}},
      {"quantization: {load_in_4bit: true, load_in_8bit: true}",
       kBad,
       {"each of load_in_4bit and load_in_8bit"}},
      {"quantization: {load_in_4bit: true, _load_in_4bit: false}",
       kBad,
       {"_load_in_4bit: contradicts load_in_4bit"}},
      {"quantization: {}", kBad, {"quantization.quant_method: missing"}},
      {"quantization: none", kBad, {"quantization: not a mapping"}},
      {"quantization: {quant_method: aqlm}",
       kNotSupported,
       {"quantization.quant_method: \"aqlm\" (additive codebooks) is not supported; instead: a "
        "GPTQ"}},
      {"quantization: {quant_method: none, load_in_4bit: true}",
       kBad,
       {"load_in_4bit: has no meaning"}},
      {"quantization: {load_in_4bit: maybe, load_in_8bit: true}",
       kBad,
       {"quantization.load_in_4bit: \"maybe\" is not one of true, false"}},
      {"quantization: {load_in_4bit: 'true', load_in_8bit: true}",
       kBad,
       {"\"true\" is not one of true, false"}},
      {"quantization: {load_in_4bit: true, bnb_4bit_compute_dtype: int8}",
       kBad,
       {"bnb_4bit_compute_dtype: \"int8\" is not one of float32, float16, bfloat16"}},
      {"quantization: {load_in_4bit: true, bnb_4bit_quant_storage: nibble}",
       kBad,
       {"bnb_4bit_quant_storage: \"nibble\""}},
      {"quantization: {load_in_8bit: true, llm_int8_threshold: -1}",
       kBad,
       {"llm_int8_threshold: -1 is not between"}},
      {"quantization: {load_in_8bit: true, llm_int8_threshold: .nan}",
       kBad,
       {"llm_int8_threshold"}},
      {"quantization: {load_in_8bit: true, llm_int8_threshold: high}",
       kBad,
       {"\"high\" is not a number"}},
      {"quantization: {load_in_8bit: true, llm_int8_skip_modules: lm_head}",
       kBad,
       {"\"lm_head\" is not a list of strings"}},
      {"quantization: {load_in_8bit: true, llm_int8_skip_modules: ['(']}",
       kBad,
       {"is not a regular expression"}},
      {"quantization: {load_in_8bit: true, llm_int8_has_fp16_weight: true}",
       kNotSupported,
       {"llm_int8_has_fp16_weight: true is not supported"}},
      {"quantization: {load_in_8bit: true, llm_int8_enable_fp32_cpu_offload: true}",
       kNotSupported,
       {"llm_int8_enable_fp32_cpu_offload: true is not supported"}},
      {"kv_cache: {dtype: fp8_e4m3}",
       kNotSupported,
       {"kv_cache.dtype: \"fp8_e4m3\" is not supported"}},
      {"kv_cache: {dtype: int4}",
       kBad,
       {"kv_cache.dtype: \"int4\" is not one of auto, float32, float16, bfloat16, int8"}},
      {"kv_cache: {size: 3}",
       kBad,
       {"kv_cache.size: unknown key; the nearest known one is \"dtype\""}},
      {"engine: {llm_int8_outlier_scope: token}", kBad, {"\"token\" is not one of row, call"}},
      {"dtype: half", kBad, {"dtype: \"half\" is not one of auto, float32, float16, bfloat16"}},
      {"dtype: float16\nquantization: {load_in_4bit: true}", kBad, {"dtype: float16 contradicts"}},
      {"overrides: {match: a}", kBad, {"overrides: not a list"}},
      {"overrides: [{quantization: {load_in_8bit: true}}]", kBad, {"overrides[0].match: missing"}},
      {"overrides: [{match: a, quantization: {load_in_8bit: true}}, {match: 're:(', quantization: "
       "{load_in_2bit: 1}}]",
       kBad,
       {"overrides[1].match: \"re:(\" is not a regular expression",
        "overrides[1].quantization.quant_method: missing"}},
      {"overrides: [{match: a, dtype: float32, quantization: {load_in_8bit: true}}]",
       kBad,
       {"overrides[0].dtype: only"}},
      {"overrides: [{match: a, quantization: {load_in_4bit: true, bnb_4bit_compute_dtype: "
       "float16}}]",
       kBad,
       {"overrides[0].quantization.bnb_4bit_compute_dtype: float16 differs from the profile's "
        "auto"}},
      {"dtype: float32\ndtype: float16", kBad, {"dtype: occurs twice"}},
      {"dtype: int7\nkv_cache: {dtype: int4}\nfoo: 1",
       kBad,
       {"dtype: \"int7\"", "kv_cache.dtype: \"int4\"", "foo: unknown key"}},
      {"[1, 2]", kBad, {"not a mapping"}},
      {"", kBad, {"not a mapping"}},
      {"name: [", kBad, {"profiles/x.yaml:1:", "not valid YAML"}},
  };
  for (const Fault& f : table) {
    const auto profile = ParseProfile(f.yaml, "profiles/x.yaml");
    EXPECT_EQ(profile.status().code(), f.code) << f.yaml << "\n" << profile.status();
    for (const std::string& message : f.messages) {
      EXPECT_THAT(Message(profile.status()), HasSubstr(message)) << f.yaml;
    }
  }
}

TEST(Profile, DeeplyNestedYamlIsAnErrorNotACrash) {
  const auto profile = ParseProfile(std::string(100000, '['), "x");
  EXPECT_TRUE(absl::IsInvalidArgument(profile.status())) << profile.status();
}

TEST(Profile, UnknownNamesListTheKnownOnes) {
  const auto profile = LoadProfile("nf5");
  EXPECT_TRUE(absl::IsNotFound(profile.status()));
  EXPECT_THAT(Message(profile.status()), HasSubstr("known: bf16, fp16, fp32, fp4, fp4-dq, "));
  EXPECT_TRUE(absl::IsNotFound(LoadProfile("/nowhere/x.yaml").status()));
}

}  // namespace
}  // namespace quantd
