"""The plans that docs/choosing.md shows, written by the command that makes them.

    python3 tests/engine/plan/plan_docs.py --quantd build/release/quantd [--check]

Rewrites what stands between the markers of docs/choosing.md; --check: exits 1 when that would change it.
"""
import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs/choosing.md"
BEGIN, END = "<!-- plans: begin -->\n", "<!-- plans: end -->\n"
MODELS = [
    ("Llama-2-7B", "llama-2-7b"),
    ("Llama-3-8B", "llama-3-8b"),
    ("Qwen2.5-14B", "qwen2.5-14b"),
    ("Llama-3-70B", "llama-3-70b"),
]
PROFILES = ["fp32", "bf16", "int8", "hqq8", "nf4", "torchao-int4", "nf4-dq", "hqq2"]
DEVICES = ["8GB", "12GB", "16GB", "24GB", "48GB", "80GB"]
CONTEXT = "4096"
BANDWIDTH = "1TB/s"


def plan(quantd, shape, *flags):
    command = [quantd, "plan", "--model", str(ROOT / f"tests/data/shapes/{shape}.json"), "--json",
               "--context", CONTEXT, *flags]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def gigabytes(count):
    return f"{count * 1e-9:.2f}"


def tables(quantd):
    out = ["GB of weights (everything resident of the model: codes, scales, zero points, embedding, head, norms), of KV\n"
           f"cache for one request of {CONTEXT} tokens, and of workspace:\n\n",
           "| model | KV | workspace | " + " | ".join(PROFILES) + " |\n",
           "|---|--:|--:|" + "--:|" * len(PROFILES) + "\n"]
    for name, shape in MODELS:
        profiles = {p["name"]: p["bytes"] for p in plan(quantd, shape, "--memory", "80GB")["profiles"]}
        nf4 = profiles["nf4"]
        out.append(f"| {name} | {gigabytes(nf4['components']['kv_cache'])} | {gigabytes(nf4['workspace'])} | "
                   + " | ".join(gigabytes(profiles[p]["weights"]) for p in PROFILES) + " |\n")
    out.append(f"\nWhat is recommended when no goal is given, and how many requests of {CONTEXT} tokens fit beside it:\n\n")
    out.append("| model | " + " | ".join(DEVICES) + " |\n|---|" + "---|" * len(DEVICES) + "\n")
    for name, shape in MODELS:
        cells = []
        for memory in DEVICES:
            result = plan(quantd, shape, "--memory", memory)
            chosen = next((p for p in result["profiles"] if p["name"] == result["recommended"]), None)
            cells.append(f"{chosen['name']}, {chosen['max_requests']}" if chosen else "nothing fits")
        out.append(f"| {name} | " + " | ".join(cells) + " |\n")
    out.append(f"\nTokens a second of one request that {BANDWIDTH} of memory bandwidth allow at most, with {CONTEXT} "
               "tokens of\ncontext; other bandwidths in proportion:\n\n")
    out.append("| model | " + " | ".join(PROFILES) + " |\n|---|" + "--:|" * len(PROFILES) + "\n")
    for name, shape in MODELS:
        rates = {p["name"]: p["roofline_tokens_per_second"]
                 for p in plan(quantd, shape, "--memory", "80GB", "--bandwidth", BANDWIDTH)["profiles"]}
        out.append(f"| {name} | " + " | ".join(f"{rates[p]:.0f}" for p in PROFILES) + " |\n")
    return "".join(out)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quantd", required=True)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    wanted = before + BEGIN + tables(arguments.quantd) + END + after
    if wanted == page:
        return
    if arguments.check:
        sys.exit("docs/choosing.md shows other plans than `quantd plan` makes: run "
                 "tests/engine/plan/plan_docs.py --quantd build/release/quantd")
    PAGE.write_text(wanted)


main()
