"""House rules a machine can check: who may include whom, how long a file, how large the tree may be.

    python3 tests/house_rules.py            exits 1 and lists every violation
    python3 tests/house_rules.py --selftest checks that each rule can fail
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
MAX_LINES = 600
# A clone stays quick, and fixtures stay small: folder -> bytes of all its files ("": every file).
MAX_BYTES = {"": 40 << 20, "tests/data": 14 << 20}
SOURCE_SUFFIXES = {".h", ".cc", ".cu", ".cuh", ".py", ".proto", ".cmake"}

# folder -> folders of ours it may include (longest matching prefix decides)
MAY_INCLUDE = {
    "kernels/quant": ["kernels/quant", "kernels/tensor.h", "kernels/status.h", "kernels/check.h", "kernels/ceil_div.h",
                      "kernels/memory_account.h"],
    "kernels": ["kernels"],
    "kernels/ref": ["kernels"],
    "kernels/cpu": ["kernels"],
    "kernels/cuda": ["kernels"],
    "engine/text": ["engine/text", "kernels"],
    "engine/weights": ["engine/weights", "kernels"],
    "engine/models": ["engine/models", "engine/weights", "engine/kv_cache.h", "kernels"],
    "engine/plan": ["engine/plan", "engine/models", "engine/weights", "kernels"],
    "engine/eval": ["engine", "kernels"],
    "engine": ["engine", "kernels"],
    "server": ["server", "engine", "kernels", "quantd"],
    "tests": ["tests", "server", "engine", "kernels", "quantd"],
}
# a core folder must not reach into a backend: only these name a concrete one
BACKEND_USERS = {"server/backends.cc"}
BACKEND_HEADERS = ("kernels/ref/", "kernels/cpu/", "kernels/cuda/")

# library include -> folders that may use it ("cc": only in .cc files)
LIBRARIES = [
    (re.compile(r"^(grpc|grpcpp|google/protobuf)/|\.pb\.h$"), ["server", "tests/server", "tests/fuzz"], None),
    (re.compile(r"^httplib\.h$"), ["server/http", "tests/server"], None),
    (re.compile(r"^openssl/"), ["server/security", "tests/server"], "cc"),
    (re.compile(r"^prometheus/"), ["server", "tests/server"], None),
    (re.compile(r"^(cuda|cublas|nccl|mma|cooperative_groups)"), ["kernels/cuda"], None),
    (re.compile(r"^hwy/"), ["kernels/cpu", "tests/kernels/cpu"], None),
    (re.compile(r"^(immintrin|x86intrin)\.h$"), ["kernels/cpu"], None),
    (re.compile(r"^yaml-cpp/"), ["engine", "server", "tests"], "cc"),
    (re.compile(r"^nlohmann/"), ["engine", "server", "tests"], "cc"),
    (re.compile(r"^(pcre2|unicode/)"), ["engine/text", "tests/engine/text"], "cc"),
    (re.compile(r"^CLI/"), ["server/cli"], None),
]
OUR_FOLDERS = {"kernels", "engine", "server", "tests"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def folder_rule(path):
    parts = path.split("/")[:-1]
    while parts:
        key = "/".join(parts)
        if key in MAY_INCLUDE:
            return MAY_INCLUDE[key]
        parts.pop()
    return None


def within(path, folders):
    return any(path == f or path.startswith(f + "/") for f in folders)


def check_file(path, text):
    """Violations of one file; `path` is relative to the root, with forward slashes."""
    faults = []
    lines = text.splitlines()
    if len(lines) > MAX_LINES:
        faults.append(f"{path}: {len(lines)} lines, at most {MAX_LINES}")
    if pathlib.PurePosixPath(path).suffix not in {".h", ".cc", ".cu", ".cuh"}:
        return faults
    for number, line in enumerate(lines, 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        name = match.group(2)
        for pattern, folders, only in LIBRARIES:
            if not pattern.search(name):
                continue
            if not within(path, folders):
                faults.append(f"{path}:{number}: <{name}> may only be included in {', '.join(folders)}")
            elif only == "cc" and not path.endswith(".cc") and not path.startswith("tests/"):
                faults.append(f"{path}:{number}: <{name}> stays inside .cc files")
        if name.split("/")[0] in OUR_FOLDERS and not name.endswith(".pb.h"):
            allowed = folder_rule(path)
            if allowed is not None and not within(name, allowed):
                faults.append(f"{path}:{number}: \"{name}\" breaks the layering; {path.rsplit('/', 1)[0]} "
                              f"may include {', '.join(allowed)}")
            own = next((b for b in BACKEND_HEADERS if path.startswith(b)), None)
            backend = next((b for b in BACKEND_HEADERS if name.startswith(b)), None)
            if backend and backend != own and path not in BACKEND_USERS and not path.startswith("tests/"):
                faults.append(f"{path}:{number}: \"{name}\" names a concrete backend")
    return faults


def check_sizes(sizes):
    """Violations of MAX_BYTES; `sizes` is bytes by path."""
    faults = []
    for folder, most in MAX_BYTES.items():
        total = sum(size for path, size in sizes.items() if not folder or path.startswith(folder + "/"))
        if total > most:
            faults.append(f"{folder or 'all files'}: {total / (1 << 20):.1f} MiB, at most {most >> 20}")
    return faults


def selftest():
    cases = [
        ("engine/scheduler.cc", '#include "server/config.h"\n'),
        ("kernels/ref/linear.cc", '#include "engine/engine.h"\n'),
        ("kernels/ref/linear.cc", '#include "kernels/cpu/cpu_backend.h"\n'),
        ("engine/text/bpe.cc", '#include "engine/weights/profile.h"\n'),
        ("engine/weights/profile.h", "#include <yaml-cpp/yaml.h>\n"),
        ("engine/engine.cc", "#include <grpcpp/grpcpp.h>\n"),
        ("kernels/tensor.cc", "#include <hwy/highway.h>\n"),
        ("kernels/quant/format.cc", '#include "kernels/backend.h"\n'),
        ("server/a.cc", "x\n" * (MAX_LINES + 1)),
    ]
    for path, text in cases:
        assert check_file(path, text), f"not caught: {path}: {text[:60]!r}"
    assert len(check_sizes({"tests/data/a": 13 << 20, "tests/data/b": 2 << 20, "c": 26 << 20})) == 2
    assert not check_sizes({"tests/data/a": 13 << 20, "tests/database": 2 << 20, "c": 24 << 20})
    assert check_named_tests("`Aa.Bb` and `Aa.Cc`", ["TEST(Aa, Bb) {", "TEST_F(Aa,\n Dd)"]) == [
        f"{DOC_OF_TESTS}: there is no test Aa.Cc"]
    assert not check_file("server/grpc/service.cc", '#include <grpcpp/grpcpp.h>\n#include "engine/engine.h"\n')


def sources():
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                            capture_output=True, text=True)
    if listed.returncode == 0:
        return [p for p in listed.stdout.splitlines() if (ROOT / p).is_file()]
    return [p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*") if p.is_file() and "build" not in p.parts]


# A table of rules and the tests that hold us to them is worth something while the tests are there.
DOC_OF_TESTS = "docs/security.md"
NAMED_TEST = re.compile(r"`([A-Z]\w+)\.([A-Z]\w+)`")
DEFINED_TEST = re.compile(r"\bTEST(?:_F|_P)?\(\s*(\w+),\s*(\w+)\s*\)")


def check_named_tests(doc, tests):
    """Tests that `doc` names and no text of `tests` defines."""
    defined = {match.groups() for text in tests for match in DEFINED_TEST.finditer(text)}
    return [f"{DOC_OF_TESTS}: there is no test {suite}.{name}"
            for suite, name in NAMED_TEST.findall(doc) if (suite, name) not in defined]


def main():
    selftest()
    files = sources()
    faults, count = check_sizes({path: (ROOT / path).stat().st_size for path in files}), 0
    for path in files:
        if pathlib.PurePosixPath(path).suffix in SOURCE_SUFFIXES or path == "dev":
            count += 1
            faults += check_file(path, (ROOT / path).read_text(encoding="utf-8"))
    tests = [(ROOT / path).read_text(encoding="utf-8") for path in files
             if path.startswith("tests/") and path.endswith("_test.cc")]
    faults += check_named_tests((ROOT / DOC_OF_TESTS).read_text(encoding="utf-8"), tests)
    print("\n".join(faults) if faults else f"house rules: {count} files, no violation")
    return 1 if faults else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--selftest"]:
        selftest()
        print("house rules: every rule can fail")
    else:
        sys.exit(main())
