// FindingList: faults of many sources as findings, each with where it is, what it is and what to
// do.
//
// Messages follow the grammar of kernels/fault_text.h. A fault that all layers of a model share is
// one finding. Not thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace quantd {

struct Finding {
  enum class Severity : uint8_t { kError, kWarning };  // serve refuses; serve takes it
  Severity severity = Severity::kError;
  std::string where;  // a file, or a key of the configuration
  std::string what;   // one sentence, naming the value
  std::string fix;    // what to do; may be empty
};

class FindingList {
 public:
  using Severity = Finding::Severity;

  /// What was added before is not added again, here and below.
  void Add(Finding finding);
  /// A fault, "what", "what; fix" or "where: what; fix" with a file as where. `where`: of a fault
  /// that names none; `fix`: of one that says none.
  void Add(Severity severity, const std::string& where, std::string_view fault,
           const std::string& fix = "");
  /// Every fault of a status (FaultsOf); none of OK.
  void Add(Severity severity, const std::string& where, const absl::Status& status,
           const std::string& fix = "");

  /// In the order in which they came, errors first.
  std::vector<Finding> Take();

 private:
  struct Entry {
    Finding finding;      // of the first layer
    std::string pattern;  // `what` with "*" for the layer's number
    int64_t layers = 0;   // that have it
  };
  std::vector<Entry> entries_;
};

}  // namespace quantd
