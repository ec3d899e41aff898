"""Documents that are made from results: docs/benchmarks.md, and the kernel table of docs/cuda.md.

    python3 tests/cuda/device_docs.py [--kernels build/kernels.json]   writes them
    python3 tests/cuda/device_docs.py --check [--kernels ...]          fails when they are not current

docs/benchmarks.md comes from tests/bench/results/*.json alone. The kernel table also needs --kernels, the
summary that kernel_coverage.py makes of a test run; without it the table is left, or not checked.
"""
import argparse
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "tests" / "bench" / "results"
BEGIN = "<!-- kernels: made by `./dev gpu docs` -->"
END = "<!-- end of kernels -->"
NOT_RUN = "not yet run on hardware"


def read_results(folder):
    """Result files of real devices, by device; quick runs count as none."""
    out = []
    for path in sorted(folder.glob("*.json")):
        root = json.loads(path.read_text())
        stages = {name: stage["items"] for name, stage in root["stages"].items() if not stage.get("quick")}
        if stages and "emulated" not in root["device"].lower():
            builds = {name: stage["program"] for name, stage in root["stages"].items() if name in stages}
            out.append((root["device"], {**stages, "builds": builds}))
    return out


def build_of(item):
    """Of an item that another build measured than the rest of its stage."""
    return f" (build `{item['program'][:8]}`)" if "program" in item else ""


def builds_line(builds):
    """Which stages one build of the program measured, or None where all are of one."""
    by_build = {}
    for stage, build in builds.items():
        if stage != "peers":  # a Python script
            by_build.setdefault(build[:8], []).append(stage)
    if len(by_build) < 2:
        return None
    return ("Builds of the program: " +
            "; ".join(f"`{build}` {', '.join(sorted(stages))}" for build, stages in sorted(by_build.items())) + ".")


def copy_bandwidth(stages):
    return stages.get("facts", {}).get("device", {}).get("copy_gb_per_s")


def mma_rate(stages):
    return stages.get("facts", {}).get("device", {}).get("bf16_mma_tflop_per_s")


def share(item, stages):
    """(share of the bound that binds, "copy" or "mma"), or None."""
    copy, mma = copy_bandwidth(stages), mma_rate(stages)
    if not copy or "gb_per_s" not in item:
        return None
    by_copy = item["gb_per_s"] / copy
    by_mma = item.get("tflop_per_s", 0) / mma if mma else 0
    return (by_copy, "copy") if by_copy >= by_mma else (by_mma, "mma")


def row(cells):
    return "| " + " | ".join(str(c) for c in cells) + " |"


def table(head, rows):
    return [row(head), "|" + "---|" * len(head)] + [row(r) for r in rows]


def kernel_table(kernels, results):
    """The table of docs/cuda.md: a row for every kernel."""
    rows = []
    for name, facts in kernels.items():
        devices, best = [], None
        for device, stages in results:
            tests = stages.get("conformance", {})
            ran = [item for item in tests.values() if name in (item.get("kernels") or [])]
            if ran and all("error" not in item for item in ran):
                devices.append(device)
            elif ran:
                devices.append(f"{device} (a test fails)")
            for test, item in stages.get("bench", {}).items():
                reached = share(item, stages) if name in (item.get("kernels") or []) else None
                if reached and (best is None or reached[0] > best[0]):
                    best = (reached[0], reached[1], test)
        emulated = f"{facts['against_ref']} of {facts['instances']}"
        rows.append((f"`{name}`", emulated, " ".join(facts["architectures"]) or "-",
                     ", ".join(devices) or NOT_RUN,
                     f"{best[0]:.0%} of {best[1]} (`{best[2]}`)" if best else "not timed" if devices else NOT_RUN))
    return table(("kernel", "instances run under emulation against ref", "compiled for", "run on",
                  "best share of the roofline"), rows)


