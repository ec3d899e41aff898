#!/usr/bin/env python3
"""Triton's own clients against `quantd serve`: tritonclient, perf_analyzer and genai-perf, as they are.

    python3 tests/clients/triton_clients.py --quantd build/release/quantd [--tools build/triton] [--record DIR]

Fetches them from PyPI into --tools. Checks our .proto files against the descriptors that tritonclient
brings; unary, asynchronous and streamed requests and their errors; that perf_analyzer's sweeps and
genai-perf's profiles end with 0 and the lengths that were asked for. --record: everything goes through
record_requests.py, which writes the requests down (tests/data/kserve).
"""
import argparse
import contextlib
import json
import os
import pathlib
import queue
import re
import shutil
import subprocess
import sys
import time
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from quantd_server import Server, new_key  # noqa: E402

MODEL = "demo"
PROXY_PORT = 18412
# perf_analyzer left tritonclient's wheels with 2.60; those from 2.52 on need a newer C library than Debian 12's.
PERF_ANALYZER_WHEEL = "2.51.0"
PACKAGES = ["tritonclient[grpc]==2.73.0", "genai-perf==0.0.16"]
CUDA_RUNTIME = "nvidia-cuda-runtime-cu12==12.9.79"  # its libcudart.so.12 is linked, and not used
ISL, OSL = 64, 16


def run(*command, **options):
    return subprocess.run([str(c) for c in command], check=True, **options)


def setup(tools):
    tools.mkdir(parents=True, exist_ok=True)
    if not (tools / "venv/bin/genai-perf").exists():
        run(sys.executable, "-m", "venv", tools / "venv")
        run(tools / "venv/bin/pip", "install", "-q", *PACKAGES)
    pip = tools / "venv/bin/pip"
    if not (tools / "bin/perf_analyzer").exists():
        run(pip, "download", "-q", "--no-deps", f"tritonclient=={PERF_ANALYZER_WHEEL}", "-d", tools / "wheels")
        (tools / "bin").mkdir(exist_ok=True)
        with zipfile.ZipFile(next((tools / "wheels").glob("tritonclient-*.whl"))) as wheel:
            name = next(n for n in wheel.namelist() if n.endswith("/bin/perf_analyzer"))
            (tools / "bin/perf_analyzer").write_bytes(wheel.read(name))
        (tools / "bin/perf_analyzer").chmod(0o755)
    if not (tools / "cuda").exists():
        run(pip, "install", "-q", "--no-deps", "--target", tools / "cuda", CUDA_RUNTIME)
    if not (tools / "libb64").exists():
        run("apt-get", "download", "-q", "libb64-0d", cwd=tools)
        run("dpkg", "-x", next(tools.glob("libb64-0d_*.deb")), tools / "libb64")


def environment(tools):
    libraries = [tools / "cuda/nvidia/cuda_runtime/lib", *tools.glob("libb64/usr/lib/*")]
    return dict(os.environ, LD_LIBRARY_PATH=":".join(str(p.resolve()) for p in libraries),
                PATH=f"{tools.resolve()}/bin:{(tools / 'venv/bin').resolve()}:{os.environ['PATH']}", HF_HUB_OFFLINE="1")


@contextlib.contextmanager
def recorder(tools, out, name, address):
    """The address for a client: that of the server, or of the recorder in front of it."""
    if out is None:
        yield address
        return
    process = subprocess.Popen([tools / "venv/bin/python", ROOT / "tests/clients/record_requests.py", "--to",
                                address, "--listen", f"127.0.0.1:{PROXY_PORT}", "--out", out, "--name",
                                name], stdout=(tools / f"{name}.calls.log").open("w"))
    time.sleep(2)
    try:
        yield f"127.0.0.1:{PROXY_PORT}"
    finally:
        process.kill()
        process.wait()


# ---- with tritonclient, in its virtual environment

