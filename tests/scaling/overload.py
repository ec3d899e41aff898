"""What a server does beyond saturation: goodput, memory and descriptors at multiples of what it can do.

    python3 tests/scaling/overload.py --quantd build/release/quantd

Finds what one server completes at its best (a closed loop), takes as the deadline three times what a request then takes, and offers
Poisson arrivals at 0.5 to 3 times that rate, twice: from clients that send their deadline (gRPC's --timeout), so that the server
refuses at once what it cannot make, and from clients that do not, who wait. A request is good when it is whole within the
deadline. Memory and descriptors are read every 0.2 s. Checked: every request has an answer, and memory and descriptors at the end
are what they were. Speed is printed, never checked: docs/scaling.md has the table.
"""
import argparse
import os
import pathlib
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from quantd_server import Server  # noqa: E402
from replicas import bench  # noqa: E402

LOAD = ["--random-input-len", "32:96", "--random-output-len", "16:48", "--channels", "4"]


class Watch:
    """Most memory (RssAnon, MB) and descriptors that a process has meanwhile."""

    def __init__(self, pid):
        self.pid, self.memory, self.files, self.stopped = pid, 0.0, 0, threading.Event()
        self.thread = threading.Thread(target=self._run)

    def now(self):
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        memory = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
        return memory / 1000, len(os.listdir(f"/proc/{self.pid}/fd"))

    def _run(self):
        while not self.stopped.wait(0.2):
            memory, files = self.now()
            self.memory, self.files = max(self.memory, memory), max(self.files, files)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.thread.join()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantd", required=True)
    parser.add_argument("--seconds", type=float, default=15)
    args = parser.parse_args()
    # One prompt is like another: no prefix is shared, and nothing is found in the cache.
    server = Server(args.quantd, ["kv.prefix_caching=false", "scheduler.max_num_seqs=8", "log.requests=false"])
    try:
        run(args, server)
    finally:
        code = server.stop()
    assert code == 0, code


def run(args, server):
    best = bench(args.quantd, server.address, *LOAD, "--max-concurrency", 8, "--duration", args.seconds)[0]
    rate = best["request_throughput"]
    deadline = 3 * best["e2el_ms"]["p50"] / 1000
    print(f"at its best: {rate:.1f} requests/s, {best['output_throughput']:.0f} tokens/s, "
          f"a request takes {best['e2el_ms']['p50']:.0f} ms; deadline {1000 * deadline:.0f} ms\n")
    idle_memory, idle_files = Watch(server.process.pid).now()
    print("| offered | deadline sent | good, requests/s | completed | refused | too late | e2e p50, p99 | memory | descriptors |")
    print("|---|---|---|---|---|---|---|---|---|")
    for sends in (True, False):
        for times in (0.5, 0.8, 1.0, 1.5, 2.0, 3.0):
            flags = ["--request-rate", times * rate, "--duration", args.seconds, "--slo", f"e2el:{1000 * deadline}"]
            if sends:
                flags += ["--timeout", deadline]
            with Watch(server.process.pid) as watch:
                result = bench(args.quantd, server.address, *LOAD, *flags)[0]
            refused, failed = (sum(result[kind].values()) for kind in ("refused", "failed"))
            assert result["completed"] + refused + failed == result["num_prompts"], result
            assert set(result["failed"]) <= {"DEADLINE_EXCEEDED"}, result
            late = result["completed"] + failed - round(result["request_goodput"] * result["duration"])
            e2e = result["e2el_ms"]
            print(f"| {times:.1f} x | {'yes' if sends else 'no'} | {result['request_goodput']:.1f} | {result['completed']} | {refused} "
                  f"| {late} | {e2e['p50']:.0f}, {e2e['p99']:.0f} ms | {watch.memory:.0f} MB | {watch.files} |", flush=True)
    time.sleep(1)
    memory, files = Watch(server.process.pid).now()
    print(f"\nbefore: {idle_memory:.1f} MB, {idle_files} descriptors; after: {memory:.1f} MB, {files} descriptors")
    assert memory < 1.1 * idle_memory + 8, "memory has grown"
    assert files <= idle_files + 4, "descriptors have grown"


if __name__ == "__main__":
    main()
