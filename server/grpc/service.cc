// The six methods and their reactors. A reactor lives from its call's start to OnDone, which
// deletes it.
#include "server/grpc/service.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <utility>

#include "kernels/status.h"
#include "server/version.h"

namespace quantd {
namespace {

grpc::Status ToGrpc(const absl::Status& status) {
  return {static_cast<grpc::StatusCode>(status.code()), Message(status)};  // the codes are equal
}

template <class Proto>
absl::Status Parse(const grpc::ByteBuffer& bytes, Proto* proto) {
  grpc::ByteBuffer copy = bytes;  // shares the slices
  if (copy.Valid() && grpc::SerializationTraits<Proto>::Deserialize(&copy, proto).ok()) {
    return absl::OkStatus();
  }
  return InvalidArgument("malformed request: not a {}, or a string that is not UTF-8",
                         proto->GetTypeName());
}

grpc::ByteBuffer Serialize(const google::protobuf::MessageLite& proto) {
  const std::string bytes = proto.SerializeAsString();
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

// The earlier of the call's own deadline and the server's limit.
std::optional<Clock::time_point> DeadlineOf(const grpc::CallbackServerContext& context,
                                            double max_request_seconds) {
  std::optional<Clock::time_point> deadline;
  const auto wall = context.deadline();
  if (wall != std::chrono::system_clock::time_point::max()) {
    // Clamped: a deadline years away must not overflow.
    const auto left = std::min<std::chrono::system_clock::duration>(
        wall - std::chrono::system_clock::now(), std::chrono::hours(24 * 365));
    deadline = Clock::now() + left;
  }
  if (max_request_seconds > 0) {
    const auto limit = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                          std::chrono::duration<double>(max_request_seconds));
    deadline = deadline.has_value() ? std::min(*deadline, limit) : limit;
  }
  return deadline;
}

}  // namespace

// ---- reactors
// -----------------------------------------------------------------------------------------

class InferenceService::StreamReactor : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                                        public GenerateCall::Port {
 public:
  StreamReactor(InferenceService* service, grpc::CallbackServerContext* context)
      : service_(service),
        context_(context),
        call_(std::make_shared<GenerateCall>(this, true,
                                             service->config_.limits.stream_backlog_tokens)) {
    service_->registry_.Add(call_);
  }
  const std::shared_ptr<GenerateCall>& call() const { return call_; }
  void Describe(std::string request_id, bool with_logprobs) {
    request_id_ = std::move(request_id);
    with_logprobs_ = with_logprobs;
  }

  void Write(RequestUpdate update) override {
    buffer_ = Serialize(ToStreamResponse(request_id_, std::move(update), with_logprobs_));
    StartWrite(&buffer_);
  }
  void Finish(std::optional<RequestUpdate> update, const absl::Status& status,
              bool retry_pushback) override {
    if (retry_pushback) service_->AddPushback(context_);
    if (!update.has_value()) return ServerWriteReactor::Finish(ToGrpc(status));
    // Never with a write in flight (GenerateCall::Pump), so the buffer is free.
    buffer_ = Serialize(ToStreamResponse(request_id_, std::move(*update), with_logprobs_));
    StartWriteAndFinish(&buffer_, grpc::WriteOptions(), ToGrpc(status));
  }
  void Abort() override { context_->TryCancel(); }

  void OnWriteDone(bool ok) override { call_->OnWriteDone(ok); }
  void OnCancel() override { call_->OnCancel(); }
  void OnDone() override {
    call_->Detach();
    service_->registry_.Remove(call_);
    delete this;
  }

 private:
  InferenceService* service_;
  grpc::CallbackServerContext* context_;
  std::shared_ptr<GenerateCall> call_;
  std::string request_id_;
  bool with_logprobs_ = false;
  grpc::ByteBuffer buffer_;  // of the write in flight
};

class InferenceService::UnaryReactor : public grpc::ServerUnaryReactor, public GenerateCall::Port {
 public:
  UnaryReactor(InferenceService* service, grpc::CallbackServerContext* context,
               grpc::ByteBuffer* response)
      : service_(service),
        context_(context),
        response_(response),
        call_(std::make_shared<GenerateCall>(this, false, 0)) {
    service_->registry_.Add(call_);
  }
  const std::shared_ptr<GenerateCall>& call() const { return call_; }
  void Describe(std::string request_id, bool with_logprobs) {
    request_id_ = std::move(request_id);
    with_logprobs_ = with_logprobs;
  }

  void Write(RequestUpdate) override {}  // a call that collects is only finished
  void Finish(std::optional<RequestUpdate> update, const absl::Status& status,
              bool retry_pushback) override {
    if (retry_pushback) service_->AddPushback(context_);
    if (update.has_value()) {
      *response_ = Serialize(ToResponse(request_id_, std::move(*update), with_logprobs_));
    }
    ServerUnaryReactor::Finish(ToGrpc(status));
  }
  void Abort() override { context_->TryCancel(); }

