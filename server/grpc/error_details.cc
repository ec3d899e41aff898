// The field travels from where it was checked as a payload of the absl::Status.
#include "server/grpc/error_details.h"

#include "absl/strings/cord.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace quantd {
namespace {

constexpr char kField[] = "quantd/field";
constexpr size_t kMaxMessageBytes = 512;

// At most kMaxMessageBytes, cut between two characters.
std::string Shortened(std::string message) {
  if (message.size() <= kMaxMessageBytes) return message;
  size_t end = kMaxMessageBytes - 3;
  while (end > 0 && (static_cast<unsigned char>(message[end]) & 0xc0) == 0x80) --end;
  message.resize(end);
  return message + "...";
}

}  // namespace

absl::Status WithField(absl::Status status, const std::string& field) {
  status.SetPayload(kField, absl::Cord(field));
  return status;
}

std::optional<std::string> FieldIn(const absl::Status& status) {
  const auto field = status.GetPayload(kField);
  if (!field.has_value()) return std::nullopt;
  return std::string(*field);
}

grpc::Status ToGrpc(const absl::Status& status, std::optional<int64_t> retry_after_ms) {
  const auto code = static_cast<grpc::StatusCode>(status.code());  // the codes are equal
  const std::string message = Shortened(Message(status));
  google::rpc::Status details;
  if (const std::optional<std::string> field = FieldIn(status); field.has_value()) {
    google::rpc::BadRequest bad;
    google::rpc::BadRequest::FieldViolation* violation = bad.add_field_violations();
    violation->set_field(*field);
    violation->set_description(message);
    details.add_details()->PackFrom(bad);
  }
  if (retry_after_ms.has_value()) {
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(*retry_after_ms / 1000);
    retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(*retry_after_ms % 1000 * 1000000));
    details.add_details()->PackFrom(retry);
  }
  if (details.details().empty()) return {code, message};
  details.set_code(code);
  details.set_message(message);
  return {code, message, details.SerializeAsString()};
}

}  // namespace quantd
