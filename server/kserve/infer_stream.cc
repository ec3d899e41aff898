// InferStream: see the header for the picture.
#include "server/kserve/infer_stream.h"

#include <algorithm>
#include <utility>

#include "inference/grpc_service.grpc.pb.h"
#include "kernels/status.h"
#include "server/grpc/messages.h"
#include "server/kserve/convert.h"
#include "server/one_line.h"

namespace quantd::kserve {
namespace {

bool ErrorsEndCall(const grpc::CallbackServerContext& context) {
  const auto found = context.client_metadata().find("triton_grpc_error");
  return found != context.client_metadata().end() && found->second == "true";
}

grpc::ByteBuffer Serialized(inference::ModelInferResponse response) {
  inference::ModelStreamInferResponse message;
  *message.mutable_infer_response() = std::move(response);
  return SerializeMessage(message);
}

}  // namespace

// One request of the stream.
class InferStream::Exchange : public GenerateCall::Port,
                              public std::enable_shared_from_this<Exchange> {
 public:
  Exchange(InferStream* stream, std::string model, std::string id, InferRequest& request)
      : stream_(stream),
        id_(id),
        empty_final_(request.empty_final && request.stream),
        responses_(std::move(model), std::move(id), request),
        call_(std::make_shared<GenerateCall>(
            this, request.stream, stream->front_.config().limits.stream_backlog_tokens)) {}

  const std::shared_ptr<GenerateCall>& call() const { return call_; }
  const std::string& id() const { return id_; }

  void Write(RequestUpdate update) override {
    stream_->Send(shared_from_this(), Serialized(responses_.Next(update, false)));
  }

  void Finish(std::vector<RequestUpdate> updates, const absl::Status& status,
              bool retry_pushback) override {
    std::vector<grpc::ByteBuffer> messages;
    messages.reserve(updates.size() + 1);
    for (const RequestUpdate& update : updates) {  // at most one
      messages.push_back(Serialized(responses_.Next(update, status.ok() && !empty_final_)));
    }
    if (!status.ok()) {
      messages.push_back(SerializeMessage(responses_.Error(status)));
    } else if (empty_final_) {
      messages.push_back(Serialized(responses_.Final()));
    }
    stream_->End(shared_from_this(), messages, responses_.Translate(status), retry_pushback);
  }

  // The stream's StallWatch gives up on a client that does not read at all.
  void Abort() override {}

 private:
  InferStream* const stream_;
  const std::string id_;
  const bool empty_final_;
  InferResponses responses_;
  const std::shared_ptr<GenerateCall> call_;
};

InferStream::InferStream(Front& front, Port port, grpc::CallbackServerContext* context)
    : front_(front),
      port_(port),
      context_(context),
      most_(static_cast<size_t>(front.config().limits.max_concurrent_streams)),
      errors_end_call_(ErrorsEndCall(*context)),
      watch_(std::make_shared<StallWatch>(context, 2)) {
  front_.answers().Add(watch_);
  const absl::Status allowed = front_.Identify(*context, Access::kModel, port_).status();
  if (allowed.ok()) {
    StartRead(&read_);
  } else {
    reading_ = false;
    FinishLocked(front_.EndOf(context_, allowed, false));
  }
}

// ---- requests in

void InferStream::OnReadDone(bool ok) {
  if (ok) {
    const grpc::ByteBuffer bytes = std::exchange(read_, grpc::ByteBuffer());
    Begin(bytes);
  }
  std::lock_guard lock(mutex_);
  reading_ = false;
  no_more_ = !ok;
  ReadOn();
  FinishIfOver();
}

void InferStream::ReadOn() {
  if (reading_ || no_more_ || finished_ || messages_.size() >= 2 * most_) return;
  reading_ = true;
  StartRead(&read_);
}

void InferStream::Begin(const grpc::ByteBuffer& bytes) {
  inference::ModelInferRequest proto;
  if (const absl::Status s = ParseMessage(bytes, &proto); !s.ok()) {
    front_.LogRefusal("", Caller(), s);
    std::lock_guard lock(mutex_);  // whoever speaks another protocol is not answered in this one
    return FinishLocked(front_.EndOf(context_, s, false));
  }
  const std::string id = proto.id().size() <= kMaxIdBytes ? proto.id() : "";
  absl::StatusOr<Front::Opened> opened = front_.Open(*context_, port_, id);
  if (!opened.ok()) return Refuse(id, opened.status(), false);
  absl::StatusOr<InferRequest> request = ToInferRequest(proto, FactsOf(*opened->model));
  if (!request.ok()) {
    front_.LogRefusal(id, opened->caller, request.status());
    return Refuse(id, request.status(), false);
  }

  PreparedRequest prepared = std::move(request->prepared);
  if (id.empty()) prepared.request.id = front_.NextRequestId();
  prepared.request.deadline = front_.DeadlineOf(*context_, request->timeout);
  const auto exchange = std::make_shared<Exchange>(this, proto.model_name(), id, *request);
  absl::Status refused;
  {
    std::lock_guard lock(mutex_);
    if (finished_) return;
    if (!id.empty() && ids_.contains(id)) {
      refused = absl::AlreadyExistsError(fmt::format(
          "id: {} is that of a request on this stream which is not finished", Quoted(id)));
    } else if (live_ >= most_) {
      refused = ResourceExhausted("{} requests on this stream are not finished, allowed: {}", live_,
                                  most_);
    } else {
      if (!id.empty()) ids_.insert(id);
      ++live_;
      exchanges_.insert(exchange);
      front_.calls().Add(exchange->call());  // while DropAll, which takes it out, cannot be past it
    }
  }
  if (!refused.ok()) {
    front_.LogRefusal(id, opened->caller, refused);
    return Refuse(id, refused, absl::IsResourceExhausted(refused));
  }
  front_.Start(exchange->call(), *opened->model, opened->caller, std::move(prepared));
}

void InferStream::Refuse(const std::string& id, const absl::Status& status, bool retry_pushback) {
  std::lock_guard lock(mutex_);
  if (finished_) return;
  if (errors_end_call_) return FinishLocked(front_.EndOf(context_, status, retry_pushback));
  const std::string& model = front_.config().served_model_name;
  Push({nullptr, SerializeMessage(ToErrorResponse(model, id, status)), Then::kNothing});
}

// ---- responses out

void InferStream::Send(std::shared_ptr<Exchange> exchange, const grpc::ByteBuffer& bytes) {
  std::lock_guard lock(mutex_);
  if (!finished_) Push({std::move(exchange), bytes, Then::kContinue});
}

void InferStream::End(const std::shared_ptr<Exchange>& exchange,
                      const std::vector<grpc::ByteBuffer>& messages, const absl::Status& status,
                      bool retry_pushback) {
  std::lock_guard lock(mutex_);
  if (finished_) return;
  // From here on its id is free: the client may know of the end before the write is said to be
  // done.
  ids_.erase(exchange->id());
  --live_;
  if (!status.ok() && errors_end_call_) {
    return FinishLocked(front_.EndOf(context_, status, retry_pushback));
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    const bool last = i + 1 == messages.size();
    Push({exchange, messages[i], last ? Then::kOver : Then::kNothing});
  }
}

void InferStream::Push(Message message) {
  messages_.push_back(std::move(message));
  Pump();
}

void InferStream::Pump() {
  if (writing_ || finished_ || messages_.empty()) return;
  current_ = std::move(messages_.front());
  messages_.pop_front();
  writing_ = true;
  watch_->Begin();
  StartWrite(&current_.bytes);
}

void InferStream::OnWriteDone(bool ok) {
  Message written;
  {
    std::lock_guard lock(mutex_);
    writing_ = false;
    watch_->End();
    written = std::exchange(current_, Message());
    if (ok && written.then == Then::kOver) exchanges_.erase(written.exchange);
    if (!ok) FinishLocked(grpc::Status(grpc::StatusCode::CANCELLED, "the client is gone"));
    Pump();
    ReadOn();
    FinishIfOver();
  }
  if (!ok) return DropAll();
  if (written.then == Then::kContinue) written.exchange->call()->OnWriteDone(true);
  if (written.then == Then::kOver) {
    written.exchange->call()->Detach();
    front_.calls().Remove(written.exchange->call());
  }
}

// ---- the end

void InferStream::FinishIfOver() {
  if (no_more_ && exchanges_.empty() && messages_.empty() && !writing_) {
    FinishLocked(grpc::Status::OK);
  }
}

void InferStream::FinishLocked(const grpc::Status& status) {
  if (finished_) return;
  finished_ = true;
  messages_.clear();
  Finish(status);
}

void InferStream::OnCancel() {
  {
    std::lock_guard lock(mutex_);
    FinishLocked(grpc::Status(grpc::StatusCode::CANCELLED, "cancelled by the client"));
  }
  DropAll();
}

void InferStream::DropAll() {
  std::unordered_set<std::shared_ptr<Exchange>> left;
  {
    std::lock_guard lock(mutex_);
    left.swap(exchanges_);
  }
  for (const auto& exchange : left) {
    exchange->call()->Detach();
    front_.calls().Remove(exchange->call());
  }
}

void InferStream::OnDone() {
  watch_->Detach();
  front_.answers().Remove(watch_);
  DropAll();
  delete this;
}

}  // namespace quantd::kserve
