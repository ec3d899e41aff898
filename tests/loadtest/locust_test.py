"""Runs deploy/loadtest/locustfile.py against a real server for some seconds, bare and with TLS and an API key: no request fails.

    build/venv/bin/python tests/loadtest/locust_test.py --quantd build/release/quantd

Needs locust and grpcio-tools in the Python that runs it.
"""
import argparse
import csv
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from quantd_server import Server, new_key, self_signed  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantd", required=True)
    parser.add_argument("--seconds", type=int, default=8)
    args = parser.parse_args()
    args.quantd = str(pathlib.Path(args.quantd).resolve())
    load(args, "bare", [], [])
    with tempfile.TemporaryDirectory() as folder:
        self_signed(folder)
        key = new_key(args.quantd, "locust", folder)
        load(args, "TLS and a key",
             [f"tls.certificate={folder}/tls.crt", f"tls.key={folder}/tls.key", f"security.api_keys={folder}/keys.yaml"],
             ["--grpc-tls-ca", f"{folder}/tls.crt", "--api-key", key])


def load(args, title, settings, flags):
    server = Server(args.quantd, settings)
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = subprocess.run(
                [sys.executable, "-m", "locust", "-f", str(ROOT / "deploy/loadtest/locustfile.py"), "--host", server.address,
                 "--headless", "--users", "6", "--spawn-rate", "6", "--run-time", f"{args.seconds}s", "--stop-timeout", "60",
                 "--prompt-tokens", "16", "--max-tokens", "16", "--think-time", "0.1", "--only-summary", "--csv", f"{folder}/r", *flags],
                capture_output=True, text=True, timeout=args.seconds + 120)
            assert run.returncode == 0, run.stdout + run.stderr
            rows = {r["Name"]: r for r in csv.DictReader(open(f"{folder}/r_stats.csv"))}
    finally:
        code = server.stop()
    assert code == 0, f"the server ended with {code}"
    answers, first = rows["whole answer"], rows["first token"]
    assert int(answers["Request Count"]) >= 6 and answers["Request Count"] == first["Request Count"], rows
    assert int(answers["Failure Count"]) == 0 and int(first["Failure Count"]) == 0, rows
    assert float(answers["Average Content Size"]) == 16, rows
    print(f"locust, {title}: {answers['Request Count']} answers, 0 failures; first token {float(first['Median Response Time']):.0f} ms, "
          f"answer {float(answers['Median Response Time']):.0f} ms (medians)")


if __name__ == "__main__":
    main()
