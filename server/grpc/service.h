// InferenceService: quantd.v1.Inference on gRPC's callback API, with raw messages so that what does
// not parse is INVALID_ARGUMENT. Nothing blocks in a reaction: texts are tokenized by the front's
// workers, generation belongs to the engine's thread.
#pragma once

#include "quantd/v1/inference.grpc.pb.h"
#include "server/grpc/front.h"

namespace quantd {

template <class Base>
using WithGenerate = v1::Inference::WithRawCallbackMethod_Generate<Base>;
template <class Base>
using WithGenerateStream = v1::Inference::WithRawCallbackMethod_GenerateStream<Base>;
template <class Base>
using WithTokenize = v1::Inference::WithRawCallbackMethod_Tokenize<Base>;
template <class Base>
using WithDetokenize = v1::Inference::WithRawCallbackMethod_Detokenize<Base>;
template <class Base>
using WithModelInfo = v1::Inference::WithRawCallbackMethod_GetModelInfo<Base>;
template <class Base>
using WithServerInfo = v1::Inference::WithRawCallbackMethod_GetServerInfo<Base>;
using RawInferenceService = WithGenerate<WithGenerateStream<
    WithTokenize<WithDetokenize<WithModelInfo<WithServerInfo<v1::Inference::Service>>>>>>;

class InferenceService : public RawInferenceService {
 public:
  /// `front` must outlive the service, the service its gRPC server.
  InferenceService(Front& front, Port port) : front_(front), port_(port) {}

  grpc::ServerUnaryReactor* Generate(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerateStream(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;

 private:
  template <class Base>
  class GenerateReactor;
  class StreamReactor;
  class UnaryReactor;
  class DeferredReactor;

  // Parses, checks and converts a request; on success it is on its way to the engine.
  template <class Reactor>
  void Start(Reactor* reactor, grpc::CallbackServerContext* context, const grpc::ByteBuffer& bytes);
  absl::StatusOr<v1::TokenizeResponse> Answer(const v1::TokenizeRequest& request) const;
  absl::StatusOr<v1::DetokenizeResponse> Answer(const v1::DetokenizeRequest& request) const;
  absl::StatusOr<v1::GetModelInfoResponse> Answer(const v1::GetModelInfoRequest& request) const;
  absl::StatusOr<v1::GetServerInfoResponse> Answer(const v1::GetServerInfoRequest& request) const;
  // Parses a Request and writes its Answer.
  template <class Request>
  absl::Status Reply(const grpc::ByteBuffer& bytes, grpc::ByteBuffer* response) const;
  // Replies on this thread, or on the worker pool.
  template <class Request>
  grpc::ServerUnaryReactor* ReplyNow(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) const;
  template <class Request>
  grpc::ServerUnaryReactor* ReplyOnWorker(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response);

  Front& front_;
  const Port port_;
};

}  // namespace quantd
