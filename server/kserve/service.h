// KserveService: inference.GRPCInferenceService, the KServe protocol with Triton's extensions, on
// gRPC's callback API with raw messages, as quantd.v1.Inference beside it (server/grpc/service.h).
// Nothing blocks in a reaction. The one method with a stream is in infer_stream.h.
#pragma once

#include "inference/grpc_service.grpc.pb.h"
#include "server/grpc/front.h"

namespace quantd::kserve {

using Kserve = inference::GRPCInferenceService;
template <class Base>
using WithServerLive = Kserve::WithRawCallbackMethod_ServerLive<Base>;
template <class Base>
using WithServerReady = Kserve::WithRawCallbackMethod_ServerReady<Base>;
template <class Base>
using WithModelReady = Kserve::WithRawCallbackMethod_ModelReady<Base>;
template <class Base>
using WithServerMetadata = Kserve::WithRawCallbackMethod_ServerMetadata<Base>;
template <class Base>
using WithModelMetadata = Kserve::WithRawCallbackMethod_ModelMetadata<Base>;
template <class Base>
using WithModelInfer = Kserve::WithRawCallbackMethod_ModelInfer<Base>;
template <class Base>
using WithModelStreamInfer = Kserve::WithRawCallbackMethod_ModelStreamInfer<Base>;
template <class Base>
using WithModelConfig = Kserve::WithRawCallbackMethod_ModelConfig<Base>;
template <class Base>
using WithModelStatistics = Kserve::WithRawCallbackMethod_ModelStatistics<Base>;
template <class Base>
using WithRepositoryIndex = Kserve::WithRawCallbackMethod_RepositoryIndex<Base>;
using RawKserveService = WithServerLive<WithServerReady<
    WithModelReady<WithServerMetadata<WithModelMetadata<WithModelInfer<WithModelStreamInfer<
        WithModelConfig<WithModelStatistics<WithRepositoryIndex<Kserve::Service>>>>>>>>>>;

class KserveService : public RawKserveService {
 public:
  /// `front` must outlive the service, the service its gRPC server.
  KserveService(Front& front, Port port) : front_(front), port_(port) {}

  using Context = grpc::CallbackServerContext;
  using Bytes = grpc::ByteBuffer;
  using Unary = grpc::ServerUnaryReactor;
  Unary* ServerLive(Context* context, const Bytes* request, Bytes* response) override;
  Unary* ServerReady(Context* context, const Bytes* request, Bytes* response) override;
  Unary* ModelReady(Context* context, const Bytes* request, Bytes* response) override;
  Unary* ServerMetadata(Context* context, const Bytes* request, Bytes* response) override;
  Unary* ModelMetadata(Context* context, const Bytes* request, Bytes* response) override;
  Unary* ModelInfer(Context* context, const Bytes* request, Bytes* response) override;
  grpc::ServerBidiReactor<Bytes, Bytes>* ModelStreamInfer(Context* context) override;
  Unary* ModelConfig(Context* context, const Bytes* request, Bytes* response) override;
  Unary* ModelStatistics(Context* context, const Bytes* request, Bytes* response) override;
  Unary* RepositoryIndex(Context* context, const Bytes* request, Bytes* response) override;

 private:
  class InferReactor;

  absl::StatusOr<inference::ServerLiveResponse> Answer(const inference::ServerLiveRequest&) const;
  absl::StatusOr<inference::ServerReadyResponse> Answer(const inference::ServerReadyRequest&) const;
  absl::StatusOr<inference::ModelReadyResponse> Answer(const inference::ModelReadyRequest&) const;
  absl::StatusOr<inference::ServerMetadataResponse> Answer(
      const inference::ServerMetadataRequest&) const;
  absl::StatusOr<inference::ModelMetadataResponse> Answer(
      const inference::ModelMetadataRequest&) const;
  absl::StatusOr<inference::ModelConfigResponse> Answer(const inference::ModelConfigRequest&) const;
  absl::StatusOr<inference::ModelStatisticsResponse> Answer(
      const inference::ModelStatisticsRequest&) const;
  absl::StatusOr<inference::RepositoryIndexResponse> Answer(
      const inference::RepositoryIndexRequest&) const;
  // The served model, loaded (or draining) and of this name and version.
  absl::StatusOr<const ServedModel*> Find(const std::string& name,
                                          const std::string& version) const;
  // Identifies the caller where `access` says, parses a Request and writes its Answer.
  template <class Request>
  absl::Status Reply(const Context& context, std::optional<Access> access, const Bytes& bytes,
                     Bytes* response) const;
  template <class Request>
  Unary* ReplyNow(Context* context, std::optional<Access> access, const Bytes* request,
                  Bytes* response) const;
  void Start(InferReactor* reactor, Context* context, const Bytes& bytes);

  Front& front_;
  const Port port_;
};

}  // namespace quantd::kserve
