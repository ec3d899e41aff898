// Arena: where memory comes from and goes to, alignment, zeroing in stream order, joining of
// neighbours, and what it says when there is none.
#include "kernels/cuda/arena.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "kernels/cuda/emulation/testing.h"

namespace quantd::cuda_emulated {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr auto kWeights = MemoryComponent::kWeights;
constexpr auto kKvCache = MemoryComponent::kKvCache;
constexpr size_t kSlab = size_t{1} << 20;

class ArenaTest : public ::testing::Test {
 protected:
  ~ArenaTest() override { DestroyStream(stream_); }

  ArenaOptions Slabs(int64_t limit = 0) const { return {.slab_bytes = kSlab, .limit = limit}; }
  std::vector<uint8_t> Read(const Buffer& buffer) {
    EXPECT_TRUE(Synchronize(stream_).ok());
    const auto* data = buffer.as<uint8_t>();  // emulated device memory is the host's
    return {data, data + buffer.bytes()};
  }

  Stream stream_ = CreateStream();
  MemoryAccount account_;
};

TEST_F(ArenaTest, SmallBuffersShareASlabLargeOnesGetTheirOwn) {
  Arena arena(stream_, &account_, Slabs());
  auto a = arena.Allocate(100, kWeights), b = arena.Allocate(5000, kWeights);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(arena.num_slabs(), 1);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a->data()) % Arena::kAlignment, 0u);
  EXPECT_EQ(b->as<std::byte>() - a->as<std::byte>(), 256);
  auto large = arena.Allocate(3 * kSlab, kKvCache);
  ASSERT_TRUE(large.ok());
  EXPECT_EQ(arena.num_slabs(), 2);
  EXPECT_EQ(account_.Bytes(kWeights), 5100);
  EXPECT_EQ(account_.Bytes(kKvCache), int64_t{3} * kSlab);
}

TEST_F(ArenaTest, FreedNeighboursJoinInEveryOrder) {
  std::mt19937 random(3);
  for (int round = 0; round < 20; ++round) {
    Arena arena(stream_, &account_, Slabs());
    std::vector<Buffer> buffers;
    for (int i = 0; i < 16; ++i) {
      auto buffer = arena.Allocate(kSlab / 16, kWeights);
      ASSERT_TRUE(buffer.ok());
      buffers.push_back(std::move(*buffer));
    }
    ASSERT_EQ(arena.num_slabs(), 1);
    std::shuffle(buffers.begin(), buffers.end(), random);
    buffers.clear();
    // Quarters of a slab fit only where its sixteenths have been joined.
    auto first = arena.Allocate(kSlab / 4 - 256, kWeights);
    for (int i = 0; i < 3; ++i) {
      auto quarter = arena.Allocate(kSlab / 4 - 256, kWeights);
      ASSERT_TRUE(quarter.ok());
      buffers.push_back(std::move(*quarter));
    }
    EXPECT_EQ(arena.num_slabs(), 1) << "round " << round;
  }
  EXPECT_EQ(account_.Total(), 0);
}

TEST_F(ArenaTest, ReusedMemoryIsZeroBehindTheWorkOfItsFormerOwner) {
  Arena arena(stream_, &account_, Slabs());
  void* place = nullptr;
  {
    auto first = arena.Allocate(4096, kWeights);
    ASSERT_TRUE(first.ok());
    place = first->data();
    FillAsync(place, 0xee, 4096, stream_);  // has not run when the buffer is freed
  }
  auto second = arena.Allocate(4000, kWeights);
  ASSERT_TRUE(second.ok());
  ASSERT_EQ(second->data(), place);
  EXPECT_EQ(Read(*second), std::vector<uint8_t>(4000, 0));
}

TEST_F(ArenaTest, WithoutRoomSaysWhoAskedForWhatAndWhoHasTheRest) {
  Arena arena(stream_, &account_, Slabs(int64_t{4} * kSlab));
  auto weights = arena.Allocate(3 * kSlab, kWeights);
  ASSERT_TRUE(weights.ok());
  const auto refused = arena.Allocate(2 * kSlab, kKvCache);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()),
              AllOf(HasSubstr("2097152 bytes of kv_cache"), HasSubstr("of 4194304 bytes are free"),
                    HasSubstr("weights 3145728")));
  EXPECT_EQ(account_.Bytes(kKvCache), 0);
  // And goes on: what fits is given, what is freed can be used.
  EXPECT_TRUE(arena.Allocate(1000, kKvCache).ok());
  *weights = Buffer();
  EXPECT_TRUE(arena.Allocate(2 * kSlab, kKvCache).ok());
}

TEST_F(ArenaTest, EmptySlabsGoBackWhenTheDeviceIsFull) {
  Arena arena(stream_, &account_, Slabs(int64_t{4} * kSlab));
  {
    auto a = arena.Allocate(2 * kSlab, kWeights), b = arena.Allocate(2 * kSlab, kWeights);
    ASSERT_TRUE(a.ok() && b.ok());
  }
  EXPECT_EQ(arena.num_slabs(), 2) << "kept for the next";
  EXPECT_TRUE(arena.Allocate(4 * kSlab, kWeights).ok());
  EXPECT_EQ(arena.num_slabs(), 1);
}

TEST_F(ArenaTest, TakesWhatIsLeftWhenAWholeSlabIsNot) {
  Arena arena(stream_, &account_, Slabs(int64_t{kSlab} / 2));
  auto small = arena.Allocate(1000, kWeights);
  ASSERT_TRUE(small.ok()) << small.status();
}

TEST_F(ArenaTest, ADeviceThatRefusesIsNoFailure) {
  Arena arena(stream_, &account_, {.slab_bytes = 0});
  FailAllocation(1);
  // The arena tries once more after giving empty slabs back.
  EXPECT_TRUE(arena.Allocate(1000, kWeights).ok());
  EXPECT_EQ(arena.Allocate(size_t{1} << 50, kWeights).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(FirstError().ok());
}

TEST_F(ArenaTest, NothingIsLeftAtTheDeviceAfterwards) {
  const size_t before = DeviceAllocationsInUse();
  {
    Arena arena(stream_, &account_, Slabs());
    ASSERT_TRUE(arena.Allocate(100, kWeights).ok());
    ASSERT_TRUE(arena.Allocate(kSlab, kWeights).ok());
    ASSERT_TRUE(Synchronize(stream_).ok());
  }
  EXPECT_EQ(DeviceAllocationsInUse(), before);
}

}  // namespace
}  // namespace quantd::cuda_emulated
