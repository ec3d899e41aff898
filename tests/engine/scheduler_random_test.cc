// Scheduler under random load: invariants of every plan, and that everybody finishes.
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "tests/engine/scheduler_sim.h"

namespace quantd {
namespace {

struct SchedulerCase {
  int depth;
  int32_t num_blocks;
  bool stalls;
};

class SchedulerRandom : public testing::TestWithParam<SchedulerCase> {};

TEST_P(SchedulerRandom, KeepsItsInvariantsAndFinishesEverybody) {
  const SchedulerCase& c = GetParam();
  int64_t preemptions = 0, hits = 0, chunked = 0;
  for (uint32_t seed = 0; seed < 30; ++seed) {
    std::mt19937 random(seed);
    const SchedulerSim::Options options{.num_blocks = c.num_blocks,
                                        .block_size = 4,
                                        .max_num_seqs = 5,
                                        .budget = 5 + static_cast<int32_t>(random() % 8),
                                        .depth = c.depth};
    SchedulerSim sim(options);
    sim.on_plan = [&](const StepPlan& plan) {
      int32_t tokens = 0, logits = 0;
      std::set<const Sequence*> seen;
      // Positions written this step: no block of one may be held by another, or be behind what is
      // shared.
      std::map<int32_t, const Sequence*> written;
      for (const StepEntry& e : plan.entries) {
        const Sequence& s = *e.sequence;
        ASSERT_TRUE(seen.insert(&s).second) << "planned twice";
        ASSERT_EQ(s.state, Sequence::State::kRunning);
        ASSERT_FALSE(s.stalled);
        ASSERT_GT(e.count, 0);
        ASSERT_EQ(e.first + e.count, s.scheduled);
        ASSERT_LT(e.first + e.count, s.max_size);
        ASSERT_GE(static_cast<int32_t>(s.blocks.blocks.size()) * options.block_size, s.scheduled);
        for (int32_t p = e.first; p < e.first + e.count; ++p) {
          const int32_t block = s.blocks.blocks[static_cast<size_t>(p / options.block_size)];
          ASSERT_NE(block, 0);
          ASSERT_EQ(sim.pool().ref_count(block), 1) << "writes to a shared block";
          const auto [it, fresh] = written.emplace(block, &s);
          ASSERT_EQ(it->second, &s) << "two sequences write to block " << block;
        }
        if (e.logit_row >= 0) {
          ASSERT_EQ(e.logit_row, logits++);
        }
        if (e.first + e.count < s.prompt_size) ++chunked;
        tokens += e.count;
      }
      ASSERT_EQ(tokens, plan.num_tokens);
      ASSERT_EQ(logits, plan.num_logits);
      ASSERT_LE(tokens, options.budget);
      ASSERT_LE(static_cast<int32_t>(plan.entries.size()), options.max_num_seqs);
      // Every usable block is free or held by a running sequence.
      std::set<int32_t> held;
      for (size_t i = 0; i < sim.size(); ++i) {
        const Sequence& s = sim.sequence(i);
        if (s.state != Sequence::State::kRunning) {
          ASSERT_TRUE(s.blocks.blocks.empty());
        }
        held.insert(s.blocks.blocks.begin(), s.blocks.blocks.end());
      }
      ASSERT_EQ(static_cast<int32_t>(held.size()) + sim.pool().num_free(), sim.pool().num_usable());
    };

    int to_come = 30;
    int idle = 0;
    while (to_come > 0 || !sim.AllFinished()) {
      if (to_come > 0 && random() % 2 == 0) {
        --to_come;
        const auto prompt = 1 + static_cast<int32_t>(random() % 24);
        const auto most = 4 * c.num_blocks - prompt;
        ASSERT_GT(most, 0);
        const auto max_tokens =
            1 + static_cast<int32_t>(random() % static_cast<uint32_t>(std::min(most, 12)));
        // One of four prompt families: prefixes are shared.
        Sequence& s = sim.Add(prompt, max_tokens, static_cast<int32_t>(random() % 2),
                              static_cast<int32_t>(random() % 4) * 1000);
        s.use_prefix_cache = random() % 8 != 0;
        if (random() % 3 == 0) {
          sim.StopAt(sim.size() - 1, prompt + static_cast<int32_t>(random() % 4));
        }
      }
      if (sim.size() > 0 && random() % 20 == 0) sim.Finish(random() % sim.size());  // a cancel
      for (size_t i = 0; c.stalls && i < sim.size(); ++i) {
        // Nobody stalls for ever.
        if (random() % 8 == 0) sim.sequence(i).stalled = !sim.sequence(i).stalled;
      }
      const bool advanced = sim.Step();
      if (HasFatalFailure()) return;
      idle = advanced ? 0 : idle + 1;
      ASSERT_LT(idle, 500) << "nobody advances";
    }
    while (sim.Step()) {
    }
    for (size_t i = 0; i < sim.size(); ++i) EXPECT_EQ(sim.sequence(i).steps_in_flight, 0);
    EXPECT_EQ(sim.pool().num_free(), sim.pool().num_usable());
    preemptions += sim.scheduler().preemptions();
    hits += sim.scheduler().prefix_hits();
  }
  EXPECT_GT(hits, 0);
  EXPECT_GT(chunked, 0);
  if (c.num_blocks < 20) {
    EXPECT_GT(preemptions, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(All, SchedulerRandom,
                         testing::Values(SchedulerCase{0, 60, false}, SchedulerCase{0, 10, false},
                                         SchedulerCase{0, 10, true}, SchedulerCase{1, 60, false},
                                         SchedulerCase{1, 10, false}, SchedulerCase{1, 10, true}),
                         [](const auto& test) {
                           return fmt::format("depth{}_blocks{}{}", test.param.depth,
                                              test.param.num_blocks,
                                              test.param.stalls ? "_stalls" : "");
                         });

// Tokens must not depend on how steps were planned: the drawn ids here are a function of position
// only, so the sequences end equal whatever was preempted.
TEST(SchedulerRandom, PreemptionLosesNoToken) {
  SchedulerSim sim({.num_blocks = 8, .block_size = 4, .max_num_seqs = 4, .budget = 6, .depth = 1});
  for (int i = 0; i < 4; ++i) sim.Add(6, 16);
  sim.Run();
  ASSERT_TRUE(sim.AllFinished());
  EXPECT_GT(sim.scheduler().preemptions(), 0);
  for (size_t i = 0; i < 4; ++i) {
    const auto& tokens = sim.sequence(i).tokens;
    ASSERT_EQ(tokens.size(), 22u);
    for (size_t p = 6; p < tokens.size(); ++p) {
      EXPECT_EQ(tokens[p], static_cast<int32_t>(i * 100000 + 50000 + p));
    }
  }
}

}  // namespace
}  // namespace quantd
