"""Several servers behind a client's round_robin and behind nginx, and one of them killed under load.

    python3 tests/scaling/replicas.py --quantd build/release/quantd            checks: no request stays without an answer
    python3 tests/scaling/replicas.py --quantd build/release/quantd --measure  and prints the tables of docs/scaling.md

Checked, each way: with all servers alive every request completes, and all servers take part; when one is stopped by SIGTERM,
and when it is killed, every request ends with OK or UNAVAILABLE (through nginx also INTERNAL, a stream that it has to reset,
and CANCELLED, a request in the moment of a server's end), and with `bench serve --retries` all of them complete; without any
server requests are refused. Speed is printed, never checked. nginx is left out, and said to be, where it is not installed.
"""
import argparse
import json
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from quantd_server import Server  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
LOADTEST = ROOT / "deploy" / "loadtest"


class Nginx:
    """deploy/loadtest/nginx.conf with the addresses of `servers`."""

    def __init__(self, servers):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        text = (LOADTEST / "nginx.conf").read_text().replace("127.0.0.1:50050", self.address)
        line = re.search(r"    server 127\.0\.0\.1:50051(.*)\n", text)
        text = re.sub(r"    server 127\.0\.0\.1:5005[12].*\n", "", text)
        text = text[:line.start()] + "".join(f"    server {s.address}{line.group(1)}\n" for s in servers) + text[line.start():]
        self.folder = tempfile.TemporaryDirectory()
        config = pathlib.Path(self.folder.name) / "nginx.conf"
        config.write_text(text)
        self.process = subprocess.Popen(["nginx", "-e", "stderr", "-p", self.folder.name, "-c", str(config)],
                                        stderr=subprocess.DEVNULL)
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(self.address.split(":")[1]))) == 0:
                    return
            assert self.process.poll() is None, f"nginx does not start:\n{text}"
            time.sleep(0.05)
        raise AssertionError("nginx does not listen")

    def stop(self):
        self.process.terminate()
        self.process.wait(20)
        self.folder.cleanup()


