// Every quant_method of transformers is read or refused by name with advice, and so are variants of
// those that are read; never is one taken for something else.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/weights/profile.h"
#include "tests/engine/weights/methods/checkpoint_builder.h"

namespace quantd {
namespace {

using ::testing::HasSubstr;
using testing_support::TempDir;
using testing_support::TryConfig;
using testing_support::WriteFile;

// AUTO_QUANTIZER_MAPPING of transformers 5.23, its two names for bitsandbytes aside.
constexpr const char* kTransformers[] = {
    "awq",         "bitsandbytes", "gptq",   "aqlm",       "quanto", "quark",
    "fouroversix", "fp_quant",     "eetq",   "higgs",      "hqq",    "compressed-tensors",
    "fbgemm_fp8",  "torchao",      "bitnet", "vptq",       "spqr",   "fp8",
    "gguf",        "nvfp4",        "mxfp8",  "auto-round", "mxfp4",  "metal",
    "sinq",        "gemma"};

TEST(Refused, EveryMethodOfTransformersIsReadOrRefusedWithAdvice) {
  for (const char* name : kTransformers) {
    if (FindMethod(name) != nullptr) continue;
    const auto config = TryConfig(fmt::format(R"({{"quant_method": "{}", "bits": 4}})", name));
    EXPECT_TRUE(absl::IsUnimplemented(config.status())) << name << ": " << config.status();
    EXPECT_THAT(
        Message(config.status()),
        HasSubstr(fmt::format("config.json: quantization_config.quant_method: \"{}\" (", name)));
    EXPECT_THAT(Message(config.status()), HasSubstr(") is not supported; instead: ")) << name;
  }
}

TEST(Refused, TheMethodsThatAreReadAreInTheRegistry) {
  for (const char* name : {"bitsandbytes", "gptq", "awq", "auto-round", "hqq"}) {
    ASSERT_NE(FindMethod(name), nullptr) << name;
    EXPECT_EQ(FindMethod(name)->name(), name);
    EXPECT_THAT(Message(RefuseMethod("none such")), HasSubstr(name));
  }
}

// A name that is refused must not stay on the list once it is read.
TEST(Refused, NoMethodIsBothReadAndRefused) {
  for (const Method* method : Methods()) {
    EXPECT_THAT(Message(RefuseMethod(method->name())), HasSubstr("is not supported; supported: "))
        << method->name();
  }
}

TEST(Refused, UnknownNamesListWhatIsRead) {
  const auto config = TryConfig(R"({"quant_method": "qqq", "bits": 4})");
  EXPECT_TRUE(absl::IsUnimplemented(config.status())) << config.status();
  EXPECT_THAT(
      Message(config.status()),
      HasSubstr("quant_method: \"qqq\" is not supported; supported: bitsandbytes, gptq, awq"));
  const auto missing = TryConfig(R"({"bits": 4})");
  EXPECT_TRUE(absl::IsDataLoss(missing.status())) << missing.status();
  EXPECT_THAT(Message(missing.status()),
              HasSubstr("quant_method: missing; supported: bitsandbytes, gptq"));
}

TEST(Refused, RepackedVariantsNameWhatTheyWereMadeFrom) {
  const std::pair<const char*, const char*> table[] = {
      {R"({"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_p"})",
       "checkpoint_format: \"gptq_p\" is not supported; supported: gptq and gptq_v2"},
      {R"({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"})",
       "\"marlin\" is not supported; supported: gptq and gptq_v2"},
      {R"({"quant_method": "marlin", "bits": 4, "group_size": 128})",
       "\"marlin\" (GPTQ repacked for one kernel) is not supported; instead: the GPTQ checkpoint"},
      {R"({"quant_method": "awq", "bits": 4, "version": "gemv"})",
       "version: \"gemv\" is not supported; supported: gemm"},
      {R"({"quant_method": "auto-round", "packing_format": "auto_round:marlin"})",
       "\"auto_round:marlin\" is not supported"},
  };
  for (const auto& [json, message] : table) {
    const auto config = TryConfig(json);
    EXPECT_TRUE(absl::IsUnimplemented(config.status())) << json << ": " << config.status();
    EXPECT_THAT(Message(config.status()), HasSubstr(message)) << json;
  }
}

