// Who may wait, in which order, and how long: arithmetic without a clock.
#include "engine/admission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

namespace quantd {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Admission::Newcomer From(const std::string& tenant, int64_t tokens, double weight = 1,
                         int32_t priority = 0) {
  return {.tenant = tenant,
          .weight = weight,
          .priority = priority,
          .prompt_tokens = tokens - 1,
          .max_tokens = 1};
}

// Names of `arrivals` in the order they would run, all waiting at once.
std::vector<std::string> Order(Admission& admission,
                               const std::vector<Admission::Newcomer>& arrivals) {
  struct Entry {
    std::string name;
    Admission::Place place;
    size_t arrival;
  };
  std::vector<Entry> line;
  std::map<std::string, int> count;
  for (const auto& newcomer : arrivals) {
    const std::string name = newcomer.tenant + std::to_string(++count[newcomer.tenant]);
    line.push_back({name, admission.Enter(newcomer, 0), line.size()});
  }
  std::sort(line.begin(), line.end(), [](const Entry& a, const Entry& b) {
    return std::tuple(a.place.priority, a.place.tag, a.arrival) <
           std::tuple(b.place.priority, b.place.tag, b.arrival);
  });
  std::vector<std::string> names;
  for (const Entry& entry : line) {
    names.push_back(entry.name);
    admission.Leave(entry.place, true);
  }
  return names;
}

// As if `count` requests had been served: 1 s for 10 tokens of prompt, then 1 s for 10 tokens.
void Serve(Admission& admission, int count) {
  for (int i = 0; i < count; ++i) {
    const Admission::Place place = admission.Enter(From("", 11), 0);
    admission.Leave(place, true);
    admission.Note(place, {.computed_prompt_tokens = 10,
                           .completion_tokens = 11,
                           .prefill_seconds = 1,
                           .decode_seconds = 1});
  }
}

TEST(Admission, OneTenantRunsInTheOrderOfArrival) {
  Admission admission({});
  EXPECT_THAT(Order(admission, {From("", 1000), From("", 1), From("", 500), From("", 2)}),
              ElementsAre("1", "2", "3", "4"));
}

TEST(Admission, TenantsTakeTurnsByTokensNotByRequests) {
  Admission admission({});
  // a's requests are three times as long as b's.
  EXPECT_THAT(Order(admission, {From("a", 30), From("a", 30), From("a", 30), From("b", 10),
                                From("b", 10), From("b", 10), From("b", 10)}),
              ElementsAre("a1", "b1", "b2", "b3", "a2", "b4", "a3"));
}

TEST(Admission, TwiceTheWeightIsTwiceTheTokens) {
  Admission admission({});
  EXPECT_THAT(Order(admission, {From("a", 10, 2), From("a", 10, 2), From("a", 10, 2),
                                From("a", 10, 2), From("b", 10), From("b", 10)}),
              ElementsAre("a1", "b1", "a2", "a3", "b2", "a4"));
}

TEST(Admission, WhoWasAwayHasSavedNothing) {
  Admission admission({});
  Order(admission, {From("a", 100), From("a", 100), From("a", 100)});
  // a ran alone for long; b may not make up for the time it was not there.
  EXPECT_THAT(Order(admission, {From("a", 100), From("b", 100), From("b", 100), From("a", 100)}),
              ElementsAre("b1", "a1", "b2", "a2"));
}

TEST(Admission, PriorityGoesBeforeShare) {
  Admission admission({});
  EXPECT_THAT(Order(admission, {From("a", 1), From("b", 1000, 1, -1), From("b", 1000, 1, -1)}),
              ElementsAre("b1", "b2", "a1"));
}

TEST(Admission, TheQueueIsBoundedByRequestsAndByTokens) {
  Admission admission({.max_queued_requests = 3, .max_queued_tokens = 100});
  // A longer one may wait alone.
  ASSERT_TRUE(admission.Check(From("", 151), {}).ok());
  const Admission::Place first = admission.Enter(From("", 151), 0);
  const absl::Status tokens = admission.Check(From("", 11), {});
  EXPECT_EQ(tokens.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(tokens.message(),
            "requests with 150 tokens are waiting, and 10 more are too many, allowed: 100");
  admission.Leave(first, true);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(admission.Check(From("", 11), {}).ok());
    admission.Enter(From("", 11), 0);
  }
  EXPECT_EQ(admission.waiting_tokens(), 30);
  EXPECT_EQ(admission.Check(From("", 11), {}).message(), "3 requests are waiting, allowed: 3");
  EXPECT_EQ(admission.refused(Admission::Refusal::kTokens), 1);
  EXPECT_EQ(admission.refused(Admission::Refusal::kRequests), 1);
}

TEST(Admission, TheOutputsOfARequestNeedAPlaceEachAndOnePrompt) {
  Admission admission({.max_queued_requests = 4});
  Admission::Newcomer three = From("", 101);
  three.outputs = 3;
  ASSERT_TRUE(admission.Check(three, {}).ok());
  for (int32_t i = 0; i < 3; ++i) admission.Enter(three, i);
  EXPECT_EQ(admission.waiting(), 3);
  EXPECT_EQ(admission.waiting_tokens(), 100);
  EXPECT_FALSE(admission.Check(three, {}).ok());
}

TEST(Admission, ANamedTenantLeavesPlacesForOthers) {
  Admission admission({.max_queued_requests = 8});
  int taken = 0;
  while (admission.Check(From("a", 10), {}).ok()) {
    admission.Enter(From("a", 10), 0);
    ++taken;
  }
  EXPECT_EQ(taken, 4);  // half
  EXPECT_THAT(std::string(admission.Check(From("a", 10), {}).message()),
              HasSubstr("4 requests of a are waiting and 4 places are left"));
  int others = 0;
  while (admission.Check(From("b", 10), {}).ok()) {
    admission.Enter(From("b", 10), 0);
    ++others;
  }
  EXPECT_EQ(others, 2);  // half of what was left
  EXPECT_TRUE(admission.Check(From("c", 10), {}).ok());
  // Without names there is nobody to leave places for.
  Admission nameless({.max_queued_requests = 8});
  for (int i = 0; i < 8; ++i) {
    ASSERT_TRUE(nameless.Check(From("", 10), {}).ok());
    nameless.Enter(From("", 10), 0);
  }
}

TEST(Admission, WaitsForAsManyToLeaveAsAreAhead) {
  Admission admission({.max_num_seqs = 4});
  const Admission::Load full = {.running = 4, .full = true};
  EXPECT_EQ(admission.ExpectedWait(From("", 10), full), 0);  // nothing is known yet
  Serve(admission, 8);  // 2 s each, four at once: one leaves every half second
  EXPECT_DOUBLE_EQ(admission.ExpectedWait(From("", 10), full), 0.5);
  for (int i = 0; i < 5; ++i) admission.Enter(From("", 10), 0);
  EXPECT_DOUBLE_EQ(admission.ExpectedWait(From("", 10), full), 3.0);
  // Three of the five find a place at once, and then four leave at a time.
  EXPECT_DOUBLE_EQ(admission.ExpectedWait(From("", 10), {.running = 1, .full = false}), 1.5);
  // Only one at a time can run: there is no room for the KV of more.
  EXPECT_DOUBLE_EQ(admission.ExpectedWait(From("", 10), {.running = 1, .full = true}), 12.0);
  // Whoever is more important has nobody ahead.
  EXPECT_DOUBLE_EQ(admission.ExpectedWait(From("", 10, 1, -1), full), 0.5);
}

TEST(Admission, OfOtherTenantsOnlyTheirTurnsAreAhead) {
  Admission admission({});
  for (int i = 0; i < 10; ++i) admission.Enter(From("a", 10), 0);
  EXPECT_EQ(admission.Ahead(From("a", 10)), 10);
  EXPECT_EQ(admission.Ahead(From("b", 10)), 1);
  EXPECT_EQ(admission.Ahead(From("b", 10, 0.25)), 4);
  admission.Enter(From("b", 10), 0);
  EXPECT_EQ(admission.Ahead(From("b", 10)), 3);
}

TEST(Admission, RefusesADeadlineThatCannotBeMet) {
  Admission admission({.max_num_seqs = 4});
  const Admission::Load full = {.running = 4, .full = true};
  Admission::Newcomer hurried = From("", 11);
  hurried.seconds_left = 1.4;
  EXPECT_TRUE(admission.Check(hurried, full).ok());  // nothing is known yet
  Serve(admission, 8);
  // 0.5 s until one leaves, 1 s for ten tokens of prompt.
  const absl::Status refused = admission.Check(hurried, full);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refused.message(),
            "the deadline in 1.400 s cannot be met: 0 requests are ahead, and 1.500 s are needed");
  EXPECT_NEAR(*RetryAfter(refused), 0.1, 1e-6);
  EXPECT_EQ(admission.refused(Admission::Refusal::kDeadline), 1);
  hurried.seconds_left = 1.6;
  EXPECT_TRUE(admission.Check(hurried, full).ok());
  hurried.least_tokens = 3;  // two more at 0.1 s
  EXPECT_EQ(admission.Check(hurried, full).code(), absl::StatusCode::kResourceExhausted);
  hurried.seconds_left = 1.1;
  const absl::Status in_vain = admission.Check(hurried, full);
  EXPECT_EQ(in_vain.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(in_vain.message(),
            "the deadline in 1.100 s cannot be met: 1.200 s are needed even if nobody is ahead");
  EXPECT_FALSE(RetryAfter(in_vain).has_value());
  // On an idle engine it may be quicker than under load ever before.
  EXPECT_TRUE(admission.Check(hurried, {}).ok());
}

TEST(Admission, PromptsAreJudgedByPromptsOfTheirLength) {
  Admission admission({.max_num_seqs = 4});
  const auto serve = [&](int64_t prompt, double seconds) {
    const Admission::Place place = admission.Enter(From("", prompt + 1), 0);
    admission.Leave(place, true);
    admission.Note(place, {.computed_prompt_tokens = prompt,
                           .completion_tokens = 1,
                           .prefill_seconds = seconds,
                           .decode_seconds = 0});
  };
  // A step takes 10 ms even for a prompt of one token: that is no 10 ms a token.
  for (int i = 0; i < 20; ++i) serve(1, 0.01);
  Admission::Newcomer long_one = From("", 1001);
  long_one.seconds_left = 0.5;
  EXPECT_TRUE(admission.Check(long_one, {.running = 1, .full = false}).ok());
  for (int i = 0; i < 4; ++i) serve(500, 0.5);  // now it is known what long ones take
  EXPECT_EQ(admission.Check(long_one, {.running = 1, .full = false}).code(),
            absl::StatusCode::kDeadlineExceeded);
  long_one.seconds_left = 1.1;
  EXPECT_TRUE(admission.Check(long_one, {.running = 1, .full = false}).ok());
}

TEST(Admission, ATenantIsChargedWhatItTookNotWhatWasGuessed) {
  Admission admission({});
  std::map<std::string, int64_t> took;
  // Each asks for the next as soon as one has ended; a's answers are 400 tokens, b's 4.
  std::map<std::string, Admission::Place> next;
  for (const char* name : {"a", "b"}) {
    Admission::Newcomer newcomer = From(name, 1);
    newcomer.max_tokens = 400;
    next[name] = admission.Enter(newcomer, 0);
  }
  for (int i = 0; i < 2000; ++i) {
    const std::string name = next["a"].tag <= next["b"].tag ? "a" : "b";
    const Admission::Place place = next[name];
    admission.Leave(place, true);
    const int64_t tokens = name == "a" ? 400 : 4;
    admission.Note(place, {.computed_prompt_tokens = 1,
                           .completion_tokens = tokens,
                           .prefill_seconds = 0.01,
                           .decode_seconds = 0.01});
    took[name] += 1 + tokens;
    Admission::Newcomer newcomer = From(name, 1);
    newcomer.max_tokens = 400;
    next[name] = admission.Enter(newcomer, 0);
  }
  EXPECT_NEAR(static_cast<double>(took["a"]) / static_cast<double>(took["b"]), 1.0, 0.15);
}

TEST(Admission, WhatNeverRanIsNotCharged) {
  Admission admission({});
  const Admission::Place gone = admission.Enter(From("a", 1000), 0);
  admission.Leave(gone, false);
  EXPECT_THAT(Order(admission, {From("a", 10), From("b", 10), From("a", 10)}),
              ElementsAre("a1", "b1", "a2"));
}

TEST(Admission, ManyOutputsOfANamedTenantLeavePlacesToo) {
  Admission admission({.max_queued_requests = 16});
  Admission::Newcomer many = From("a", 10);
  many.outputs = 9;
  EXPECT_FALSE(admission.Check(many, {}).ok());
  many.outputs = 8;
  EXPECT_TRUE(admission.Check(many, {}).ok());
}

TEST(Admission, SaysWhenHalfOfAFullQueueWillBeGone) {
  Admission admission({.max_queued_requests = 10, .max_num_seqs = 4});
  Serve(admission, 8);
  for (int i = 0; i < 10; ++i) admission.Enter(From("", 10), 0);
  const absl::Status refused = admission.Check(From("", 10), {.running = 4, .full = true});
  EXPECT_NEAR(*RetryAfter(refused), 3.0, 1e-6);  // six leave at two a second
  EXPECT_FALSE(RetryAfter(absl::OkStatus()).has_value());
}

TEST(Admission, AForgottenTenantIsChargedByItsWeightAllTheSame) {
  Admission admission(AdmissionOptions{});
  const Admission::Place heavy = admission.Enter(From("heavy", 10, 10), 0);
  admission.Leave(heavy, true);
  for (int i = 0; i < 3; ++i) admission.Leave(admission.Enter(From("other", 100), 0), true);
  admission.Note(heavy, {.computed_prompt_tokens = 9, .completion_tokens = 1001});
  const double others = admission.Enter(From("third", 1), 0).tag;
  EXPECT_EQ(admission.Enter(From("heavy", 10, 10), 0).tag, others + 1000 / 10);
}

TEST(Admission, OutputsThatComputeThePromptThemselvesCountItEach) {
  AdmissionOptions options;
  options.max_queued_tokens = 100;
  Admission admission(options);
  Admission::Newcomer newcomer = From("", 21);
  newcomer.outputs = 4;
  newcomer.shares_prompt = false;
  ASSERT_TRUE(admission.Check(newcomer, {}).ok());
  for (int i = 0; i < 4; ++i) admission.Enter(newcomer, i);
  EXPECT_EQ(admission.waiting_tokens(), 80);
  EXPECT_FALSE(admission.Check(newcomer, {}).ok());
  newcomer.shares_prompt = true;
  EXPECT_TRUE(admission.Check(newcomer, {}).ok());
}

TEST(Admission, ForgetsTenantsThatAreDone) {
  Admission admission({});
  for (int i = 0; i < 100; ++i) {
    const auto place = admission.Enter(From("tenant" + std::to_string(i), 10), 0);
    admission.Leave(place, true);
  }
  // The next one begins where the last one stood, not at nothing.
  EXPECT_EQ(admission.waiting(), 0);
  const auto place = admission.Enter(From("tenant5", 10), 0);
  EXPECT_LE(place.tag, 1000);
}

}  // namespace
}  // namespace quantd
