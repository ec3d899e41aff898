// What InspectModel says of fixtures whose contents are known, and of folders that cannot be
// served.
#include "engine/inspect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "engine/weights/methods/method.h"
#include "engine/weights/quantization_options.h"
#include "engine/weights/safetensors.h"
#include "kernels/status.h"
#include "tests/engine/models/tiny_model.h"

namespace quantd {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::filesystem::path kModels = std::filesystem::path(QUANTD_TEST_DATA) / "models";

ModelReport Inspect(const std::filesystem::path& dir) {
  auto report = InspectModel(dir, /*values=*/true);
  EXPECT_TRUE(report.ok()) << report.status();
  return report.ok() ? *report : ModelReport();
}

int64_t FileBytes(const std::filesystem::path& dir) {
  return (*Checkpoint::Open(dir))->total_bytes();
}

std::vector<std::string> Fixtures() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kModels)) {
    names.push_back(entry.path().filename().string());
  }
  EXPECT_GE(names.size(), 42u);
  return names;
}

TEST(Inspect, CountsWhatALoadCounts) {
  for (const std::string& fixture : Fixtures()) {
    SCOPED_TRACE(fixture);
    const ModelReport report = Inspect(kModels / fixture);
    EXPECT_EQ(report.refusal, "");
    EXPECT_THAT(report.suspicious, IsEmpty());
    const auto& b = report.bytes;
    EXPECT_EQ(b.embedding + b.linears + b.head + b.norms, b.total);
    EXPECT_EQ(b.total, FileBytes(kModels / fixture));
    int64_t parameters = 0, bytes = 0;
    for (const auto& g : report.groups) {
      parameters += g.parameters;
      bytes += g.file_bytes;
    }
    EXPECT_EQ(bytes + b.norms, b.total);
    EXPECT_LT(parameters, report.parameters);  // the norms are left
    EXPECT_GT(parameters, report.parameters * 98 / 100);
  }
}

// is_trainable of each quantizer of transformers 5.23: of every method, where it depends on more of
// each kind.
TEST(Inspect, SaysWhatPeftCanTrainOver) {
  const std::pair<const char*, bool> table[] = {
      {"llama_bf16", true},
      {"bnb_nf4", true},
      {"bnb_int8", true},
      {"gptq4_sym", true},
      {"awq4_gemm", true},
      {"autoround4_gptq", false},
      {"autoround4_awq", false},
      {"hqq4_axis1", true},
      {"torchao_int8wo", true},
      {"torchao_int8da", true},
      {"torchao_float8wo", true},
      {"torchao_intx4wo", false},
      {"torchao_int8da_intx4", false},
      {"torchao_int4wo_handpacked", false},
      {"ct_w4a16", true},
      {"ct_fp8_dynamic", true},
      {"fp8_block", true},
      {"fp8_block_ue8m0", true},
      {"metal4", false},
  };
  std::set<std::string> methods;
  for (const auto& [fixture, trainable] : table) {
    EXPECT_EQ(Inspect(kModels / fixture).trainable_with_peft, trainable) << fixture;
    const auto config = ReadQuantizationConfig(kModels / fixture);
    ASSERT_TRUE(config.ok()) << config.status();
    methods.insert(config->value_or(MethodOptions()).method);
  }
  for (const Method* m : Methods())
    EXPECT_EQ(methods.count(std::string(m->name())), 1u) << m->name();
}

TEST(Inspect, NamesTheMethodOfEveryModuleGroup) {
  const ModelReport report = Inspect(kModels / "bnb_nf4_dq");
  EXPECT_EQ(report.quantization,
            "bitsandbytes 4-bit nf4, double quantization, compute dtype bfloat16");
  EXPECT_TRUE(report.trainable_with_peft);
  EXPECT_THAT(report.skipped, ElementsAre("lm_head"));
  ASSERT_EQ(report.groups.size(), 2u);
  EXPECT_EQ(report.groups[0].method, "none");  // embedding and head
  EXPECT_EQ(report.groups[0].modules, 2);
  EXPECT_EQ(report.groups[1].method, "bitsandbytes_4bit");
  EXPECT_EQ(report.groups[1].format, "nf4.flat64.nested");
  EXPECT_THAT(report.groups[1].kinds, ElementsAre("down_proj", "gate_proj", "k_proj", "o_proj",
                                                  "q_proj", "up_proj", "v_proj"));
  // 4 bits, a byte per 64 weights, and the maps, which weigh much in a small matrix.
  EXPECT_GT(report.groups[1].bits_per_weight(), 4.127);
  EXPECT_LT(report.groups[1].bits_per_weight(), 6.0);
  EXPECT_EQ(Inspect(kModels / "bnb_int8").groups[1].activation, "int8 per token, outliers from 6");
}

