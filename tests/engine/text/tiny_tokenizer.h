// Helpers of the tokenizer tests: a small tokenizer.json to change, folders to load from, fixtures.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/tokenizer.h"

namespace quantd::test {

/// The character that the byte-level alphabet has for `byte`, in UTF-8.
std::string ByteCharacter(int byte);

/// A tokenizer.json with 256 byte tokens (id = byte) and ab = 256, abc = 257, " a" = 258, in that
/// order of merges; GPT-2's pre-tokenizer, no added tokens.
std::string TinyTokenizerText();

/// A folder of its own for the running test, removed at the end of the scope.
class TestFolder {
 public:
  TestFolder();
  ~TestFolder();
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;

  void Write(const std::string& name, const std::string& text) const;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// Loads a folder with these two files; without the second if it is empty.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadText(const std::string& tokenizer,
                                                    const std::string& config = "");

/// Loads what must load; ends the program with the message if it does not.
std::unique_ptr<Tokenizer> MustLoadText(const std::string& tokenizer,
                                        const std::string& config = "");
std::unique_ptr<Tokenizer> MustLoadFolder(const std::string& path);
template <typename Json>
std::unique_ptr<Tokenizer> MustLoad(const Json& tokenizer, const std::string& config = "") {
  return MustLoadText(tokenizer.dump(), config);
}

std::vector<int32_t> Ids(const Tokenizer& tokenizer, std::string_view text,
                         bool add_special_tokens = false);

std::string ReadText(const std::filesystem::path& path);

}  // namespace quantd::test
