// InferStream: one ModelStreamInfer call: many requests at a time, multiplexed on its one write in
// flight. Each request has a GenerateCall of its own, whose port hands messages to the stream:
//
//   OnReadDone --> Begin --> GenerateCall --> Exchange (its port) --Send, End--> [messages] --> one
//   write in flight
//
// A GenerateCall has at most one message of text waiting here and merges what comes meanwhile, so a
// slow reader holds its requests back and nothing else; nothing is read from a client that leaves
// too many responses unread.
//
// Threads: any. Order of locks: a GenerateCall's mutex, then the stream's: with the stream's held
// no call is ever entered.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_set>
#include <vector>

#include "inference/grpc_service.pb.h"
#include "server/grpc/front.h"

namespace quantd::kserve {

class InferStream : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  /// Begins to read. Deletes itself when the call is done; `front` must outlive it.
  InferStream(Front& front, Port port, grpc::CallbackServerContext* context);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  class Exchange;
  // What follows when a message was written: the call may write again, nothing, or the request is
  // over.
  enum class Then : uint8_t { kContinue, kNothing, kOver };
  struct Message {
    std::shared_ptr<Exchange> exchange;  // null for a request that was refused
    grpc::ByteBuffer bytes;
    Then then = Then::kNothing;
  };

  // ---- requests in
  void Begin(const grpc::ByteBuffer& bytes);
  void Refuse(const std::string& id, const absl::Status& status, bool retry_pushback);
  void ReadOn();  // with mutex_

  // ---- responses out; called by an Exchange with its call's mutex held
  void Send(std::shared_ptr<Exchange> exchange, const grpc::ByteBuffer& bytes);
  void End(const std::shared_ptr<Exchange>& exchange, const std::vector<grpc::ByteBuffer>& messages,
           const absl::Status& status, bool retry_pushback);

  // With mutex_.
  void Push(Message message);
  void Pump();
  void FinishIfOver();
  void FinishLocked(const grpc::Status& status);
  // Ends the requests, the stream being at its end.
  void DropAll();

  Front& front_;
  const Port port_;
  grpc::CallbackServerContext* const context_;
  const size_t most_;           // requests at a time
  const bool errors_end_call_;  // triton_grpc_error

  std::mutex mutex_;
  grpc::ByteBuffer read_;                                    // of the read in flight
  bool reading_ = true;                                      // a read is in flight
  bool no_more_ = false;                                     // the client has said its last
  std::unordered_set<std::shared_ptr<Exchange>> exchanges_;  // whose end was not written
  std::unordered_set<std::string> ids_;                      // of those that have no end yet
  size_t live_ = 0;                                          // these, with and without an id
  std::deque<Message> messages_;
  Message current_;  // of the write in flight
  bool writing_ = false;
  // Of each write. Twice as patient as the requests' own, whose end says what is wrong; a reader
  // that is only slow gets to it.
  const std::shared_ptr<StallWatch> watch_;
  bool finished_ = false;  // Finish was called
};

}  // namespace quantd::kserve