def linear_tables(stages):
    lines = []
    entries = {}
    for source in ("bench", "peers"):
        for name, item in stages.get(source, {}).items():
            parts = name.split("/")
            if parts[0] != "linear" or "us" not in item:
                continue
            entries.setdefault(parts[2], {}).setdefault(parts[1], {})[int(parts[3][2:])] = item
    for shape, kinds in entries.items():
        columns = sorted({m for by_m in kinds.values() for m in by_m})
        lines += ["", f"`{shape}`, microseconds (share of copy bandwidth) by rows of x:", ""]
        rows = []
        for kind, by_m in kinds.items():
            cells = [f"`{kind}`"]
            for m in columns:
                item = by_m.get(m)
                reached = share(item, stages) if item else None
                text = f"{item['us']:.1f}" if item else "-"
                cells.append(text + (f" ({reached[0]:.0%}{'' if reached[1] == 'copy' else ' mma'})"
                                     if reached else ""))
            rows.append(cells)
        lines += table(["kernel"] + [f"m {m}" for m in columns], rows)
    return lines


def device_section(device, stages):
    lines = [f"## {device}", ""]
    facts = stages.get("facts", {}).get("device", {})
    if "copy_gb_per_s" in facts:
        lines.append(f"{facts['multiprocessors']} multiprocessors, compute capability "
                     f"{facts['compute_capability']}. Measured: copy {facts['copy_gb_per_s']:.0f} GB/s (read and "
                     f"write counted), read {facts['read_gb_per_s']:.0f} GB/s, bf16 mma.sync "
                     f"{facts['bf16_mma_tflop_per_s']:.0f} TFLOP/s.")
    line = builds_line(stages.get("builds", {}))
    if line:
        lines += ["", line]
    tests = stages.get("conformance")
    if tests is not None:
        failed = sorted(name for name, item in tests.items() if "error" in item)
        lines += ["", f"Conformance: {len(tests) - len(failed)} of {len(tests)} tests pass."]
        lines += [f"- fails: `{name}`" for name in failed]
    sanitized = stages.get("sanitize")
    if sanitized is not None:
        failed = sorted(name for name, item in sanitized.items() if "error" in item)
        lines += ["", f"compute-sanitizer: {len(sanitized) - len(failed)} of {len(sanitized)} runs are clean."]
        lines += [f"- not clean: `{name}`" for name in failed]
    whole = {name: item for name, item in stages.get("e2e", {}).items() if "error" not in item}
    if whole:
        batches = sorted({int(b) for item in whole.values() for b in item["decode_tokens_per_s"]})
        prefills = sorted({int(t) for item in whole.values() for t in item["prefill_tokens_per_s"]})
        lines += ["", f"### Whole models, context {next(iter(whole.values()))['context']}", ""]
        lines += table(["model / profile", "load s", "bits/weight"] + [f"prefill {t} tok/s" for t in prefills] +
                       [f"decode b{b} tok/s" for b in batches],
                       [[f"`{name}`{build_of(item)}", f"{item['load_seconds']:.1f}", f"{item['bits_per_weight']:.2f}"] +
                        [f"{item['prefill_tokens_per_s'][str(t)]:.0f}" for t in prefills] +
                        [f"{item['decode_tokens_per_s'][str(b)]:.0f}" for b in batches]
                        for name, item in whole.items()])
    linears = linear_tables(stages)
    if linears:
        lines += ["", "### Linear layers", "", "Ours by weight format, others by library."] + linears
    others = [(name, item) for name, item in stages.get("bench", {}).items()
              if not name.startswith("linear/") and "us" in item]
    if others:
        lines += ["", "### Other ops", ""]
        rows = []
        for name, item in others:
            reached = share(item, stages)
            rows.append([f"`{name}`{build_of(item)}", f"{item['us']:.1f}", f"{item['gb_per_s']:.0f}",
                         f"{reached[0]:.0%} of {reached[1]}" if reached else "-"])
        lines += table(["op", "us", "GB/s", "share"], rows)
    return lines


INTRODUCTION = """# Benchmarks

Made by `./dev gpu docs` from `tests/bench/results/`; not edited by hand. How to measure: `./dev gpu` on a machine
with a GPU (docs/cuda.md says what each stage does). Figures of the cpu backend are in the README.

Rules: weights and KV caches are rotated over copies that together exceed the L2; each figure is the median of seven
runs of at least 10 ms; "share" compares with the bound that binds, copy bandwidth or the bf16 mma.sync rate, both measured
on the same device in the stage `facts`. The bytes of an op are those it must move, nothing that a kernel moves beyond.
"""


