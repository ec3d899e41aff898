"""The packers of the C++ tests against decoders.py: one reading of each layout checks the other.

    python tests/reference/packers_test.py --program build/release/weights_test

Packers and readers of the C++ tests have one author, who may have read a layout wrongly twice. Here
weights_test writes every random linear it packs (QUANTD_DUMP_LINEARS), and what decoders.py makes
of the files is compared, bit for bit, with the values they were packed from.
"""
import argparse
import collections
import os
import pathlib
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file

import decoders

# quant_method -> the fewest linears that a run has to have written; a test that is renamed or
# skipped shows.
LEAST = {"bitsandbytes": 200, "gptq": 100, "awq": 40, "auto-round": 60, "hqq": 60, "torchao": 200,
         "compressed-tensors": 300, "fp8": 80, "metal": 60}


def dump(program, folder):
    """Runs the round trips of `program`, which leave a folder for each linear in `folder`."""
    done = subprocess.run([program, "--gtest_filter=*ComeBackBitForBit*", "--gtest_brief=1"],
                          env={**os.environ, "QUANTD_DUMP_LINEARS": str(folder)},
                          capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)


def differences(folder):
    """Elements of one linear whose bits differ, and what there is to say of them."""
    (name, expected), = load_file(folder / "expected.safetensors").items()
    decoded = decoders.dequant_checkpoint(folder)[name]
    n, k = expected.shape
    decoded = decoded[:n, :k].contiguous()  # GPTQ's words may hold more inputs than there are
    if decoded.shape != expected.shape:
        return expected.numel(), f"{list(decoded.shape)}, not {list(expected.shape)}"
    other = decoded.view(torch.int32) != expected.view(torch.int32)
    where = other.nonzero()
    count = len(where)
    return count, count and (f"{count} of {expected.numel()} differ, the first at "
                             f"{where[0].tolist()}: {decoded[other][0]} and {expected[other][0]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--program", type=pathlib.Path, required=True)
    program = parser.parse_args().program.resolve()
    compared, faults = collections.Counter(), []
    with tempfile.TemporaryDirectory() as root:
        dump(program, root)
        for folder in sorted(pathlib.Path(root).iterdir()):
            config = decoders.read_checkpoint(folder)[2]
            compared[config["quant_method"]] += 1
            try:
                count, text = differences(folder)
            except Exception as error:  # a layout that the decoders cannot read is a finding too
                count, text = 1, f"{type(error).__name__}: {error}"
            if count:
                faults.append(f"{folder.name}: {text}; {config}")
    for method, least in LEAST.items():
        if compared[method] < least:
            faults.append(f"{method}: {compared[method]} linears, at least {least} were expected")
    print("\n".join(faults[:20]), end="\n" if faults else "")
    print(f"packers: {sum(compared.values())} linears, {len(faults)} faults: {dict(compared)}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
