// An engine on a device that runs out of memory, or fails: who is told what, and who goes on. On
// the emulated device, which can be made to do both.
#ifdef QUANTD_HAS_CUDA_EMULATION

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/engine.h"
#include "engine/generate.h"
#include "engine/load.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/emulation/testing.h"
#include "kernels/status.h"
#include "tests/engine/models/tiny_model.h"

namespace quantd {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kRoom = int64_t{1} << 30;

class EngineDevice : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    testing_support::TinyModelOptions tiny;
    tiny.hidden_size = 64;
    tiny.intermediate_size = 128;
    tiny.head_dim = 16;
    tiny.max_positions = 512;
    dir_ = new testing_support::TempDir;
    testing_support::WriteTinyModel(dir_->path(), tiny);
  }
  static void TearDownTestSuite() { delete dir_; }
  ~EngineDevice() override { cuda_emulated::ClearDeviceFailures(); }

  void MakeBackend(int64_t memory_limit) {
    auto backend = cuda_emulated::CreateBackend({.memory_limit = memory_limit});
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = std::move(*backend);
  }
  absl::StatusOr<LoadedModel> Load() {
    LoadOptions options;
    options.model_dir = dir_->path();
    options.profile_given = false;
    options.max_rows = 256;
    return LoadModel(*backend_, options);
  }
  absl::Status MakeEngine(EngineOptions options) {
    ASSIGN_OR_RETURN(LoadedModel model, Load());
    ASSIGN_OR_RETURN(engine_, Engine::Create(*backend_, std::move(model), nullptr, options));
    return absl::OkStatus();
  }
  static EngineOptions Options() {
    EngineOptions options;
    options.max_num_seqs = 4;
    options.max_num_batched_tokens = 256;
    options.num_kv_blocks = 64;
    return options;
  }
  static Request Ask(int32_t prompt, int32_t max_tokens) {
    Request request;
    for (int32_t i = 0; i < prompt; ++i) request.prompt_ids.push_back(i % 60);
    request.sampling.temperature = 0.0f;
    request.sampling.max_tokens = max_tokens;
    request.sampling.ignore_eos = true;
    return request;
  }

  static testing_support::TempDir* dir_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Engine> engine_;
};
testing_support::TempDir* EngineDevice::dir_ = nullptr;

TEST_F(EngineDevice, AModelThatDoesNotFitIsRefusedWithTheBill) {
  MakeBackend(100000);
  const absl::Status status = Load().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("no device memory"), HasSubstr("of 100000 bytes are free"),
                    HasSubstr("taken: ")));
  EXPECT_EQ(backend_->memory().Total(), 0) << "a failed load leaves memory behind";
}

TEST_F(EngineDevice, AKvCacheThatDoesNotFitIsRefusedByName) {
  MakeBackend(2000000);
  EngineOptions options = Options();
  options.num_kv_blocks = 20000;
  const absl::Status status = MakeEngine(options);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("bytes of kv_cache"));
}

TEST_F(EngineDevice, AStepThatLacksMemoryEndsItsRequestsAndNoOthers) {
  // What an engine takes that has served a short prompt; a long one needs more scratch.
  MakeBackend(kRoom);
  ASSERT_TRUE(MakeEngine(Options()).ok());
  const auto before = Generate(*engine_, Ask(5, 8));
  ASSERT_TRUE(before.ok()) << before.status();
  const int64_t taken = backend_->memory().Total();
  engine_.reset();
  for (const int depth : {0, 1}) {
    MakeBackend(taken + 1000);
    EngineOptions options = Options();
    options.pipeline_depth = depth;
    ASSERT_TRUE(MakeEngine(options).ok());
    for (int i = 0; i < 2; ++i) {
      const auto failed = Generate(*engine_, Ask(200, 3));
      ASSERT_TRUE(failed.ok()) << failed.status();
      EXPECT_EQ(failed->status.code(), absl::StatusCode::kResourceExhausted) << failed->status;
      EXPECT_THAT(std::string(failed->status.message()), HasSubstr("bytes of workspace"));
      const auto after = Generate(*engine_, Ask(5, 8));
      ASSERT_TRUE(after.ok()) << after.status();
      EXPECT_TRUE(after->status.ok()) << after->status;
      EXPECT_EQ(after->token_ids(), before->token_ids());
    }
    engine_->Drain(std::chrono::seconds(10));
    EXPECT_EQ(engine_->Stats().kv_blocks_free, engine_->Stats().kv_blocks_total);
    engine_.reset();
  }
}

TEST_F(EngineDevice, AFailedDeviceEndsAllRequestsAsUnavailable) {
  for (const int depth : {0, 1}) {
    MakeBackend(kRoom);
    EngineOptions options = Options();
    options.pipeline_depth = depth;
    ASSERT_TRUE(MakeEngine(options).ok());
    ASSERT_TRUE(Generate(*engine_, Ask(5, 4)).ok());
    // In before it fails: one submitted later would be turned away instead.
    std::vector<std::shared_ptr<CollectingSink>> running;
    for (const int32_t prompt : {5, 9, 30}) {
      running.push_back(std::make_shared<CollectingSink>());
      ASSERT_TRUE(engine_->Submit(Ask(prompt, 400), running.back()).ok());
    }
    cuda_emulated::InjectDeviceFailure("an illegal memory access");
    for (const auto& sink : running) {
      const GenerateResult& result = sink->Wait();
      EXPECT_EQ(result.finish_reason, FinishReason::kError);
      EXPECT_EQ(result.status.code(), absl::StatusCode::kUnavailable) << result.status;
      EXPECT_THAT(std::string(result.status.message()), HasSubstr("an illegal memory access"));
    }
    const auto later = Generate(*engine_, Ask(5, 4));
    EXPECT_EQ(later.status().code(), absl::StatusCode::kUnavailable);
    engine_.reset();
    backend_.reset();
    cuda_emulated::ClearDeviceFailures();
  }
}

TEST_F(EngineDevice, EnginesOnOneBackendDoNotReplayEachOthersGraphs) {
  MakeBackend(kRoom);
  ASSERT_TRUE(MakeEngine(Options()).ok());
  const auto first = Generate(*engine_, Ask(5, 20));
  ASSERT_TRUE(first.ok());
  EXPECT_GT(engine_->Stats().replayed_steps, 10);
  std::unique_ptr<Engine> old = std::move(engine_);
  ASSERT_TRUE(MakeEngine(Options()).ok());  // other memory, the same shapes
  old.reset();
  const auto second = Generate(*engine_, Ask(5, 20));
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(second->token_ids(), first->token_ids());
  EXPECT_GT(engine_->Stats().replayed_steps, 10);
}

TEST_F(EngineDevice, IsOneStepAheadUnlessToldOtherwiseWithTheSameTokens) {
  MakeBackend(kRoom);
  EXPECT_EQ(backend_->preferred_pipeline_depth(), 1);
  ASSERT_TRUE(MakeEngine(Options()).ok());
  const auto results = GenerateAll(*engine_, {Ask(5, 10), Ask(9, 10)});
  ASSERT_TRUE(results.ok());
  engine_.reset();
  EngineOptions options = Options();
  options.pipeline_depth = 0;
  ASSERT_TRUE(MakeEngine(options).ok());
  const auto expected = GenerateAll(*engine_, {Ask(5, 10), Ask(9, 10)});
  ASSERT_TRUE(expected.ok());
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ((*results)[i].token_ids(), (*expected)[i].token_ids());
  }
}

}  // namespace
}  // namespace quantd

#endif  // QUANTD_HAS_CUDA_EMULATION