def bench(quantd, target, *flags, during=None, fails=False):
    """The runs of `quantd bench serve`; `during` is called 1.5 seconds after it began."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [quantd, "bench", "serve", "--target", target, "--json", out.name, "--warmup", "0" if during else "8",
                   *map(str, flags)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if during:
            timer = threading.Timer(1.5, during)
            timer.start()
        _, errors = process.communicate(timeout=300)
        if during:
            timer.join()
        assert fails or process.returncode == 0, errors
        return json.loads(pathlib.Path(out.name).read_text())["runs"]


def ways(servers):
    """Name, target and flags of each way to reach all servers."""
    config = ["--service-config", LOADTEST / "service_config.json"]
    yield "round_robin", "ipv4:" + ",".join(s.address for s in servers), config
    if shutil.which("nginx"):
        yield "nginx", None, []
    else:
        print("nginx is not installed: left out")


LOAD = ["--random-input-len", "16:32", "--random-output-len", "8:64"]


def check_all_alive(quantd, name, target, flags, servers):
    before = [s.generated() for s in servers]
    run, = bench(quantd, target, *LOAD, *flags, "--max-concurrency", 8, "--num-prompts", 60)
    assert run["completed"] == 60, run
    shares = [s.generated() - b for s, b in zip(servers, before)]
    assert min(shares) > 0.15 * sum(shares), f"{name}: a server takes no part: {shares}"
    print(f"{name}: all alive, {run['completed']} completed; tokens of each server {shares}")


def check_stopped(quantd, name, make, how, retries):
    servers = [Server(quantd), Server(quantd)]
    target, flags, proxy = make(servers)
    try:
        run, = bench(quantd, target, *LOAD, *flags, "--request-rate", 15, "--duration", 5, "--retries", retries,
                     "--timeout", 60, during=lambda: servers[0].process.send_signal(how))
        ended = run["completed"] + sum(run["refused"].values()) + sum(run["failed"].values())
        assert ended == run["num_prompts"], run
        kinds = set(run["refused"]) | set(run["failed"])
        assert kinds <= ({"UNAVAILABLE", "INTERNAL", "CANCELLED"} if proxy else {"UNAVAILABLE"}), f"{name}, {how.name}: {run}"
        if retries:
            assert run["completed"] == run["num_prompts"], f"{name}, {how.name}: {run}"
        code = servers[0].process.wait(40)
        servers[1].stop()
        assert code == (0 if how == signal.SIGTERM else -signal.SIGKILL), code
        print(f"{name}, {how.name}, {retries} retries: {run['completed']} of {run['num_prompts']} completed, "
              f"{sum(run['refused'].values())} refused, {sum(run['failed'].values())} broken, {run['retries']} sent again; "
              f"TTFT p50 {run['ttft_ms']['p50']:.0f} ms, max {run['ttft_ms']['max']:.0f} ms")
        alone = subprocess.run([quantd, "bench", "serve", "--target", target, *map(str, flags)], capture_output=True, text=True,
                               timeout=60)
        assert alone.returncode == 1, alone.stdout
        print("  without any server:", alone.stderr.strip())
    finally:
        if proxy:
            proxy.stop()
        for server in servers:
            server.stop(signal.SIGKILL)


def check(quantd):
    servers = [Server(quantd), Server(quantd)]
    names = []
    try:
        for name, target, flags in ways(servers):
            names.append(name)
            proxy = None if target else Nginx(servers)
            try:
                check_all_alive(quantd, name, target or proxy.address, flags, servers)
            finally:
                if proxy:
                    proxy.stop()
    finally:
        for server in servers:
            assert server.stop() == 0
    for name in names:
        def make(some, name=name):
            target, flags = next((t, f) for n, t, f in ways(some) if n == name)
            proxy = None if target else Nginx(some)
            return target or proxy.address, flags, proxy
        for how in (signal.SIGTERM, signal.SIGKILL):
            for retries in (0, 20):
                check_stopped(quantd, name, make, how, retries)


def table(title, runs, name):
    print(f"\n{title}\n\n| {name} | completed/s | output tokens/s | waiting, mean | TTFT p50, ms | p99 | ITL p50 | p99 | E2E p50 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for label, run in runs:
        waiting = f"{run['server_waiting']['mean']:.1f}" if "server_waiting" in run else "–"
        print(f"| {label} | {run['request_throughput']:.2f} | {run['output_throughput']:.0f} | {waiting} | "
              f"{run['ttft_ms']['p50']:.0f} | {run['ttft_ms']['p99']:.0f} | {run['itl_ms']['p50']:.1f} | "
              f"{run['itl_ms']['p99']:.1f} | {run['e2el_ms']['p50']:.0f} |")


def measure(quantd):
    """Medians of three rounds, in each of which all arrangements take their turn: the machine may have other work."""
    load = ["--random-input-len", "64", "--random-output-len", "64"]
    closed = [*load, "--max-concurrency", 16, "--num-prompts", 64]
    servers = [Server(quantd), Server(quantd)]
    both, single = Nginx(servers), Nginx(servers[:1])
    results, seed = {}, 0
    try:
        for _ in range(3):
            arrangements = [("one server", servers[0].address, []), ("one, nginx", single.address, [])]
            arrangements += [(f"two, {name}", target or both.address, flags) for name, target, flags in ways(servers)]
            for name, target, flags in arrangements:
                seed += 1  # other prompts: the prefix cache would know the same ones
                results.setdefault(name, []).append(bench(quantd, target, *closed, *flags, "--seed", seed)[0])
        middle = {name: sorted(runs, key=lambda r: r["request_throughput"])[1] for name, runs in results.items()}
        table("Sixteen requests at once", middle.items(), "servers")
        for name, runs in results.items():
            print(f"{name}: completed/s of each round {[round(r['request_throughput'], 2) for r in runs]}")
        capacity = middle["one server"]["request_throughput"]
        rates = ",".join(f"{capacity * share:.2g}" for share in (0.25, 0.5, 0.75, 1.0, 1.5))
        queue = bench(quantd, servers[0].address, *load, "--request-rate", rates, "--duration", 15, "--seed", seed + 1)
        table("One server, offered load", [(f"{r['request_rate']:.2g}/s", r) for r in queue], "offered")
    finally:
        for one in (both, single, *servers):
            one.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantd", required=True)
    parser.add_argument("--measure", action="store_true")
    args = parser.parse_args()
    quantd = str(pathlib.Path(args.quantd).resolve())
    if args.measure:
        measure(quantd)
    else:
        check(quantd)


if __name__ == "__main__":
    main()
