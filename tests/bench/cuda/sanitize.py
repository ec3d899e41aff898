"""sanitize: conformance tests under compute-sanitizer, one tool and one kind of test a process.

    python3 tests/bench/cuda/sanitize.py build/gpu/quantd_gpu --out tests/bench/results

memcheck finds accesses out of bounds and misaligned, racecheck data races in shared memory. Some
machines (virtualized ones among them) refuse the tool: that is said, and no result is written.
"""
import argparse
import os
import pathlib
import shutil
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import results as result_files  # noqa: E402

SECONDS_PER_TEST = 200
# Each op once; the sanitizer slows kernels by ten to a hundred times.
FILTERS = ("*OpConformance*", "*AttentionConformance*", "*LinearConformance.WorksWithoutBias*",
           "*LinearConformance.IsCloseToRef*nf4_nested", "*LinearConformance.IsCloseToRef*int8_row_outliers",
           "*LinearConformance.IsCloseToRef*_bf16", "*GoldenTest*bnb_nf4_dq*")
REFUSALS = ("Device not supported", "Unable to find injection library", "not supported on this",
            "Target application terminated before first instrumented API call")


def run(sanitizer, program, tool, tests):
    command = [sanitizer, "--tool", tool, "--error-exitcode", "99", str(program), "tests", "--backend",
               "cuda", f"--gtest_filter={tests}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_PER_TEST)
    return done.returncode, done.stdout + done.stderr


def checked(sanitizer, program, tool, tests):
    try:
        code, output = run(sanitizer, program, tool, tests)
    except subprocess.TimeoutExpired:
        return {"error": f"over {SECONDS_PER_TEST} s"}
    if code != 0:
        return {"error": f"exit code {code}\n{output[-2500:]}"}
    return {"summary": [line.strip("= ") for line in output.splitlines() if "SUMMARY" in line]}


def device_name():
    done = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
                          capture_output=True, text=True)
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("--out", default="tests/bench/results")
    parser.add_argument("--seconds", type=int, default=450)
    parser.add_argument("--fresh", action="store_true")
    flags = parser.parse_args()
    device = device_name() if shutil.which("nvidia-smi") else None
    if device is None:
        print("sanitize: no GPU here")
        return 1
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not pathlib.Path(sanitizer).exists():
        print("sanitize: no compute-sanitizer on this machine: nothing was checked")
        return 1
    try:
        code, output = run(sanitizer, flags.program, "memcheck", "*OpConformance.GatherCopiesRows*")
    except subprocess.TimeoutExpired:
        code, output = 1, "the first test took too long"
    if code != 0 and any(refusal in output for refusal in REFUSALS):
        print(f"sanitize: this machine refuses compute-sanitizer: nothing was checked\n{output[-1500:]}")
        return 1
    build = subprocess.run([str(flags.program), "build"], capture_output=True, text=True, check=True)
    results = result_files.ResultFile(flags.out, device, "sanitize", build.stdout.strip(), flags.fresh)
    items = [(f"{tool}/{tests}", lambda t=tool, f=tests: checked(sanitizer, flags.program, t, f))
             for tests in FILTERS for tool in ("memcheck", "racecheck")]
    jobs = max(1, (os.cpu_count() or 1) * 3 // 4)
    return result_files.run_items(results, items, flags.seconds, jobs)


if __name__ == "__main__":
    sys.exit(main())
