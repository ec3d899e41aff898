#include "engine/eval/eval_journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/status.h"
#include "tests/engine/models/tiny_model.h"

namespace quantd {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing_support::ReadFile;
using testing_support::TempDir;
using testing_support::WriteFile;

const EvalJournal::Identity kIdentity = {{"text", "abc"}, {"context", "512"}};

WindowScore Score(int64_t window) {
  WindowScore s;
  s.window = window;
  s.tokens = 3;
  s.bytes = 11;
  s.nll = 1.0 / 3.0;
  s.reference_nll = 0.1;
  s.seconds = 0.25;
  s.rows = 4;
  s.top1 = 2;
  s.top5 = 14;
  s.kl = {0.0f, 0.0001234f, 2.5f};
  return s;
}

ProfileFacts Facts() {
  ProfileFacts f;
  f.name = "nf4";
  f.hash = "h";
  f.compute_dtype = "bfloat16";
  f.resident_bytes = 1 << 20;
  f.bits_per_weight = 4.5;
  f.greedy_lengths = {64, 3};
  f.linears = {{"model.layers.0.mlp.up_proj", "nf4", 0.09, 0.1, 0.25},
               {"lm_head", "bf16", 0, 0.1, {}}};
  return f;
}

class Journal : public ::testing::Test {
 protected:
  std::string Path() const { return (dir_.path() / "journal").string(); }
  std::unique_ptr<EvalJournal> Open(const EvalJournal::Identity& identity = kIdentity) const {
    auto journal = EvalJournal::Open(Path(), identity);
    EXPECT_TRUE(journal.ok()) << journal.status();
    return journal.ok() ? std::move(*journal) : nullptr;
  }
  TempDir dir_;
};

TEST_F(Journal, GivesBackToTheBitWhatWasAdded) {
  {
    const auto journal = Open();
    ASSERT_TRUE(journal->Add("h", Score(4)).ok());
    ASSERT_TRUE(journal->Add(Facts()).ok());
  }
  const auto journal = Open();
  const EvalJournal::Profile& p = journal->Of("h");
  ASSERT_EQ(p.windows.size(), 1u);
  const WindowScore &got = p.windows.at(4), want = Score(4);
  EXPECT_EQ(got.nll, want.nll);
  EXPECT_EQ(got.kl, want.kl);
  EXPECT_EQ(got.top5, want.top5);
  EXPECT_EQ(got.rows, want.rows);
  ASSERT_TRUE(p.facts);
  EXPECT_EQ(p.facts->greedy_lengths, Facts().greedy_lengths);
  EXPECT_EQ(p.facts->linears[0].outlier_share, 0.25);
  EXPECT_FALSE(p.facts->linears[1].outlier_share);
  EXPECT_TRUE(journal->Of("other").windows.empty());
}

TEST_F(Journal, LineThatWasCutOffIsDroppedAndWrittenAnew) {
  {
    const auto journal = Open();
    ASSERT_TRUE(journal->Add("h", Score(0)).ok());
    ASSERT_TRUE(journal->Add("h", Score(1)).ok());
  }
  const std::string whole = ReadFile(Path());
  WriteFile(Path(), whole.substr(0, whole.size() - 9));
  {
    const auto journal = Open();
    EXPECT_EQ(journal->Of("h").windows.size(), 1u);
    ASSERT_TRUE(journal->Add("h", Score(1)).ok());
  }
  EXPECT_EQ(ReadFile(Path()), whole);
}

TEST_F(Journal, OfAnotherEvaluationIsRefusedAndKept) {
  ASSERT_TRUE(Open()->Add("h", Score(0)).ok());
  const std::string whole = ReadFile(Path());
  const auto other = EvalJournal::Open(Path(), {{"text", "abc"}, {"context", "256"}});
  EXPECT_EQ(other.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(other.status()), AllOf(HasSubstr("context was \"512\" and is \"256\"")));
  EXPECT_EQ(ReadFile(Path()), whole);
}

TEST_F(Journal, FileThatIsNoneIsRefusedAndKept) {
  const std::string deep(100000, '[');
  for (const std::string& text :
       std::vector<std::string>{"a text\n", "{}\n", "{\"quantd_eval\": 1}\n", "a text",
                                "{\"precious\": 1}", "{\"quantd_eval\": " + deep + "\n"}) {
    WriteFile(Path(), text);
    const auto journal = EvalJournal::Open(Path(), kIdentity);
    EXPECT_EQ(journal.status().code(), absl::StatusCode::kDataLoss) << text;
    EXPECT_THAT(Message(journal.status()), HasSubstr("line 1"));
    EXPECT_EQ(ReadFile(Path()), text);
  }
}

TEST_F(Journal, LineThatIsNeitherScoreNorFactsIsNamed) {
  ASSERT_TRUE(Open()->Add("h", Score(0)).ok());
  const std::string whole = ReadFile(Path());
  for (const char* line :
       {"{\"profile\": \"h\"}\n", "7\n", "{\"profile\": \"h\", \"score\": {}}\n",
        "{\"facts\": {\"name\": 3}}\n",
        "{\"profile\": \"h\", \"score\": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]\n"}) {
    WriteFile(Path(), whole + line);
    EXPECT_THAT(Message(EvalJournal::Open(Path(), kIdentity).status()), HasSubstr("line 3"))
        << line;
  }
}

TEST_F(Journal, IsOfOneEvaluationAtATime) {
  const auto journal = Open();
  EXPECT_THAT(Message(EvalJournal::Open(Path(), kIdentity).status()),
              HasSubstr("in use by another evaluation"));
}

TEST_F(Journal, NamesThatAreNoUtf8AreNoted) {
  const EvalJournal::Identity identity = {{"text", "n\xff"}};
  ASSERT_TRUE(Open(identity) != nullptr);
  EXPECT_TRUE(Open(identity) != nullptr);
}

TEST_F(Journal, BeginningThatWasCutOffIsWrittenAnew) {
  Open();
  const std::string whole = ReadFile(Path());
  WriteFile(Path(), whole.substr(0, 7));
  Open();
  EXPECT_EQ(ReadFile(Path()), whole);
}

TEST(EvalJournalWithoutAFile, KeepsInMemory) {
  auto journal = EvalJournal::Open("", kIdentity);
  ASSERT_TRUE(journal.ok());
  ASSERT_TRUE((*journal)->Add("h", Score(0)).ok());
  EXPECT_EQ((*journal)->Of("h").windows.size(), 1u);
  EXPECT_EQ(EvalJournal::Open("/no/such/folder/journal", kIdentity).status().code(),
            absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace quantd
