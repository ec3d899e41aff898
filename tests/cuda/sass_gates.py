"""Gates on the machine code nvcc made of kernels/cuda: what speed depends on and no test run shows.

    python3 tests/cuda/sass_gates.py --objects build/release/kernels/cuda/libquantd_cuda.a
    python3 tests/cuda/sass_gates.py --selftest

For every kernel and architecture in the objects (cuobjdump -res-usage and -sass):
  registers  at most what tests/cuda/sass_table.json plans for the kernel; a kernel without a plan fails
  spills     no local memory (STL, LDL) unless the table says why a kernel may have it
  loops      instructions per weight of the innermost loop that carries the tensor-core work, where the
             table bounds it: all instructions of the loop body, divided by the weights one lane of it
             takes, which is 8 for each m16n8k16 product that uses new weights; "share" is the part of
             the products that use weights at all

The figures are printed, and written to --json FILE for the table of docs/cuda.md. cuobjdump and nvdisasm
are looked for in PATH and in the Python environment this runs in (nvidia-cuda-cuobjdump and
nvidia-cuda-nvdisasm of PyPI).
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

TABLE = pathlib.Path(__file__).resolve().parent / "sass_table.json"
INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
FUNCTION = re.compile(r"^\s*Function\s*:\s*(\S+)")
ARCHITECTURE = re.compile(r"^(?:code for |arch = )(sm_\w+)")
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
LANE_WEIGHTS_PER_MMA = 8  # 16 x 16 weights over 32 lanes
LANE_WEIGHTS_PER_LOAD = 32  # 4-bit codes in 128 bits


def tool(name):
    """The path of cuobjdump or nvdisasm, or None."""
    found = shutil.which(name)
    if found:
        return found
    for folder in sys.path:
        path = pathlib.Path(folder) / "nvidia" / "cu13" / "bin" / name
        if path.is_file():
            return str(path)
    for folder in ("/usr/local/cuda/bin", "/opt/cuda/bin"):
        path = pathlib.Path(folder) / name
        if path.is_file():
            return str(path)
    return None


def run(arguments, **options):
    return subprocess.run(arguments, check=True, capture_output=True, text=True, **options).stdout


def demangle(names):
    if not names:
        return {}
    lines = run(["c++filt"], input="\n".join(names) + "\n").splitlines()
    return dict(zip(names, (short_name(line) for line in lines)))


def short_name(demangled):
    """quantd::cuda::(anonymous namespace)::Kernel<A, 2>, without return type, namespaces' noise, arguments."""
    depth, name = 0, demangled.replace("(anonymous namespace)::", "").replace("void ", "", 1)
    for place, letter in enumerate(name):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            name = name[:place]
            break
    name = re.sub(r"quantd::cuda(_emulated)?::", "", name)
    name = re.sub(r"\((?:[A-Za-z_][\w:]*::)?[A-Za-z_]\w*\)(-?\d+)", r"\1", name)  # (Codec)3 and (int)4
    return re.sub(r"\b(\d+)(?:ul|u|l)\b", r"\1", name).replace("quantd::", "").strip()


class Kernel:
    def __init__(self, symbol, architecture):
        self.symbol = symbol
        self.architecture = architecture
        self.name = symbol
        self.registers = self.stack = 0
        self.shared = 0
        self.instructions = []  # (address, text)


def opcode(text):
    """The opcode with its modifiers, the predicate dropped: "@!P0 LDG.E.128 R4, ..." -> "LDG.E.128"."""
    words = text.split()
    return words[1] if words and words[0].startswith("@") and len(words) > 1 else (words[0] if words else "")


def parse_sass(text):
    """Kernels with their instructions, in the order of `cuobjdump -sass`."""
    kernels, architecture = [], ""
    for line in text.splitlines():
        if match := ARCHITECTURE.match(line.strip()):
            architecture = match.group(1)
        elif match := FUNCTION.match(line):
            kernels.append(Kernel(match.group(1), architecture))
        elif kernels and (match := INSTRUCTION.match(line)):
            kernels[-1].instructions.append((int(match.group(1), 16), match.group(2)))
    return kernels


def parse_usage(text):
    """(architecture, symbol) -> (registers, stack bytes, shared bytes) from `cuobjdump -res-usage`."""
    usage, architecture, symbol = {}, "", None
    for line in text.splitlines():
        line = line.strip()
        if match := ARCHITECTURE.match(line):
            architecture = match.group(1)
        elif line.startswith("Function "):
            symbol = line[len("Function "):].rstrip(":")
        if symbol and (match := USAGE.search(line)):
            usage[architecture, symbol] = (int(match.group(1)), int(match.group(2)), int(match.group(3)))
            symbol = None
    return usage


