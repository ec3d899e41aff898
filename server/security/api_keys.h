// ApiKeys: who may call, and how much. A YAML file holds a SHA-256 digest of each key, never the
// key: keys are 256 random bits, so that a digest cannot be turned back by guessing.
//
//   keys:
//     - name: search-team           # in logs and metrics, and whose share of the engine it is
//       sha256: 64 digits           # `quantd keys new search-team` prints the entry
//       models: [llama]             # served names it may use; left out: all
//       max_concurrent_requests: 8  # outputs (n) count one each; 0, or left out: no limit
//       tokens_per_minute: 60000    # of prompts and outputs; 0, or left out: no limit
//       weight: 2                   # share of the engine beside others; default 1
//       min_priority: -1            # requests with a smaller number get this one; default 0
//       admin: true                 # may call what is about the server itself; default false
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace quantd {

using Sha256Digest = std::array<uint8_t, 32>;
Sha256Digest Sha256(std::string_view bytes);

struct ApiKey {
  std::string name;
  Sha256Digest sha256{};
  std::vector<std::string> models;      // empty: all
  int64_t max_concurrent_requests = 0;  // outputs of one request count one each
  int64_t tokens_per_minute = 0;
  double weight = 1;
  int32_t min_priority = 0;
  bool admin = false;
};

/// INVALID_ARGUMENT with all faults: `source`, the key's place, the field and what is allowed.
absl::StatusOr<std::vector<ApiKey>> ParseApiKeys(const std::string& yaml,
                                                 const std::string& source);

/// The keys of a file, a regular one of at most 4 MiB. NOT_FOUND where it cannot be read; else as
/// ParseApiKeys.
absl::StatusOr<std::vector<ApiKey>> ReadApiKeys(const std::string& path);

/// What one key has taken. Thread-safe.
class KeyUse {
 public:
  using Clock = std::chrono::steady_clock;

  explicit KeyUse(ApiKey key) : key_(std::move(key)) {}

  ApiKey key() const;
  /// A request of so many outputs begins. RESOURCE_EXHAUSTED, with RetryAfter (engine/admission.h),
  /// when the key would have more than it may have at once, or has used its tokens;
  /// INVALID_ARGUMENT ("n is ...") for one that is more than that by itself, which no later time
  /// would help; else End must follow.
  absl::Status Begin(int32_t outputs, Clock::time_point now);
  void End(int32_t outputs);
  /// Tokens are charged when they are computed: a key may overdraw by the requests it has running,
  /// and then waits until the debt is paid.
  void Charge(int64_t tokens, Clock::time_point now);

  struct Counts {
    int64_t requests = 0;  // begun, each output as one
    int64_t refused = 0;   // for now: what RESOURCE_EXHAUSTED says
    int64_t tokens = 0;
    int64_t live = 0;
  };
  Counts counts() const;
  /// New limits; what was taken, and a debt, stay.
  void Reset(ApiKey key);

 private:
  void Refill(Clock::time_point now);

  mutable std::mutex mutex_;
  ApiKey key_;
  Counts counts_;
  std::optional<Clock::time_point> filled_;  // when `tokens_` was counted
  double tokens_ = 0;                        // left of the minute's; negative: a debt
};

/// The keys of a file, read again when it changes. Thread-safe.
class KeyRing {
 public:
  /// NOT_FOUND, INVALID_ARGUMENT.
  static absl::StatusOr<std::unique_ptr<KeyRing>> Load(const std::string& path);

  /// The key that `presented` is, or null. Takes the same time for every key: digests are
  /// compared, all of them and whole.
  std::shared_ptr<KeyUse> Find(std::string_view presented) const;
  /// Reads the file again if it is not what it was; on an error the keys stay as they were. True
  /// when they were replaced.
  absl::StatusOr<bool> Reload();
  std::vector<std::shared_ptr<KeyUse>> All() const;

 private:
  explicit KeyRing(std::string path) : path_(std::move(path)) {}
  void Replace(std::vector<ApiKey> keys);

  const std::string path_;
  std::mutex reload_mutex_;
  std::string text_;  // of the file, as last read
  mutable std::mutex mutex_;
  std::vector<std::pair<Sha256Digest, std::shared_ptr<KeyUse>>> keys_;
  // Of all names that ever were in the file: who is taken out and put in again is no new one.
  std::map<std::string, std::shared_ptr<KeyUse>> uses_;
};

/// A new key, "qd_" and 43 letters of base64url, and its entry for the file.
struct NewApiKey {
  std::string key;
  std::string entry;
};
/// INVALID_ARGUMENT for a name that is not 1 to 64 of [A-Za-z0-9._-].
absl::StatusOr<NewApiKey> MakeApiKey(const std::string& name);

}  // namespace quantd
