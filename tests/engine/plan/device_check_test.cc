// What cuda has no kernels for, against what its backend says; and what it has slow ones for.
#include "engine/plan/device_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/weights/profile.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/status.h"
#include "tests/engine/models/tiny_model.h"

namespace quantd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

PlanDevice On(PlanBackend backend) {
  PlanDevice device;
  device.backend = backend;
  return device;
}

ModulePlan Module(const QuantFormat& format, int64_t n, int64_t k) {
  ModulePlan module;
  module.shape = {"m", n, k};
  module.format = format;
  return module;
}

LoadPlan PlanOf(std::vector<ModulePlan> group) {
  LoadPlan load;
  load.weights.embedding = Module(QuantFormat::Plain(DType::kBF16), 8, 8);
  load.weights.groups.push_back(std::move(group));
  return load;
}

ModelSource Llama(int64_t head_dim) {
  testing_support::TinyModelOptions shape;
  shape.head_dim = head_dim;
  return SourceOf(ParseDecoderSpec(testing_support::TinyConfig(shape), "config.json").value());
}

LoadPlan Under(const ModelSource& source, const std::string& profile) {
  const auto parsed = profile.find(':') == std::string::npos ? LoadProfile(profile)
                                                             : ParseProfile(profile, "test.yaml");
  return PlanLoad(source, parsed.value(), true).value();
}

TEST(CheckDevice, RefusesWhatCudasBackendRefuses) {
  const QuantFormat nf4 = QuantFormat::Block4(Codec::kNf4, 64, false);
  struct Case {
    QuantFormat format;
    int64_t modules, rows, k;
    bool refused;
  };
  for (const Case& c : std::vector<Case>{{nf4, 4, 16, 64, false},
                                         {nf4, 5, 16, 64, true},
                                         {nf4, 2, int64_t{1} << 30, 64, true},
                                         {QuantFormat::Int8Row(), 1, int64_t{1} << 31, 64, true}}) {
    const auto count = static_cast<size_t>(c.modules);
    const LoadPlan load = PlanOf(std::vector<ModulePlan>(count, Module(c.format, c.rows, c.k)));
    const absl::Status status = CheckDevice(load, On(PlanBackend::kCuda));
    EXPECT_EQ(status.code(), c.refused ? absl::StatusCode::kUnimplemented : absl::StatusCode::kOk)
        << status;
    EXPECT_TRUE(CheckDevice(load, On(PlanBackend::kCpu)).ok());
    EXPECT_TRUE(CheckDevice(load, On(PlanBackend::kRef)).ok());
#ifdef QUANTD_HAS_CUDA_EMULATION
    const auto backend = cuda_emulated::CreateBackend().value();
    std::vector<RowSegment> segments;
    for (int64_t i = 0; i < c.modules; ++i) segments.push_back({"m", i * c.rows, c.rows});
    const auto packed = backend->CreatePacked(c.format, c.k, segments, MemoryComponent::kWeights);
    EXPECT_EQ(packed.status().code(), status.code()) << packed.status();
#endif
  }
}

TEST(CheckDevice, RefusesInt8RowsBeyondTheSharedMemoryOfABlock) {
  ModulePlan wide = Module(QuantFormat::Int8Row(), 16, 337920);
  wide.activation.kind = ActivationQuant::Kind::kInt8Outlier;
  EXPECT_TRUE(CheckDevice(PlanOf({wide}), On(PlanBackend::kCuda)).ok());
  wide.shape.k += 32;
  EXPECT_THAT(Message(CheckDevice(PlanOf({wide}), On(PlanBackend::kCuda))),
              HasSubstr("m: cuda multiplies int8 rows of at most 337920 inputs, not 337952"));
  EXPECT_TRUE(CheckDevice(PlanOf({wide}), On(PlanBackend::kCpu)).ok());
}

TEST(SlowPaths, AreNoneWhereTensorCoreKernelsDoTheWork) {
  for (const int64_t head_dim : {32, 64, 96, 128, 256}) {
    const ModelSource source = Llama(head_dim);
    for (const char* profile : {"bf16", "nf4", "int8", "fp16"}) {
      EXPECT_THAT(SlowPaths(source.spec, Under(source, profile), On(PlanBackend::kCuda)), IsEmpty())
          << profile << " " << head_dim;
    }
  }
}

TEST(SlowPaths, NameDtypesAndHeadSizesWithoutOne) {
  const ModelSource source = Llama(80);
  const auto slow = [&](const std::string& profile) {
    return SlowPaths(source.spec, Under(source, profile), On(PlanBackend::kCuda));
  };
  EXPECT_THAT(slow("bf16"), ElementsAre(HasSubstr("head_dim 80")));
  EXPECT_THAT(slow("fp32"), ElementsAre(HasSubstr("dtype float32")));
  EXPECT_THAT(slow("kv_cache: {dtype: float16}\ndtype: bfloat16"),
              ElementsAre(HasSubstr("head_dim 80"), HasSubstr("kv_cache.dtype float16")));
  EXPECT_THAT(slow("dtype: bfloat16\noverrides: [{match: down_proj, dtype: float32, "
                   "quantization: {quant_method: none}}]"),
              ElementsAre(HasSubstr("head_dim 80"), HasSubstr("weights in f32")));
  EXPECT_THAT(SlowPaths(source.spec, Under(source, "fp32"), On(PlanBackend::kCpu)), IsEmpty());
}

}  // namespace
}  // namespace quantd
