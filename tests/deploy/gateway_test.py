"""deploy/gateway/nginx.conf before a real server: clients come through with TLS and key, and what is not theirs does not.

    python3 tests/deploy/gateway_test.py --quantd build/release/quantd

Needs nginx and openssl's command; says so and checks nothing where nginx is missing.
"""
import argparse
import os
import pathlib
import re
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from quantd_server import Server, new_key, self_signed  # noqa: E402

CONFIGURATION = ROOT / "deploy/gateway/nginx.conf"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_nginx(folder, server, port, *changes):
    text = CONFIGURATION.read_text()
    for old, new in (("127.0.0.1:50051", server), ("listen 443", f"listen 127.0.0.1:{port}"), ("/etc/quantd/", f"{folder}/"), *changes):
        assert old in text, old
        text = text.replace(old, new)
    (folder / "nginx.conf").write_text(text)
    process = subprocess.Popen(["nginx", "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")])
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        assert process.poll() is None, f"nginx does not start:\n{text}"
        time.sleep(0.05)
    raise AssertionError("nginx does not listen")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quantd", required=True)
    quantd = str(pathlib.Path(parser.parse_args().quantd).resolve())
    if not shutil.which("nginx"):
        print("no nginx here: deploy/gateway was not checked")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        folder.chmod(0o755)  # nginx's worker is another user
        key = new_key(quantd, "team-a", folder, "    admin: true\n")
        server = Server(quantd, [f"security.api_keys={folder / 'keys.yaml'}"])
        self_signed(folder)
        port = free_port()
        try:
            # Lower rates, so that they are reached by a client that is slow to start.
            for test, changes in ((check, [("rate=50r/s", "rate=1r/s"), ("burst=200", "burst=20")]), (check_calls, [])):
                nginx = start_nginx(folder, server.address, port, *changes)
                try:
                    test(quantd, folder, server, port, key)
                finally:
                    nginx.terminate()
                    nginx.wait(20)
        finally:
            assert server.stop() == 0
    print("deploy/gateway: clients come through, the rest does not")


def open_calls(folder, port, count):
    """A connection with calls that do not end before it: HTTP/2 by hand, as no END_STREAM is ever sent."""
    context = ssl.create_default_context(cafile=folder / "tls.crt")
    context.set_alpn_protocols(["h2"])
    tls = context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="127.0.0.1")
    header = b"".join(b"\0" + bytes([len(word)]) + word if number % 2 == 0 else bytes([len(word)]) + word for number, word in enumerate(
        b":method POST :scheme https :path /grpc.health.v1.Health/Watch :authority 127.0.0.1 content-type application/grpc te trailers".split()))
    frames = [b"\0\0\0\4\0" + bytes(4), *(struct.pack(">xHBBI", len(header), 1, 4, 2 * n + 1) + header for n in range(count))]
    tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"".join(frames))
    return tls


def check_calls(quantd, folder, _server, port, _key):
    """One address may have as many calls as a connection takes."""
    text = CONFIGURATION.read_text()
    most, of_connection, status = (int(re.search(pattern, text, re.DOTALL).group(1)) for pattern in (
        r"limit_conn \w+ (\d+);", r"http2_max_concurrent_streams (\d+);", r"location @exhausted \{.*?grpc-status (\d+)"))
    assert (most, status) == (of_connection, 8), (most, of_connection, status)

    def until(said):
        for _ in range(50):
            answer = subprocess.run([quantd, "health", "--target", f"127.0.0.1:{port}", "--tls-ca", str(folder / "tls.crt")],
                                    capture_output=True, text=True, timeout=60)
            if said in answer.stdout + answer.stderr:
                return
            time.sleep(0.1)
        raise AssertionError(f"not {said!r} but {answer}")

    with open_calls(folder, port, most - 1):
        time.sleep(1)  # for nginx to have read them all
        until("SERVING")
        with open_calls(folder, port, 1):
            until("too much from this address")
        until("SERVING")


def check(quantd, folder, server, port, key):
    through = ["--target", f"127.0.0.1:{port}", "--tls-ca", str(folder / "tls.crt")]

    def run(*arguments, with_key=True):
        environment = dict(os.environ, **({"QUANTD_API_KEY": key} if with_key else {}))
        return subprocess.run([quantd, *arguments], capture_output=True, text=True, env=environment, timeout=60)

    text = ["generate", "--prompt", "Once upon a time", "--max-tokens", "8", "--temperature", "0"]
    direct = run(*text, "--target", server.address)
    answer = run(*text, *through)
    assert answer.returncode == 0 and answer.stdout == direct.stdout, (answer, direct)
    refused = run(*text, *through, with_key=False)
    assert "no API key" in refused.stderr, refused
    assert run("health", *through, with_key=False).stdout == "SERVING\n"
    plain = run("health", "--target", f"127.0.0.1:{port}")
    assert plain.returncode == 1, plain

    # A message beyond the limit, and more requests than one address may send.
    large = folder / "large.txt"
    large.write_text("word " * 1_000_000)
    oversize = run("generate", "--prompt-file", str(large), "--max-tokens", "1", *through)
    assert oversize.returncode == 1 and "too much from this address" in oversize.stderr, oversize
    codes = [run("health", *through) for _ in range(60)]
    assert any("too much from this address" in c.stderr for c in codes), codes[-1]
    assert run(*text, "--target", server.address).stdout == direct.stdout

    # Bytes that are no HTTP/2 end at nginx.
    context = ssl.create_default_context(cafile=folder / "tls.crt")
    context.set_alpn_protocols(["h2"])
    for garbage in (b"\xff" * 4096, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x40\x00\x01\x04\x00\x00\x00\x01" + b"\xff" * 16384):
        with socket.create_connection(("127.0.0.1", port)) as raw, context.wrap_socket(raw, server_hostname="127.0.0.1") as tls:
            tls.settimeout(5)
            try:
                tls.sendall(garbage)
                while tls.recv(65536):
                    pass
            except (OSError, ssl.SSLError):
                pass
    time.sleep(5)  # for this address to be let in again
    again = run(*text, *through)
    assert again.stdout == direct.stdout, again


if __name__ == "__main__":
    main()
