"""Every metric, label and label value that deploy/ asks for is exported by a live server.

    python3 tests/deploy/metrics_test.py --quantd build/release/quantd [--prometheus DIR]

Starts servers on demo/model, sends requests, reads /metrics, and holds to it what the dashboard, the alert rules
and the autoscalers name. With --prometheus (a folder that has prometheus and promtool) the real Prometheus then reads
the server by deploy/prometheus's configuration, each query of the dashboard must have a number for an answer, each
rule must evaluate, and promtool checks metrics, rules and the rules' own tests. docs/operations.md
has to list what there is in metrics and in a request's line of the log.
"""
import argparse
import contextlib
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from quantd_server import Server, new_key, self_signed  # noqa: E402

DEPLOY = ROOT / "deploy"
# Labels Prometheus itself gives a series (namespace and pod: on Kubernetes).
OF_TARGETS = {"instance", "job", "namespace", "pod"}
# promtool's advice not taken: a name of vLLM's, and a ratio that everybody quotes in bits.
NAMES_KEPT = {'quantd_iteration_tokens_total non-counter metrics should not have "_total" suffix',
              'quantd_bits_per_weight use base unit "bytes" instead of "bits"'}
PROMPTS = ["It was a cold evening, and the road to the village was long, so he", "The captain looked at the sea and said"]


def parse_metrics(text):
    """name -> labels of each of its series."""
    series = {}
    for line in text.splitlines():
        match = re.match(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? \S+$", line)
        if match:
            labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match.group(2) or ""))
            series.setdefault(match.group(1), []).append(labels)
    return series


def faults_of(expression, series):
    """What `expression` (PromQL, label_values() of a dashboard, or a text that has such) names and nobody exports."""
    faults, known = [], set(OF_TARGETS)
    for name, selector in re.findall(r"(quantd_[a-z0-9_]*)(?:\{([^}]*)\})?", expression):
        if name not in series:
            faults.append(f"{name} is not exported")
            continue
        labels = {label for one in series[name] for label in one}
        known |= labels
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', selector):
            if label not in labels | OF_TARGETS:
                faults.append(f"{name} has no label {label}")
            elif label in labels and operator == "=" and "$" not in value and value not in {one.get(label) for one in series[name]}:
                faults.append(f"{name} is never {label}={value}")
    grouped = re.findall(r"\b(?:by|without|on|ignoring|group_left)\s*\(([^)]*)\)", expression)
    grouped += re.findall(r"label_values\([^,]*,([^)]*)\)", expression)
    for label in re.findall(r"\w+", " ".join(grouped)):
        if label not in known:
            faults.append(f"no metric of it has the label {label}")
    return [f"{fault}: {expression.strip()}" for fault in faults]


