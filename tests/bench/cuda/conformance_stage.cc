// conformance: every test of this program (ops x formats x shapes against ref, golden fixtures,
// properties of the engine), each in a process of its own: a kernel that breaks the device, or
// hangs, is one failed item and not the end of the stage.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>

#include "kernels/cuda/weight_view.h"
#include "kernels/status.h"
#include "tests/bench/cuda/launch_names.h"
#include "tests/bench/cuda/stages.h"
#include "tests/engine/models/model_runner.h"
#include "tests/kernels/conformance.h"

namespace quantd::gpu {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr int kSecondsPerTest = 240;
constexpr size_t kKeptOutput = 3000;  // bytes of a failed test's output
// What --quick runs: a few of each kind, seconds on the emulated device.
constexpr std::string_view kQuick[] = {"OpConformance.RmsNorm/",
                                       "OpConformance.GatherCopiesRows/",
                                       "OpConformance.GatedActivation/",
                                       "LinearConformance.WorksWithoutBiasAndWithoutRows/",
                                       "GoldenTest.LogitsAreAsCloseToFloat32AsTheLibrarysOwn/"
                                       "bnb_nf4_dq_cuda",
                                       "EngineOnDevice."};

struct Ran {
  int exit_code = 0;
  std::string output;  // stdout and stderr
};

Ran RunProgram(const std::string& command) {
  Ran ran;
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return {127, "could not start a shell"};
  std::array<char, 4096> chunk;
  for (size_t n; (n = fread(chunk.data(), 1, chunk.size(), pipe)) > 0;)
    ran.output.append(chunk.data(), n);
  const int status = pclose(pipe);
  ran.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return ran;
}

std::string TestsCommand(const std::string& backend) {
  const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  return fmt::format("timeout -k 5 {} '{}' tests --backend {}", kSecondsPerTest, self, backend);
}

/// Full names out of --gtest_list_tests.
std::vector<std::string> ParseTestList(const std::string& listing) {
  std::vector<std::string> names;
  std::string suite;
  for (size_t begin = 0; begin < listing.size();) {
    const size_t end = std::min(listing.find('\n', begin), listing.size());
    const std::string line = listing.substr(begin, end - begin);
    begin = end + 1;
    const std::string name = line.substr(0, line.find("  #"));
    if (!name.empty() && name[0] != ' ' && name.back() == '.') {
      suite = name;
    } else if (name.rfind("  ", 0) == 0 && !suite.empty()) {
      names.push_back(suite + name.substr(2));
    }
  }
  return names;
}

bool IsQuick(const std::string& test) {
  return std::any_of(std::begin(kQuick), std::end(kQuick),
                     [&](std::string_view part) { return test.find(part) != std::string::npos; });
}

absl::StatusOr<json> RunOneTest(const std::string& backend, const std::string& test) {
  const auto start = Clock::now();
  const Ran ran = RunProgram(TestsCommand(backend) + " --gtest_filter='" + test + "'");
  json result = {{"seconds", std::chrono::duration<double>(Clock::now() - start).count()}};
  const bool ran_one = ran.output.find("[  PASSED  ] 1 test") != std::string::npos;
  const bool skipped = ran.output.find("[  SKIPPED ]") != std::string::npos;
  if (ran.exit_code == 0 && (ran_one || skipped)) {
    if (skipped) result["skipped"] = true;
    const std::string mark = "kernels launched: ";
    if (const size_t at = ran.output.rfind(mark); at != std::string::npos) {
      const size_t end = ran.output.find('\n', at);
      result["kernels"] = json::parse(ran.output.substr(at + mark.size(), end - at - mark.size()),
                                      nullptr, /*allow_exceptions=*/false);
    }
    return result;
  }
  const size_t from = ran.output.size() > kKeptOutput ? ran.output.size() - kKeptOutput : 0;
  result["error"] = fmt::format("{}\n{}",
                                ran.exit_code == 124 ? fmt::format("over {} s", kSecondsPerTest)
                                                     : fmt::format("exit code {}", ran.exit_code),
                                ran.output.substr(from));
  return result;
}

}  // namespace

int RunTests(const std::string& backend, int argc, char** argv) {
  const bool device = backend == "cuda" || backend == "cuda-emulated";
  std::vector<testing::BackendUnderTest> backends;
  for (const Determinism determinism : {Determinism::kDefault, Determinism::kBatchInvariant}) {
    const bool invariant = determinism == Determinism::kBatchInvariant;
    if (invariant && !device) continue;
    testing::BackendUnderTest b;
    b.name = backend + (invariant ? "_invariant" : "");
    std::replace(b.name.begin(), b.name.end(), '-', '_');  // tests' names have no '-'
    b.create = [backend, determinism] {  // later: listing the tests takes no device
      auto made = MakeBackend(backend, determinism);
      QUANTD_CHECK(made.ok(), "{}", Message(made.status()));
      return *std::move(made);
    };
    if (device) {
      b.batch_invariant = invariant;
      b.rounds_to_16_bit = true;
      b.tile_columns = kTileCols;
    }
    backends.push_back(std::move(b));
  }
  testing_support::TheDeviceUnderTest() = {backends[0].name, [backend](Determinism determinism) {
                                             auto made = MakeBackend(backend, determinism);
                                             QUANTD_CHECK(made.ok(), "{}", Message(made.status()));
                                             return *std::move(made);
                                           }};
  testing::SetBackendsUnderTest(std::move(backends));
  ::testing::InitGoogleTest(&argc, argv);
  const int code = RUN_ALL_TESTS();
  fmt::print("kernels launched: {}\n", json(LaunchedSince()).dump());
  return code;
}

absl::StatusOr<Outcome> RunConformance(const StageOptions& options) {
  std::string device;
  {
    ASSIGN_OR_RETURN(const auto backend, MakeBackend(options.backend));
    device = backend->info().description;
  }
  ASSIGN_OR_RETURN(ResultFile file, ResultFile::Open(options.out, device, "conformance",
                                                     options.quick, options.fresh));
  const Ran listing = RunProgram(TestsCommand(options.backend) + " --gtest_list_tests");
  if (listing.exit_code != 0)
    return Internal("the list of tests: exit code {}\n{}", listing.exit_code, listing.output);
  std::vector<Item> items;
  for (const std::string& test : ParseTestList(listing.output)) {
    if (options.quick && !IsQuick(test)) continue;
    items.push_back({test, [&options, test] { return RunOneTest(options.backend, test); }});
  }
  if (items.empty()) return Internal("there is no test to run");
  return RunItems(options, file, items);
}

}  // namespace quantd::gpu
