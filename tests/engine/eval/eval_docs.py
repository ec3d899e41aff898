"""Holds figures of README.md and docs/choosing.md to the reports of `quantd eval` that they are of.

    python3 tests/engine/eval/eval_docs.py --check      exits 1 and lists every figure that differs
    python3 tests/engine/eval/eval_docs.py --selftest

A sentence below stands in the page as it does here, with a number for each {figure}: "{nf4.kl}" is the KL
divergence of nf4, which must be the report's in as many digits as are printed.
"""
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[3]
DEMO, OUTLIERS = "demo/model/quantd-eval.json", "docs/eval/outliers.json"
FIGURES = {
    "mb": lambda p: p["resident_bytes"] * 1e-6,
    "kept": lambda p: 100 * p["retention"]["value"],
    "low": lambda p: 100 * p["retention"]["low"],
    "high": lambda p: 100 * p["retention"]["high"],
    "kl": lambda p: p["kl"]["mean"],
    "top1": lambda p: 100 * p["top1"],
    "other": lambda p: 100 - 100 * p["top1"],
    "greedy": lambda p: sum(p["greedy_lengths"]) / len(p["greedy_lengths"]),
}

# (page, how its line begins, report, what stands there)
SENTENCES = [
    ("README.md", "| fp32 |", DEMO, "{fp32.mb} MB | {fp32.kept} % | {fp32.kl} | {fp32.top1} %"),
    ("README.md", "| bf16 | 16 | ", DEMO, "{bf16.mb} MB | reference | {bf16.kl} | {bf16.top1} %"),
    *[("README.md", f"| {p} | ", DEMO, f"{{{p}.mb}} MB | {{{p}.kept}} % | {{{p}.kl}} | {{{p}.top1}} %")
      for p in ("int8", "nf4", "fp4", "nf4-dq", "hqq2")],
    ("README.md", "39,858", DEMO, "{tokens} held-out tokens, "),
    ("README.md", "39,858", DEMO, "has all {profiles} profiles"),
    ("docs/choosing.md", "[The demo model's report](eval", DEMO,
     "has all {profiles} profiles on {tokens} held-out tokens ({parameters} M parameters, "),
    ("docs/choosing.md", "| 8-bit keeps", DEMO,
     "`int8` {int8.kept} % ({int8.low} to {int8.high}), KL {int8.kl}, the likeliest token the same in {int8.top1} %; "),
    ("docs/choosing.md", "| 8-bit keeps", DEMO, "`torchao-int8` and `hqq8`, weights only, KL {torchao-int8.kl}"),
    ("docs/choosing.md", "| 8-bit keeps", DEMO, "`torchao-int8` and `hqq8`, weights only, KL {hqq8.kl}"),
    ("docs/choosing.md", "| NF4 keeps", DEMO,
     "`nf4` {nf4.kept} % ({nf4.low} to {nf4.high}) of perplexity, but the likeliest token is another in {nf4.other} %, "
     "and greedy texts part after {nf4.greedy} tokens"),
    ("docs/choosing.md", "| FP4 keeps", DEMO,
     "`fp4` {fp4.kept} % ({fp4.low} to {fp4.high}), KL {fp4.kl/nf4.kl} times that of `nf4` ({fp4.kl}, {nf4.kl})"),
    ("docs/choosing.md", "| double quantization costs", DEMO, "KL {nf4-dq.kl} against {nf4.kl}, `nf4-dq`"),
    ("docs/choosing.md", "| double quantization saves", DEMO, "{nf4-dq.mb<nf4.mb} % of the demo model"),
    ("docs/choosing.md", "| outliers from", OUTLIERS,
     "`int8` KL {int8.kl}, `int8-no-outliers` {int8-no-outliers.kl}, {int8-no-outliers.kl/int8.kl} times that"),
    ("docs/choosing.md", "| outliers from", DEMO, "Without (demo model): {int8.kl} and {int8-no-outliers.kl}"),
    ("docs/choosing.md", "| other 4-bit", DEMO,
     "`hqq4` KL {hqq4.kl} and `metal4` {metal4.kl} at `nf4`'s bytes: even. `torchao-int4` {torchao-int4.kl} at fewer"),
    ("docs/choosing.md", "| 3 and 2 bits", DEMO, "`hqq3` {hqq3.kept} %, `hqq2` {hqq2.kept} %"),
    ("docs/choosing.md", "| fp8 is", DEMO,
     "`fp8` KL {fp8.kl}, `torchao-fp8-dynamic` {torchao-fp8-dynamic.kl}, `int8` {int8.kl}: "),
    ("docs/choosing.md", "| fp8 is", DEMO, "at {fp8.mb<int8.mb} % fewer bytes"),
]
NUMBER = r"(\d[\d,]*(?:\.\d+)?)"