// Older torchao checkpoints were pickles, whatever their config says.
TEST(Refused, APickledTorchaoFolderIsNamed) {
  TempDir dir;
  WriteFile(
      dir.path() / "config.json",
      R"({"quantization_config": {"quant_method": "torchao", "quant_type": "int4_weight_only"}})");
  WriteFile(dir.path() / "pytorch_model.bin", "x");
  const absl::Status status = Checkpoint::Open(dir.path()).status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(Message(status),
              HasSubstr("pytorch_model.bin is not read, since a pickle can run code"));
}

// A model lives on one backend: what would put parts of it elsewhere is said, not ignored, in a
// profile and in a checkpoint alike.
TEST(Refused, OffloadAndDeviceMapAreRefusedWithWhatWorksInstead) {
  constexpr char kWhy[] = "a model lives on one backend; instead: --backend";
  const std::pair<const char*, const char*> profiles[] = {
      {"device_map: auto", "device_map: not supported: "},
      {"quantization: {load_in_4bit: true, device_map: auto}",
       "quantization.device_map: not supported: "},
      {"overrides: [{match: a, quantization: {load_in_8bit: true, device_map: {a: cpu}}}]",
       "overrides[0].quantization.device_map: not supported: "},
      {"quantization: {load_in_8bit: true, llm_int8_enable_fp32_cpu_offload: true}",
       "quantization.llm_int8_enable_fp32_cpu_offload: true is not supported: "},
      {"quantization: {quant_method: hqq, quant_config: {weight_quant_params: {nbits: 4}, "
       "offload_meta: true}}",
       "quantization.quant_config.offload_meta: true is not supported: "}};
  for (const auto& [yaml, message] : profiles) {
    const auto profile = ParseProfile(yaml, "x.yaml");
    EXPECT_TRUE(absl::IsUnimplemented(profile.status())) << profile.status();
    EXPECT_THAT(Message(profile.status()), HasSubstr(std::string(message) + kWhy)) << yaml;
    EXPECT_THAT(Message(profile.status()), ::testing::Not(HasSubstr("unknown key"))) << yaml;
  }
  const std::pair<const char*, const char*> checkpoints[] = {
      {R"({"quant_method": "bitsandbytes", "load_in_4bit": true, "device_map": "auto"})",
       "quantization_config.device_map: not supported: "},
      {R"({"quant_method": "gptq", "bits": 4, "device_map": {"": "cpu"}})",
       "quantization_config.device_map: not supported: "},
      {R"({"quant_method": "bitsandbytes", "load_in_8bit": true,
           "llm_int8_enable_fp32_cpu_offload": true})",
       "quantization_config.llm_int8_enable_fp32_cpu_offload: true is not supported: "},
      {R"({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4},
           "offload_meta": true}})",
       "quantization_config.quant_config.offload_meta: true is not supported: "}};
  for (const auto& [json, message] : checkpoints) {
    const auto config = TryConfig(json);
    EXPECT_TRUE(absl::IsUnimplemented(config.status())) << config.status();
    EXPECT_THAT(Message(config.status()), HasSubstr(std::string(message) + kWhy)) << json;
  }
  TempDir dir;
  WriteFile(dir.path() / "config.json", R"({"device_map": {"model.layers.0": "cpu"}})");
  EXPECT_EQ(Message(ReadQuantizationConfig(dir.path()).status()),
            std::string("config.json: device_map: not supported: ") + std::string(kOneBackend));
  EXPECT_TRUE(TryConfig(R"({"quant_method": "gptq", "bits": 4, "device_map": null})").ok());
  EXPECT_TRUE(ParseProfile("device_map: null\ndtype: float32", "x.yaml").ok());
}

TEST(Refused, MethodsThatNeedDataAreNotForProfiles) {
  for (const char* name : {"gptq", "awq", "auto-round"}) {
    const auto profile =
        ParseProfile(fmt::format("quantization: {{quant_method: {}, bits: 4}}", name), "x.yaml");
    EXPECT_TRUE(absl::IsUnimplemented(profile.status())) << profile.status();
    EXPECT_THAT(Message(profile.status()),
                HasSubstr(fmt::format(
                    "quantization.quant_method: \"{}\" chooses its numbers with data", name)));
    EXPECT_THAT(Message(profile.status()), HasSubstr("on load: none, bitsandbytes"));
  }
}

}  // namespace
}  // namespace quantd
