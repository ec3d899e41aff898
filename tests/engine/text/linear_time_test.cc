// Encoding and decoding a megabyte of the worst texts: well under a second each, so a quadratic
// step anywhere makes this test run for minutes. Times are recorded, not asserted: machines differ.
#include <gtest/gtest.h>

#include <ctime>
#include <nlohmann/json.hpp>

#include "engine/text/stream_decoder.h"
#include "kernels/status.h"
#include "tests/engine/text/tiny_tokenizer.h"

namespace quantd::test {
namespace {

using Json = nlohmann::json;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr size_t kSize = 200'000;
#else
constexpr size_t kSize = 1'000'000;
#endif

// CPU time of this thread: other programs on the machine do not count.
double Seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

std::string Repeated(const std::string& part, size_t size) {
  std::string text;
  while (text.size() < size) text += part;
  return text;
}

// The slowest of one test, in its XML report.
class Slowest {
 public:
  explicit Slowest(std::string name) : name_(std::move(name)) {}
  ~Slowest() { testing::Test::RecordProperty(name_, fmt::format("{:.3f} s: {}", seconds_, text_)); }
  void Note(double seconds, const std::string& text) {
    if (seconds < seconds_) return;
    seconds_ = seconds;
    text_ = text;
  }

 private:
  std::string name_;
  double seconds_ = 0;
  std::string text_;
};

class LinearTime : public testing::TestWithParam<std::string> {};

TEST_P(LinearTime, MegabyteOfOneThing) {
  const auto tokenizer = MustLoadFolder(std::string(QUANTD_SOURCE_DIR) + GetParam());
  std::vector<std::string> texts;
  for (const char* part :
       {"a", " ", "7", "😀", "\n", "\r\n", " \n", "!", "'", "'s", "aB", "\u00a0", "漢",
        "\u0315\u0300", "\u0f73", "\u1100\u1161\u11a8", "<|", "<|endoftext|>"}) {
    texts.push_back(Repeated(part, kSize));
  }
  texts.push_back(Repeated(" ", kSize) + "a");
  texts.push_back(Repeated("\n", kSize / 2) + Repeated(" ", kSize / 2) + "a");
  texts.push_back(Repeated("\u0315", kSize / 2) + Repeated("\u0300", kSize / 2));
  Slowest encoding("slowest_encoding"), streaming("slowest_streaming");
  for (const std::string& text : texts) {
    const std::string name = text.substr(0, 8) + "..." + text.substr(text.size() - 4);
    const double start = Seconds();
    const std::vector<int32_t> ids = Ids(*tokenizer, text);
    const double encoded = Seconds();
    encoding.Note(encoded - start, name);
    StreamDecoder decoder(*tokenizer, {"zzz", "\n\n\nz"}, false);
    std::string back;
    for (const int32_t id : ids) decoder.Push(id, &back);
    decoder.Finish(&back);
    streaming.Note(Seconds() - encoded, name);
    EXPECT_EQ(back == text, tokenizer->Decode(ids, false) == text) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Tokenizers, LinearTime,
                         testing::Values("/tests/data/tokenizers/llama3_bytelevel",
                                         "/tests/data/tokenizers/qwen2_nfc",
                                         "/tests/data/tokenizers/llama2_bytefallback",
                                         "/tests/data/sentencepiece/user_defined", "/demo/model"),
                         [](const auto& param_info) { return std::to_string(param_info.index); });

// Added tokens whose white space could be looked at again and again.
TEST(LinearTime, StrippingAddedTokens) {
  Json json = Json::parse(TinyTokenizerText());
  json["added_tokens"] = {
      {{"id", 300}, {"content", "\n"}, {"rstrip", true}, {"lstrip", true}},
      {{"id", 301}, {"content", "<x>"}, {"rstrip", true}, {"lstrip", true}},
      {{"id", 302}, {"content", "\t"}, {"rstrip", true}},
      {{"id", 98}, {"content", "b"}, {"single_word", true}},
  };
  const auto tokenizer = MustLoad(json);
  Slowest encoding("slowest_encoding");
  for (const char* part : {"\n", "<x>", "\t", " ", "b", "<x> "}) {
    const std::string text = Repeated(part, kSize);
    const double start = Seconds();
    Ids(*tokenizer, text);
    encoding.Note(Seconds() - start, part);
  }
}

}  // namespace
}  // namespace quantd::test
