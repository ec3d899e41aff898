// A mapped file that is cut by somebody else ends the process with one line, and only that does.
#include "engine/weights/broken_mapping.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>

#include "engine/weights/files.h"
#include "tests/engine/models/tiny_model.h"

namespace quantd {
namespace {

using testing_support::TempDir;
using testing_support::WriteFile;

// The sum of all bytes, so that every page is read.
int Sum(const MappedFile& file) {
  int sum = 0;
  for (const std::byte b : file.bytes()) sum += static_cast<int>(b);
  return sum;
}

TEST(BrokenMapping, CutFileEndsTheProcessNamingIt) {
  TempDir dir;
  const auto path = dir.path() / "model.safetensors";
  WriteFile(path, std::string(1 << 20, 'x'));
  EXPECT_EXIT(
      {
        ExitOnBrokenMapping();
        auto opened = MappedFile::Open(path);
        const MappedFile file = std::move(*opened);  // a mapping that moves stays known
        std::filesystem::resize_file(path, 4096);
        exit(Sum(file) == 0 ? 2 : 3);
      },
      testing::ExitedWithCode(1), "quantd: .*model.safetensors: cannot be read any more");
}

TEST(BrokenMapping, EveryOtherBusErrorKillsAsBefore) {
  TempDir dir;
  const auto path = dir.path() / "file";
  WriteFile(path, std::string(100, 'x'));
  EXPECT_EXIT(
      {
        ExitOnBrokenMapping();
        const auto file = MappedFile::Open(path);
        raise(SIGBUS);
      },
      testing::KilledBySignal(SIGBUS), "");
  EXPECT_EXIT(
      {
        ExitOnBrokenMapping();
        auto file = MappedFile::Open(path);
        const std::byte* data = file->bytes().data();
        RemoveMapping(data);
        std::filesystem::resize_file(path, 0);
        exit(*reinterpret_cast<const volatile char*>(data) == 0 ? 2 : 3);
      },
      testing::KilledBySignal(SIGBUS), "");
}

TEST(BrokenMapping, ManyMappingsAndLongPathsAreHarmless) {
  static char pages[3000];
  for (char& page : pages) AddMapping(&page, 1, std::string(5000, 'p'));
  for (char& page : pages) RemoveMapping(&page);
}

}  // namespace
}  // namespace quantd
