// Headers and profile, read once, are what is loaded.
#include "engine/models/model_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/status.h"
#include "tests/engine/models/load_helpers.h"
#include "tests/engine/models/tiny_model.h"

namespace quantd {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing_support::kModels;
using testing_support::OptionsFor;
using testing_support::ReadTensors;
using testing_support::TempDir;
using testing_support::WriteTensors;
using testing_support::WriteTinyModel;

constexpr char kWeights[] = "model.safetensors";

TEST(ModelSource, AConfigAloneIsPlannedLikeItsFolder) {
  TempDir dir;
  WriteTinyModel(dir.path());
  const auto folder = ReadModelSource(dir.path());
  ASSERT_TRUE(folder.ok()) << folder.status();
  EXPECT_NE(folder->checkpoint, nullptr);
  const auto config = ReadModelSource(dir.path() / "config.json");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->checkpoint, nullptr);
  const auto profile = LoadProfile("nf4").value();
  const auto of_folder = PlanLoad(*folder, profile, true),
             of_config = PlanLoad(*config, profile, true);
  ASSERT_TRUE(of_folder.ok() && of_config.ok());
  EXPECT_EQ(of_folder->weights.source_bytes, of_config->weights.source_bytes);
  EXPECT_EQ(of_folder->kv_dtype(), DType::kBF16);
}

TEST(ModelSource, AFolderWithoutWeightsCanBePlannedAndNotOpened) {
  TempDir dir;
  WriteTinyModel(dir.path());
  fs::remove(dir.path() / kWeights);
  EXPECT_TRUE(ReadModelSource(dir.path()).ok());
  const auto opened = OpenModelSource(dir.path());
  EXPECT_EQ(opened.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(opened.status()), HasSubstr("neither model.safetensors"));
  EXPECT_EQ(OpenModelSource("/no/such/folder").status().code(), absl::StatusCode::kNotFound);
}

TEST(ModelSource, AQuantizedConfigNeedsItsHeaders) {
  TempDir dir;
  fs::copy_file(kModels / "gptq4_sym" / "config.json", dir.path() / "config.json");
  for (const fs::path& path : {dir.path(), dir.path() / "config.json"}) {
    const auto source = ReadModelSource(path);
    EXPECT_EQ(source.status().code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(Message(source.status()), HasSubstr("give the folder that has them"));
  }
}

TEST(ModelSource, PlanningTellsWhatLoadingWould) {
  TempDir dir;
  WriteTinyModel(dir.path());
  auto tensors = ReadTensors(dir.path() / kWeights);
  tensors.erase("model.norm.weight");
  WriteTensors(dir.path() / kWeights, tensors);
  const auto planned = PlanLoad(OpenModelSource(dir.path()).value(), QuantProfile(), false);
  EXPECT_EQ(planned.status(), testing_support::TryLoad(OptionsFor(dir.path())));
  EXPECT_EQ(planned.status().code(), absl::StatusCode::kDataLoss);
}

TEST(ModelSource, ALoadOfWhatIsPlannedReadsNoHeaderAgain) {
  TempDir dir;
  WriteTinyModel(dir.path());
  const LoadOptions options = OptionsFor(dir.path(), "nf4");
  const ModelSource source = OpenModelSource(dir.path()).value();
  const LoadPlan plan = PlanLoad(source, options.profile, true).value();
  fs::remove(dir.path() / "config.json");
  fs::remove(dir.path() / kWeights);  // it is mapped
  const auto backend = CreateRefBackend();
  const auto loaded = LoadModel(*backend, source, plan, options);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->report.profile_name, "nf4");
  EXPECT_EQ(loaded->kv_dtype, plan.kv_dtype());
  EXPECT_EQ(loaded->spec.num_layers, source.spec.num_layers);
}

}  // namespace
}  // namespace quantd
