// Errors as a client sees them: gRPC's status with google.rpc details where a program can act on
// them. Pure functions.
#pragma once

#include <grpcpp/support/status.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "kernels/status.h"

namespace quantd {

/// `status`, which is about `field` of the request ("sampling.stop[3]").
absl::Status WithField(absl::Status status, const std::string& field);
/// The field that WithField said; none when it said none.
std::optional<std::string> FieldIn(const absl::Status& status);

/// INVALID_ARGUMENT "<field>: <what>" with that field.
template <typename... Args>
absl::Status InvalidField(const std::string& field, fmt::format_string<Args...> what,
                          Args&&... args) {
  return WithField(InvalidArgument("{}: {}", field, fmt::format(what, std::forward<Args>(args)...)),
                   field);
}

/// The status that ends a call: BadRequest tells the field, RetryInfo when to try again. The
/// message, which may quote what the client sent, is cut to some hundred bytes: a client refuses
/// trailers beyond 8 KiB and would see another error instead.
grpc::Status ToGrpc(const absl::Status& status,
                    std::optional<int64_t> retry_after_ms = std::nullopt);

}  // namespace quantd