def figure(report, name):
    """The value of "nf4.kl", of the ratio "a.kl/b.kl", of how many % less "a.mb<b.mb" is, or of the report."""
    if "/" in name:
        above, below = name.split("/")
        return figure(report, above) / figure(report, below)
    if "<" in name:
        less, more = name.split("<")
        return 100 * (1 - figure(report, less) / figure(report, more))
    if name == "profiles":
        return len(report["profiles"])
    if name == "parameters":
        return report["parameters"] * 1e-6
    if "." not in name:
        return report[name]
    profile, what = name.rsplit(".", 1)
    return FIGURES[what](next(p for p in report["profiles"] if p["name"] == profile))


def check(page, line, report, sentence):
    """What differs in `line`, each as "printed X, the report has Y"."""
    parts = re.split(r"\{([^}]*)\}", sentence)
    pattern = "".join(NUMBER if i % 2 else re.escape(part) for i, part in enumerate(parts))
    match = re.search(pattern, line)
    if match is None:
        return [f"{page}: row \"{line[:40]}\": does not say \"{sentence}\""]
    faults = []
    for name, printed in zip(parts[1::2], match.groups()):
        true = figure(report, name)
        digits = len(printed.partition(".")[2])
        if f"{true:.{digits}f}" != printed.replace(",", ""):
            faults.append(f"{page}: row \"{line[:40]}\": {name} is printed as {printed}, the report has {true:.6g}")
    return faults


def check_all(texts, reports):
    """`texts` by page, `reports` by path. Rows of several tables may begin alike: one has to agree."""
    faults = []
    for page, begin, report, sentence in SENTENCES:
        lines = [line for line in texts[page].splitlines() if line.startswith(begin)]
        found = [check(page, line, reports[report], sentence) for line in lines]
        if not found:
            faults.append(f"{page}: no row begins with \"{begin}\"")
        elif [] not in found:
            faults += min(found, key=lambda f: "does not say" in f[0])
    return faults


def load():
    texts = {page: (ROOT / page).read_text(encoding="utf-8") for page, *_ in SENTENCES}
    reports = {path: json.loads((ROOT / path).read_text(encoding="utf-8")) for _, _, path, _ in SENTENCES}
    return texts, reports


def selftest():
    report = {"tokens": 1234, "profiles": [
        {"name": "a-b", "kl": {"mean": 0.0054}, "resident_bytes": 3_000_000},
        {"name": "c", "kl": {"mean": 0.0027}, "resident_bytes": 4_000_000}]}
    right = "| a-b | KL 0.005, 2.0 times 0.0027, 25 % less | 1,234"
    sentence = "KL {a-b.kl}, {a-b.kl/c.kl} times {c.kl}, {a-b.mb<c.mb} % less | {tokens}"
    assert not check("P", right, report, sentence)
    wrong = check("P", right.replace("0.005,", "0.006,"), report, sentence)
    assert len(wrong) == 1 and wrong[0].startswith('P: row "| a-b |'), wrong
    assert wrong[0].endswith(": a-b.kl is printed as 0.006, the report has 0.0054"), wrong
    assert "does not say" in check("P", "| a-b | nothing", report, sentence)[0]
    # In the pages themselves, too, every other digit is a fault.
    texts, reports = load()
    for page, begin, path, sentence in SENTENCES:
        for line in texts[page].splitlines():
            if line.startswith(begin) and not check(page, line, reports[path], sentence):
                other = line.translate(str.maketrans("0123456789", "1234567890"))
                assert check(page, other, reports[path], sentence), sentence


def main():
    if "--selftest" in sys.argv[1:]:
        selftest()
        return 0
    faults = check_all(*load())
    print("\n".join(faults) if faults else f"{len(SENTENCES)} sentences agree with their reports")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
