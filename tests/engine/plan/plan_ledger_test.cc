// The plan against the ledger: what PlanMemory says from headers is what a backend has booked once
// the largest steps have run, for every profile and every quantized fixture.
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>

#include "engine/engine.h"
#include "engine/generate.h"
#include "engine/load.h"
#include "engine/plan/device_check.h"
#include "engine/plan/model_plan.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/ref/ref_backend.h"

namespace quantd {
namespace {

constexpr int32_t kRows = 72;  // of a step: above what cuda multiplies without its library
constexpr int32_t kSeqs = 3;
constexpr int32_t kBlocks = 40;

struct LedgerCase {
  std::string backend;
  std::string folder;
  std::string profile;  // empty: the checkpoint as it is
};

void PrintTo(const LedgerCase& c, std::ostream* out) {
  *out << c.folder << " as " << c.profile << " on " << c.backend;
}

std::string NameOf(const ::testing::TestParamInfo<LedgerCase>& info) {
  const LedgerCase& c = info.param;
  std::string name = c.backend + "_" + std::filesystem::path(c.folder).filename().string() +
                     (c.profile.empty() ? "" : "_" + c.profile);
  for (char& ch : name) {
    if (std::isalnum(static_cast<unsigned char>(ch)) == 0) ch = '_';
  }
  return name;
}

std::vector<LedgerCase> Cases() {
  const std::string models = QUANTD_TEST_DATA "/models/";
  std::vector<std::string> backends = {"ref", "cpu"};
#ifdef QUANTD_HAS_CUDA_EMULATION
  backends.push_back("cuda_emulated");
#endif
  std::vector<LedgerCase> cases;
  for (const std::string& backend : backends) {
    for (const std::string& profile : BuiltInProfiles()) {
      // The tiny model's matrices are padded the more; the others' loops take too long for the
      // demo.
      cases.push_back({backend, models + "llama_bf16", profile});
      if (backend == "cpu") cases.push_back({backend, QUANTD_SOURCE_DIR "/demo/model", profile});
    }
    for (const auto& entry : std::filesystem::directory_iterator(models)) {
      if (std::filesystem::exists(entry.path() / "config.json")) {
        cases.push_back({backend, entry.path().string(), ""});
      }
    }
  }
  return cases;
}

std::unique_ptr<Backend> Create(const std::string& name) {
  absl::StatusOr<std::unique_ptr<Backend>> backend = CreateRefBackend();
  if (name == "cpu") backend = CreateCpuBackend({.num_threads = 2, .isa = std::nullopt});
#ifdef QUANTD_HAS_CUDA_EMULATION
  if (name == "cuda_emulated") backend = cuda_emulated::CreateBackend();
#endif
  EXPECT_TRUE(backend.ok()) << backend.status();
  return *std::move(backend);
}

PlanDevice DeviceOf(const Backend& backend) {
  PlanDevice device;
  device.backend = backend.name() == "ref"   ? PlanBackend::kRef
                   : backend.name() == "cpu" ? PlanBackend::kCpu
                                             : PlanBackend::kCuda;
  device.threads = 2;
  device.isa = backend.info().isa;
  device.slab_bytes = int64_t{64} << 10;  // the emulated backend's
  return device;
}

class PlanLedger : public ::testing::TestWithParam<LedgerCase> {};

TEST_P(PlanLedger, PlanIsWhatIsBooked) {
  const LedgerCase& c = GetParam();
  const std::unique_ptr<Backend> backend = Create(c.backend);
  LoadOptions load;
  load.model_dir = c.folder;
  load.profile_given = !c.profile.empty();
  if (load.profile_given) load.profile = LoadProfile(c.profile).value();
  load.max_rows = kRows;
  load.max_logit_rows = kSeqs + kExtraLogitRows;
  load.max_positions = 160;

  // The plan, from headers.
  const ModelSource source = OpenModelSource(c.folder).value();
  const auto planned = PlanLoad(source, load.profile, load.profile_given);
  auto loaded = LoadModel(*backend, load);
  ASSERT_EQ(planned.ok(), loaded.ok()) << planned.status() << " " << loaded.status();
  if (!loaded.ok()) GTEST_SKIP() << "the profile does not suit the model: " << loaded.status();
  const PlanLimits limits = {.max_num_seqs = kSeqs,
                             .max_num_batched_tokens = kRows,
                             .max_logit_rows = kSeqs + kExtraLogitRows,
                             .max_model_len = 160};
  const PlanDevice device = DeviceOf(*backend);
  EXPECT_TRUE(CheckDevice(*planned, device).ok()) << CheckDevice(*planned, device);
  const MemoryPlan plan =
      PlanMemory(source, *planned, limits, device).WithKvTokens(kBlocks * 16, 16);

  const QuantizationReport report = loaded->report;
  EXPECT_EQ(report.parameters, plan.parameters);
  if (c.backend == "cuda_emulated") {
    // The account's peak has the activations, too, which come after the weights.
    const int64_t after = plan.weights() + plan.of(MemoryComponent::kActivations);
    EXPECT_NEAR(static_cast<double>(backend->memory().Peak()),
                static_cast<double>(std::max(plan.load_peak_device, after)),
                0.01 * static_cast<double>(after));
  } else {
    EXPECT_NEAR(static_cast<double>(report.peak_load_bytes),
                static_cast<double>(plan.load_peak_host),
                0.01 * static_cast<double>(plan.load_peak_host));
  }

  // The largest steps: a whole chunk of prompts, and as many rows of logits as there are.
  EngineOptions engine_options;
  engine_options.max_num_seqs = kSeqs;
  engine_options.max_num_batched_tokens = kRows;
  engine_options.max_model_len = 160;
  engine_options.num_kv_blocks = kBlocks;
  auto engine = Engine::Create(*backend, *std::move(loaded), nullptr, engine_options);
  ASSERT_TRUE(engine.ok()) << engine.status();
  std::vector<Request> requests(kSeqs);
  for (Request& request : requests) {
    for (int32_t i = 0; i < 140; ++i) request.prompt_ids.push_back(3 + i % 50);
    request.sampling.max_tokens = 3;
    request.sampling.temperature = 0.8f;
    request.sampling.seed = 1;
  }
  for (int32_t logprobs : {-1, 0}) {
    for (Request& request : requests) request.sampling.prompt_logprobs = logprobs;
    const auto results = GenerateAll(**engine, requests);
    ASSERT_TRUE(results.ok()) << results.status();
  }

  int64_t num_modules = 2;
  for (const auto& group : planned->weights.groups)
    num_modules += static_cast<int64_t>(group.size());
  const MemoryAccount& ledger = backend->memory();
  for (int i = 0; i < kNumMemoryComponents; ++i) {
    const auto component = static_cast<MemoryComponent>(i);
    if (component == MemoryComponent::kWorkspace) continue;
    // cuda aligns the scales of fused modules to 16 bytes, the plan those of all.
    const int64_t padding = component == MemoryComponent::kScales ? 16 * num_modules : 0;
    EXPECT_LE(ledger.Bytes(component), plan.of(component)) << ToString(component);
    EXPECT_GE(ledger.Bytes(component), plan.of(component) - padding) << ToString(component);
  }
  EXPECT_LE(ledger.Bytes(MemoryComponent::kWorkspace), plan.of(MemoryComponent::kWorkspace));
  EXPECT_NEAR(static_cast<double>(ledger.Total()), static_cast<double>(plan.total()),
              0.01 * static_cast<double>(ledger.Total()))
      << "workspace " << ledger.Bytes(MemoryComponent::kWorkspace) << ", planned "
      << plan.of(MemoryComponent::kWorkspace);
  if (c.backend == "cuda_emulated") {  // as quantd_gpu's MemoryOnDevice on a GPU, after no step
    const DeviceInfo device_now = backend->info();
    EXPECT_EQ(device_now.total_memory - device_now.free_memory, ledger.Total());
  }
}

INSTANTIATE_TEST_SUITE_P(Profiles, PlanLedger, ::testing::ValuesIn(Cases()), NameOf);

}  // namespace
}  // namespace quantd
