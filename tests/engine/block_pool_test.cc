// BlockPool: reference counts, prefix cache, eviction order, and that a hash collision cannot mix
// users.
#include "engine/block_pool.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>
#include <set>

namespace quantd {
namespace {

constexpr int32_t kBlock = 4;

std::vector<int32_t> Iota(int32_t first, int32_t count) {
  std::vector<int32_t> v(static_cast<size_t>(count));
  std::iota(v.begin(), v.end(), first);
  return v;
}

// A sequence that computed all of `tokens` and gave its blocks back.
void ComputeAndRelease(BlockPool* pool, const std::vector<int32_t>& tokens) {
  BlockTable table;
  pool->TakePrefix(tokens, &table);
  ASSERT_TRUE(pool->Grow(&table, static_cast<int64_t>(tokens.size())));
  pool->Register(tokens, static_cast<int64_t>(tokens.size()), &table);
  pool->Release(&table);
}

TEST(BlockPool, NeverHandsOutTheReservedBlock) {
  BlockPool pool(5, kBlock, 0);
  BlockTable table;
  ASSERT_TRUE(pool.Grow(&table, 4 * kBlock));
  EXPECT_EQ(table.blocks, (std::vector<int32_t>{1, 2, 3, 4}));
  EXPECT_EQ(pool.num_free(), 0);
}

TEST(BlockPool, GrowsByWholeBlocksAndAllOrNothing) {
  BlockPool pool(4, kBlock, 0);
  BlockTable a, b;
  ASSERT_TRUE(pool.Grow(&a, 1));
  EXPECT_EQ(a.blocks.size(), 1u);
  ASSERT_TRUE(pool.Grow(&a, kBlock));
  EXPECT_EQ(a.blocks.size(), 1u);
  ASSERT_TRUE(pool.Grow(&a, kBlock + 1));
  EXPECT_EQ(a.blocks.size(), 2u);
  EXPECT_FALSE(pool.Grow(&b, 2 * kBlock));
  EXPECT_TRUE(b.blocks.empty());
  EXPECT_EQ(pool.num_free(), 1);
}

TEST(BlockPool, TruncateGivesBackTheBlocksBehind) {
  BlockPool pool(8, kBlock, 0);
  BlockTable table;
  ASSERT_TRUE(pool.Grow(&table, 4 * kBlock));
  pool.Truncate(&table, kBlock + 1);
  EXPECT_EQ(table.blocks.size(), 2u);
  EXPECT_EQ(pool.num_free(), 5);
  pool.Truncate(&table, 0);
  EXPECT_EQ(pool.num_free(), 7);
}

TEST(BlockPool, FindsAPrefixOfFullBlocksOnly) {
  BlockPool pool(16, kBlock, 0);
  ComputeAndRelease(&pool, Iota(0, 10));  // blocks 0..3 and 4..7 are full
  BlockTable table;
  EXPECT_EQ(pool.TakePrefix(Iota(0, 10), &table), 8);
  EXPECT_EQ(table.blocks.size(), 2u);
  pool.Release(&table);
}

TEST(BlockPool, AlwaysLeavesTheLastTokenToCompute) {
  BlockPool pool(16, kBlock, 0);
  ComputeAndRelease(&pool, Iota(0, 8));
  BlockTable table;
  EXPECT_EQ(pool.TakePrefix(Iota(0, 8), &table), 4)
      << "both blocks are cached, but 7 is recomputed";
  pool.Release(&table);
  EXPECT_EQ(pool.TakePrefix(Iota(0, 9), &table), 8);
  pool.Release(&table);
}

TEST(BlockPool, APrefixEndsWhereTokensDiffer) {
  BlockPool pool(16, kBlock, 0);
  ComputeAndRelease(&pool, Iota(0, 12));
  std::vector<int32_t> other = Iota(0, 13);
  other[5] = 99;
  EXPECT_EQ(pool.Peek(other).blocks, 1);
  other = Iota(0, 13);
  other[0] = 99;
  EXPECT_EQ(pool.Peek(other).blocks, 0) << "equal later blocks do not count behind a different one";
}

TEST(BlockPool, SharedBlocksAreCountedAndFreedOnce) {
  BlockPool pool(16, kBlock, 0);
  ComputeAndRelease(&pool, Iota(0, 9));
  BlockTable a, b;
  ASSERT_EQ(pool.TakePrefix(Iota(0, 9), &a), 8);
  ASSERT_EQ(pool.TakePrefix(Iota(0, 9), &b), 8);
  EXPECT_EQ(a.blocks, b.blocks);
  EXPECT_EQ(pool.ref_count(a.blocks[0]), 2);
  EXPECT_EQ(pool.num_free(), 13);
  pool.Release(&a);
  EXPECT_EQ(pool.num_free(), 13);
  pool.Release(&b);
  EXPECT_EQ(pool.num_free(), 15);
  EXPECT_EQ(pool.Peek(Iota(0, 9)).blocks, 2) << "still cached";
  EXPECT_EQ(pool.Peek(Iota(0, 9)).idle, 2);
}

TEST(BlockPool, EvictsTheLeastRecentlyUsedAndASequencesEndBeforeItsBeginning) {
  BlockPool pool(7, kBlock, 0);  // six usable
  ComputeAndRelease(&pool, Iota(0, 12));
  ComputeAndRelease(&pool, Iota(100, 12));
  EXPECT_EQ(pool.num_cached(), 6);
  // Touching the first makes the second the older one.
  BlockTable table;
  ASSERT_EQ(pool.TakePrefix(Iota(0, 13), &table), 12);
  pool.Release(&table);
  ASSERT_TRUE(pool.Grow(&table, 2 * kBlock));
  EXPECT_EQ(pool.Peek(Iota(0, 13)).blocks, 3);
  EXPECT_EQ(pool.Peek(Iota(100, 13)).blocks, 1);
  pool.Release(&table);
}

TEST(BlockPool, EqualBlocksComputedSideBySideKeepOneFindable) {
  BlockPool pool(16, kBlock, 0);
  const auto tokens = Iota(0, 9);
  BlockTable a, b;
  ASSERT_TRUE(pool.Grow(&a, 9));
  ASSERT_TRUE(pool.Grow(&b, 9));
  pool.Register(tokens, 4, &a);
  pool.Register(tokens, 8, &b);  // its first block equals a's; its second continues a's chain
  EXPECT_EQ(pool.num_cached(), 2);
  EXPECT_EQ(pool.Peek(tokens).blocks, 2);
  pool.Register(tokens, 8, &a);
  EXPECT_EQ(pool.num_cached(), 2);
  pool.Release(&a);
  pool.Release(&b);
  EXPECT_EQ(pool.num_free(), 15);
}

TEST(BlockPool, ForgetsWhatIsReleasedAsUntrusted) {
  BlockPool pool(16, kBlock, 0);
  BlockTable table;
  ASSERT_TRUE(pool.Grow(&table, 9));
  pool.Register(Iota(0, 9), 8, &table);
  pool.Release(&table, /*keep_cached=*/false);
  EXPECT_EQ(pool.num_cached(), 0);
  EXPECT_EQ(pool.num_free(), 15);
  EXPECT_EQ(pool.Peek(Iota(0, 9)).blocks, 0);
}

// A parent evicted and registered again is a new registration: children of the old one must not be
// reachable through it, whatever their hash says.
TEST(BlockPool, ChildrenOfAnEvictedParentAreNotFoundUnderItsSuccessor) {
  BlockPool pool(4, kBlock, 0);
  BlockTable parent_and_child;
  ASSERT_TRUE(pool.Grow(&parent_and_child, 8));
  pool.Register(Iota(0, 9), 8, &parent_and_child);
  // Release parent first, so that it is the one evicted.
  BlockTable child;
  ASSERT_EQ(pool.TakePrefix(Iota(0, 9), &child), 8);
  pool.Release(&parent_and_child);
  BlockTable only_child;
  only_child.blocks = {child.blocks[1]};
  BlockTable only_parent;
  only_parent.blocks = {child.blocks[0]};
  pool.Release(&only_parent);
  pool.Release(&only_child);
  BlockTable filler;
  ASSERT_TRUE(pool.Grow(&filler, 2 * kBlock));  // the free block, and the parent's
  EXPECT_EQ(pool.num_cached(), 1);
  EXPECT_EQ(pool.Peek(Iota(0, 9)).blocks, 0);
  // The parent's tokens again, in another block.
  pool.Register(Iota(0, 8), 4, &filler);
  EXPECT_EQ(pool.Peek(Iota(0, 9)).blocks, 1) << "the old child belongs to another registration";
  // A child computed anew takes the old one's place.
  pool.Register(Iota(0, 8), 8, &filler);
  EXPECT_EQ(pool.Peek(Iota(0, 9)).blocks, 2);
  pool.Release(&filler);
  EXPECT_EQ(pool.num_free(), 3);
}

// Against a plain model: what was registered and not forgotten is exactly what may be found.
TEST(BlockPool, RandomUseKeepsItsInvariants) {
  std::mt19937 random(7);
  for (int round = 0; round < 20; ++round) {
    const int32_t num_blocks = 4 + static_cast<int32_t>(random() % 24);
    BlockPool pool(num_blocks, kBlock, round);
    struct Live {
      std::vector<int32_t> tokens;
      BlockTable table;
    };
    std::vector<Live> live;
    for (int i = 0; i < 400; ++i) {
      const auto action = random() % 4;
      if (action == 0 || live.empty()) {
        Live l;
        const auto size = 1 + random() % 20;
        // Two token values and one beginning: prefixes are shared often.
        for (size_t t = 0; t < size; ++t)
          l.tokens.push_back(static_cast<int32_t>(random() % 8 == 0));
        const int32_t found = pool.TakePrefix(l.tokens, &l.table);
        ASSERT_LT(found, static_cast<int32_t>(size));
        ASSERT_EQ(found % kBlock, 0);
        live.push_back(std::move(l));
      } else {
        const size_t which = random() % live.size();
        Live& l = live[which];
        if (action == 1) {
          if (pool.Grow(&l.table, static_cast<int64_t>(l.tokens.size()))) {
            pool.Register(l.tokens, static_cast<int64_t>(random() % (l.tokens.size() + 1)),
                          &l.table);
          }
        } else if (action == 2) {
          const auto lowest = static_cast<size_t>(l.table.num_registered) * kBlock;
          if (l.table.blocks.size() * kBlock >= l.tokens.size() && lowest <= l.tokens.size()) {
            pool.Truncate(&l.table, static_cast<int64_t>(lowest));
          }
        } else {
          pool.Release(&l.table, random() % 8 != 0);
          live.erase(live.begin() + static_cast<std::ptrdiff_t>(which));
        }
      }
      // Every referenced block is counted as often as it is held; the rest is free.
      std::vector<int32_t> held(static_cast<size_t>(num_blocks), 0);
      for (const Live& l : live) {
        std::set<int32_t> once(l.table.blocks.begin(), l.table.blocks.end());
        ASSERT_EQ(once.size(), l.table.blocks.size()) << "a block twice in one sequence";
        for (const int32_t b : l.table.blocks) ++held[static_cast<size_t>(b)];
      }
      ASSERT_EQ(held[0], 0);
      int32_t used = 0;
      for (int32_t b = 1; b < num_blocks; ++b) {
        ASSERT_EQ(pool.ref_count(b), held[static_cast<size_t>(b)]) << "block " << b;
        used += held[static_cast<size_t>(b)] > 0;
      }
      ASSERT_EQ(pool.num_free() + used, pool.num_usable());
    }
    for (Live& l : live) pool.Release(&l.table);
    EXPECT_EQ(pool.num_free(), pool.num_usable());
    // Everything can still be taken in one go: nothing is lost in the cache's list.
    BlockTable all;
    EXPECT_TRUE(pool.Grow(&all, static_cast<int64_t>(pool.num_usable()) * kBlock));
    EXPECT_EQ(pool.num_cached(), 0);
  }
}

}  // namespace
}  // namespace quantd
