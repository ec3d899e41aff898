// Status helpers: fmt-formatted absl::Status constructors and the two propagation macros.
//
// absl::Status is used wherever the outside world can be wrong (files, requests, devices); its
// codes equal gRPC's, so the server converts with a cast. Debian's abseil has its own string_view,
// which std::string_view does not convert to, so messages go through fmt and std::string.
//
//   if (bits != 4) return InvalidArgument("{}: bits is {}, allowed: 4", path, bits);
//   ASSIGN_OR_RETURN(auto file, MappedFile::Open(path));
#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace quantd {

#define QUANTD_STATUS_FUNCTION(Name, kCode)                                                    \
  template <typename... Args>                                                                  \
  [[nodiscard]] absl::Status Name(fmt::format_string<Args...> f, Args&&... args) {             \
    return absl::Status(absl::StatusCode::kCode, fmt::format(f, std::forward<Args>(args)...)); \
  }
QUANTD_STATUS_FUNCTION(InvalidArgument, kInvalidArgument)      // bad input of a caller
QUANTD_STATUS_FUNCTION(NotFound, kNotFound)                    // no such file, model, profile
QUANTD_STATUS_FUNCTION(DataLoss, kDataLoss)                    // corrupt checkpoint or tokenizer
QUANTD_STATUS_FUNCTION(Unimplemented, kUnimplemented)          // valid, but not supported here
QUANTD_STATUS_FUNCTION(ResourceExhausted, kResourceExhausted)  // queue, KV cache or memory full
QUANTD_STATUS_FUNCTION(Unavailable, kUnavailable)              // draining, or the device died
QUANTD_STATUS_FUNCTION(FailedPrecondition, kFailedPrecondition)
QUANTD_STATUS_FUNCTION(DeadlineExceeded, kDeadlineExceeded)
QUANTD_STATUS_FUNCTION(Cancelled, kCancelled)
QUANTD_STATUS_FUNCTION(Internal, kInternal)
#undef QUANTD_STATUS_FUNCTION

/// The message of `status` as a std::string.
inline std::string Message(const absl::Status& status) { return std::string(status.message()); }

/// `status` with "prefix: " before its message; OK stays OK.
inline absl::Status Annotate(const absl::Status& status, const std::string& prefix) {
  if (status.ok()) return status;
  return absl::Status(status.code(), prefix + ": " + Message(status));
}

}  // namespace quantd

#define QUANTD_CONCAT_INNER(a, b) a##b
#define QUANTD_CONCAT(a, b) QUANTD_CONCAT_INNER(a, b)

#define RETURN_IF_ERROR(expr)                                         \
  do {                                                                \
    if (absl::Status status_ = (expr); !status_.ok()) return status_; \
  } while (false)

#define ASSIGN_OR_RETURN(lhs, expr) \
  ASSIGN_OR_RETURN_IMPL(QUANTD_CONCAT(status_or_, __LINE__), lhs, expr)
#define ASSIGN_OR_RETURN_IMPL(var, lhs, expr)    \
  auto var = (expr);                             \
  if (!var.ok()) return std::move(var).status(); \
  lhs = std::move(var).value()
