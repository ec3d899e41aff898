"""Every kernel runs in the tests, and is compared with ref: the check behind the emulated device.

    python3 tests/cuda/kernel_coverage.py --build build/release [--json FILE]
    python3 tests/cuda/kernel_coverage.py --selftest

The emulated device appends the kernels a process launched to launched.<pid> in the folder that
QUANTD_KERNEL_COVERAGE names. tests/CMakeLists.txt gives each test program a folder of its own under
BUILD/kernel_coverage; the folders in CONFORMANCE hold programs whose tests compare a backend with ref.
Fails when
  - a kernel that a LAUNCH names was launched by no test, or by no test that compares with ref;
  - the emulated library registers a kernel that quantd_gpu, which links all of the backend, lacks;
  - nvcc's library (where there is one) has a kernel that the emulated one has not, or the reverse.
"""
import argparse
import json
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import sass_gates  # noqa: E402

CONFORMANCE = ("kernels_test", "cuda_emulation_test")  # test programs that compare with ref
REGISTERED = "quantd::cuda_emulated::Registered<&"


def base_name(kernel):
    return kernel.split("<")[0].strip()


def launched(folder):
    """test program -> kernels its processes launched."""
    out = {}
    for path in sorted(folder.glob("*/launched.*")):
        names = {line for line in path.read_text().splitlines() if line}
        out.setdefault(path.parent.name, set()).update(names)
    return out


def registered_symbols(listing):
    """Kernels out of `nm -C` of the emulated library, in sass_gates' spelling."""
    names = set()
    for line in listing.splitlines():
        at = line.find(REGISTERED)
        if at < 0 or "guard variable" in line or not line.endswith(">::record"):
            continue
        inner = line[at + len(REGISTERED):-len(">::record")]
        if inner.startswith("(") and inner.endswith(")"):
            inner = inner[1:-1]
        names.add(sass_gates.short_name(inner))
    return names


def check(by_program, linked, symbols, compiled):
    """Faults. `linked`: kernels of the program; `symbols`: of the emulated library; `compiled`: nvcc's."""
    faults = []
    everywhere = set().union(*by_program.values()) if by_program else set()
    compared = set().union(*(names for program, names in by_program.items() if program in CONFORMANCE), set())
    for name in sorted(linked - everywhere):
        faults.append(f"{name}: launched by no test")
    for name in sorted((linked & everywhere) - compared):
        faults.append(f"{name}: launched, but by no test that compares with ref "
                      f"({', '.join(sorted(p for p, n in by_program.items() if name in n))})")
    counts = {}
    for names, step in ((linked, -1), (symbols, 1)):
        for name in names:
            counts[base_name(name)] = counts.get(base_name(name), 0) + step
    for name, count in sorted(counts.items()):
        if count > 0:
            faults.append(f"{name}: {count} instantiations of the library are not reached by the backend")
    if compiled is not None:
        for name in sorted(compiled - symbols):
            faults.append(f"{name}: compiled by nvcc, but no LAUNCH under emulation names it")
        for name in sorted(symbols - compiled):
            faults.append(f"{name}: launched under emulation, but nvcc compiled no such kernel")
    return faults


def summary(by_program, linked, figures):
    """base name -> what the table of docs/cuda.md says of it."""
    out = {}
    for name in linked:
        row = out.setdefault(base_name(name), {"instances": 0, "against_ref": 0, "emulated": 0,
                                               "architectures": []})
        row["instances"] += 1
        row["emulated"] += any(name in names for names in by_program.values())
        row["against_ref"] += any(name in names for p, names in by_program.items() if p in CONFORMANCE)
    for figure in figures:
        row = out.get(base_name(figure["kernel"]))
        if row is not None and figure["architecture"] not in row["architectures"]:
            row["architectures"] = sorted(row["architectures"] + [figure["architecture"]])
    return dict(sorted(out.items()))


def selftest():
    runs = {"kernels_test": {"A<1>"}, "engine_test": {"A<1>", "B"}}
    assert check(runs, {"A<1>"}, {"A<1>"}, {"A<1>"}) == []
    assert "no test" in check(runs, {"C"}, {"C"}, None)[0]
    assert "compares with ref (engine_test)" in check(runs, {"B"}, {"B"}, None)[0]
    assert "not reached" in check(runs, {"A<1>"}, {"A<1>", "A<2>"}, None)[0]
    assert "no LAUNCH" in check(runs, {"A<1>"}, {"A<1>"}, {"A<1>", "D"})[0]
    assert "nvcc compiled no" in check(runs, {"A<1>"}, {"A<1>"}, set())[0]
    listing = ("0 u quantd::cuda_emulated::Registered<&(void quantd::cuda_emulated::K<quantd::BF16, 1, "
               "(quantd::Codec)3>(quantd::cuda_emulated::Args))>::record\n"
               "0 b quantd::cuda_emulated::Registered<&quantd::cuda_emulated::(anonymous namespace)::"
               "Plain(float*, int)>::record\n")
    assert registered_symbols(listing) == {"K<BF16, 1, 3>", "Plain"}, registered_symbols(listing)
    rows = summary(runs, {"A<1>", "A<2>", "B"}, [{"kernel": "A<1>", "architecture": "sm_80"}])
    assert rows["A"] == {"instances": 2, "against_ref": 1, "emulated": 1, "architectures": ["sm_80"]}, rows
    assert rows["B"]["against_ref"] == 0 and rows["B"]["emulated"] == 1


def nm(path):
    return subprocess.run(["nm", "-C", str(path)], check=True, capture_output=True, text=True).stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build/release"))
    parser.add_argument("--sass", type=pathlib.Path, help="figures of sass_gates.py --json")
    parser.add_argument("--json", type=pathlib.Path, help="where to write a summary for device_docs.py")
    parser.add_argument("--selftest", action="store_true")
    flags = parser.parse_args()
    selftest()
    if flags.selftest:
        print("kernel coverage: every check can fail")
        return 0
    by_program = launched(flags.build / "kernel_coverage")
    listed = subprocess.run([str(flags.build / "quantd_gpu"), "kernels"], check=True, capture_output=True,
                            text=True).stdout
    linked = {line for line in listed.splitlines() if line}
    symbols = registered_symbols(nm(flags.build / "kernels/cuda/emulation/libquantd_cuda_emulated.a"))
    figures = json.loads(flags.sass.read_text()) if flags.sass else []
    compiled = {figure["kernel"] for figure in figures} if flags.sass else None
    faults = check(by_program, linked, symbols, compiled)
    if flags.json:
        flags.json.write_text(json.dumps(summary(by_program, linked, figures), indent=1) + "\n")
    for program, names in sorted(by_program.items()):
        print(f"{program}: {len(names)} kernels launched")
    print("\n".join(faults) if faults else
          f"kernel coverage: {len(linked)} kernels, each launched and compared with ref")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
