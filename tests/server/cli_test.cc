// The command's exit codes and words: 0, 1 with one line on stderr, 2 for wrong usage; and what
// tokenize, logits and profiles write.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/engine/models/tiny_model.h"
#include "tests/server/process.h"

namespace quantd {
namespace {

namespace fs = std::filesystem;
using test::DemoModel;
using test::Finished;
using test::RunQuantd;
using testing_support::ReadFile;
using testing_support::TempDir;
using testing_support::WriteFile;

TEST(Cli, WrongUsageIsExitCodeTwoAndOneLine) {
  const std::vector<std::string> table[] = {
      {},
      {"fly"},
      {"serve", "--nothing"},
      {"generate"},
      {"generate", "--model", "m"},
      {"generate", "--model", "m", "--target", "t", "--prompt", "x"},
      {"generate", "--model", "m", "--prompt", "x", "--prompt-file", "y"},
      {"generate", "--model", "m", "--prompt", "x", "--system", "y"},
      {"generate", "--model", "m", "--prompt", "x", "--chat", "--no-special"},
      {"generate", "--model", "m", "--prompt", "x", "--max-tokens", "many"},
      {"generate", "--model", "m", "--prompt", "x", "--seed", "-1"},
      {"generate", "--target", "t", "--profile", "nf4", "--prompt", "x"},
      {"logits", "--model", "m"},
      {"tokenize"},
      {"health"},
  };
  for (const auto& arguments : table) {
    const Finished run = RunQuantd(arguments);
    std::string command;
    for (const std::string& argument : arguments) command += argument + " ";
    EXPECT_EQ(run.code, 2) << command << run.err;
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << command << run.err;
    EXPECT_EQ(run.err.rfind("quantd: ", 0), 0u) << run.err;
    EXPECT_EQ(run.out, "") << command;
  }
}

TEST(Cli, TheVersionIsAFlagToo) {
  const Finished flag = RunQuantd({"--version"});
  EXPECT_EQ(flag.code, 0) << flag.err;
  EXPECT_EQ(flag.out.rfind("quantd ", 0), 0u) << flag.out;
  EXPECT_EQ(flag.out, RunQuantd({"version"}).out);
}

TEST(Cli, CudaWithoutAGpuIsOneClearLine) {
  const Finished run =
      RunQuantd({"generate", "--model", DemoModel(), "--backend", "cuda", "--prompt", "x"});
  if (run.code == 0) GTEST_SKIP() << "this machine has a GPU";
  EXPECT_EQ(run.code, 1);
  EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
  EXPECT_EQ(run.err.rfind("quantd: backend: \"cuda\"", 0), 0u) << run.err;
#ifdef QUANTD_HAS_CUDA
  EXPECT_NE(run.err.find("CUDA: "), std::string::npos) << run.err;
#else
  EXPECT_NE(run.err.find("not built in"), std::string::npos) << run.err;
#endif
}

TEST(Cli, EmulatedCudaWritesWhatRefWrites) {
#ifndef QUANTD_HAS_CUDA_EMULATION
  GTEST_SKIP() << "the emulated device is not built in";
#endif
  std::vector<std::string> arguments = {"generate", "--model",       DemoModel(),   "--profile",
                                        "nf4-dq",   "--prompt",      "The old man", "--max-tokens",
                                        "3",        "--temperature", "0",           "--backend"};
  arguments.push_back("ref");
  const Finished expected = RunQuantd(arguments);
  ASSERT_EQ(expected.code, 0) << expected.err;
  arguments.back() = "cuda-emulated";
  for (const char* determinism : {"default", "batch_invariant"}) {
    std::vector<std::string> with = arguments;
    with.insert(with.end(), {"--determinism", determinism});
    const Finished run = RunQuantd(with);
    EXPECT_EQ(run.code, 0) << run.err;
    EXPECT_EQ(run.out, expected.out);
  }
}

TEST(Cli, FailureIsExitCodeOneAndOneLine) {
  TempDir dir;
  WriteFile(dir.path() / "bad.yaml", "modle: x\n");
  WriteFile(dir.path() / "latin1.txt", "caf\xe9");
  WriteFile(dir.path() / "ids.json", "{\"token_ids\": [1, 99999]}");
  WriteFile(dir.path() / "noids.json", "{\"token_ids\": [1.5]}");
  struct Row {
    std::vector<std::string> arguments;
    std::string message;
  };
  const Row table[] = {
      {{"generate", "--model", "/nonexistent", "--prompt", "x"}, "/nonexistent"},
      {{"generate", "--model", DemoModel(), "--profile", "nf3", "--prompt", "x"}, "nf3"},
      {{"generate", "--model", DemoModel(), "--determinism", "no", "--prompt", "x"}, "determinism"},
      {{"generate", "--model", DemoModel(), "--backend", "gpu", "--prompt", "x"}, "gpu"},
      {{"generate", "--model", DemoModel(), "--prompt", "x", "--temperature", "-1"},
       "sampling.temperature"},
      {{"generate", "--model", DemoModel(), "--prompt", "x", "--max-tokens", "600"}, "512"},
      {{"generate", "--model", DemoModel(), "--chat", "--prompt", "x"}, "has no chat template"},
      {{"generate", "--model", DemoModel(), "--prompt-file", "/nonexistent"}, "--prompt-file"},
      {{"generate", "--model", DemoModel(), "--prompt-file", dir.path()}, "--prompt-file"},
      {{"generate", "--target", "127.0.0.1:1", "--prompt-file", dir.path() / "latin1.txt"},
       "byte 3"},
      {{"generate", "--model", DemoModel(), "--prompt", "x", "--stop", "\xff"}, "--stop"},
      {{"generate", "--target", "127.0.0.1:1", "--prompt", "x"}, "127.0.0.1:1"},
      {{"health", "--target", "127.0.0.1:1"}, "127.0.0.1:1"},
      {{"serve", "--config", dir.path() / "bad.yaml"}, "modle"},
      {{"serve", "--config", "/nonexistent.yaml"}, "/nonexistent.yaml"},
      {{"serve", "--config", dir.path()}, "cannot be read"},
      {{"serve", "--model", ""}, "model: empty"},
      {{"serve", "--model", "m", "--set", "limit.x=1"}, "limit.x"},
      {{"profiles", "nf3"}, "nf4"},
      {{"tokenize", "--model", "/nonexistent", "--text", "x"}, "/nonexistent"},
      {{"tokenize", "--model", DemoModel(), "--decode", "--text", "[1, 4096]"},
       "4096 is not in [0, 4096)"},
      {{"logits", "--model", DemoModel(), "--tokens", dir.path() / "ids.json", "--out",
        dir.path() / "o"},
       "99999"},
      {{"logits", "--model", DemoModel(), "--tokens", dir.path() / "noids.json", "--out",
        dir.path() / "o"},
       "1.5"},
  };
  for (const Row& row : table) {
    const Finished run = RunQuantd(row.arguments);
    EXPECT_EQ(run.code, 1) << row.message << ": " << run.err;
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
    EXPECT_NE(run.err.find(row.message), std::string::npos) << run.err << " lacks " << row.message;
  }
}

TEST(Cli, CorruptModelFoldersAreOneLine) {
  struct Row {
    const char* name;
    std::function<void(const fs::path&)> spoil;
  };
  const Row table[] = {
      {"truncated weights",
       [](const fs::path& d) { fs::resize_file(d / "model.safetensors", 1 << 20); }},
      {"no weights", [](const fs::path& d) { fs::remove(d / "model.safetensors"); }},
      {"no config", [](const fs::path& d) { fs::remove(d / "config.json"); }},
      {"config is not JSON", [](const fs::path& d) { WriteFile(d / "config.json", "{"); }},
      {"tokenizer is not JSON", [](const fs::path& d) { WriteFile(d / "tokenizer.json", "[]"); }},
      {"header longer than the file",
       [](const fs::path& d) { WriteFile(d / "model.safetensors", std::string(16, '\x7f')); }},
  };
  for (const Row& row : table) {
    TempDir dir;
    for (const auto& entry : fs::directory_iterator(DemoModel())) fs::copy(entry, dir.path());
    row.spoil(dir.path());
    const Finished run =
        RunQuantd({"serve", "--model", dir.path().string(), "--profile", "nf4-dq", "--listen",
                   "127.0.0.1:0", "--http", "127.0.0.1:0", "--set", "log.level=off"});
    EXPECT_EQ(run.code, 1) << row.name << ": " << run.err;
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << row.name << ": " << run.err;
    EXPECT_NE(run.err.find(dir.path().string()), std::string::npos) << row.name << ": " << run.err;
  }
}

TEST(Cli, TokenizeGoesThereAndBack) {
  const std::string text = "Once upon a time, \"caf\xc3\xa9\"";
  const Finished ids = RunQuantd({"tokenize", "--model", DemoModel(), "--text", text});
  ASSERT_EQ(ids.code, 0) << ids.err;
  const Finished back =
      RunQuantd({"tokenize", "--model", DemoModel(), "--decode", "--text", ids.out});
  EXPECT_EQ(back.out, text + "\n");
  const std::string line = nlohmann::json(text).dump() + "\n";
  const Finished lines =
      RunQuantd({"tokenize", "--model", DemoModel(), "--stdin-jsonl"}, line + line);
  EXPECT_EQ(lines.out, ids.out + ids.out) << lines.err;
  const Finished lines_back = RunQuantd(
      {"tokenize", "--model", DemoModel(), "--stdin-jsonl", "--decode"}, ids.out + ids.out);
  EXPECT_EQ(lines_back.out, line + line) << lines_back.err;
  const Finished bad =
      RunQuantd({"tokenize", "--model", DemoModel(), "--stdin-jsonl"}, line + "{}\n");
  EXPECT_EQ(bad.code, 1);
  EXPECT_NE(bad.err.find("line 2"), std::string::npos) << bad.err;
}

// name -> rows of f32 of a safetensors file.
std::map<std::string, std::vector<std::vector<float>>> ReadTensors(const std::string& path) {
  const std::string bytes = ReadFile(path);
  uint64_t header_size = 0;
  std::memcpy(&header_size, bytes.data(), 8);
  const auto header = nlohmann::json::parse(bytes.substr(8, header_size));
  std::map<std::string, std::vector<std::vector<float>>> out;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    const size_t rows = entry["shape"][0];
    const size_t cols = entry["shape"][1];
    size_t offset = 8 + header_size + entry["data_offsets"][0].get<size_t>();
    for (size_t r = 0; r < rows; ++r, offset += cols * sizeof(float)) {
      std::vector<float> row(cols);
      std::memcpy(row.data(), bytes.data() + offset, cols * sizeof(float));
      out[name].push_back(std::move(row));
    }
  }
  return out;
}

TEST(Cli, LogitsOfAPrefixAreTheFirstRows) {
  TempDir dir;
  nlohmann::json whole;
  nlohmann::json prefix;
  for (int i = 0; i < 150; ++i) whole.push_back(1 + (i * 37) % 4000);
  for (int i = 0; i < 70; ++i) prefix.push_back(whole[static_cast<size_t>(i)]);
  const nlohmann::json both = {{{"token_ids", whole}}, {{"token_ids", prefix}}};
  WriteFile(dir.path() / "both.json", both.dump());
  WriteFile(dir.path() / "one.json", nlohmann::json{{"token_ids", prefix}}.dump());
  for (const char* file : {"both", "one"}) {
    const Finished run =
        RunQuantd({"logits", "--model", DemoModel(), "--profile", "nf4-dq", "--tokens",
                   dir.path() / (std::string(file) + ".json"), "--out", dir.path() / file});
    ASSERT_EQ(run.code, 0) << run.err;
  }
  const auto both_tensors = ReadTensors(dir.path() / "both");
  const auto one_tensor = ReadTensors(dir.path() / "one");
  ASSERT_EQ(both_tensors.size(), 2u);
  ASSERT_EQ(one_tensor.size(), 1u);
  const auto& rows = both_tensors.at("logits.0");
  ASSERT_EQ(rows.size(), 150u);
  ASSERT_EQ(rows[0].size(), 4096u);
  const std::vector<std::vector<float>> first(rows.begin(), rows.begin() + 70);
  EXPECT_TRUE(both_tensors.at("logits.1") == first) << "the same bits, however long the rest is";
  EXPECT_TRUE(one_tensor.at("logits") == first);
  float largest = 0;
  for (const float value : rows[149]) largest = std::max(largest, std::abs(value));
  EXPECT_GT(largest, 0.5f);
  EXPECT_LT(largest, 1000.0f);
}

TEST(Cli, ProfilesAreListedAndPrintedWhole) {
  const Finished list = RunQuantd({"profiles"});
  EXPECT_EQ(list.code, 0);
  for (const char* name : {"nf4-dq", "int8", "bf16"})
    EXPECT_NE(list.out.find(name), std::string::npos);
  const Finished one = RunQuantd({"profiles", "nf4-dq"});
  EXPECT_NE(one.out.find("bnb_4bit_use_double_quant: true"), std::string::npos) << one.out;
}

TEST(Cli, VersionAndHelp) {
  EXPECT_EQ(RunQuantd({"version"}).out, std::string("quantd ") + QUANTD_VERSION + "\n");
  const Finished help = RunQuantd({"generate", "--help"});
  EXPECT_EQ(help.code, 0);
  EXPECT_NE(help.out.find("--max-tokens"), std::string::npos);
}

TEST(Cli, LogprobsAndStopStringsWorkInProcess) {
  const std::vector<std::string> common = {
      "generate",         "--model",       DemoModel(), "--profile",    "nf4-dq", "--prompt",
      "Once upon a time", "--temperature", "0",         "--max-tokens", "30"};
  const Finished plain = RunQuantd(common);
  ASSERT_EQ(plain.code, 0) << plain.err;
  const std::string word = plain.out.substr(plain.out.size() / 2, 5);
  std::vector<std::string> stopping = common;
  stopping.insert(stopping.end(), {"--stop", word, "--logprobs", "2"});
  const Finished stopped = RunQuantd(stopping);
  ASSERT_EQ(stopped.code, 0) << stopped.err;
  EXPECT_EQ(stopped.out, plain.out.substr(0, plain.out.find(word)) + "\n");
  EXPECT_GT(std::count(stopped.err.begin(), stopped.err.end(), '\n'), 1) << stopped.err;
}

TEST(Cli, ModelThatIsCutWhileItIsLoadedIsOneLineAndExitCodeOne) {
  int cut_while_reading = 0;
  for (int milliseconds = 0; milliseconds < 2000; milliseconds += 10) {
    const TempDir dir;
    fs::copy(DemoModel(), dir.path(), fs::copy_options::recursive);
    test::Process process({"generate", "--model", dir.path(), "--backend", "ref", "--profile",
                           "nf4-dq", "--prompt", "x", "--max-tokens", "1"});
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
    fs::resize_file(dir.path() / "model.safetensors", 1 << 20);
    const int code = process.Wait();
    if (code == 0) break;  // it was loaded already
    const std::string err = process.err();
    ASSERT_EQ(code, 1) << milliseconds << " ms: " << err;
    EXPECT_EQ(std::count(err.begin(), err.end(), '\n'), 1) << err;
    EXPECT_NE(err.find("model.safetensors: "), std::string::npos) << err;
    if (err.find("cannot be read any more") != std::string::npos) ++cut_while_reading;
  }
  EXPECT_GT(cut_while_reading, 0);
}

TEST(Cli, InspectSaysWhatAFolderHoldsAsTableAndAsJson) {
  const std::string model = QUANTD_TEST_DATA "/models/gptq4_asym_descact";
  const Finished json = RunQuantd({"inspect", model, "--json"});
  ASSERT_EQ(json.code, 0) << json.err;
  const auto report = nlohmann::json::parse(json.out, nullptr, false);
  ASSERT_TRUE(report.is_object()) << json.out;
  EXPECT_EQ(report["architecture"], "LlamaForCausalLM");
  EXPECT_EQ(report["groups"][1]["method"], "gptq");
  EXPECT_EQ(report["groups"][1]["format"], "uint4.group64.f16.zero_u8.reordered");
  EXPECT_EQ(report["groups"][1]["modules"], 7);
  EXPECT_EQ(report["skipped"], nlohmann::json::array({"lm_head"}));
  EXPECT_EQ(report["refusal"], "");
  EXPECT_EQ(report["trainable_with_peft"], true);
  const Finished table = RunQuantd({"inspect", model});
  ASSERT_EQ(table.code, 0) << table.err;
  EXPECT_NE(table.out.find("gptq 4-bit, groups of 64"), std::string::npos) << table.out;
  EXPECT_NE(table.out.find("suspicious    nothing"), std::string::npos) << table.out;
  const Finished none = RunQuantd({"inspect", model + "-not"});
  EXPECT_EQ(none.code, 1);
  EXPECT_EQ(std::count(none.err.begin(), none.err.end(), '\n'), 1) << none.err;
}

}  // namespace
}  // namespace quantd
