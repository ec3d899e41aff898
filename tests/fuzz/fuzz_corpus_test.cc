// Every stored input of every fuzz target, and some hundred damaged copies of each: what is left of
// fuzzing where there is no libFuzzer, and what keeps its findings mended.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <random>

#include "tests/fuzz/fuzz_target.h"

namespace quantd::fuzz {
namespace {

using Input = std::vector<uint8_t>;

std::vector<std::filesystem::path> Seeds(const std::string& target) {
  std::vector<std::filesystem::path> files;
  for (const auto& file :
       std::filesystem::directory_iterator(std::filesystem::path(QUANTD_FUZZ_SEEDS) / target)) {
    files.push_back(file.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

Input Read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

Input Damaged(Input input, std::mt19937& random) {
  const auto place = [&] { return static_cast<std::ptrdiff_t>(random() % (input.size() + 1)); };
  for (int edits = 1 + static_cast<int>(random() % 3); edits > 0; --edits) {
    switch (random() % 4) {
      case 0:  // cut off
        input.resize(static_cast<size_t>(place()));
        break;
      case 1:  // one byte changed
        if (!input.empty()) input[random() % input.size()] = static_cast<uint8_t>(random());
        break;
      case 2:  // one inserted
        input.insert(input.begin() + place(), static_cast<uint8_t>(random()));
        break;
      default: {  // a piece said twice
        std::ptrdiff_t first = place(), last = place();
        if (first > last) std::swap(first, last);
        const Input piece(input.begin() + first, input.begin() + std::min(last, first + 64));
        input.insert(input.begin() + place(), piece.begin(), piece.end());
      }
    }
  }
  return input;
}

class FuzzCorpus : public testing::TestWithParam<Target> {};

TEST_P(FuzzCorpus, EveryInputIsTakenOrRefused) {
  const auto seeds = Seeds(GetParam().name);
  ASSERT_FALSE(seeds.empty());
  std::mt19937 random(1);
  const size_t copies = 300 / seeds.size() + 1;
  for (const auto& seed : seeds) {
    SCOPED_TRACE(seed.string());
    const Input input = Read(seed);
    GetParam().run(input);
    for (size_t i = 0; i < copies; ++i) GetParam().run(Damaged(input, random));
  }
}

INSTANTIATE_TEST_SUITE_P(, FuzzCorpus, testing::ValuesIn(Targets()),
                         [](const auto& target) { return std::string(target.param.name); });

}  // namespace
}  // namespace quantd::fuzz
