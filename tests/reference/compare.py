"""quantd against the libraries it must agree with: transformers and bitsandbytes from PyPI.

    python tests/reference/compare.py --quantd build/release/quantd [--model demo/model]

For each profile the model is loaded by transformers (quantized by bitsandbytes where the profile says so),
once computing in float32 and once in the profile's own dtype, and run over the first tokens of
demo/validation.txt. quantd's logits may be at most twice as far (rms) from the float32 ones as the
library's own native ones are, and never need be closer than 0.01. Prints one line a profile and exits 1 when one is too far.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TOKENS = 128
FLOOR = 0.01


def bitsandbytes_config(profile, dtype):
    if profile in ("bf16", "fp32", "fp16"):
        return None
    kind, _, double = profile.partition("-")
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double == "dq",
                              bnb_4bit_compute_dtype=dtype)


def library_logits(model_dir, profile, ids, dtype):
    import bitsandbytes as bnb
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype, device_map="cpu",
                                                 quantization_config=bitsandbytes_config(profile, dtype))
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False  # else bitsandbytes repacks and computes in bf16 whatever was asked
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float()


def quantd_logits(binary, model_dir, profile, backend, ids):
    with tempfile.TemporaryDirectory() as folder:
        tokens, out = pathlib.Path(folder, "tokens.json"), pathlib.Path(folder, "logits.safetensors")
        tokens.write_text(json.dumps({"token_ids": ids}))
        subprocess.run([binary, "logits", "--model", model_dir, "--profile", profile, "--backend", backend,
                        "--tokens", tokens, "--out", out], check=True, capture_output=True)
        return next(iter(load_file(out).values())).float()


def rms(x):
    return x.pow(2).mean().sqrt().item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quantd", type=pathlib.Path, default=ROOT / "build/release/quantd")
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "demo/model")
    args = parser.parse_args()
    text = (ROOT / "demo/validation.txt").read_text(encoding="utf-8")[:4000]
    done = subprocess.run([args.quantd, "tokenize", "--model", args.model, "--stdin-jsonl"], input=json.dumps(text) + "\n",
                          check=True, capture_output=True, text=True)
    ids = json.loads(done.stdout)[:TOKENS]
    failures = 0
    print(f"{'profile':10}{'backend':9}{'quantd rms':>12}{'library rms':>13}{'allowed':>9}")
    for profile, native_dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16),
                                  ("nf4", torch.bfloat16), ("nf4-dq", torch.bfloat16), ("fp4", torch.bfloat16),
                                  ("fp4-dq", torch.bfloat16)):
        exact = library_logits(args.model, profile, ids, torch.float32)
        native = rms(library_logits(args.model, profile, ids, native_dtype) - exact)
        allowed = max(FLOOR, 2 * native)
        for backend in ("ref", "cpu"):
            ours = rms(quantd_logits(args.quantd, args.model, profile, backend, ids) - exact)
            bad = not ours <= allowed
            failures += bad
            print(f"{profile:10}{backend:9}{ours:12.5f}{native:13.5f}{allowed:9.5f}{'  TOO FAR' if bad else ''}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
