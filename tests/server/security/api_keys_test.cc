// API keys: the file, the digests, and what a key may take.
#include "server/security/api_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>

#include "engine/admission.h"
#include "tests/engine/models/tiny_model.h"

namespace quantd {
namespace {

using std::chrono::seconds;
using testing::HasSubstr;

const KeyUse::Clock::time_point kStart{};

ApiKey Limited(int64_t concurrent, int64_t tokens_per_minute) {
  ApiKey key;
  key.name = "a";
  key.max_concurrent_requests = concurrent;
  key.tokens_per_minute = tokens_per_minute;
  return key;
}

TEST(ApiKeys, ReadsEveryField) {
  const auto keys = ParseApiKeys(
      "keys:\n"
      "  - name: a\n"
      // printf %s abc | sha256sum
      "    sha256: ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n"
      "    models: [m, n]\n"
      "    max_concurrent_requests: 3\n"
      "    tokens_per_minute: 500\n"
      "    weight: 2.5\n"
      "    min_priority: -1\n"
      "    admin: true\n"
      "  - name: b\n"
      "    sha256: 0000000000000000000000000000000000000000000000000000000000000000\n",
      "keys.yaml");
  ASSERT_TRUE(keys.ok()) << keys.status();
  const ApiKey& a = (*keys)[0];
  EXPECT_EQ(a.sha256, Sha256("abc"));
  EXPECT_EQ(a.models, (std::vector<std::string>{"m", "n"}));
  EXPECT_EQ(a.max_concurrent_requests, 3);
  EXPECT_EQ(a.tokens_per_minute, 500);
  EXPECT_EQ(a.weight, 2.5);
  EXPECT_EQ(a.min_priority, -1);
  EXPECT_TRUE(a.admin);
  const ApiKey& b = (*keys)[1];
  EXPECT_TRUE(b.models.empty());
  EXPECT_EQ(b.max_concurrent_requests, 0);
  EXPECT_EQ(b.weight, 1);
  EXPECT_FALSE(b.admin);
}

TEST(ApiKeys, TellsAllFaultsAndNeverAKey) {
  const auto keys = ParseApiKeys(
      "keys:\n"
      "  - {name: a b, sha256: qd_secret, wieght: 2}\n"
      "  - {name: c, sha256: 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad', "
      "tokens_per_minute: -1, weight: 0, admin: perhaps, models: m}\n"
      "  - {name: c, sha256: 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad', "
      "admin: false, admin: true}\n",
      "keys.yaml");
  const std::string message(keys.status().message());
  for (const char* part :
       {"keys.yaml: keys[0]: unknown field wieght; the nearest known one is weight",
        "keys[0]: name is \"a b\", allowed: 1 to 64 letters",
        "keys[0]: sha256 is not 64 digits 0-9 a-f, but has 9 characters",
        "keys[1]: tokens_per_minute is -1, allowed: 0 or more",
        "keys[1]: weight is 0, allowed: 0.001 to 1000", "keys[1]: admin is not of its kind",
        "keys[1]: models must be a list", "keys[2]: name c is there twice",
        "keys[2]: sha256 is there twice", "keys[2]: admin is given twice"}) {
    EXPECT_THAT(message, HasSubstr(part));
  }
  EXPECT_THAT(message, testing::Not(HasSubstr("secret")));
  for (const char* text : {"", "keys: []", "keys: 3", "others: []", "keys: [3]", "keys: [", "[]"}) {
    EXPECT_FALSE(ParseApiKeys(text, "f").ok()) << text;
  }
}

TEST(ApiKeys, ANewKeyIsLongAndItsEntryIsItsDigest) {
  const auto made = MakeApiKey("team-a");
  ASSERT_TRUE(made.ok());
  EXPECT_EQ(made->key.size(), 3u + 43u);
  const auto keys = ParseApiKeys("keys:\n" + made->entry, "f");
  ASSERT_TRUE(keys.ok()) << keys.status();
  EXPECT_EQ((*keys)[0].name, "team-a");
  EXPECT_EQ((*keys)[0].sha256, Sha256(made->key));
  EXPECT_NE(MakeApiKey("team-a")->key, made->key);
  EXPECT_FALSE(MakeApiKey("team a").ok());
}

TEST(KeyUse, HasSoManyRequestsAtOnce) {
  KeyUse use(Limited(2, 0));
  ASSERT_TRUE(use.Begin(1, kStart).ok());
  EXPECT_FALSE(use.Begin(2, kStart).ok()) << "outputs count one each";
  ASSERT_TRUE(use.Begin(1, kStart).ok());
  const absl::Status refused = use.Begin(1, kStart);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refused.message(), "the key a has 2 requests at once, allowed: 2");
  EXPECT_TRUE(RetryAfter(refused).has_value());
  use.End(1);
  EXPECT_TRUE(use.Begin(1, kStart).ok());
  EXPECT_EQ(use.counts().requests, 3);
  EXPECT_EQ(use.counts().refused, 2);
  EXPECT_EQ(use.counts().live, 2);
}

TEST(KeyUse, MoreOutputsThanItMayEverHaveAreNoMatterOfTime) {
  KeyUse use(Limited(2, 0));
  const absl::Status invalid = use.Begin(3, kStart);
  EXPECT_EQ(invalid.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(invalid.message(),
            "n is 3, allowed: at most the 2 requests that the key a may have at once");
  EXPECT_FALSE(RetryAfter(invalid).has_value());
  EXPECT_EQ(use.counts().refused, 0) << "it is wrong, not too much for now";
  EXPECT_EQ(use.counts().live, 0);
  EXPECT_TRUE(use.Begin(2, kStart).ok());
}

TEST(KeyUse, HasSoManyTokensAMinuteAndPaysDebtsFirst) {
  KeyUse use(Limited(0, 60));
  ASSERT_TRUE(use.Begin(1, kStart).ok());
  use.Charge(90, kStart);  // all of a minute's, and half of the next one's
  const absl::Status refused = use.Begin(1, kStart);
  EXPECT_EQ(refused.message(), "the key a has used its tokens, allowed: 60 a minute");
  EXPECT_NEAR(*RetryAfter(refused), 31, 1e-6);
  EXPECT_FALSE(use.Begin(1, kStart + seconds(30)).ok());
  EXPECT_TRUE(use.Begin(1, kStart + seconds(31)).ok());
  // An hour saves no more than a minute.
  use.Charge(60, kStart + seconds(3600));
  EXPECT_FALSE(use.Begin(1, kStart + seconds(3600)).ok());
  EXPECT_EQ(use.counts().tokens, 150);
}

TEST(KeyUse, NewLimitsForgiveNoDebt) {
  KeyUse use(Limited(0, 60));
  ASSERT_TRUE(use.Begin(1, kStart).ok());
  use.Charge(90, kStart);
  use.Reset(Limited(0, 61));
  EXPECT_FALSE(use.Begin(1, kStart).ok());
}

TEST(KeyRing, TakenOutAndPutInAgainIsTheSameKey) {
  testing_support::TempDir dir;
  const std::string path = (dir.path() / "keys.yaml").string();
  const auto a = *MakeApiKey("a"), b = *MakeApiKey("b");
  const std::string limited = a.entry + "    max_concurrent_requests: 1\n";
  testing_support::WriteFile(path, "keys:\n" + limited + b.entry);
  auto ring = KeyRing::Load(path);
  ASSERT_TRUE((*ring)->Find(a.key)->Begin(1, kStart).ok());
  testing_support::WriteFile(path, "keys:\n" + b.entry);
  ASSERT_TRUE(*(*ring)->Reload());
  testing_support::WriteFile(path, "keys:\n" + limited + b.entry);
  ASSERT_TRUE(*(*ring)->Reload());
  EXPECT_FALSE((*ring)->Find(a.key)->Begin(1, kStart).ok()) << "its request still runs";
}

TEST(KeyRing, TheFileIsARegularOneOfBoundedSize) {
  testing_support::TempDir dir;
  const std::string fifo = (dir.path() / "fifo").string();
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  for (const std::string& path : {fifo, std::string("/dev/zero"), dir.path().string()}) {
    const absl::Status status = KeyRing::Load(path).status();  // and does not wait
    EXPECT_EQ(status, absl::InvalidArgumentError(path + ": not a regular file"));
    EXPECT_EQ(ReadApiKeys(path).status(), status);
  }
  const std::string path = (dir.path() / "keys.yaml").string();
  testing_support::WriteFile(path, std::string((4 << 20) + 1, '#'));
  EXPECT_THAT(ReadApiKeys(path).status().message(), HasSubstr("larger than 4194304 bytes"));
  // As Kubernetes mounts it.
  testing_support::WriteFile(path, "keys:\n" + MakeApiKey("a")->entry);
  std::filesystem::create_symlink("keys.yaml", dir.path() / "link.yaml");
  EXPECT_TRUE(ReadApiKeys((dir.path() / "link.yaml").string()).ok());
}

TEST(KeyRing, FindsByTheKeyAndReloadsWhatChanged) {
  testing_support::TempDir dir;
  const std::string path = (dir.path() / "keys.yaml").string();
  const auto a = *MakeApiKey("a"), b = *MakeApiKey("b");
  testing_support::WriteFile(path, "keys:\n" + a.entry + b.entry);
  auto ring = KeyRing::Load(path);
  ASSERT_TRUE(ring.ok()) << ring.status();
  ASSERT_NE((*ring)->Find(a.key), nullptr);
  EXPECT_EQ((*ring)->Find(b.key)->key().name, "b");
  EXPECT_EQ((*ring)->Find(a.key + "x"), nullptr);
  EXPECT_EQ((*ring)->Find(""), nullptr);
  EXPECT_FALSE(*(*ring)->Reload());

  const auto use = (*ring)->Find(a.key);
  ASSERT_TRUE(use->Begin(1, kStart).ok());
  testing_support::WriteFile(path, "keys: broken\n");
  EXPECT_FALSE((*ring)->Reload().ok());
  EXPECT_NE((*ring)->Find(b.key), nullptr) << "a broken file takes nobody's key away";
  testing_support::WriteFile(path, "keys:\n" + a.entry + "    max_concurrent_requests: 1\n");
  EXPECT_TRUE(*(*ring)->Reload());
  EXPECT_EQ((*ring)->Find(b.key), nullptr);
  // What a has running still counts.
  EXPECT_FALSE((*ring)->Find(a.key)->Begin(1, kStart).ok());
  EXPECT_FALSE(KeyRing::Load(path + ".none").ok());
}

}  // namespace
}  // namespace quantd
