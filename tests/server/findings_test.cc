// FindingList: where, what and fix out of messages, and faults of all layers as one.
#include "server/findings.h"

#include <gtest/gtest.h>

#include "kernels/fault_list.h"

namespace quantd {
namespace {

using Severity = Finding::Severity;

Finding Only(FindingList& list) {
  const std::vector<Finding> findings = list.Take();
  EXPECT_EQ(findings.size(), 1u);
  return findings.empty() ? Finding() : findings.front();
}

TEST(FindingList, TakesPlaceAndFixOutOfAMessage) {
  struct Case {
    const char* fault;
    const char* where;
    const char* what;
    const char* fix;
  };
  for (const Case& c : std::vector<Case>{
           {"it is so", "dir", "it is so", "default"},
           {"dir: it is so", "dir", "it is so", "default"},
           {"config.json: a: 1", "dir/config.json", "a: 1", "default"},
           {"/x/tokenizer.json: gone", "/x/tokenizer.json", "gone", "default"},
           {"\"a b.json\": gone", "dir", "\"a b.json\": gone", "default"},
           {"a is 1; take 2; or 3", "dir", "a is 1", "take 2; or 3"},
           {"a is 1, allowed: 2; or 3", "dir", "a is 1", "allowed: 2; or 3"},
           {"a: \"x\" is not one of y, z", "dir", "a: \"x\" is not one of y, z", "one of y, z"},
       }) {
    FindingList list;
    list.Add(Severity::kError, "dir", c.fault, "default");
    const Finding finding = Only(list);
    EXPECT_EQ(finding.where, c.where);
    EXPECT_EQ(finding.what, c.what);
    EXPECT_EQ(finding.fix, c.fix);
  }
}

TEST(FindingList, WhatEveryLayerHasIsOneFinding) {
  FaultList faults;
  for (const int layer : {0, 1, 12}) faults.Add("tensor model.layers.{}.norm is missing", layer);
  faults.Add("tensor model.layers.3.bias is missing");
  FindingList list;
  list.Add(Severity::kError, "dir", faults.ToStatus(absl::StatusCode::kDataLoss));
  list.Add(Severity::kError, "dir", absl::OkStatus());
  const std::vector<Finding> findings = list.Take();
  ASSERT_EQ(findings.size(), 2u);
  EXPECT_EQ(findings[0].what, "tensor model.layers.*.norm is missing (3 times)");
  EXPECT_EQ(findings[1].what, "tensor model.layers.3.bias is missing");
}

TEST(FindingList, TheSameIsSaidOnceAndErrorsFirst) {
  FindingList list;
  list.Add(Severity::kWarning, "a", "w");
  list.Add(Severity::kError, "a", "e");
  list.Add(Severity::kError, "a", "e");
  list.Add({Severity::kWarning, "a", "e", ""});
  const std::vector<Finding> findings = list.Take();
  ASSERT_EQ(findings.size(), 3u);
  EXPECT_EQ(findings[0].severity, Severity::kError);
  EXPECT_EQ(findings[1].what, "w");
}

}  // namespace
}  // namespace quantd