def read_objects(paths):
    cuobjdump, nvdisasm = tool("cuobjdump"), tool("nvdisasm")
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join(
        [str(pathlib.Path(nvdisasm).parent), str(pathlib.Path(cuobjdump).parent), environment.get("PATH", "")])
    kernels = []
    for path in paths:
        found = parse_sass(run([cuobjdump, "-sass", str(path)], env=environment))
        usage = parse_usage(run([cuobjdump, "-res-usage", str(path)], env=environment))
        for kernel in found:
            kernel.registers, kernel.stack, kernel.shared = usage[kernel.architecture, kernel.symbol]
        kernels += found
    names = demangle(sorted({kernel.symbol for kernel in kernels}))
    for kernel in kernels:
        kernel.name = names[kernel.symbol]
    return sorted(kernels, key=lambda k: (k.name, k.architecture))


def innermost_loops(instructions):
    """Bodies of loops that contain no other loop: from the target of a backward branch to the branch."""
    loops = []
    for address, text in instructions:
        if opcode(text).split(".")[0] != "BRA":
            continue
        match = re.search(r"0x([0-9a-f]+)\s*$", text)
        if match and int(match.group(1), 16) < address:
            loops.append((int(match.group(1), 16), address))
    inner = [a for a in loops
             if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return [[text for address, text in instructions if begin <= address <= end] for begin, end in inner]


def count(body, pattern):
    return sum(1 for text in body if re.match(pattern, opcode(text)))


def loop_figures(body, tiles, share=1):
    """What an innermost loop costs; `tiles` products share one fragment of weights, `share` of all have one."""
    mma, loads = count(body, r"HMMA|IMMA"), count(body, r"LDG\.\S*128")
    weights = round(mma * share) * LANE_WEIGHTS_PER_MMA / tiles
    return {"instructions": len(body), "mma": mma, "loads128": loads, "lds": count(body, r"LDS"),
            "weights": weights, "per_weight": len(body) / weights if weights else None,
            "weights_by_loads": loads * LANE_WEIGHTS_PER_LOAD}


def plan_for(kernel, table):
    for plan in table["kernels"]:
        architectures = plan.get("architectures")
        if re.search(plan["pattern"], kernel.name) and (
                architectures is None or kernel.architecture in architectures):
            return plan
    return None


def check(kernels, table):
    """(faults, figures): what breaks the plan, and a row of figures for every kernel and architecture."""
    faults, figures, used = [], [], set()
    for kernel in kernels:
        where = f"{kernel.name} [{kernel.architecture}]"
        body = [text for _, text in kernel.instructions]
        spills = count(body, r"(STL|LDL)\b")
        row = {"kernel": kernel.name, "architecture": kernel.architecture, "registers": kernel.registers,
               "shared": kernel.shared, "stack": kernel.stack, "local": spills, "instructions": len(body)}
        figures.append(row)
        plan = plan_for(kernel, table)
        if plan is None:
            faults.append(f"{where}: no entry of sass_table.json plans it")
            continue
        used.add(plan["pattern"])
        if kernel.registers > plan["max_registers"]:
            faults.append(f"{where}: {kernel.registers} registers, planned are {plan['max_registers']} "
                          f"({plan['reason']})")
        if spills and "local_memory" not in plan:
            faults.append(f"{where}: {spills} accesses of local memory (STL, LDL)")
        loop = plan.get("loop")
        if loop is None:
            continue
        named = re.search(loop["tiles_from"], kernel.name) if "tiles_from" in loop else None
        tiles = int(named.group(1)) if named else loop.get("tiles", 1)
        candidates = [loop_figures(b, tiles, loop.get("share", 1)) for b in innermost_loops(kernel.instructions)]
        candidates = [c for c in candidates if c["mma"] and (c["lds"] or not loop.get("table", True))]
        if not candidates:
            faults.append(f"{where}: no innermost loop with tensor-core products was found")
            continue
        main = max(candidates, key=lambda c: c["instructions"])
        row["loop"] = main
        limit = loop.get("max_per_weight")
        if limit is not None and (loop.get("only") is None or re.search(loop["only"], kernel.name)):
            row["limit"] = limit
            if main["per_weight"] > limit:
                faults.append(f"{where}: {main['per_weight']:.2f} instructions per weight in the inner loop, "
                              f"at most {limit} ({main['instructions']} instructions, {main['mma']} products)")
        if main["weights_by_loads"] and loop.get("code_loads", False) and (
                main["weights_by_loads"] != main["weights"]):
            faults.append(f"{where}: the loop multiplies {main['weights']:g} weights a lane but loads "
                          f"{main['weights_by_loads']}: the count cannot be trusted")
    for plan in table["kernels"]:
        if plan["pattern"] not in used and any(
                k.architecture in plan.get("architectures", [k.architecture]) for k in kernels):
            faults.append(f"sass_table.json: no kernel matches \"{plan['pattern']}\"")
    return faults, figures


def print_figures(figures):
    print(f"{'kernel':84} {'arch':7} {'regs':>4} {'smem':>6} {'local':>5} {'instr':>6}  inner loop")
    for row in figures:
        loop = row.get("loop")
        text = ""
        if loop:
            text = f"{loop['per_weight']:.2f} instr/weight ({loop['instructions']} / {loop['weights']:g})"
            if "limit" in row:
                text += f", at most {row['limit']}"
        print(f"{row['kernel'][:84]:84} {row['architecture']:7} {row['registers']:4} {row['shared']:6} "
              f"{row['local']:5} {row['instructions']:6}  {text}")


def selftest():
    sass = """
code for sm_90a
\tFunction : hot
        /*0000*/                   MOV R1, R2 ;  /* 0x0 */
        /*0010*/                   LDG.E.128.CONSTANT R4, [R2] ;
        /*0020*/                   LDS R5, [R6] ;
        /*0030*/                   HMMA.16816.F32.BF16 R8, R4, R5, R8 ;
        /*0040*/                   HMMA.16816.F32.BF16 R8, R4, R5, R8 ;
        /*0050*/                   HMMA.16816.F32.BF16 R8, R4, R5, R8 ;
        /*0060*/                   HMMA.16816.F32.BF16 R8, R4, R5, R8 ;
        /*0070*/              @!P0 BRA 0x10 ;
        /*0080*/                   BRA 0x80;
"""
    hot = parse_sass(sass)[0]
    assert hot.architecture == "sm_90a" and len(hot.instructions) == 9, hot.instructions
    hot.registers = 40
    loops = innermost_loops(hot.instructions)
    assert [len(body) for body in loops] == [7], loops
    good = {"pattern": "hot", "max_registers": 40, "reason": "x",
            "loop": {"max_per_weight": 0.25, "code_loads": True}}
    faults, figures = check([hot], {"kernels": [good]})
    assert not faults and figures[0]["loop"]["per_weight"] == 7 / 32, (faults, figures)

    def fails(plan, needle, kernel=hot):
        found, _ = check([kernel], {"kernels": [plan]})
        assert any(needle in fault for fault in found), (needle, found)

    fails(dict(good, max_registers=39), "planned are 39")
    fails(dict(good, loop={"max_per_weight": 0.2}), "instructions per weight")
    fails(dict(good, loop={"tiles": 2, "code_loads": True}), "cannot be trusted")
    fails(dict(good, loop={"share": 0.5, "code_loads": True}), "cannot be trusted")
    fails(dict(good, pattern="other"), "no entry")
    fails(dict(good, pattern="other"), "no kernel matches")
    spilled = Kernel("hot", "sm_90a")
    spilled.instructions = hot.instructions + [(0x90, "@P1 STL [R1], R2")]
    fails(good, "local memory", spilled)
    plain = Kernel("hot", "sm_90a")
    plain.instructions = hot.instructions[:1]
    fails(good, "no innermost loop", plain)
    usage = parse_usage("arch = sm_80\n Function hot:\n  REG:50 STACK:8 SHARED:16 LOCAL:0 CONSTANT[0]:1\n")
    assert usage == {("sm_80", "hot"): (50, 8, 16)}, usage
    assert short_name("void quantd::cuda::(anonymous namespace)::K<(quantd::Codec)3, (int)2>(int)") == "K<3, 2>"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--objects", nargs="+", type=pathlib.Path)
    parser.add_argument("--table", type=pathlib.Path, default=TABLE)
    parser.add_argument("--json", type=pathlib.Path, help="where to write the figures")
    parser.add_argument("--selftest", action="store_true")
    flags = parser.parse_args()
    selftest()
    if flags.selftest:
        print("sass gates: every gate can fail")
        return 0
    if not flags.objects:
        parser.error("--objects is missing")
    for name in ("cuobjdump", "nvdisasm"):
        if tool(name) is None:
            print(f"sass gates: no {name} here; pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
            return 2
    faults, figures = check(read_objects(flags.objects), json.loads(flags.table.read_text()))
    print_figures(figures)
    if flags.json:
        flags.json.write_text(json.dumps(figures, indent=1) + "\n")
    print("\n".join(faults) if faults else
          f"sass gates: {len(figures)} kernels of {len({r['architecture'] for r in figures})} architectures, all as planned")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