def check_descriptors():
    """Every message, field, number and type of our files is the same in Triton's."""
    from google.protobuf import descriptor_pb2
    from tritonclient.grpc import model_config_pb2, service_pb2

    theirs = {}

    def collect(message, prefix):
        name = f"{prefix}.{message.name}"
        theirs[name] = {f.name: (f.number, f.type, f.label, f.type_name) for f in message.field}
        for nested in message.nested_type:
            collect(nested, name)

    enums, methods = {}, {}
    for module in (service_pb2, model_config_pb2):
        file = descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
        for message in file.message_type:
            collect(message, ".inference")
        enums.update({e.name: {v.name: v.number for v in e.value} for e in file.enum_type})
        for service in file.service:
            methods.update({f"{service.name}.{m.name}": m for m in service.method})
    files = [f"inference/{p.name}" for p in sorted((ROOT / "proto/inference").glob("*.proto"))]
    output = subprocess.run(["protoc", "--include_imports", "--descriptor_set_out=/dev/stdout", *files],
                            cwd=ROOT / "proto", check=True, capture_output=True).stdout
    count = 0

    def compare(message, prefix):
        nonlocal count
        name = f"{prefix}.{message.name}"
        assert name in theirs, f"{name} is not in Triton's"
        for f in message.field:
            ours = (f.number, f.type, f.label, f.type_name)
            assert theirs[name].get(f.name) == ours, f"{name}.{f.name}: ours {ours}, theirs {theirs[name].get(f.name)}"
            count += 1
        for nested in message.nested_type:
            compare(nested, name)

    for file in descriptor_pb2.FileDescriptorSet.FromString(output).file:
        for message in file.message_type:
            compare(message, ".inference")
        for enum in file.enum_type:
            for value in enum.value:
                assert enums[enum.name][value.name] == value.number, value.name
        for service in file.service:
            for m in service.method:
                their = methods[f"{service.name}.{m.name}"]
                assert (m.input_type, m.output_type, m.client_streaming, m.server_streaming) == (
                    their.input_type, their.output_type, their.client_streaming, their.server_streaming), m.name
    print(f"descriptors: {count} fields are Triton's")


def inputs(**values):
    import numpy
    import tritonclient.grpc as client

    result = []
    for name, value in values.items():
        kinds = {str: ("BYTES", object), bool: ("BOOL", bool), int: ("INT32", numpy.int32), float: ("FP32", numpy.float32)}
        datatype, dtype = kinds[type(value)]
        tensor = client.InferInput(name, [1], datatype)
        tensor.set_data_from_numpy(numpy.array([value.encode() if isinstance(value, str) else value], dtype=dtype))
        result.append(tensor)
    return result


def text(result):
    array = result.as_numpy("text_output")
    return "" if array is None else array[0].decode()


def expect_error(code, part, call):
    from tritonclient.utils import InferenceServerException

    try:
        call()
    except InferenceServerException as error:
        assert code in str(error.status()) and part in error.message(), error
        return
    raise AssertionError(f"no error, expected {code} with {part}")


