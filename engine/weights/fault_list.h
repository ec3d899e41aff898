// FaultList: collects every fault of one input, so that a user sees all of them in one message.
//
// Used by profiles, config.json and the check of a checkpoint. Not thread-safe; lives on the stack
// of the function that checks.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "kernels/status.h"

namespace quantd {

class FaultList {
 public:
  template <typename... Args>
  void Add(fmt::format_string<Args...> f, Args&&... args) {
    faults_.push_back(fmt::format(f, std::forward<Args>(args)...));
    all_unimplemented_ = false;
  }
  /// For what is valid but not supported here.
  template <typename... Args>
  void AddUnimplemented(fmt::format_string<Args...> f, Args&&... args) {
    faults_.push_back(fmt::format(f, std::forward<Args>(args)...));
  }
  void Add(const absl::Status& status) {
    if (status.ok()) return;
    faults_.push_back(Message(status));
    if (status.code() != absl::StatusCode::kUnimplemented) all_unimplemented_ = false;
  }

  bool empty() const { return faults_.empty(); }
  size_t size() const { return faults_.size(); }

  /// OK when there is no fault, UNIMPLEMENTED when every one is, else `code`. Lists at most
  /// `kMaxListed`.
  absl::Status ToStatus(absl::StatusCode code) const {
    if (faults_.empty()) return absl::OkStatus();
    std::string text;
    for (size_t i = 0; i < faults_.size() && i < kMaxListed; ++i) {
      if (i > 0) text += "; ";
      text += faults_[i];
    }
    if (faults_.size() > kMaxListed)
      text += fmt::format("; and {} more", faults_.size() - kMaxListed);
    return absl::Status(all_unimplemented_ ? absl::StatusCode::kUnimplemented : code, text);
  }

  static constexpr size_t kMaxListed =
      20;  // one screen; a wrong config.json breaks hundreds of shapes

 private:
  std::vector<std::string> faults_;
  bool all_unimplemented_ = true;
};

}  // namespace quantd
