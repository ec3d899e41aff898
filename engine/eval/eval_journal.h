// EvalJournal: what an evaluation has measured so far, in a file: an evaluation that was stopped
// goes on where it was.
//
// JSON lines. The first names what is evaluated; each other one is a window or the facts of a
// profile. A line is written whole; one that was cut off by a crash is dropped. One evaluation at a
// time has the file. Belongs to one thread.
#pragma once

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
  /// another evaluation, DATA_LOSS for one that is no journal (it is left as it was), UNAVAILABLE
  /// when it cannot be written or another evaluation has it.
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
  absl::StatusOr<int64_t> Read(const Identity& identity);
  absl::Status CheckIdentity(const std::string& found, const Identity& identity) const;
  absl::Status Write(std::string line);
  absl::Status CannotWrite() const;

  std::string path_;
  int file_ = -1;  // descriptor
  std::map<std::string, Profile> profiles_;
};

}  // namespace quantd