def check_tritonclient(address):
    import tritonclient.grpc as grpcclient
    from tritonclient.grpc import service_pb2

    client = grpcclient.InferenceServerClient(address)
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(MODEL, "1")
    assert client.get_server_metadata().name == "quantd"
    assert client.get_model_metadata(MODEL).inputs[0].name == "text_input"
    assert client.get_model_config(MODEL).config.model_transaction_policy.decoupled
    assert {m.name: m.state for m in client.get_model_repository_index().models}[MODEL] == "READY"
    prompt = "Once upon a time"
    options = dict(max_tokens=12, temperature=0.0)
    whole = text(client.infer(MODEL, inputs(text_input=prompt, **options)))
    assert whole.startswith(prompt) and len(whole) > len(prompt), whole
    rest = text(client.infer(MODEL, inputs(text_input=prompt, exclude_input_in_output=True, **options)))
    assert prompt + rest == whole, (whole, rest)
    assert text(client.infer(MODEL, inputs(text_input=prompt, max_tokens=12),
                             parameters={"temperature": "0", "ignore_eos": True})) == whole

    answers = queue.Queue()
    for _ in range(4):
        client.async_infer(MODEL, inputs(text_input=prompt, **options), lambda result, error: answers.put((result, error)))
    for _ in range(4):
        result, error = answers.get(timeout=30)
        assert error is None and text(result) == whole, error

    asked = client.infer(MODEL, inputs(text_input=prompt, return_finish_reason=True, return_cumulative_logprob=True,
                                       return_num_input_tokens=True, return_num_output_tokens=True, **options))
    assert text(asked) == whole and asked.as_numpy("finish_reason")[0] == b"length"
    assert asked.as_numpy("num_output_tokens")[0] == 12 and asked.as_numpy("num_input_tokens")[0] >= 4
    assert asked.as_numpy("cumulative_logprob")[0] < 0

    # Errors of calls.
    expect_error("NOT_FOUND", "\"gpt\" is not served here", lambda: client.infer("gpt", inputs(text_input="x")))
    expect_error("INVALID_ARGUMENT", "max_tokens is 0", lambda: client.infer(MODEL, inputs(text_input="x", max_tokens=0)))
    expect_error("INVALID_ARGUMENT", "text_input: missing", lambda: client.infer(MODEL, inputs(max_tokens=1)))
    expect_error("INVALID_ARGUMENT", "stream: true", lambda: client.infer(MODEL, inputs(text_input="x", stream=True)))
    expect_error("UNIMPLEMENTED", "", lambda: client.get_trace_settings(MODEL))
    shared = inputs(text_input="x")
    shared[0].set_shared_memory("region", 8)
    expect_error("UNIMPLEMENTED", "shared memory", lambda: client.infer(MODEL, shared))

    # Many requests on one stream, one of them bad.
    heard = {}

    def hear(result, error):
        answers.put((result, error))

    client.start_stream(hear)
    count = 8
    for i in range(count):
        client.async_stream_infer(
            MODEL, inputs(text_input=prompt, stream=True, sampling_parameters=json.dumps({"max_tokens": "12", "temperature": 0})),
            request_id=str(i), enable_empty_final_response=True)
    client.async_stream_infer(MODEL, inputs(text_input="x", stream=True, top_p=2.0), request_id="bad")
    finals, errors = 0, []
    while finals < count or not errors:
        result, error = answers.get(timeout=30)
        if error is not None:
            errors.append(error)
            continue
        response = result.get_response()
        heard[response.id] = heard.get(response.id, "") + text(result)
        finals += response.parameters["triton_final_response"].bool_param
    client.stop_stream()
    assert all(prompt + heard[str(i)] == whole for i in range(count)), heard
    assert len(errors) == 1 and "top_p is 2" in errors[0].message(), errors

    # The first error ends the stream, where that was asked for.
    client.start_stream(hear, headers={"triton_grpc_error": "true"})
    client.async_stream_infer(MODEL, inputs(text_input="x", stream=True, top_p=2.0), request_id="bad")
    result, error = answers.get(timeout=30)
    assert result is None and "top_p is 2" in error.message() and "INVALID_ARGUMENT" in str(error.status()), error
    client.stop_stream()

    statistics = client.get_inference_statistics(MODEL).model_stats[0].inference_stats
    assert statistics.success.count >= 4 + count and statistics.queue.count == statistics.compute_output.count

    # With contents instead of raw bytes.
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1]).contents.bytes_contents.append(prompt.encode())
    request.inputs.add(name="max_tokens", datatype="INT32", shape=[1]).contents.int_contents.append(12)
    request.inputs.add(name="temperature", datatype="FP32", shape=[1, 1]).contents.fp32_contents.append(0)
    assert whole.encode() in client._client_stub.ModelInfer(request).raw_output_contents[0]
    print("tritonclient: calls, streams and errors as expected")


# ---- perf_analyzer and genai-perf

def perf_analyzer(tools, address, title, model, data, *flags):
    path = tools / "input.json"
    path.write_text(json.dumps({"data": [{name: [value] for name, value in data.items()}]}))
    command = ["perf_analyzer", "-m", model, "-i", "grpc", "-u", address, "--input-data", path,
               "--measurement-interval", "2000", "-s", "60", *flags]
    done = subprocess.run([str(c) for c in command], env=environment(tools), capture_output=True, text=True, timeout=200)
    lines = re.findall(r"^(?:Concurrency|Request Rate): .*throughput: .*", done.stdout, re.MULTILINE)
    responses = re.findall(r"Response Throughput: .*", done.stdout)
    assert done.returncode == 0 and lines, f"{title}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    print(f"perf_analyzer, {title}:")
    for i, line in enumerate(lines):
        print("   ", line, "|", responses[i] if i < len(responses) else "")


