"""Load on a quantd server by locust: many users, each waits for its answer and thinks before it asks again.

    pip install locust grpcio-tools
    locust -f deploy/loadtest/locustfile.py --host localhost:50051                                  a page at localhost:8089
    locust -f deploy/loadtest/locustfile.py --host localhost:50051 --headless --users 20 --spawn-rate 5 --run-time 60s

Two events a request: "first token" and "whole answer", milliseconds; "tokens" counts as the length of the answer. The protocol is read
from proto/ beside this folder, or from --proto. For an open load, whose arrivals do not wait for answers, there is `quantd bench serve`.
"""
import os
import pathlib
import random
import sys
import time

import grpc
import grpc.experimental.gevent
from locust import User, between, events, task

grpc.experimental.gevent.init_gevent()  # before the first channel

PROTO = os.environ.get("QUANTD_PROTO", str(pathlib.Path(__file__).resolve().parents[2] / "proto"))
sys.path.insert(0, PROTO)  # where grpc looks for .proto files
messages, services = grpc.protos_and_services("quantd/v1/inference.proto")


@events.init_command_line_parser.add_listener
def add_arguments(parser):
    parser.add_argument("--prompt-tokens", type=int, default=64, help="of a prompt, drawn at random")
    parser.add_argument("--max-tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--think-time", type=float, default=1.0, help="seconds a user waits before the next request, on average")
    parser.add_argument("--deadline", type=float, default=120.0, help="seconds for an answer")
    parser.add_argument("--api-key", default="", env_var="QUANTD_API_KEY", is_secret=True, help="sent as authorization: Bearer")
    parser.add_argument("--grpc-tls", action="store_true", help="encrypted; with --grpc-tls-ca, by authorities of your own")
    parser.add_argument("--grpc-tls-ca", default="", help="file of certificates (PEM)")
    parser.add_argument("--grpc-tls-cert", default="", help="this client's certificate (PEM), for mutual TLS")
    parser.add_argument("--grpc-tls-key", default="", help="its key (PEM)")


def read(path):
    return pathlib.Path(path).read_bytes() if path else None


def open_channel(options, host):
    if not (options.grpc_tls or options.grpc_tls_ca or options.grpc_tls_cert):
        return grpc.insecure_channel(host)
    credentials = grpc.ssl_channel_credentials(read(options.grpc_tls_ca), read(options.grpc_tls_key), read(options.grpc_tls_cert))
    return grpc.secure_channel(host, credentials)


class Asker(User):
    """Asks, reads the stream to its end, thinks."""

    def wait_time(self):
        mean = self.environment.parsed_options.think_time
        return between(0.5 * mean, 1.5 * mean)(self)

    def on_start(self):
        options = self.environment.parsed_options
        self.channel = open_channel(options, self.host)
        self.stub = services.InferenceStub(self.channel)
        self.metadata = [("authorization", f"Bearer {options.api_key}")] if options.api_key else []
        info = self.stub.GetModelInfo(messages.GetModelInfoRequest(), metadata=self.metadata, timeout=options.deadline)
        self.vocab_size = info.vocab_size

    def on_stop(self):
        self.channel.close()

    @task
    def ask(self):
        options = self.environment.parsed_options
        request = messages.GenerateRequest()
        request.token_ids.ids.extend(random.randrange(self.vocab_size) for _ in range(options.prompt_tokens))
        request.sampling.max_tokens = options.max_tokens
        request.sampling.ignore_eos = True
        start, first, tokens, error = time.perf_counter(), None, 0, None
        try:
            for response in self.stub.GenerateStream(request, metadata=self.metadata, timeout=options.deadline):
                if response.token_ids and first is None:
                    first = time.perf_counter()
                tokens += len(response.token_ids)
            if tokens != options.max_tokens:
                error = AssertionError(f"{tokens} tokens instead of {options.max_tokens}")
        except grpc.RpcError as failed:
            error = failed
        end = time.perf_counter()
        if first is not None:
            self.fire("first token", first - start, 1, None)
        self.fire("whole answer", end - start, tokens, error)

    def fire(self, name, seconds, tokens, error):
        self.environment.events.request.fire(request_type="GenerateStream", name=name, response_time=1000 * seconds,
                                             response_length=tokens, exception=error, context={})
