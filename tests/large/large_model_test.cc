// The commands that choose and prove, on a folder of TinyLlama's shape (1.1 B parameters, 2.2 GB)
// with random weights. Takes minutes and 5 GB of memory: run by `./dev test --full`.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>

#include "tests/bench/engine/random_checkpoint.h"
#include "tests/engine/models/tiny_model.h"
#include "tests/server/process.h"

namespace quantd::test {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

class LargeModel : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    root_ = new testing_support::TempDir();
    for (const BenchShape& shape : BenchShapes()) {
      if (shape.name != "tl11") continue;
      auto folder = RandomCheckpoint(shape, root_->path());
      ASSERT_TRUE(folder.ok()) << folder.status();
      folder_ = folder->string();
    }
    // Of 4096 tokens, which are among the model's.
    std::filesystem::copy(DemoModel() + "/tokenizer.json", folder_);
  }
  static void TearDownTestSuite() {
    delete root_;
    root_ = nullptr;
  }

  static json Run(const std::vector<std::string>& arguments) {
    Process process(arguments);
    EXPECT_EQ(process.Wait(1800), 0) << process.err();
    return json::parse(process.out(), nullptr, /*allow_exceptions=*/false);
  }
  static std::map<std::string, int64_t> Weights(const json& plan) {
    std::map<std::string, int64_t> bytes;
    for (const json& p : plan["profiles"]) bytes[p["name"]] = p["bytes"]["weights"];
    return bytes;
  }

  static testing_support::TempDir* root_;
  static std::string folder_;
};

testing_support::TempDir* LargeModel::root_ = nullptr;
std::string LargeModel::folder_;

TEST_F(LargeModel, IsPlannedAlikeFromItsConfigAndFromItsHeaders) {
  const json headers = Run({"plan", folder_, "--memory", "4GB", "--json"});
  const json config = Run({"plan", folder_ + "/config.json", "--memory", "4GB", "--json"});
  EXPECT_EQ(headers["parameters"], 1'100'048'384);
  EXPECT_EQ(Weights(headers), Weights(config));
  EXPECT_EQ(headers["recommended"], config["recommended"]);
  EXPECT_FALSE(headers["recommended"].is_null());
}

TEST_F(LargeModel, IsValid) {
  for (const char* profile : {"nf4-dq", "int8", "hqq4"}) {
    const json found = Run({"validate", "--model", folder_, "--profile", profile, "--backend",
                            "cuda", "--memory", "4GB", "--json"});
    EXPECT_EQ(found["ok"], true) << found.dump();
  }
}

TEST_F(LargeModel, TakesWhatWasPlannedAndIsMeasured) {
  const json plan = Run({"plan", folder_, "--backend", "cpu", "--memory", "16GB", "--json"});
  const json report = Run({"eval", folder_, "--backend", "cpu", "--profiles", "int8,nf4-dq",
                           "--text", QUANTD_SOURCE_DIR "/demo/validation.txt", "--context", "64",
                           "--max-tokens", "126", "--json"});
  ASSERT_EQ(report["profiles"].size(), 2u);
  double kl = -1;
  for (const json& p : report["profiles"]) {
    // Plan and ledger count rope's table for another context.
    EXPECT_NEAR(p["resident_bytes"].get<double>(), static_cast<double>(Weights(plan)[p["name"]]),
                1e6)
        << p["name"];
    // Random weights say little of any token: near a uniform choice among 32000.
    EXPECT_GT(p["perplexity"], 16000);
    EXPECT_LT(p["perplexity"], 64000);
    EXPECT_GT(p["kl"]["mean"], kl) << "largest first";
    kl = p["kl"]["mean"];
    EXPECT_EQ(p["linears"].size(), 22 * 7 + 1u);
  }
  EXPECT_GT(kl, 0);
}

}  // namespace
}  // namespace quantd::test