def genai_perf(tools, address, backend, key=""):
    artifacts = tools / f"artifacts-{backend}"
    shutil.rmtree(artifacts, ignore_errors=True)
    command = [ROOT / "deploy/loadtest/genai_perf.sh", address, MODEL, ROOT / "demo/model", 2, 20, ISL, OSL]
    settings = dict(environment(tools), GENAI_PERF_TOOLS=str(tools.resolve()), GENAI_PERF_BACKEND=backend,
                    GENAI_PERF_ARTIFACTS=str(artifacts.resolve()), QUANTD_API_KEY=key)
    done = subprocess.run([str(c) for c in command], env=settings, capture_output=True, text=True, timeout=400)
    reports = [*artifacts.rglob("*_genai_perf.json")]
    assert done.returncode == 0 and reports, f"genai-perf {backend}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    report = json.loads(reports[0].read_text())
    print(f"genai-perf, {backend}:", ", ".join(
        f"{name} {report[name]['avg']:.2f} {report[name]['unit']}" for name in
        ("time_to_first_token", "inter_token_latency", "request_latency", "output_sequence_length",
         "input_sequence_length", "request_count", "request_throughput", "output_token_throughput") if name in report))
    assert report["request_count"]["avg"] >= 20
    # It counts the tokens of the text again, which need not split as they were drawn.
    assert abs(report["output_sequence_length"]["avg"] - OSL) <= 1, report["output_sequence_length"]
    assert abs(report["input_sequence_length"]["avg"] - ISL) <= 4, report["input_sequence_length"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quantd", type=pathlib.Path, default=ROOT / "build/release/quantd")
    parser.add_argument("--tools", type=pathlib.Path, default=ROOT / "build/triton")
    parser.add_argument("--record", type=pathlib.Path)
    parser.add_argument("--inside", help=argparse.SUPPRESS)  # the address, in the virtual environment
    args = parser.parse_args()
    if args.inside:
        check_descriptors()
        check_tritonclient(args.inside)
        return
    setup(args.tools)
    streamed = {"text_input": "hello", "stream": True, "max_tokens": OSL}
    with Server(args.quantd.resolve(), [f"served_model_name={MODEL}"], threads=0) as server:
        with recorder(args.tools, args.record, "tritonclient", server.address) as address:
            run(args.tools / "venv/bin/python", __file__, "--inside", address)
        with recorder(args.tools, args.record, "perf_analyzer", server.address) as address:
            perf_analyzer(args.tools, address, "streams, concurrency", MODEL, streamed, "--async", "--streaming",
                          "--concurrency-range", "1:4:1")
            perf_analyzer(args.tools, address, "streams, request rate", MODEL, streamed, "--async", "--streaming",
                          "--request-rate-range", "4:8:4")
        with recorder(args.tools, args.record, "perf_analyzer_unary", server.address) as address:
            perf_analyzer(args.tools, address, "unary, concurrency", MODEL + "_unary",
                          {"text_input": "hello", "max_tokens": OSL}, "--concurrency-range", "1:2:1")
        for backend in ("vllm", "tensorrtllm"):
            with recorder(args.tools, args.record, f"genai_perf_{backend}", server.address) as address:
                genai_perf(args.tools, address, backend)
    key = new_key(args.quantd.resolve(), "load", args.tools, "    admin: true\n")
    keys = f"security.api_keys={args.tools.resolve()}/keys.yaml"
    with Server(args.quantd.resolve(), [f"served_model_name={MODEL}", keys], threads=0) as server:
        genai_perf(args.tools, server.address, "vllm", key)
    print("Triton's clients: all as expected")


if __name__ == "__main__":
    main()
