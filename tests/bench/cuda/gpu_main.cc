// quantd_gpu: proves and measures the cuda backend on the GPU at hand. Engine, kernels, conformance
// tests and benchmarks in one program that needs no server, no tokenizer and no library beside
// CUDA's driver, so that it can be carried to a machine that has nothing but a GPU. `./dev gpu`
// runs it.
#include <fmt/format.h>

#include <string_view>

#include "kernels/status.h"
#include "tests/bench/cuda/launch_names.h"
#include "tests/bench/cuda/result_file.h"
#include "tests/bench/cuda/stages.h"

namespace quantd::gpu {
namespace {

constexpr std::string_view kUsage =
    "usage: quantd_gpu STAGE [--backend NAME] [--out FOLDER] [--models FOLDER] [--only TEXT]\n"
    "                  [--seconds N] [--jobs N] [--quick] [--fresh]\n"
    "  facts         what the device is, its copy bandwidth and tensor-core rate\n"
    "  conformance   every op, format and shape against ref; golden fixtures; the engine\n"
    "  bench         each op at the shapes of Llama-3-8B\n"
    "  e2e           Llama-3-8B's shape with random weights through the engine\n"
    "  tests         GoogleTest in this process: --backend NAME [--gtest_...]\n"
    "  build         which build this is, as result files name it\n"
    "  kernels       the kernels this program can launch under emulation, one a line\n"
    "  --backend     cuda (the default), cuda-emulated, cpu, ref\n"
    "  --out         folder of the result files, tests/bench/results by default\n"
    "  --models      where e2e writes 16 GB of random weights, build/bench-models by default\n"
    "  --only        items whose name contains this text\n"
    "  --seconds     begin no item after that many, 450 by default\n"
    "  --jobs        processes of conformance at once; by default as the machine's threads allow\n"
    "  --quick       tiny shapes, a selection of tests: for the emulated device\n"
    "  --fresh       forget this stage's earlier results\n"
    "exit code: 0 passed, 1 failed or no GPU, 2 wrong usage, 3 out of time (run it again to go "
    "on)\n";

absl::StatusOr<StageOptions> ParseOptions(int argc, char** argv) {
  StageOptions options;
  for (int i = 2; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--quick") {
      options.quick = true;
    } else if (flag == "--fresh") {
      options.fresh = true;
    } else if (i + 1 == argc) {
      return InvalidArgument("{}: unknown, or its value is missing", flag);
    } else if (const std::string value = argv[++i]; flag == "--backend") {
      options.backend = value;
    } else if (flag == "--out") {
      options.out = value;
    } else if (flag == "--models") {
      options.models = value;
    } else if (flag == "--only") {
      options.only = value;
    } else if (flag == "--seconds" || flag == "--jobs") {
      if (value.empty() || value.size() > 6 ||
          value.find_first_not_of("0123456789") != std::string::npos) {
        return InvalidArgument("{}: \"{}\" is not a number", flag, value);
      }
      (flag == "--jobs" ? options.jobs : options.seconds) = std::stoi(value);
    } else {
      return InvalidArgument("{}: no such flag", flag);
    }
  }
  return options;
}

int Main(int argc, char** argv) {
  const std::string stage = argc > 1 ? argv[1] : "";
  if (stage == "tests") {
    if (argc < 4 || std::string_view(argv[2]) != "--backend") {
      fmt::print(stderr, "usage: quantd_gpu tests --backend NAME [--report] [--gtest_...]\n");
      return 2;
    }
    const bool report = argc > 4 && std::string_view(argv[4]) == "--report";
    const int skipped = report ? 4 : 3;
    return RunTests(argv[3], report, argc - skipped, argv + skipped);
  }
  if (stage == "build") {
    fmt::print("{}\n", BuildOfThisProgram());
    return 0;
  }
  if (stage == "kernels") {
    for (const std::string& name : EmulatedKernels()) fmt::print("{}\n", name);
    return 0;
  }
  struct Stage {
    std::string_view name;
    absl::StatusOr<Outcome> (*run)(const StageOptions&);
  };
  constexpr Stage kStages[] = {
      {"facts", RunFacts}, {"conformance", RunConformance}, {"bench", RunBench}, {"e2e", RunE2e}};
  for (const Stage& s : kStages) {
    if (s.name != stage) continue;
    const auto options = ParseOptions(argc, argv);
    if (!options.ok()) {
      fmt::print(stderr, "quantd_gpu {}: {}\n{}", stage, Message(options.status()), kUsage);
      return 2;
    }
    const auto outcome = s.run(*options);
    if (!outcome.ok()) {
      fmt::print(stderr, "quantd_gpu {}: {}\n", stage, Message(outcome.status()));
      return absl::IsInvalidArgument(outcome.status()) ? 2 : 1;
    }
    return static_cast<int>(*outcome);
  }
  fmt::print(stderr, "{}", kUsage);
  return 2;
}

}  // namespace
}  // namespace quantd::gpu

int main(int argc, char** argv) { return quantd::gpu::Main(argc, argv); }
