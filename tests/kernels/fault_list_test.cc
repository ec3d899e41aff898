// FaultList: one message of many faults, and the many out of the one.
#include "kernels/fault_list.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace quantd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(FaultList, FaultsComeBackOneByOneBehindTheirSource) {
  FaultList faults;
  EXPECT_TRUE(faults.ToStatus(absl::StatusCode::kDataLoss, "f").ok());
  faults.Add("a: {}; one", 1);
  faults.AddUnimplemented("b");
  const absl::Status status = faults.ToStatus(absl::StatusCode::kDataLoss, "f");
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Message(status), "f: a: 1; one; b");
  EXPECT_THAT(FaultsOf(status), ElementsAre("f: a: 1; one", "f: b"));
  EXPECT_THAT(FaultsOf(faults.ToStatus(absl::StatusCode::kDataLoss)),
              ElementsAre("a: 1; one", "b"));
}

TEST(FaultList, IsUnimplementedWhereEveryFaultIs) {
  FaultList faults;
  faults.AddUnimplemented("a");
  faults.Add(absl::UnimplementedError("b"));
  EXPECT_EQ(faults.ToStatus(absl::StatusCode::kDataLoss).code(), absl::StatusCode::kUnimplemented);
}

TEST(FaultList, ListsAScreenfulAndCountsTheRest) {
  FaultList faults;
  for (int i = 0; i < 25; ++i) faults.Add("{}", i);
  const auto listed = FaultsOf(faults.ToStatus(absl::StatusCode::kDataLoss));
  EXPECT_EQ(listed.size(), FaultList::kMaxListed + 1);
  EXPECT_EQ(listed.back(), "and 5 more");
}

TEST(FaultList, OtherStatusesAreOneFaultOrNone) {
  EXPECT_THAT(FaultsOf(absl::OkStatus()), IsEmpty());
  EXPECT_THAT(FaultsOf(absl::DataLossError("a; b")), ElementsAre("a; b"));
}

}  // namespace
}  // namespace quantd
