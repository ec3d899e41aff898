// What prompt lookup guesses.
#include "engine/prompt_lookup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace quantd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::vector<int32_t> LookUp(const std::vector<int32_t>& tokens, size_t max_tokens) {
  const auto draft = LookUpDraft(tokens, max_tokens);
  return {draft.begin(), draft.end()};
}

TEST(LookUpDraft, IsWhatFollowedTheLastTokensBefore) {
  EXPECT_THAT(LookUp({1, 2, 3, 4, 5, 1, 2, 3}, 2), ElementsAre(4, 5));
  EXPECT_THAT(LookUp({1, 2, 3, 4, 5, 1, 2, 3}, 9), ElementsAre(4, 5, 1, 2, 3));
}

TEST(LookUpDraft, PrefersTheLongestMatchThenTheLatest) {
  EXPECT_THAT(LookUp({1, 2, 3, 7, 9, 3, 8, 1, 2, 3}, 1), ElementsAre(7)) << "three tokens match";
  EXPECT_THAT(LookUp({3, 7, 9, 3, 8, 3}, 1), ElementsAre(8)) << "one token, twice";
}

TEST(LookUpDraft, GoesOnInALoop) { EXPECT_THAT(LookUp({5, 5, 5, 5}, 3), ElementsAre(5)); }

TEST(LookUpDraft, IsEmptyWhereNothingRepeats) {
  EXPECT_THAT(LookUp({}, 3), IsEmpty());
  EXPECT_THAT(LookUp({1}, 3), IsEmpty());
  EXPECT_THAT(LookUp({1, 2, 3}, 3), IsEmpty());
  EXPECT_THAT(LookUp({1, 1}, 0), IsEmpty());
}

}  // namespace
}  // namespace quantd
