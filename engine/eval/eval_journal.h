// EvalJournal: what an evaluation has measured so far, in a file: an evaluation that was stopped
// goes on where it was.
//
// JSON lines. The first names what is evaluated; each other one is a window or the facts of a
// profile. A line is written whole and flushed; one that was cut off by a crash is dropped. Belongs
// to one thread.
#pragma once

#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/eval/eval_result.h"

namespace quantd {

class EvalJournal {
 public:
  /// What must be the same for two runs to be parts of one evaluation: name and value.
  using Identity = std::map<std::string, std::string>;

  /// `path` empty: kept in memory only. FAILED_PRECONDITION saying what differs when the file is of
  /// another evaluation, DATA_LOSS for a file that is no journal, UNAVAILABLE when it cannot be
  /// written.
  static absl::StatusOr<std::unique_ptr<EvalJournal>> Open(const std::string& path,
                                                           const Identity& identity);
  ~EvalJournal();
  EvalJournal(const EvalJournal&) = delete;
  EvalJournal& operator=(const EvalJournal&) = delete;

  struct Profile {
    std::map<int64_t, WindowScore> windows;
    std::optional<ProfileFacts> facts;
  };
  /// By QuantProfile::Hash.
  const Profile& Of(const std::string& hash) { return profiles_[hash]; }

  /// UNAVAILABLE when the file cannot be written.
  absl::Status Add(const std::string& hash, WindowScore score);
  absl::Status Add(ProfileFacts facts);

 private:
  EvalJournal() = default;
  absl::Status Read(const std::string& path, const Identity& identity, int64_t* valid_bytes);
  absl::Status Write(const std::string& line);

  std::string path_;
  std::FILE* file_ = nullptr;
  std::map<std::string, Profile> profiles_;
};

}  // namespace quantd
