// Raw calls on gRPC's generated-code internals: what a stub does, without the message type.
#include "tests/server/raw_call.h"

#include <grpcpp/impl/codegen/client_unary_call.h>
#include <grpcpp/impl/rpc_method.h>

namespace quantd::test {

grpc::Status RawCall(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                     const std::string& bytes, grpc::ClientContext* context,
                     std::string* response) {
  grpc::ClientContext own;
  grpc::ClientContext* used = context != nullptr ? context : &own;
  used->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  const grpc::Slice slice(bytes);
  const grpc::ByteBuffer request(&slice, 1);
  grpc::ByteBuffer answer;
  const grpc::internal::RpcMethod rpc(method.c_str(), grpc::internal::RpcMethod::NORMAL_RPC);
  const grpc::Status status =
      grpc::internal::BlockingUnaryCall(channel.get(), rpc, used, request, &answer);
  if (response != nullptr && answer.Valid()) {
    std::vector<grpc::Slice> slices;
    answer.Dump(&slices);
    for (const grpc::Slice& s : slices)
      response->append(reinterpret_cast<const char*>(s.begin()), s.size());
  }
  return status;
}

std::shared_ptr<grpc::Channel> NewChannel(
    const std::string& address, grpc::ChannelArguments arguments,
    const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(address, credentials, arguments);
}

}  // namespace quantd::test
