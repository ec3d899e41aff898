// Calls that send arbitrary bytes instead of a well-formed message.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

namespace quantd::test {

/// Sends `bytes` to "/package.Service/Method" as the only message and waits for the status; the
/// (last) response's bytes go to `*response` when it is not null.
grpc::Status RawCall(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                     const std::string& bytes, grpc::ClientContext* context = nullptr,
                     std::string* response = nullptr);

/// A channel of its own connection, not shared with others of the process.
std::shared_ptr<grpc::Channel> NewChannel(
    const std::string& address, grpc::ChannelArguments arguments = grpc::ChannelArguments(),
    const std::shared_ptr<grpc::ChannelCredentials>& credentials =
        grpc::InsecureChannelCredentials());

}  // namespace quantd::test
