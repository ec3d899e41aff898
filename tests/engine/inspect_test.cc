// What InspectModel says of fixtures whose contents are known, and of folders that cannot be
// served.
#include "engine/inspect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

TEST(Inspect, CountsWhatALoadCounts) {
  for (const char* fixture : {"llama_bf16", "llama3rope_bf16", "bnb_nf4", "bnb_nf4_dq", "bnb_int8",
                              "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3"}) {
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
