// The pool's places and shares, seen while its one thread is held.
#include "server/worker_pool.h"

#include <gtest/gtest.h>

#include <future>

namespace quantd {
namespace {

using Answer = WorkerPool::Answer;

// A pool of one thread, which is busy until Release, and `places` places.
class WorkerPoolTest : public testing::Test {
 protected:
  void Start(size_t places) {
    pool_ = std::make_unique<WorkerPool>(1, places);
    std::promise<void> begun;
    pool_->Submit("", [&begun, go = go_.get_future().share()] {
      begun.set_value();
      go.wait();
    });
    begun.get_future().wait();
  }
  Answer Submit(const std::string& owner) {
    return pool_->Submit(owner, [this] { ++ran_; });
  }
  // Everything that waits is run, by the destructor's promise.
  int RunAll() {
    go_.set_value();
    pool_.reset();
    return ran_;
  }

  std::promise<void> go_;
  std::unique_ptr<WorkerPool> pool_;
  int ran_ = 0;
};

TEST_F(WorkerPoolTest, IsFullWhenAllPlacesAreTaken) {
  Start(3);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Submit(""), Answer::kQueued);
  EXPECT_EQ(Submit(""), Answer::kFull);
  EXPECT_EQ(Submit("a"), Answer::kFull);
  EXPECT_EQ(RunAll(), 3);
}

TEST_F(WorkerPoolTest, WaitsUntilEverythingHasRunButNotForEver) {
  using std::chrono::steady_clock;
  Start(3);
  EXPECT_EQ(Submit(""), Answer::kQueued);
  pool_->WaitUntilIdle(steady_clock::now() + std::chrono::milliseconds(10));
  go_.set_value();
  pool_->WaitUntilIdle(steady_clock::now() + std::chrono::hours(1));
  EXPECT_EQ(ran_, 1);
}

TEST_F(WorkerPoolTest, AnOwnerMayHaveAsManyAsAreLeftForOthers) {
  Start(8);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(Submit("a"), Answer::kQueued) << i;
  EXPECT_EQ(Submit("a"), Answer::kShareTaken);
  for (int i = 0; i < 2; ++i) EXPECT_EQ(Submit("b"), Answer::kQueued) << i;
  EXPECT_EQ(Submit("b"), Answer::kShareTaken);
  EXPECT_EQ(Submit("c"), Answer::kQueued);
  EXPECT_EQ(Submit("d"), Answer::kQueued) << "the first one is let in while there is a place";
  EXPECT_EQ(Submit("e"), Answer::kFull);
  EXPECT_EQ(RunAll(), 8);
}

TEST_F(WorkerPoolTest, AJobThatHasBegunTakesNoPlace) {
  Start(2);
  EXPECT_EQ(Submit("a"), Answer::kQueued);
  EXPECT_EQ(Submit("a"), Answer::kShareTaken);
  go_.set_value();
  std::promise<void> done;
  while (pool_->Submit("a", [&done] { done.set_value(); }) != Answer::kQueued) {
  }
  done.get_future().wait();
  pool_.reset();
  EXPECT_EQ(ran_, 1);
}

}  // namespace
}  // namespace quantd
