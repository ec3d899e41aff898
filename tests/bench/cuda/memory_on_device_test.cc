// What the device says is taken against what the backend has booked, for every profile: weights, KV
// cache and buffers of a model, and nothing of it that the ledger does not know.
//
// The device counts for all its users, so these tests run while no other of this program does
// (RunConformance); a process of somebody else's shows as a failure.
#include <gtest/gtest.h>

#include <algorithm>

#include "engine/engine.h"
#include "engine/weights/profile.h"
#include "tests/bench/cuda/test_name.h"
#include "tests/engine/models/load_helpers.h"
#include "tests/engine/models/model_runner.h"

namespace quantd {
namespace {

using testing_support::kModels;
using testing_support::TheDeviceUnderTest;

constexpr int64_t kMebibyte = int64_t{1} << 20;

// A share of what is booked, and a step of allocation: the slab of cuda's arena that small buffers
// share. On the emulated device every buffer is an allocation of its own, of its very size.
struct Tolerance {
  double share = 0;
  int64_t step = 0;      // bytes
  int64_t kv_bytes = 0;  // of a KV cache, so that a slab is not all there is
};

Tolerance ToleranceOf(const Backend& backend) {
  if (backend.name() == "cuda-emulated") return {.kv_bytes = kMebibyte};
  return {.share = 0.01, .step = 128 * kMebibyte, .kv_bytes = 1024 * kMebibyte};
}

struct Loaded {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Engine> engine;  // before its first step
};

absl::StatusOr<Loaded> Load(const std::string& profile) {
  Loaded out;
  out.backend = TheDeviceUnderTest().create(Determinism::kDefault);
  ASSIGN_OR_RETURN(
      LoadedModel model,
      LoadModel(*out.backend, testing_support::OptionsFor(kModels / "llama_bf16", profile)));
  EngineOptions options;
  options.max_num_seqs = 1;
  options.max_num_batched_tokens = 8;
  options.num_kv_blocks = static_cast<int32_t>(
      ToleranceOf(*out.backend).kv_bytes /
      (options.block_size * KvCache::BytesPerToken(model.spec, model.kv_dtype)));
  ASSIGN_OR_RETURN(out.engine, Engine::Create(*out.backend, std::move(model), nullptr, options));
  return out;
}

class MemoryOnDevice : public ::testing::TestWithParam<std::string> {};

TEST_P(MemoryOnDevice, WhatALoadTakesIsBooked) {
  const auto other = TheDeviceUnderTest().create(Determinism::kDefault);  // says what is free
  if (!other->name().starts_with("cuda")) GTEST_SKIP() << "the host's memory is not ours alone";
  // Kernels that the driver loads at their first use stay: the second load takes only its own.
  if (const auto first = Load(GetParam()); !first.ok()) GTEST_SKIP() << first.status();
  const int64_t before = other->info().free_memory;
  const auto loaded = Load(GetParam());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const DeviceInfo after = other->info();
  const int64_t taken = before - after.free_memory;
  const int64_t booked = loaded->backend->memory().Total();
  const Tolerance tolerance = ToleranceOf(*loaded->backend);
  EXPECT_GE(taken, booked);
  EXPECT_LE(static_cast<double>(taken), static_cast<double>(booked) * (1 + tolerance.share) +
                                            static_cast<double>(tolerance.step));
  // What belongs to no component: the driver's context, kernels and libraries.
  const int64_t driver = after.total_memory - before - other->memory().Total();
  RecordProperty("booked_bytes", std::to_string(booked));
  RecordProperty("taken_bytes", std::to_string(taken));
  RecordProperty("driver_bytes", std::to_string(driver));
  EXPECT_GE(driver, 0);
  if (loaded->backend->name() == "cuda-emulated") {
    EXPECT_EQ(driver, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Profiles, MemoryOnDevice, ::testing::ValuesIn(BuiltInProfiles()),
                         WithoutDashes());

}  // namespace
}  // namespace quantd
