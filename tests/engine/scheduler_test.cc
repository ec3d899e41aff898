// Scheduler: pictures of what each step computes (see scheduler_sim.h for how to read them).
#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <chrono>

#include "tests/engine/scheduler_sim.h"

namespace quantd {
namespace {

using Clock = std::chrono::steady_clock;

TEST(Scheduler, PrefillsAtOnceAndDecodesOneByOne) {
  SchedulerSim sim({.budget = 8});
  sim.Add(3, 4);
  sim.Run();
  EXPECT_EQ(sim.Picture(), "Req 0: 0,1,2* | (3)* | (4)* | (5)*\n");
  EXPECT_EQ(sim.sequence(0).tokens.size(), 7u) << "the last drawn token is never computed";
}

TEST(Scheduler, CutsALongPromptIntoChunksOfTheBudget) {
  SchedulerSim sim({.budget = 4});
  sim.Add(10, 2);
  sim.Run();
  EXPECT_EQ(sim.Picture(), "Req 0: 0,1,2,3 | 4,5,6,7 | 8,9* | (10)*\n");
}

TEST(Scheduler, DecodesBeforeItPrefillsAndFillsTheBudget) {
  SchedulerSim sim({.budget = 4});
  sim.Add(2, 4);
  sim.Add(7, 2);
  sim.Run();
  EXPECT_EQ(sim.Picture(),
            "Req 0: 0,1* | (2)*  | (3)* | (4)*\n"
            "Req 1: 0,1  | 2,3,4 | 5,6* | (7)*\n");
}

TEST(Scheduler, AdmitsFirstComeFirstServed) {
  SchedulerSim sim({.max_num_seqs = 2, .budget = 8});
  sim.Add(2, 2);
  sim.Add(2, 3);
  sim.Add(2, 1);
  sim.Run();
  EXPECT_EQ(sim.Picture(),
            "Req 0: 0,1* | (2)*\n"
            "Req 1: 0,1* | (2)* | (3)*\n"
            "Req 2: .    | .    | 0,1*\n");
}

TEST(Scheduler, SmallerPriorityValuesGoFirst) {
  SchedulerSim sim({.max_num_seqs = 1, .budget = 8});
  sim.Add(2, 1, /*priority=*/5);
  sim.Add(2, 1, /*priority=*/5);
  sim.Add(2, 1, /*priority=*/-1);
  sim.Run();
  EXPECT_EQ(sim.Picture(),
            "Req 0: .    | 0,1*\n"
            "Req 1: .    | .    | 0,1*\n"
            "Req 2: 0,1*\n");
}

TEST(Scheduler, PreemptsTheNewestWhenBlocksRunOut) {
  // Five blocks of two. Both prompts fit with one block to spare; the first to need a third block
  // takes it, then the older one takes the newer one's. What that had computed is found again in
  // the cache, as far as its blocks were not taken.
  SchedulerSim sim({.num_blocks = 5, .block_size = 2, .budget = 8});
  sim.Add(3, 5);
  sim.Add(3, 3);
  sim.Run();
  EXPECT_EQ(sim.Picture(),
            "Req 0: 0,1,2* | (3)* | (4)* | (5)* | (6)*\n"
            "Req 1: 0,1,2* | (3)* | x    | .    | .    | 2,(3),(4)*\n");
  EXPECT_EQ(sim.scheduler().preemptions(), 1);
  EXPECT_EQ(sim.pool().num_free(), 5);
}

TEST(Scheduler, PreemptsTheLowestPriorityBeforeTheNewest) {
  SchedulerSim sim({.num_blocks = 5, .block_size = 2, .budget = 8});
  sim.Add(3, 3, /*priority=*/1);
  sim.Add(3, 5, /*priority=*/0);
  sim.Run();
  EXPECT_EQ(sim.Picture(),
            "Req 0: 0,1,2* | (3)* | x    | .    | .    | 2,(3),(4)*\n"
            "Req 1: 0,1,2* | (3)* | (4)* | (5)* | (6)*\n");
}

TEST(Scheduler, AdmitsOnlyWhereEverythingKnownAndOneMoreTokenFit) {
  // Four blocks of two: the first holds two and will need a third, the second needs three.
  SchedulerSim sim({.num_blocks = 4, .block_size = 2, .budget = 8});
  sim.Add(4, 2);
  sim.Add(5, 1);
  sim.Run();
  EXPECT_EQ(sim.Picture(),
            "Req 0: 0,1,2,3* | (4)*\n"
            "Req 1: .        | .    | 0,1,2,3,4*\n");
  EXPECT_EQ(sim.scheduler().preemptions(), 0);
}

TEST(Scheduler, TakesACachedPrefixAndComputesTheLastTokenAgain) {
  SchedulerSim sim({.block_size = 4, .budget = 16});
  sim.Add(8, 1, 0, /*first_token=*/1);
  sim.Run();
  sim.Add(8, 1, 0, /*first_token=*/1);
  sim.Run();
  sim.Add(10, 1, 0, /*first_token=*/1);
  sim.Run();
  EXPECT_EQ(sim.Picture(),
            "Req 0: 0,1,2,3,4,5,6,7*\n"
            "Req 1:                  | 4,5,6,7*\n"
            "Req 2:                  |          | 8,9*\n");
  EXPECT_EQ(sim.sequence(1).cached_tokens, 4);
  EXPECT_EQ(sim.sequence(2).cached_tokens, 8);
  EXPECT_EQ(sim.scheduler().prefix_queries(), 8 + 8 + 10);
  EXPECT_EQ(sim.scheduler().prefix_hits(), 12);
}

TEST(Scheduler, ABypassingSequenceNeitherReadsNorFillsTheCache) {
  SchedulerSim sim({.block_size = 4, .budget = 16});
  sim.Add(9, 1, 0, 1).use_prefix_cache = false;
  sim.Run();
  sim.Add(9, 1, 0, 1);
  sim.Run();
  sim.Add(9, 1, 0, 1).use_prefix_cache = false;
  sim.Run();
  EXPECT_EQ(sim.sequence(1).cached_tokens, 0);
  EXPECT_EQ(sim.sequence(2).cached_tokens, 0);
  EXPECT_EQ(sim.pool().num_free(), 100);
}

TEST(Scheduler, StalledSequencesGetNoStepsAndKeepTheirBlocks) {
  SchedulerSim sim({.budget = 8});
  sim.Add(3, 3);
  sim.Add(3, 3);
  sim.Step();
  sim.sequence(0).stalled = true;
  sim.Step();
  EXPECT_EQ(sim.pool().num_free(), 98);
  sim.sequence(0).stalled = false;
  sim.Run();
  EXPECT_EQ(sim.Picture(),
            "Req 0: 0,1,2* | .    | (3)* | (4)*\n"
            "Req 1: 0,1,2* | (3)* | (4)*\n");
}

TEST(Scheduler, StalledSequencesArePreemptedFirstAndWaitWhileStalled) {
  // The stalled one is the older: it would not be the victim otherwise.
  SchedulerSim sim({.num_blocks = 4, .block_size = 2, .budget = 8});
  sim.Add(3, 3);
  sim.Add(3, 3);
  sim.Step();
  sim.sequence(0).stalled = true;
  sim.Step();
  sim.Step();
  sim.Step();
  EXPECT_FALSE(sim.Step()) << "a stalled waiting sequence is not admitted";
  sim.sequence(0).stalled = false;
  sim.Run();
  EXPECT_EQ(sim.Picture(),
            "Req 0: 0,1,2* | .    | x    | 2,(3)* | (4)*\n"
            "Req 1: 0,1,2* | (3)* | (4)*\n");
}

TEST(Scheduler, StalledSequencesYieldTheirSlotsAndWhenNeededTheirBlocks) {
  SchedulerSim sim({.num_blocks = 4, .block_size = 2, .max_num_seqs = 1, .budget = 8});
  sim.Add(3, 3);
  sim.Add(2, 1);
  sim.Add(6, 1);
  sim.Step();
  sim.sequence(0).stalled = true;
  sim.Step();
  EXPECT_EQ(sim.scheduler().preemptions(), 0) << "a slot is enough for the second";
  sim.Step();
  EXPECT_EQ(sim.scheduler().preemptions(), 1) << "the third needs the blocks";
  sim.sequence(0).stalled = false;
  sim.Run();
  EXPECT_EQ(sim.Picture(),
            "Req 0: 0,1,2* | .    | x            | 2,(3)* | (4)*\n"
            "Req 1: .      | 0,1*\n"
            "Req 2: .      | .    | 0,1,2,3,4,5*\n");
}

TEST(Scheduler, FinishFreesBlocksAtOnceInAnyState) {
  SchedulerSim sim({.max_num_seqs = 1, .budget = 8});
  sim.Add(5, 8);
  sim.Add(5, 8);
  sim.Step();
  sim.Finish(1);  // waiting
  sim.Finish(0);  // running
  sim.Finish(0);  // a second time changes nothing
  EXPECT_EQ(sim.pool().num_free(), 100);
  EXPECT_FALSE(sim.Step());
}

TEST(Scheduler, CollectsExpiredSequencesWaitingOrRunning) {
  SchedulerSim sim({.max_num_seqs = 1, .budget = 8});
  const Clock::time_point start{};
  sim.Add(2, 8).deadline = start + std::chrono::seconds(2);
  sim.Add(2, 8).deadline = start + std::chrono::seconds(1);
  sim.Add(2, 8);
  sim.Step();
  std::vector<Sequence*> expired;
  sim.scheduler().CollectExpired(start, &expired);
  EXPECT_TRUE(expired.empty());
  sim.scheduler().CollectExpired(start + std::chrono::seconds(1), &expired);
  EXPECT_EQ(expired, std::vector<Sequence*>{&sim.sequence(1)});
  expired.clear();
  sim.scheduler().CollectExpired(start + std::chrono::seconds(3), &expired);
  EXPECT_EQ(expired, (std::vector<Sequence*>{&sim.sequence(0), &sim.sequence(1)}));
}

// ---- pipeline depth 1
// -------------------------------------------------------------------------------

TEST(SchedulerPipelined, FeedsBackTheTokenThatIsNotKnownYet) {
  SchedulerSim sim({.budget = 4, .depth = 1});
  sim.Add(6, 3);
  sim.Run();
  EXPECT_EQ(sim.Picture(), "Req 0: 0,1,2,3 | 4,5* | (6)~* | (7)~*\n");
  EXPECT_EQ(sim.sequence(0).tokens.size(), 9u);
}

TEST(SchedulerPipelined, NeverPlansBeyondMaxTokens) {
  SchedulerSim sim({.budget = 4, .depth = 1});
  sim.Add(2, 1);
  sim.Run();
  EXPECT_EQ(sim.Picture(), "Req 0: 0,1*\n");
}

TEST(SchedulerPipelined, AStopFoundLateDropsOneTokenAndItsSlot) {
  SchedulerSim sim({.budget = 4, .depth = 1});
  sim.Add(2, 8);
  sim.StopAt(0, 3);
  sim.Run();
  // Token 3 is the end; it is seen when the step that computes position 3 is on its way.
  EXPECT_EQ(sim.Picture(), "Req 0: 0,1* | (2)~* | (3)~*\n");
  EXPECT_EQ(sim.sequence(0).tokens.size(), 4u) << "what that step drew is dropped";
  EXPECT_EQ(sim.sequence(0).steps_in_flight, 0);
  EXPECT_EQ(sim.pool().num_free(), 100);
}

TEST(SchedulerPipelined, ASequencePreemptedInFlightKeepsItsTokenAndWaitsForIt) {
  SchedulerSim sim({.num_blocks = 5, .block_size = 2, .budget = 8, .depth = 1});
  sim.Add(3, 5);
  sim.Add(3, 3);
  sim.Run();
  EXPECT_EQ(sim.Picture(),
            "Req 0: 0,1,2* | (3)~* | (4)~* | (5)~* | (6)~*\n"
            "Req 1: 0,1,2* | (3)~* | x     | .     | .     | 2,(3),(4)*\n");
  EXPECT_EQ(sim.sequence(1).tokens.size(), 6u);
  EXPECT_EQ(sim.pool().num_free(), 5);
}

}  // namespace
}  // namespace quantd