def benchmarks_page(results):
    lines = [INTRODUCTION]
    if not results:
        lines.append("Nothing has been measured on a GPU yet: every kernel has run under emulation only, and "
                     "how fast they are\nis unknown.")
    for device, stages in results:
        lines += device_section(device, stages) + [""]
    return "\n".join(lines).rstrip() + "\n"


def with_table(page, lines):
    begin, end = page.index(BEGIN), page.index(END)
    return page[:begin] + BEGIN + "\n" + "\n".join(lines) + "\n" + page[end:]


def update(path, text, check):
    """None, or what is wrong."""
    old = path.read_text() if path.exists() else ""
    if old == text:
        return None
    if check:
        return f"{path.relative_to(ROOT)} is not current: run ./dev gpu docs"
    path.write_text(text)
    print(f"wrote {path.relative_to(ROOT)}")
    return None


def selftest():
    kernels = {"K": {"instances": 2, "against_ref": 2, "emulated": 2, "architectures": ["sm_80", "sm_90a"]}}
    text = "\n".join(kernel_table(kernels, []))
    assert "| `K` | 2 of 2 | sm_80 sm_90a | not yet run on hardware | not yet run on hardware |" in text, text
    stages = {
        "facts": {"device": {"copy_gb_per_s": 3000.0, "read_gb_per_s": 3100.0, "bf16_mma_tflop_per_s": 600.0,
                             "multiprocessors": 132, "compute_capability": "9.0"}},
        "conformance": {"T/a": {"kernels": ["K"], "seconds": 1}, "T/b": {"error": "x"}},
        "bench": {"linear/nf4/o/m:1": {"us": 5.0, "gb_per_s": 2400.0, "tflop_per_s": 3.0, "kernels": ["K"]},
                  "linear/nf4/o/m:512": {"us": 9.0, "gb_per_s": 900.0, "tflop_per_s": 540.0, "kernels": ["K"]},
                  "rms_norm/m:1": {"us": 2.0, "gb_per_s": 100.0, "kernels": ["N"]}},
        "peers": {"linear/torch_bf16/o/m:1": {"us": 12.0, "gb_per_s": 2700.0, "tflop_per_s": 3.0}},
        "e2e": {"m/nf4": {"load_seconds": 9.0, "bits_per_weight": 4.5, "context": 512,
                          "prefill_tokens_per_s": {"512": 9000.0}, "decode_tokens_per_s": {"1": 400.0}}},
    }
    results = [("NVIDIA X", stages)]
    assert "| NVIDIA X | 90% of mma (`linear/nf4/o/m:512`) |" in "\n".join(kernel_table(kernels, results))
    page = benchmarks_page(results)
    for part in ("1 of 2 tests pass", "- fails: `T/b`", "| `nf4` | 5.0 (80%) | 9.0 (90% mma) |",
                 "| `torch_bf16` | 12.0 (90%) | - |", "| `m/nf4` | 9.0 | 4.50 | 9000 | 400 |", "| `rms_norm/m:1` |"):
        assert part in page, (part, page)
    assert "Builds" not in page
    results[0][1]["builds"] = {"bench": "0123456789", "facts": "0123456789", "e2e": "abcdef0123", "peers": "x"}
    assert "`01234567` bench, facts; `abcdef01` e2e." in benchmarks_page(results)
    assert "Nothing has been measured" in benchmarks_page([])
    assert with_table(f"a\n{BEGIN}\nold\n{END}\nb", ["new"]) == f"a\n{BEGIN}\nnew\n{END}\nb"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--kernels", type=pathlib.Path)
    parser.add_argument("--selftest", action="store_true")
    flags = parser.parse_args()
    selftest()
    if flags.selftest:
        print("device docs: as described")
        return 0
    results = read_results(RESULTS)
    faults = [update(ROOT / "docs" / "benchmarks.md", benchmarks_page(results), flags.check)]
    if flags.kernels is not None and flags.kernels.exists():
        page = ROOT / "docs" / "cuda.md"
        lines = kernel_table(json.loads(flags.kernels.read_text()), results)
        faults.append(update(page, with_table(page.read_text(), lines), flags.check))
    faults = [fault for fault in faults if fault]
    print("\n".join(faults) if faults else "device docs: current")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
