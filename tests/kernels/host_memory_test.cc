#include "kernels/host_memory.h"

#include <gtest/gtest.h>

#include <fstream>

namespace quantd {
namespace {

class HostMemoryTest : public ::testing::Test {
 protected:
  HostMemoryTest() {
    std::string name = (std::filesystem::temp_directory_path() / "quantd_memory_XXXXXX").string();
    EXPECT_NE(::mkdtemp(name.data()), nullptr);
    dir_ = name;
    Write("proc/meminfo", "MemTotal:       1000 kB\nMemFree:  10 kB\nMemAvailable:    600 kB\n");
  }
  ~HostMemoryTest() override { std::filesystem::remove_all(dir_); }

  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories((dir_ / path).parent_path());
    std::ofstream(dir_ / path) << text;
  }
  HostMemory Read() const { return ReadHostMemory(dir_ / "proc", dir_ / "cgroup"); }

  std::filesystem::path dir_;
};

TEST_F(HostMemoryTest, WithoutALimitItIsTheMachines) {
  EXPECT_EQ(Read().total, 1000 * 1024);
  EXPECT_EQ(Read().available, 600 * 1024);
  Write("cgroup/memory.stat", "inactive_file 5\n");
  Write("cgroup/memory.max", "max\n");
  EXPECT_EQ(Read().total, 1000 * 1024);
  EXPECT_EQ(Read().available, 600 * 1024);
}

TEST_F(HostMemoryTest, AContainersLimitCountsLessWhatItUsesButForItsPageCache) {
  Write("cgroup/memory.stat", "anon 7\ninactive_file 10000\n");
  Write("cgroup/memory.max", "400000\n");
  Write("cgroup/memory.current", "110000\n");
  EXPECT_EQ(Read().total, 400000);
  EXPECT_EQ(Read().available, 300000);
  Write("cgroup/memory.current", "900000\n");  // the limit was lowered below what is used
  EXPECT_EQ(Read().available, 0);
}

TEST_F(HostMemoryTest, VersionOneHasOtherNames) {
  Write("cgroup/memory/memory.stat", "inactive_file 3\ntotal_inactive_file 20000\n");
  Write("cgroup/memory/memory.limit_in_bytes", "500000\n");
  Write("cgroup/memory/memory.usage_in_bytes", "220000\n");
  EXPECT_EQ(Read().total, 500000);
  EXPECT_EQ(Read().available, 300000);
  Write("cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(Read().total, 1000 * 1024);
}

TEST_F(HostMemoryTest, TheMachineHasSome) {
  const HostMemory memory = ReadHostMemory();
  EXPECT_GT(memory.available, 0);
  EXPECT_GE(memory.total, memory.available);
}

}  // namespace
}  // namespace quantd
