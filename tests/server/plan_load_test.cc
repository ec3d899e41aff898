// What a load takes beside its KV cache, and that `profile: auto` chooses what is then loaded.
#include "server/plan_load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/weights/profile.h"
#include "kernels/status.h"

namespace quantd {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kMegabyte = 1'000'000;
constexpr int32_t kContextBlocks = 512 / 16;  // of the demo model

const ModelSource& Demo() {
  static const ModelSource source = OpenModelSource(QUANTD_SOURCE_DIR "/demo/model").value();
  return source;
}

PlanDevice DeviceWith(int64_t memory) {
  PlanDevice device;
  device.backend = PlanBackend::kRef;
  device.memory_bytes = memory;
  return device;
}

LoadPlan Under(const std::string& profile) {
  if (profile.empty()) return PlanLoad(Demo(), QuantProfile(), false).value();
  return PlanLoad(Demo(), LoadProfile(profile).value(), true).value();
}

EngineOptions WithBlocks(int32_t blocks) {
  EngineOptions options;
  options.num_kv_blocks = blocks;
  return options;
}

EngineOptions WithBytes(int64_t bytes) {
  EngineOptions options;
  options.kv_cache_bytes = bytes;
  return options;
}

TEST(PlanLoadFor, WhatAutoChoosesIsNeverRefused) {
  EngineOptions short_context;
  short_context.max_model_len = 100;
  for (const EngineOptions& options : {EngineOptions(), short_context, WithBlocks(2000),
                                       WithBytes(3 * kMegabyte), WithBytes(64 * kMegabyte)}) {
    int chosen_times = 0;
    for (int64_t memory = 5 * kMegabyte; memory < 150 * kMegabyte; memory += kMegabyte) {
      const PlanDevice device = DeviceWith(memory);
      const auto chosen = ChooseProfile(Demo(), device, options);
      if (!chosen.ok()) {
        EXPECT_EQ(chosen.status().code(), absl::StatusCode::kResourceExhausted);
        continue;
      }
      ++chosen_times;
      const auto load = PlanLoadFor(Demo(), Under(chosen->name), device, options);
      ASSERT_TRUE(load.ok()) << memory << ": " << load.status();
      EXPECT_LE(load->plan.total(), memory * 9 / 10) << chosen->name;
    }
    EXPECT_GT(chosen_times, 20);
  }
}

TEST(PlanLoadFor, TheDefaultKvCacheShrinksToWhatFits) {
  const LoadPlan nf4 = Under("nf4");
  const LoadMemory whole = PlanLoadFor(Demo(), nf4, DeviceWith(0), {}).value();
  EXPECT_EQ(whole.kv_blocks, 16 * kContextBlocks);
  EXPECT_EQ(whole.wanted_kv_blocks, whole.kv_blocks);
  const LoadMemory least =
      PlanLoadFor(Demo(), nf4, DeviceWith(0), WithBlocks(kContextBlocks)).value();
  for (const double share : {0.2, 0.5, 0.8}) {
    const auto between = static_cast<double>(least.plan.total()) * (1 - share) +
                         static_cast<double>(whole.plan.total()) * share;
    const auto load = PlanLoadFor(Demo(), nf4, DeviceWith(static_cast<int64_t>(between / 0.9)), {});
    ASSERT_TRUE(load.ok()) << load.status();
    EXPECT_LT(load->kv_blocks, whole.kv_blocks);
    EXPECT_GT(load->kv_blocks, kContextBlocks);
    EXPECT_EQ(load->wanted_kv_blocks, whole.kv_blocks);
    const auto total = static_cast<double>(load->plan.total());
    EXPECT_LE(total, between);
    EXPECT_GT(total, between - 2 * 16.0 * static_cast<double>(load->plan.kv_bytes_per_token));
  }
}

TEST(PlanLoadFor, TheDefaultKvCacheNeverHoldsLessThanAContext) {
  const LoadPlan nf4 = Under("nf4");
  const LoadMemory least =
      PlanLoadFor(Demo(), nf4, DeviceWith(0), WithBlocks(kContextBlocks)).value();
  const int64_t total = least.plan.total();
  // Into what is left free for a driver, where it must.
  const auto load = PlanLoadFor(Demo(), nf4, DeviceWith(total), {});
  ASSERT_TRUE(load.ok()) << load.status();
  EXPECT_EQ(load->kv_blocks, kContextBlocks);
  const auto refused = PlanLoadFor(Demo(), nf4, DeviceWith(total - 1), {});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(refused.status()), HasSubstr("what would fit: a KV cache of 496 tokens"));
}

TEST(PlanLoadFor, AConfiguredKvCacheIsTakenOrRefused) {
  const LoadPlan nf4 = Under("nf4");
  const LoadMemory wanted = PlanLoadFor(Demo(), nf4, DeviceWith(0), WithBlocks(300)).value();
  EXPECT_EQ(wanted.kv_blocks, 300);
  const auto exact = PlanLoadFor(Demo(), nf4, DeviceWith(wanted.plan.total()), WithBlocks(300));
  ASSERT_TRUE(exact.ok());
  EXPECT_EQ(exact->kv_blocks, 300);
  const auto refused =
      PlanLoadFor(Demo(), nf4, DeviceWith(wanted.plan.total() - 1), WithBlocks(300));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(refused.status()),
              AllOf(HasSubstr("under nf4 it would take"), HasSubstr("a KV cache of 4784 tokens")));
}

TEST(PlanLoadFor, WhereNoKvCacheFitsProfilesThatDoAreNamed) {
  const int64_t weights = Under("bf16").weights.source_bytes;
  const auto refused = PlanLoadFor(Demo(), Under("bf16"), DeviceWith(weights), {});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(refused.status()),
              AllOf(HasSubstr("what would fit: "), HasSubstr("nf4-dq (")));
}

TEST(PlanLoadFor, WhatTheEngineWouldRefuseIsRefusedBeforeLoading) {
  EngineOptions options;
  options.max_model_len = 513;
  options.max_num_seqs = 0;
  const auto refused = PlanLoadFor(Demo(), Under(""), DeviceWith(0), options);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(refused.status()),
              AllOf(HasSubstr("max_model_len is 513, allowed: 0 (the model's) to 512"),
                    HasSubstr("max_num_seqs is 0")));
  EXPECT_EQ(ChooseProfile(Demo(), DeviceWith(0), options).status(), refused.status());
}

}  // namespace
}  // namespace quantd
