// Test helpers of methods that quantize on load: the base model of the fixtures, quantized here,
// against what the library made of it. Header-only.
#pragma once

#include "engine/weights/profile.h"
#include "tests/engine/weights/methods/checkpoint_builder.h"

namespace quantd::testing_support {

/// The options of a profile whose `quantization:` is `mapping`.
inline MethodOptions ProfileOptions(const std::string& mapping) {
  const auto profile = ParseProfile("quantization: " + mapping, "test");
  EXPECT_TRUE(profile.ok()) << profile.status();
  return profile.ok() ? profile->quantization : MethodOptions();
}

/// Quantizes the linears of tests/data/models/llama_bf16 whose name contains `of`, `modules` in
/// number, by `options`: codes, scales and zero points are those of `fixture`.
inline void ExpectQuantizesToFixture(const std::string& fixture, const MethodOptions& options,
                                     const std::string& of = "", int modules = 7) {
  const auto models = std::filesystem::path(QUANTD_TEST_DATA) / "models";
  const auto base = Checkpoint::Open(models / "llama_bf16");
  const auto stored = Checkpoint::Open(models / fixture);
  const auto config = ReadQuantizationConfig(models / fixture);
  ASSERT_TRUE(base.ok() && stored.ok() && config.ok() && config->has_value());
  int found = 0;
  for (const auto& [name, tensor] : (*base)->tensors()) {
    if (!name.ends_with("_proj.weight") || name.find(of) == std::string::npos) continue;
    const WeightShape shape{name.substr(0, name.size() - 7), tensor.shape[0], tensor.shape[1]};
    const auto expected = Import(**stored, shape, **config);
    ASSERT_TRUE(expected.ok()) << expected.status();
    std::vector<BF16> values(tensor.data.size() / sizeof(BF16));
    std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
    const TensorView w(DType::kBF16, values.data(), shape.n, shape.k);
    const auto ours = MethodOf(options).Quantize(w, options, DType::kBF16);
    ASSERT_TRUE(ours.ok()) << ours.status();
    EXPECT_EQ(ours->format.ToString(), expected->format.ToString()) << name;
    EXPECT_EQ(ours->format, MethodOf(options).FormatOf(shape, options, DType::kBF16));
    EXPECT_TRUE(ours->codes == expected->codes) << name;
    EXPECT_EQ(NumDifferent(ours->scales, expected->scales), 0u) << name;
    EXPECT_EQ(NumDifferent(ours->zeros, expected->zeros), 0u) << name;
    ++found;
  }
  EXPECT_EQ(found, modules) << fixture;
}

}  // namespace quantd::testing_support
