// FaultList: collects every fault of one input, so that a user sees all of them in one message.
//
// Used by profiles, config.json, tokenizer.json and the check of a checkpoint. Not thread-safe;
// lives on the stack of the function that checks.
#pragma once

#include <cstddef>
#include <string>
#include <utility>

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
    if (count_ > 1) text_ += "; ";
    text_ += fmt::format(f, std::forward<Args>(args)...);
  }
  void Add(const absl::Status& status) {
    if (status.ok()) return;
    status.code() == absl::StatusCode::kUnimplemented ? AddUnimplemented("{}", Message(status))
                                                      : Add("{}", Message(status));
  }

  bool empty() const { return count_ == 0; }
  size_t size() const { return count_; }

  /// OK when there is no fault, UNIMPLEMENTED when every one is, else `code`: "a; b". Lists at most
  /// `kMaxListed`.
  absl::Status ToStatus(absl::StatusCode code) const {
    if (empty()) return absl::OkStatus();
    const std::string more =
        count_ > kMaxListed ? fmt::format("; and {} more", count_ - kMaxListed) : std::string();
    return absl::Status(all_unimplemented_ ? absl::StatusCode::kUnimplemented : code, text_ + more);
  }

  static constexpr size_t kMaxListed =
      20;  // one screen; a wrong config.json breaks hundreds of shapes

 private:
  size_t count_ = 0;
  std::string text_;
  bool all_unimplemented_ = true;
};

}  // namespace quantd
