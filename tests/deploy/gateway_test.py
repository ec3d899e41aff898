"""deploy/gateway/nginx.conf before a real server: clients come through with TLS and key, and what is not theirs does not.

    python3 tests/deploy/gateway_test.py --quantd build/release/quantd

Needs nginx and openssl's command; says so and checks nothing where nginx is missing.
"""
import argparse
import os
import pathlib
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from quantd_server import Server, new_key, self_signed  # noqa: E402


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_nginx(folder, server, port):
    self_signed(folder)
    text = (ROOT / "deploy/gateway/nginx.conf").read_text()
    for old, new in (("127.0.0.1:50051", server), ("listen 443", f"listen 127.0.0.1:{port}"), ("/etc/quantd/", f"{folder}/"),
                     ("rate=50r/s", "rate=5r/s"), ("burst=200", "burst=20")):
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
        port = free_port()
        nginx = start_nginx(folder, server.address, port)
        try:
            check(quantd, folder, server, port, key)
        finally:
            nginx.terminate()
            nginx.wait(20)
            assert server.stop() == 0
    print("deploy/gateway: clients come through, the rest does not")


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
