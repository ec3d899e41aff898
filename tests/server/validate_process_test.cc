// `quantd validate` as a process: exit codes, the list and the JSON.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/engine/models/tiny_model.h"
#include "tests/server/process.h"

namespace quantd::test {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

std::vector<std::string> Demo(const std::vector<std::string>& flags) {
  std::vector<std::string> arguments = {"validate", "--model", DemoModel()};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  return arguments;
}

TEST(ValidateCommand, WhatCanBeServedIsExitCodeZero) {
  for (const std::vector<std::string>& flags : std::vector<std::vector<std::string>>{
           {"--profile", "nf4-dq", "--backend", "cpu"},
           {"--profile", "auto", "--backend", "ref"},
           {"--backend", "cuda", "--memory", "24GB"},  // a GPU that need not be here
           {"--backend", "cuda"},
           {"--config", QUANTD_SOURCE_DIR "/configs/server.yaml", "--set", "backend=cpu"},
       }) {
    const Finished run = RunQuantd(Demo(flags));
    EXPECT_EQ(run.code, 0) << run.out << run.err;
    EXPECT_THAT(run.out, HasSubstr("0 errors, "));
    EXPECT_EQ(run.err, "");
  }
}

TEST(ValidateCommand, WarningsAloneAreExitCodeZero) {
  const Finished run =
      RunQuantd(Demo({"--profile", "fp32", "--backend", "cuda", "--memory", "24GB"}));
  EXPECT_EQ(run.code, 0) << run.err;
  EXPECT_THAT(run.out, AllOf(HasSubstr("warnings\n"), HasSubstr("  backend cuda: dtype float32"),
                             HasSubstr("\n      fix: dtype: bfloat16"), HasSubstr("0 errors, ")));
}

TEST(ValidateCommand, ErrorsAreExitCodeOneAndAllListed) {
  const Finished run = RunQuantd(Demo({"--profile", "nf5", "--backend", "cpu", "--set",
                                       "scheduler.max_model_len=9999", "--set", "threds=3"}));
  EXPECT_EQ(run.code, 1);
  EXPECT_THAT(run.out, AllOf(HasSubstr("errors\n"), HasSubstr("no profile \"nf5\""),
                             HasSubstr("max_model_len is 9999"), HasSubstr("unknown key threds"),
                             HasSubstr("fix: the nearest known key is threads"),
                             HasSubstr("3 errors, 0 warnings\n")));
  EXPECT_EQ(run.err, "quantd: validate: 3 errors\n");
}

TEST(ValidateCommand, JsonHasEveryFinding) {
  const Finished bad = RunQuantd(Demo({"--profile", "nf5", "--backend", "cpu", "--json"}));
  EXPECT_EQ(bad.code, 1);
  const json report = json::parse(bad.out, nullptr, /*allow_exceptions=*/false);
  EXPECT_EQ(report["ok"], false);
  ASSERT_EQ(report["findings"].size(), 1u) << bad.out;
  EXPECT_EQ(report["findings"][0]["severity"], "error");
  EXPECT_EQ(report["findings"][0]["where"], "profile");
  EXPECT_EQ(report["findings"][0]["what"], "no profile \"nf5\"");
  EXPECT_THAT(report["findings"][0]["fix"].get<std::string>(), HasSubstr("nf4"));
  const Finished good = RunQuantd(Demo({"--backend", "cpu", "--json"}));
  EXPECT_EQ(good.code, 0);
  EXPECT_EQ(json::parse(good.out, nullptr, false),
            (json{{"ok", true}, {"findings", json::array()}}));
}

TEST(ValidateCommand, WrongUsageIsExitCodeTwo) {
  const std::vector<std::string> table[] = {
      {"validate"},
      {"validate", "--profile", "nf4"},
      Demo({"--memory", "lots"}),
      Demo({"--memory", "0"}),
      Demo({"--nothing"}),
  };
  for (const auto& arguments : table) {
    const Finished run = RunQuantd(arguments);
    EXPECT_EQ(run.code, 2) << run.out << run.err;
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
  }
}

TEST(ValidateCommand, WhatAFileSaysDoesNotReachTheTerminalAsItIs) {
  testing_support::TempDir dir;
  testing_support::WriteTinyModel(dir.path());
  auto tensors = testing_support::ReadTensors(dir.path() / "model.safetensors");
  tensors["\x1b[2Jx"] = tensors["model.norm.weight"];
  testing_support::WriteTensors(dir.path() / "model.safetensors", tensors);
  const Finished run = RunQuantd({"validate", "--model", dir.path().string(), "--backend", "cpu"});
  EXPECT_EQ(run.code, 1);
  EXPECT_THAT(run.out, HasSubstr("tensor \"\\x1b[2Jx\""));
  EXPECT_EQ(run.out.find('\x1b'), std::string::npos);
}

}  // namespace
}  // namespace quantd::test
