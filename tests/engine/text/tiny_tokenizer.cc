// Helpers of the tokenizer tests; see tiny_tokenizer.h.
#include "tests/engine/text/tiny_tokenizer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "kernels/status.h"

namespace quantd::test {
namespace {

using Json = nlohmann::json;

std::unique_ptr<Tokenizer> OrAbort(absl::StatusOr<std::unique_ptr<Tokenizer>> loaded) {
  if (!loaded.ok()) {
    ADD_FAILURE() << Message(loaded.status());
    std::abort();
  }
  return std::move(loaded).value();
}

}  // namespace

std::string ByteCharacter(int byte) {
  const auto itself = [](int b) {
    return (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
  };
  int code_point = byte;
  if (!itself(byte)) {
    code_point = 0x100;
    for (int b = 0; b < byte; ++b) code_point += !itself(b);
  }
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xC0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3F))};
}

std::string TinyTokenizerText() {
  Json vocab = Json::object();
  for (int byte = 0; byte < 256; ++byte) vocab[ByteCharacter(byte)] = byte;
  const std::string space = ByteCharacter(' ');
  vocab["ab"] = 256;
  vocab["abc"] = 257;
  vocab[space + "a"] = 258;
  const Json json = {
      {"version", "1.0"},
      {"added_tokens", Json::array()},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model",
       {{"type", "BPE"},
        {"vocab", vocab},
        {"merges", {"a b", Json::array({"ab", "c"}), space + " a"}}}}};
  return json.dump();
}

TestFolder::TestFolder() {
  static int count = 0;
  path_ = std::filesystem::path(testing::TempDir()) /
          fmt::format("quantd_text_{}_{}", getpid(), ++count);
  std::filesystem::create_directories(path_);
}

TestFolder::~TestFolder() { std::filesystem::remove_all(path_); }

void TestFolder::Write(const std::string& name, const std::string& text) const {
  std::ofstream(path_ / name, std::ios::binary) << text;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadText(const std::string& tokenizer,
                                                    const std::string& config) {
  const TestFolder folder;
  folder.Write("tokenizer.json", tokenizer);
  if (!config.empty()) folder.Write("tokenizer_config.json", config);
  return Tokenizer::Load(folder.path());
}

std::unique_ptr<Tokenizer> MustLoadText(const std::string& tokenizer, const std::string& config) {
  return OrAbort(LoadText(tokenizer, config));
}

std::unique_ptr<Tokenizer> MustLoadFolder(const std::string& path) {
  return OrAbort(Tokenizer::Load(path));
}

std::vector<int32_t> Ids(const Tokenizer& tokenizer, std::string_view text,
                         bool add_special_tokens) {
  const auto ids = tokenizer.Encode(text, add_special_tokens);
  EXPECT_TRUE(ids.ok()) << Message(ids.status());
  return ids.ok() ? *ids : std::vector<int32_t>();
}

std::string ReadText(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.is_open()) << path;
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace quantd::test
