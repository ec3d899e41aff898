// FaultList: collects every fault of one input, so that a user sees all of them in one message.
//
// Used by profiles, the server's configuration, config.json, tokenizer.json and the check of a
// checkpoint. A status keeps them apart: FaultsOf gives them back one by one. Not thread-safe;
// lives on the stack of the function that checks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/cord.h"
#include "kernels/status.h"

namespace quantd {

class FaultList {
 public:
  template <typename... Args>
  void Add(fmt::format_string<Args...> f, Args&&... args) {
    all_unimplemented_ = false;
    AddUnimplemented(f, std::forward<Args>(args)...);
  }
  /// For what is valid but not supported here.
  template <typename... Args>
  void AddUnimplemented(fmt::format_string<Args...> f, Args&&... args) {
    // A file can have a fault in each of a million merges: what is not listed is not made.
    if (++count_ > kMaxListed) return;
    listed_.push_back(fmt::format(f, std::forward<Args>(args)...));
  }
  void Add(const absl::Status& status) {
    if (status.ok()) return;
    status.code() == absl::StatusCode::kUnimplemented ? AddUnimplemented("{}", Message(status))
                                                      : Add("{}", Message(status));
  }

  bool empty() const { return count_ == 0; }
  size_t size() const { return count_; }

  /// Those that are listed, and how many are not: "and 5 more".
  std::vector<std::string> texts() const {
    std::vector<std::string> texts = listed_;
    if (count_ > kMaxListed) texts.push_back(fmt::format("and {} more", count_ - kMaxListed));
    return texts;
  }

  /// OK when there is no fault, UNIMPLEMENTED when every one is, else `code`: "a; b", behind
  /// "source: " where a source is given. Lists at most `kMaxListed`.
  absl::Status ToStatus(absl::StatusCode code, const std::string& source = "") const {
    if (empty()) return absl::OkStatus();
    std::vector<std::string> texts = this->texts();
    const std::string front = source.empty() ? "" : source + ": ";
    absl::Status status(all_unimplemented_ ? absl::StatusCode::kUnimplemented : code,
                        fmt::format("{}{}", front, fmt::join(texts, "; ")));
    for (std::string& text : texts) text.insert(0, front);
    status.SetPayload(kPayload, absl::Cord(fmt::format("{}", fmt::join(texts, kSeparator))));
    return status;
  }

  static constexpr size_t kMaxListed =
      20;  // one screen; a wrong config.json breaks hundreds of shapes

 private:
  size_t count_ = 0;
  std::vector<std::string> listed_;
  bool all_unimplemented_ = true;

  friend std::vector<std::string> FaultsOf(const absl::Status& status);
  static constexpr char kPayload[] = "quantd.faults";
  static constexpr std::string_view kSeparator{"\0", 1};  // in no text of a message
};

/// The faults of which FaultList::ToStatus made `status`, each behind its source; of another status
/// its message. Annotate joins them to one.
inline std::vector<std::string> FaultsOf(const absl::Status& status) {
  if (status.ok()) return {};
  const auto payload = status.GetPayload(FaultList::kPayload);
  if (!payload) return {Message(status)};
  std::vector<std::string> faults;
  const std::string all(*payload);
  for (size_t at = 0; at <= all.size();) {
    const size_t end = std::min(all.find(FaultList::kSeparator, at), all.size());
    faults.push_back(all.substr(at, end - at));
    at = end + FaultList::kSeparator.size();
  }
  return faults;
}

}  // namespace quantd