  void OnCancel() override { call_->OnCancel(); }
  void OnDone() override {
    call_->Detach();
    service_->registry_.Remove(call_);
    delete this;
  }

 private:
  InferenceService* service_;
  grpc::CallbackServerContext* context_;
  grpc::ByteBuffer* response_;
  std::shared_ptr<GenerateCall> call_;
  std::string request_id_;
  bool with_logprobs_ = false;
};

// A unary call that a worker finishes.
class InferenceService::DeferredReactor : public grpc::ServerUnaryReactor {
 public:
  void OnDone() override { delete this; }
};

// ---- service
// ------------------------------------------------------------------------------------------

InferenceService::InferenceService(const Serving& serving, const ServerConfig& config)
    : serving_(serving),
      config_(config),
      watchdog_([this] { Watch(); }),
      pool_(std::make_unique<WorkerPool>(
          static_cast<int>(config.limits.tokenizer_threads),
          static_cast<size_t>(config.limits.max_queued_tokenizations))) {}

InferenceService::~InferenceService() {
  {
    std::lock_guard lock(watch_mutex_);
    stopping_ = true;
  }
  watch_wake_.notify_all();
  watchdog_.join();
}

void InferenceService::Watch() {
  const auto limit = std::chrono::duration_cast<Clock::duration>(
      std::chrono::duration<double>(config_.timeouts.stall_seconds));
  const auto tick = std::clamp<Clock::duration>(limit / 4, std::chrono::milliseconds(10),
                                                std::chrono::seconds(1));
  std::unique_lock lock(watch_mutex_);
  while (!watch_wake_.wait_for(lock, tick, [this] { return stopping_; })) {
    lock.unlock();
    const Clock::time_point now = Clock::now();
    for (const auto& call : registry_.Snapshot()) call->CheckStall(now, limit);
    lock.lock();
  }
}

void InferenceService::CancelAll(const absl::Status& status) {
  for (const auto& call : registry_.Snapshot()) call->Fail(status);
}

absl::StatusOr<const ServedModel*> InferenceService::Ready() const {
  switch (serving_.state()) {
    case Serving::State::kLoading:
      return Unavailable("the model is loading ({:.0f}%)", 100.0 * serving_.load_progress());
    case Serving::State::kDraining: return Unavailable("the server is draining");
    case Serving::State::kReady: break;
  }
  return serving_.model();
}

void InferenceService::AddPushback(grpc::CallbackServerContext* context) const {
  context->AddTrailingMetadata("grpc-retry-pushback-ms",
                               std::to_string(config_.limits.retry_pushback_ms));
}

template <class Reactor>
void InferenceService::Start(Reactor* reactor, grpc::CallbackServerContext* context,
                             const grpc::ByteBuffer& bytes) {
  // A copy: after the request is on its way the reactor may be gone at any time.
  const std::shared_ptr<GenerateCall> call = reactor->call();
  const absl::StatusOr<const ServedModel*> model = Ready();
  if (!model.ok()) return call->Fail(model.status());
  v1::GenerateRequest proto;
  if (const absl::Status s = Parse(bytes, &proto); !s.ok()) return call->Fail(s);
  absl::StatusOr<PreparedRequest> prepared = ToPreparedRequest(std::move(proto), FactsOf(**model));
  if (!prepared.ok()) return call->Fail(prepared.status());
  Request& request = prepared->request;
  if (request.id.empty()) request.id = fmt::format("r{}", next_id_.fetch_add(1));
  request.deadline = DeadlineOf(*context, config_.timeouts.max_request_seconds);
  reactor->Describe(request.id, request.sampling.logprobs >= 0);

  if (!prepared->has_text) return call->Submit((*model)->engine, std::move(request));
  auto job = [call, served = *model, p = std::make_shared<PreparedRequest>(std::move(*prepared))] {
    if (!call->active()) return;
    absl::StatusOr<std::vector<int32_t>> ids =
        served->tokenizer->Encode(p->text, p->add_special_tokens);
    if (!ids.ok()) return call->Fail(Annotate(ids.status(), "text"));
    if (ids->empty())
      return call->Fail(InvalidArgument("text: comes to no token, allowed: at least one"));
    p->request.prompt_ids = std::move(*ids);
    call->Submit(served->engine, std::move(p->request));
  };
  if (!pool_->Submit(std::move(job))) {
    call->Fail(ResourceExhausted("{} texts are waiting to be tokenized, allowed: {}",
                                 config_.limits.max_queued_tokenizations,
                                 config_.limits.max_queued_tokenizations),
               true);
  }
}

grpc::ServerUnaryReactor* InferenceService::Generate(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  auto* reactor = new UnaryReactor(this, context, response);
  Start(reactor, context, *request);
  return reactor;
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::GenerateStream(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  auto* reactor = new StreamReactor(this, context);
  Start(reactor, context, *request);
  return reactor;
}

template <class Work>
grpc::ServerUnaryReactor* InferenceService::Defer(grpc::CallbackServerContext* context,
                                                  grpc::ByteBuffer* response, Work work) {
  auto* reactor = new DeferredReactor();
  const bool queued = pool_->Submit([reactor, context, response, work = std::move(work)] {
    if (context->IsCancelled())
      return reactor->Finish(ToGrpc(Cancelled("cancelled by the client")));
    absl::StatusOr<grpc::ByteBuffer> bytes = work();
    if (bytes.ok()) *response = std::move(*bytes);
    reactor->Finish(ToGrpc(bytes.status()));
  });
  if (!queued) {
    AddPushback(context);
    reactor->Finish(ToGrpc(ResourceExhausted("{} texts are waiting, allowed: {}",
                                             config_.limits.max_queued_tokenizations,
                                             config_.limits.max_queued_tokenizations)));
  }
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  auto work = [this, bytes = *request]() -> absl::StatusOr<grpc::ByteBuffer> {
    ASSIGN_OR_RETURN(const ServedModel* model, Ready());
    v1::TokenizeRequest proto;
    RETURN_IF_ERROR(Parse(bytes, &proto));
    RETURN_IF_ERROR(CheckModelName(proto.model(), FactsOf(*model)));
    const bool add_special = !proto.has_add_special_tokens() || proto.add_special_tokens();
    absl::StatusOr<std::vector<int32_t>> ids = model->tokenizer->Encode(proto.text(), add_special);
    if (!ids.ok()) return Annotate(ids.status(), "text");
    v1::TokenizeResponse out;
    out.mutable_token_ids()->Add(ids->begin(), ids->end());
    return Serialize(out);
  };
  return Defer(context, response, std::move(work));
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request,
                                                       grpc::ByteBuffer* response) {
  auto work = [this, bytes = *request]() -> absl::StatusOr<grpc::ByteBuffer> {
    ASSIGN_OR_RETURN(const ServedModel* model, Ready());
    v1::DetokenizeRequest proto;
    RETURN_IF_ERROR(Parse(bytes, &proto));
    const ModelFacts facts = FactsOf(*model);
    RETURN_IF_ERROR(CheckModelName(proto.model(), facts));
    RETURN_IF_ERROR(CheckTokenIds(proto.token_ids(), facts.vocab_size, "token_ids"));
    const bool skip_special = !proto.has_skip_special_tokens() || proto.skip_special_tokens();
    v1::DetokenizeResponse out;
    out.set_text(model->tokenizer->Decode(
        {proto.token_ids().data(), static_cast<size_t>(proto.token_ids_size())}, skip_special));
    return Serialize(out);
  };
  return Defer(context, response, std::move(work));
}

grpc::ServerUnaryReactor* InferenceService::GetModelInfo(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* request,
                                                         grpc::ByteBuffer* response) {
  auto answer = [&]() -> absl::Status {
    v1::GetModelInfoRequest proto;
    RETURN_IF_ERROR(Parse(*request, &proto));
    const ServedModel* model = serving_.model();  // while draining, too
    if (model == nullptr) return Ready().status();
    RETURN_IF_ERROR(CheckModelName(proto.model(), FactsOf(*model)));
    *response = Serialize(ToModelInfo(*model));
    return absl::OkStatus();
  };
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(answer()));
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::GetServerInfo(grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer* request,
                                                          grpc::ByteBuffer* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  v1::GetServerInfoRequest proto;
  if (const absl::Status s = Parse(*request, &proto); !s.ok()) {
    reactor->Finish(ToGrpc(s));
    return reactor;
  }
  v1::GetServerInfoResponse out;
  out.set_version(kVersion);
  out.set_uptime_seconds(serving_.uptime_seconds());
  const Serving::State state = serving_.state();
  out.set_state(state == Serving::State::kLoading ? v1::SERVER_STATE_LOADING
                : state == Serving::State::kReady ? v1::SERVER_STATE_READY
                                                  : v1::SERVER_STATE_DRAINING);
  v1::ServerLimits* limits = out.mutable_limits();
  limits->set_max_message_bytes(config_.limits.max_message_bytes);
  limits->set_max_num_seqs(static_cast<int32_t>(config_.scheduler.max_num_seqs));
  limits->set_max_num_batched_tokens(
      static_cast<int32_t>(config_.scheduler.max_num_batched_tokens));
  limits->set_max_queued_requests(static_cast<int32_t>(config_.limits.max_queued_requests));
  limits->set_max_queued_tokenizations(
      static_cast<int32_t>(config_.limits.max_queued_tokenizations));
  limits->set_stall_seconds(config_.timeouts.stall_seconds);
  limits->set_max_request_seconds(config_.timeouts.max_request_seconds);
  out.set_live_requests(live_calls());
  out.set_load_progress(serving_.load_progress());
  if (const ServedModel* model = serving_.model(); model != nullptr) {
    if (model->backend != nullptr) out.set_device(model->backend->info().description);
    ToProto(model->engine->Stats(), out.mutable_stats());
  }
  *response = Serialize(out);
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

}  // namespace quantd
