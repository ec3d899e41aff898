"""Emulates how the libraries quantize activations, and compares with what they computed.

    python activation.py [folder of fixtures]

For each fixture the emulation of one linear, q_proj, runs on `q_proj_in` and is compared with the
library's `q_proj_out_native`; both are in expected.safetensors. Only the format of the file and
these formulas are used. docs/formats.md says them in words. Everything native is
bfloat16: bf(x) marks each rounding to it.
"""
import pathlib
import sys

import torch
from safetensors.torch import load_file

import decoders

MODELS = pathlib.Path(__file__).resolve().parent.parent / "data" / "models"
Q_PROJ = "model.layers.0.self_attn.q_proj"
F32_EPS = torch.finfo(torch.float32).eps
BF16_EPS = torch.finfo(torch.bfloat16).eps
BF16_TINY = torch.finfo(torch.bfloat16).smallest_normal


def bf(x):
    """Rounds to bfloat16, to nearest even."""
    return x.bfloat16().float()


def e4m3(x):
    """Rounds to F8_E4M3, to nearest even, after the clamp without which converters differ."""
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).float()


def dense(x, w):
    """x [T, K] and w [N, K] of bfloat16 values: float32 sums, rounded once."""
    return bf(x @ bf(w).t())


# ------------------------------------------------------------------------------------- torchao


def torchao_int8_symmetric(x, t, w):
    """Int8Tensor with act_quant_kwargs: an integer product, a scale a row; w is not decoded."""
    scale = bf(x.abs().amax(1, keepdim=True) / 127.5).clamp(min=F32_EPS)
    q = torch.round(x * (1.0 / scale)).clamp(-128, 127)  # in float32: scale is stored so
    total = q @ t[f"{Q_PROJ}._weight_qdata"].float().t()
    return bf(bf(total * scale) * t[f"{Q_PROJ}._weight_scale"].t())


def torchao_int8_asymmetric(x, t, w):
    """IntxUnpackedToInt8Tensor with int8_asym_per_token: to int8 and back, then a dense product."""
    low = x.amin(1, keepdim=True).clamp(max=0)
    high = x.amax(1, keepdim=True).clamp(min=0)
    scale = bf(bf(high - low) / 255).clamp(min=BF16_TINY)
    zero = (-128 - torch.round(bf(low / scale))).clamp(-128, 127)
    q = bf(torch.round(bf(x * bf(1.0 / scale))) + zero).clamp(-128, 127)
    return dense(bf((q - zero) * scale), w)


# -------------------------------------------------------------------------- compressed-tensors


def ct_round_trip(x, scale, to_codes, zero=0.0):
    """x to codes and back; scale and zero are bfloat16 values."""
    return bf((to_codes(bf(bf(x / scale) + zero)) - zero) * scale)


def int8_codes(x):
    return torch.round(x.clamp(-128, 127))


def ct_dynamic_scale(x, half_range):
    """[..., 1] for the last dimension of x; a scale of 0 becomes the dtype's epsilon."""
    scale = bf(x.abs().amax(-1, keepdim=True) / half_range)
    return torch.where(scale == 0, BF16_EPS, scale)


def ct_int8_token(x, t, w):
    return dense(ct_round_trip(x, ct_dynamic_scale(x, 127.5), int8_codes), w)


def ct_int8_static(x, t, w):
    scale, zero = t[Q_PROJ + ".input_scale"].float(), t[Q_PROJ + ".input_zero_point"].float()
    return dense(ct_round_trip(x, scale, int8_codes, zero), w)


def ct_fp8_token(x, t, w):
    return dense(ct_round_trip(x, ct_dynamic_scale(x, 448), e4m3), w)


def ct_fp8_group(x, t, w):
    grouped = x.reshape(x.shape[0], -1, 128)
    return dense(ct_round_trip(grouped, ct_dynamic_scale(grouped, 448), e4m3).reshape(x.shape), w)


def ct_fp8_static(x, t, w):
    return dense(ct_round_trip(x, t[Q_PROJ + ".input_scale"].float(), e4m3), w)


FORMULAS = {
    "torchao_int8da": torchao_int8_symmetric,
    "torchao_int8da_intx4": torchao_int8_asymmetric,
    "ct_w8a8_int8": ct_int8_token,
    "ct_mixed": ct_int8_token,
    "ct_w8a8_static": ct_int8_static,
    "ct_fp8_dynamic": ct_fp8_token,
    "ct_fp8_block": ct_fp8_group,
    "ct_fp8_tensor": ct_fp8_static,
}


# -------------------------------------------------------------------------------- bitsandbytes


def llm_int8(x, t, threshold=6.0, constant=1 / 127**2):
    """LLM.int8() in float32; outlier columns are those of all rows of the call."""
    codes, scb = t[Q_PROJ + ".weight"].float(), t[Q_PROJ + ".SCB"]
    half = x.half()
    outlier = half.abs() >= threshold
    columns = outlier.any(0)
    half[outlier] = 0
    absmax = half.abs().amax(1, keepdim=True).float()  # outlier columns still count
    q = torch.round(half.float() * (127.0 / absmax))
    q[:, columns] = 0
    y = (q @ codes.t()) * (absmax * scb) * constant
    return y + x[:, columns] @ (codes[:, columns] * (scb.view(-1, 1) / 127.0)).t()


def report(name, ours, library, weight_only):
    """One line; -> whether an element is more than an ulp of bfloat16 away."""
    error = (ours - library).abs()
    ulp = torch.exp2(torch.floor(torch.log2(library.abs().clamp(min=1e-30))) - 7)
    ulps = float((error / ulp).max())
    differ = int((error > 0).sum())
    print(f"{name:22s} max |y| {float(library.abs().max()):7.3f}   weights only "
          f"{float((weight_only - library).abs().max()):.4f}   emulated "
          f"{float(error.max()):.2e}, {differ} of {error.numel()} differ, by up to {ulps:.2g} ulp")
    return ulps > 1.0


def main():
    models = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else MODELS
    torch.set_num_threads(1)
    bad = 0
    for name, formula in FORMULAS.items():
        expected = load_file(models / name / "expected.safetensors")
        tensors, _, _ = decoders.read_checkpoint(models / name)
        w = decoders.dequant_checkpoint(models / name)[Q_PROJ + ".weight"]
        x, y = expected["q_proj_in"], expected["q_proj_out_native"]
        bad += report(name, formula(x, tensors, w), y, x @ w.t())
    expected = load_file(models / "bnb_int8" / "expected.safetensors")
    tensors, _, _ = decoders.read_checkpoint(models / "bnb_int8")
    # the library's code for CPUs has the constant with a digit lost; on GPUs it is 1 / 127^2
    for constant in (1 / 127**2, 6.200124e-05):
        y = llm_int8(expected["q_proj_in_f32"], tensors, constant=constant)
        error = float((y - expected["q_proj_out_f32"]).abs().max())
        print(f"{'bnb_int8':22s} constant {constant:.9g}   emulated {error:.2e}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