TEST(Inspect, PointsAtSuspiciousValues) {
  testing_support::TempDir dir;
  testing_support::WriteTinyModel(dir.path());
  testing_support::OwnedTensors t = testing_support::ReadTensors(dir.path() / "model.safetensors");
  const auto fill = [&t](const std::string& name, float value, size_t index) {
    testing_support::OwnedTensor& tensor = t.at(name);
    const uint16_t bits = BF16(value).bits;
    for (size_t i = 0; i < tensor.bytes.size() / 2; ++i) {
      if (index == i || index == SIZE_MAX) std::memcpy(tensor.bytes.data() + 2 * i, &bits, 2);
    }
  };
  fill("model.layers.0.mlp.up_proj.weight", 0.0f, SIZE_MAX);
  fill("model.layers.0.mlp.down_proj.weight", 1e6f, 3);
  fill("model.layers.0.self_attn.k_proj.weight", NAN, 5);
  testing_support::WriteTensors(dir.path() / "model.safetensors", t);
  const ModelReport report = Inspect(dir.path());
  EXPECT_THAT(report.suspicious,
              Contains(HasSubstr("model.layers.0.mlp.up_proj: every weight is zero")));
  EXPECT_THAT(report.suspicious,
              Contains(HasSubstr("model.layers.0.mlp.down_proj: a weight of magnitude 9.99e+05")));
  EXPECT_THAT(report.suspicious,
              Contains(HasSubstr("model.layers.0.self_attn.k_proj: 1 weights are not finite")));
}

TEST(Inspect, LooksAtNormsAndBiases) {
  testing_support::TempDir dir;
  testing_support::TinyModelOptions options;
  options.attention_bias = true;
  testing_support::WriteTinyModel(dir.path(), options);
  EXPECT_THAT(Inspect(dir.path()).suspicious, IsEmpty());
  testing_support::OwnedTensors t = testing_support::ReadTensors(dir.path() / "model.safetensors");
  const auto set = [&t](const std::string& name, size_t index, float value) {
    const uint16_t bits = BF16(value).bits;
    std::memcpy(t.at(name).bytes.data() + 2 * index, &bits, 2);
  };
  const std::string layer = "model.layers.0.";
  set("model.norm.weight", 3, NAN);
  set("model.norm.weight", 4, INFINITY);
  set(layer + "input_layernorm.weight", 0, 1e5f);
  t.at(layer + "post_attention_layernorm.weight").bytes.assign(64, '\0');
  set(layer + "self_attn.k_proj.bias", 1, NAN);
  set(layer + "self_attn.q_proj.bias", 1, -3e4f);
  t.at(layer + "self_attn.v_proj.bias").bytes.assign(32, '\0');  // as AutoGPTQ wrote them
  testing_support::WriteTensors(dir.path() / "model.safetensors", t);
  EXPECT_THAT(
      Inspect(dir.path()).suspicious,
      ::testing::UnorderedElementsAre(
          HasSubstr("model.norm.weight: 2 values are not finite"), HasSubstr("model.norm.weight: "),
          HasSubstr(layer + "input_layernorm.weight: a value of magnitude 9.98e+04"),
          HasSubstr(layer + "post_attention_layernorm.weight: every value is zero"),
          HasSubstr(layer + "self_attn.k_proj.bias: 1 values are not finite"),
          HasSubstr(layer + "self_attn.q_proj.bias: a value of magnitude 3e+04")));
}

TEST(Inspect, TakesNormsStoredAsDistancesFromOneForWhatTheyMean) {
  testing_support::TempDir dir;
  std::filesystem::copy(kModels / "gemma3", dir.path(), std::filesystem::copy_options::recursive);
  const std::filesystem::path file = dir.path() / "model.safetensors";
  testing_support::OwnedTensors t = testing_support::ReadTensors(file);
  auto& norm = t.at("model.norm.weight").bytes;
  norm.assign(norm.size(), '\0');  // a norm that scales by one
  testing_support::WriteTensors(file, t);
  EXPECT_THAT(Inspect(dir.path()).suspicious, IsEmpty());
}

TEST(Inspect, SaysWhyAFolderCannotBeServed) {
  testing_support::TempDir dir;
  testing_support::WriteTinyModel(dir.path());
  std::string config = testing_support::ReadFile(dir.path() / "config.json");
  config.replace(config.find("\"dtype\""), 7,
                 "\"quantization_config\": {\"quant_method\": \"aqlm\"}, \"dtype\"");
  testing_support::WriteFile(dir.path() / "config.json", config);
  const ModelReport report = Inspect(dir.path());
  EXPECT_THAT(report.refusal, HasSubstr("\"aqlm\" (additive codebooks) is not supported; instead"));
  EXPECT_GT(report.bytes.total, 0);
  EXPECT_EQ(report.spec.architecture, "LlamaForCausalLM");
  EXPECT_TRUE(absl::IsNotFound(InspectModel(dir.path() / "nowhere", true).status()));
}

}  // namespace
}  // namespace quantd
