// Messages as bytes: services take raw bytes, so that what does not parse is INVALID_ARGUMENT and
// not gRPC's own UNIMPLEMENTED.
#pragma once

#include <grpcpp/grpcpp.h>

#include <string>

#include "absl/status/status.h"
#include "google/protobuf/message.h"
#include "kernels/status.h"

namespace quantd {

/// INVALID_ARGUMENT when `bytes` are not a `Proto` (a string that is not UTF-8 included).
template <class Proto>
absl::Status ParseMessage(const grpc::ByteBuffer& bytes, Proto* proto) {
  grpc::ByteBuffer copy = bytes;  // shares the slices
  if (copy.Valid() && grpc::SerializationTraits<Proto>::Deserialize(&copy, proto).ok()) {
    return absl::OkStatus();
  }
  return InvalidArgument("malformed request: not a {}, or a string that is not UTF-8",
                         proto->GetTypeName());
}

inline grpc::ByteBuffer SerializeMessage(const google::protobuf::MessageLite& proto) {
  const std::string bytes = proto.SerializeAsString();
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace quantd