def dashboard_queries():
    dashboard = json.loads((DEPLOY / "grafana/quantd.json").read_text())
    return [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", [])]


def rule_expressions():
    text = (DEPLOY / "prometheus/rules.yaml").read_text()
    return [" ".join(e.split()) for e in re.findall(r"expr:\s*(?:>-\s*)?(.*?)\n\s*for:", text, re.DOTALL)]


def expressions():
    """(where, expression) of everything in deploy/ that names metrics."""
    found = [(f"quantd.json: {title}", query) for title, query in dashboard_queries()]
    found += [("quantd.json: variables", v["definition"]) for v in
              json.loads((DEPLOY / "grafana/quantd.json").read_text())["templating"]["list"] if "definition" in v]
    found += [("rules.yaml", e) for e in rule_expressions()]
    for path in sorted((DEPLOY / "kubernetes").rglob("*.yaml")):
        found += [(path.name, line) for line in path.read_text().splitlines() if re.search(r"\bquantd_", line)]
    return found


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def send_requests(quantd, target, rounds):
    for _ in range(rounds):
        for prompt in PROMPTS:
            subprocess.run([quantd, "generate", "--target", target, "--prompt", prompt, "--max-tokens", "24",
                            "--temperature", "0", "--ignore-eos", "--prompt-lookup", "4"], check=True, capture_output=True)


def documented(title, pattern):
    """What code docs/operations.md's section has in its table, where `pattern` matches a row."""
    section = (ROOT / "docs/operations.md").read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    return set(re.findall(r"`([a-z0-9_]+)(?:\{\w+\})?`", " ".join(re.findall(pattern, section, re.M))))


def check_documents(quantd, series, server, key):
    """`server` wants the key, and logs JSON with prompts."""
    exported = {re.sub(r"_(bucket|count|sum)$", "", name).removeprefix("quantd_") for name in series} | {"load_progress"}
    exported |= {labels.get("finished_reason") or labels["reason"] for name in ("success", "refused")
                 for labels in series[f"quantd_request_{name}_total"]}
    assert not (wrong := exported ^ documented("Metrics", r"^\| .* \| .* \| (`.*|counters.*)$")), f"docs/operations.md, metrics: {wrong}"
    for more, of in ((["--top-p", "2"], key), ([], key), ([], "none")):
        subprocess.run([quantd, "generate", "--target", server.address, "--prompt", "Once", "--max-tokens", "2", *more],
                       capture_output=True, env={**os.environ, "QUANTD_API_KEY": of})
    lines = [json.loads(server._logged(rf'(\{{.*{member}.*\}})')) for member in
             ('"status":"INVALID_ARGUMENT"', '"request_id":"r1"', '"status":"UNAUTHENTICATED"')]
    members = set().union(*lines) - {"time", "level"}
    assert not (wrong := members ^ documented("Logs", r"^\| (`.*?) \|")), f"docs/operations.md, members of a line: {wrong}"


def selftest(series):
    for wrong in ('sum(quantd_no_such_metric)', 'quantd_num_requests_running{shade="a"}', 'sum by (colour) (quantd_steps_total)',
                  'quantd_request_success_total{finished_reason="tired"}', 'label_values(quantd_steps_total, colour)'):
        assert faults_of(wrong, series), f"not caught: {wrong}"
    assert not faults_of('sum by (instance, le) (rate(quantd_e2e_request_latency_seconds_bucket{job="q"}[5m]))', series)


def promtool_checks(promtool, metrics):
    result = subprocess.run([promtool, "check", "metrics"], input=metrics, capture_output=True, text=True)
    advice = set(filter(None, result.stderr.splitlines() + result.stdout.splitlines())) - NAMES_KEPT
    assert not advice, "promtool check metrics:\n" + "\n".join(sorted(advice))
    for command in (["check", "rules", DEPLOY / "prometheus/rules.yaml"], ["check", "config", DEPLOY / "prometheus/prometheus.yaml"],
                    ["test", "rules", ROOT / "tests/deploy/rules_test.yaml"]):
        subprocess.run([promtool, *command], check=True, stdout=subprocess.DEVNULL)


def prometheus_queries(prometheus, quantd, grpc, targets):
    """What the dashboard shows when Prometheus has read the servers for a while."""
    with tempfile.TemporaryDirectory() as folder:
        config = (DEPLOY / "prometheus/prometheus.yaml").read_text()
        config = config.replace("quantd:8080", ", ".join(targets)).replace("15s", "1s").replace("rules.yaml", str(DEPLOY / "prometheus/rules.yaml"))
        assert targets[0] in config
        pathlib.Path(folder, "prometheus.yaml").write_text(config)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            listen = f"127.0.0.1:{free.getsockname()[1]}"
        with open(f"{folder}/log", "w+") as log:
            process = subprocess.Popen([prometheus, f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data",
                                        f"--web.listen-address={listen}"], stdout=log, stderr=log)
            try:
                began = time.monotonic()
                while time.monotonic() - began < 20:
                    assert process.poll() is None, pathlib.Path(folder, "log").read_text()
                    send_requests(quantd, grpc, 1)
                    time.sleep(0.5)
                for title, query in dashboard_queries():
                    query = query.replace("$model", ".*").replace("$__rate_interval", "15s")
                    answer = json.loads(get(f"http://{listen}/api/v1/query?" + urllib.parse.urlencode({"query": query})))
                    values = [one["value"][1] for one in answer["data"]["result"]]
                    assert values and "NaN" not in values, f"{title}: {query}: {answer}"
                rules = json.loads(get(f"http://{listen}/api/v1/rules"))["data"]["groups"]
                health = {rule["name"]: rule["health"] for group in rules for rule in group["rules"]}
                assert len(health) == len(rule_expressions()) and set(health.values()) == {"ok"}, health
                firing = [rule["name"] for group in rules for rule in group["rules"] if rule["state"] == "firing"]
                assert not firing, firing
            finally:
                process.terminate()
                process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quantd", required=True)
    parser.add_argument("--prometheus", type=pathlib.Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as servers:
        served = servers.enter_context(Server(args.quantd, ["served_model_name=model"]))  # as in deploy/
        grpc, http = served.address, served.http
        # Another one with API keys: some metrics are there with them only.
        key = new_key(args.quantd, "somebody", folder)
        with_keys = servers.enter_context(Server(args.quantd, [
            "served_model_name=model", f"security.api_keys={folder}/keys.yaml", "log.format=json", "log.prompts=true"]))
        http_of_keys = with_keys.http
        self_signed(folder)
        with_tls = servers.enter_context(Server(args.quantd, [
            "served_model_name=model", f"tls.certificate={folder}/tls.crt", f"tls.key={folder}/tls.key"]))
        send_requests(args.quantd, grpc, 1)
        metrics = get(f"http://{http}/metrics")
        series = {**parse_metrics(get(f"http://{with_tls.http}/metrics")), **parse_metrics(get(f"http://{http_of_keys}/metrics")),
                  **parse_metrics(metrics)}
        selftest(series)
        check_documents(args.quantd, series, with_keys, key)
        asked = expressions()
        faults = [f"{where}: {fault}" for where, expression in asked for fault in faults_of(expression, series)]
        if faults:
            sys.exit("\n".join(faults))
        print(f"{len(asked)} expressions of deploy/ name metrics and labels that the server exports")
        if args.prometheus:
            promtool_checks(args.prometheus / "promtool", metrics)
            prometheus_queries(args.prometheus / "prometheus", args.quantd, grpc, [http, http_of_keys])
            print(f"{len(dashboard_queries())} queries of the dashboard have answers in Prometheus, its rules evaluate, promtool is content")


if __name__ == "__main__":
    main()
