// TestProcess and the listener on its other side. See test_process.h.
#include "tests/bench/cuda/test_process.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "tests/bench/cuda/launch_names.h"

namespace quantd::gpu {
namespace {

using nlohmann::json;

constexpr size_t kKeptOutput = 3000;  // bytes
constexpr std::string_view kBegin = "@begin ";
constexpr std::string_view kEnd = "@end ";
constexpr int kTimeout = 124;  // timeout(1)'s exit code

std::string TestsCommand(const std::string& backend, int seconds) {
  const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  return fmt::format("timeout -k 5 {} '{}' tests --backend {}", seconds, self, backend);
}

/// Calls `on_line` for every line `command` prints. Returns its exit code.
int ReadLines(const std::string& command, const std::function<void(std::string)>& on_line) {
  FILE* pipe = popen((command + " 2>&1").c_str(), "re");
  if (pipe == nullptr) return 127;
  std::string line;
  std::array<char, 4096> chunk;
  while (fgets(chunk.data(), static_cast<int>(chunk.size()), pipe) != nullptr) {
    line += chunk.data();
    if (line.empty() || line.back() != '\n') continue;
    line.pop_back();
    on_line(std::move(line));
    line.clear();
  }
  if (!line.empty()) on_line(std::move(line));
  const int status = pclose(pipe);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

class ReportingListener : public ::testing::EmptyTestEventListener {
 public:
  void OnTestStart(const ::testing::TestInfo& test) override {
    fmt::print("{}{}\n", kBegin, NameOf(test));
    std::fflush(stdout);
    LaunchedSince();
  }

  void OnTestEnd(const ::testing::TestInfo& test) override {
    const ::testing::TestResult& result = *test.result();
    json line = {{"test", NameOf(test)},
                 {"seconds", static_cast<double>(result.elapsed_time()) * 1e-3},
                 {"kernels", LaunchedSince()}};
    if (result.Skipped()) line["skipped"] = true;
    for (int i = 0; i < result.test_property_count(); ++i) {
      const ::testing::TestProperty& property = result.GetTestProperty(i);
      line["properties"][property.key()] = property.value();
    }
    if (result.Failed()) {
      std::string error;
      for (int i = 0; i < result.total_part_count() && error.size() < kKeptOutput; ++i) {
        const ::testing::TestPartResult& part = result.GetTestPartResult(i);
        if (part.failed()) error += std::string(part.message()) + "\n";
      }
      line["error"] = error.substr(0, kKeptOutput);
    }
    // What a message holds may be no UTF-8.
    fmt::print("{}{}\n", kEnd, line.dump(-1, ' ', false, json::error_handler_t::replace));
    std::fflush(stdout);
    if (result.Failed()) std::_Exit(1);
  }

 private:
  static std::string NameOf(const ::testing::TestInfo& test) {
    return std::string(test.test_suite_name()) + "." + test.name();
  }
};

}  // namespace

Progress RunTestProcess(const std::string& backend, const std::vector<std::string>& tests,
                        int seconds,
                        const std::function<void(const std::string&, json)>& on_result) {
  Progress progress;
  const std::string command = fmt::format("{} --report --gtest_brief=1 --gtest_filter='{}'",
                                          TestsCommand(backend, seconds), fmt::join(tests, ":"));
  progress.exit_code = ReadLines(command, [&](const std::string& line) {
    if (line.rfind(kBegin, 0) == 0) {
      progress.unfinished = line.substr(kBegin.size());
      progress.output.clear();
      return;
    }
    if (line.rfind(kEnd, 0) == 0) {
      json result = json::parse(line.substr(kEnd.size()), nullptr, /*allow_exceptions=*/false);
      if (result.is_object() && result.value("test", "") == progress.unfinished) {
        result.erase("test");
        on_result(progress.unfinished, std::move(result));
        progress.unfinished.clear();
        return;
      }
    }
    progress.output += line + "\n";
    if (progress.output.size() > 2 * kKeptOutput) {
      progress.output.erase(0, progress.output.size() - kKeptOutput);
    }
  });
  progress.timed_out = progress.exit_code == kTimeout || progress.exit_code == 128 + SIGKILL;
  return progress;
}

std::vector<std::string> ListTests(const std::string& backend) {
  std::vector<std::string> names;
  std::string suite;
  constexpr int kSeconds = 60;
  const int code =
      ReadLines(TestsCommand(backend, kSeconds) + " --gtest_list_tests", [&](const std::string& l) {
        const std::string line = l.substr(0, l.find("  #"));
        if (!line.empty() && line[0] != ' ' && line.back() == '.') {
          suite = line;
        } else if (line.rfind("  ", 0) == 0 && !suite.empty()) {
          names.push_back(suite + line.substr(2));
        }
      });
  return code == 0 ? names : std::vector<std::string>();
}

void AddReportingListener() {
  ::testing::UnitTest::GetInstance()->listeners().Append(new ReportingListener);
}

}  // namespace quantd::gpu
