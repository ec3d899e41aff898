#include "server/line_limit.h"

#include <gtest/gtest.h>

namespace quantd {
namespace {

TEST(LineLimit, LeavesOutWhatIsTooMuchAndSaysHowMuchThatWas) {
  LineLimit limit(2);
  const Clock::time_point begin = Clock::now();
  const auto admit = [&](int ms) { return limit.Admit(begin + std::chrono::milliseconds(ms)); };
  EXPECT_EQ(admit(0), 0);
  EXPECT_EQ(admit(100), 0);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(admit(200 + i), std::nullopt);
  EXPECT_EQ(admit(1001), 5);
  EXPECT_EQ(admit(1002), 0);
  EXPECT_EQ(admit(1003), std::nullopt);
}

}  // namespace
}  // namespace quantd
