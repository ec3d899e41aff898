// LLM.int8 where it is meant to help: a model whose activations have outliers.
// demo/make_outliers.py makes one of the demo model: the same function, with a few channels thirty
// times as large.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/engine/models/load_helpers.h"
#include "tests/engine/models/model_runner.h"

namespace quantd::testing_support {
namespace {

class Outliers : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = std::filesystem::temp_directory_path() / ("quantd_outliers_" + std::to_string(getpid()));
    const std::string command = std::string("python3 '") + QUANTD_SOURCE_DIR +
                                "/demo/make_outliers.py' --out '" + dir_.string() + "' >/dev/null";
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  static std::vector<float> Logits(const std::filesystem::path& model, const std::string& profile) {
    const auto backend = MakeBackend(HostBackends().back());
    auto loaded = LoadModel(*backend, OptionsFor(model, profile));
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    ModelRunner runner(*backend, std::move(*loaded));
    return runner.Forward(
        {401, 17, 1033, 290, 5, 3777, 812, 64, 2048, 99, 1500, 7, 350, 3001, 42, 600});
  }

  std::filesystem::path dir_;
};

TEST_F(Outliers, AreTheSameFunctionInSixteenBits) {
  const std::vector<float> plain = Logits(kDemo, "fp32");
  const std::vector<float> none(plain.size(), 0.0f);
  EXPECT_LT(Rms(Logits(dir_, "fp32"), plain), 0.02 * Rms(plain, none));
}

TEST_F(Outliers, AreKeptByLlmInt8AndLostWithoutItsDecomposition) {
  const std::vector<float> exact = Logits(dir_, "fp32");
  const double with = Rms(Logits(dir_, "int8"), exact);
  const double without = Rms(Logits(dir_, "int8-no-outliers"), exact);
  RecordProperty("rms_int8", std::to_string(with));
  RecordProperty("rms_int8_no_outliers", std::to_string(without));
  EXPECT_LT(with, 0.5 * without);
}

}  // namespace
}  // namespace quantd::testing_support
