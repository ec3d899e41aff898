#!/usr/bin/env python3
"""Stands between a KServe client and a server, and writes down each request as it came off the wire.

    python3 tests/clients/record_requests.py --to HOST:PORT --listen HOST:PORT --out DIR --name CLIENT

DIR/CLIENT.METHOD.N.bin is the N-th different message to METHOD, of the first --most. tests/data/kserve
is made of these. Needs grpcio. Called by triton_clients.py --record.
"""
import argparse
import collections
import pathlib
from concurrent import futures

import grpc


class Recorder(grpc.GenericRpcHandler):
    def __init__(self, channel, out, name, most):
        self.channel, self.out, self.name, self.most = channel, out, name, most
        self.seen = collections.defaultdict(set)

    def keep(self, method, message):
        seen = self.seen[method]
        if message in seen or len(seen) >= self.most:
            return
        path = self.out / f"{self.name}.{method.rsplit('/', 1)[1]}.{len(seen)}.bin"
        seen.add(message)
        path.write_bytes(message)

    def service(self, details):
        method = details.method

        def forward(requests, context):
            metadata = [(k, v) for k, v in context.invocation_metadata() if k != "user-agent"]
            print(method, metadata, flush=True)

            def recorded():
                for message in requests:
                    self.keep(method, message)
                    yield message

            call = self.channel.stream_stream(method)(recorded(), metadata=metadata)
            context.add_callback(call.cancel)
            try:
                yield from call
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())

        return grpc.stream_stream_rpc_method_handler(forward)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", required=True)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--most", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    server = grpc.server(futures.ThreadPoolExecutor(64))
    handler = Recorder(grpc.insecure_channel(args.to), args.out, args.name, args.most)
    server.add_generic_rpc_handlers((handler,))
    if server.add_insecure_port(args.listen) == 0:
        raise SystemExit(f"--listen: {args.listen} cannot be bound")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
