"""Decodes every quantized checkpoint format quantd reads, from the format alone.

    tensors = dequant_checkpoint(folder)  # {"model.layers.0....weight": float32 tensor, ...}

No quantization library is imported: fixtures/ asserts that each decoder agrees with the library
that wrote the file. W is [N, K] = [out, in]; bit streams are little-endian. docs/formats.md has
the layouts.
"""
import json
import pathlib
import re

import numpy as np
import torch
from safetensors import safe_open

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


# ---------------------------------------------------------------------------------- bit streams


def _words(x):
    """The 32-bit words of an I32 tensor as uint64, so that shifts cannot overflow."""
    return x.contiguous().numpy().view(np.uint32).astype(np.uint64)


def unpack_rows(packed, bits):
    """I32 [R * bits / 32, N] -> I64 [R, N]: value r of a column starts at its bit r * bits."""
    words = _words(packed)
    rows = words.shape[0] * 32 // bits
    out = np.zeros((rows, words.shape[1]), np.int64)
    for r in range(rows):
        word, shift = divmod(r * bits, 32)
        value = words[word] >> np.uint64(shift)
        if shift + bits > 32:  # straddles two words: odd widths only
            value = value | (words[word + 1] << np.uint64(32 - shift))
        out[r] = (value & np.uint64((1 << bits) - 1)).astype(np.int64)
    return torch.from_numpy(out)


def unpack_columns(packed, bits):
    """I32 [N, K * bits / 32] -> I64 [N, K]: the same stream along each row."""
    return unpack_rows(packed.t(), bits).t()


def _groups(k, group_size, count):
    """[K] which of `count` groups each input is in: contiguous groups; group_size <= 0 is one group.

    Inputs that only fill a packed word are in the last.
    """
    return (torch.arange(k) // (group_size if group_size > 0 else k)).clamp(max=count - 1)


def _expand_blocks(x, block, n, k):
    """A scale grid over blocks of fixed size [bn, bk], the last ones ragged -> [n, k]."""
    return x.repeat_interleave(block[0], 0)[:n].repeat_interleave(block[1], 1)[:, :k]


# --------------------------------------------------------------------------------- bitsandbytes


def bnb4(t, name):
    """Linear4bit: nibbles and absmax run over the flattened W; the shape is in quant_state."""
    key = next(k for k in t if k.startswith(name + ".quant_state.bitsandbytes__"))
    state = json.loads(bytes(t[key].numpy()))
    packed = t[name].contiguous().view(torch.uint8).flatten()  # storage may be bf16: same bytes
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten().long()  # high nibble first
    count = int(np.prod(state["shape"]))
    absmax = t[name + ".absmax"]
    if name + ".nested_absmax" in t:
        block = torch.arange(absmax.numel()) // state["nested_blocksize"]
        absmax = t[name + ".nested_quant_map"][absmax.long()] * t[name + ".nested_absmax"][block]
        absmax = absmax + torch.tensor(state["nested_offset"], dtype=torch.float32)
    scale = absmax[torch.arange(count) // state["blocksize"]]
    return (t[name + ".quant_map"].float()[codes[:count]] * scale).reshape(state["shape"])


def bnb8(t, module):
    """Linear8bitLt: w = q * (SCB / 127)."""
    return t[module + ".weight"].float() * (t[module + ".SCB"].float().view(-1, 1) * (1.0 / 127.0))


# ---------------------------------------------------------------------- GPTQ, AWQ, auto-round


def gptq(t, module, bits, group_size, v1):
    """w[k, n] = scales[g, n] * (q - z); v1 files store z - 1.

    Where K is not whole words and g_idx does not say how many inputs there are, some follow that
    are none.
    """
    q = unpack_rows(t[module + ".qweight"], bits)  # [K, N]
    stored = t[module + ".qzeros"]  # [G, N * bits / 32]
    if v1 and 32 % bits == 0:
        # gptqmodel adds 0x11..1 to the whole word, so a carry crosses fields where a zero is 0
        ones = np.uint64(sum(1 << (bits * i) for i in range(32 // bits)))
        words = (_words(stored) + ones) & np.uint64(0xFFFFFFFF)
        stored = torch.from_numpy(words.astype(np.uint32).view(np.int32))
    zeros = unpack_columns(stored, bits)  # [G, N]
    if v1 and 32 % bits != 0:
        zeros = (zeros + 1) & ((1 << bits) - 1)  # 3 bits: each field by itself
    scales = t[module + ".scales"].float()
    g_idx = t.get(module + ".g_idx")
    group = g_idx.long() if g_idx is not None else _groups(q.shape[0], group_size, len(scales))
    zeros = zeros[:, : scales.shape[1]]  # whole words again
    return (scales[group] * (q[: len(group)] - zeros[group]).float()).t().contiguous()


AWQ_NIBBLE = [0, 4, 1, 5, 2, 6, 3, 7]  # column 8j + c is nibble AWQ_NIBBLE[c] of word j


def awq_unpack(packed):
    """I32 [R, N / 8] -> I64 [R, N]."""
    words = _words(packed)
    out = np.zeros((words.shape[0], words.shape[1] * 8), np.int64)
    for column, nibble in enumerate(AWQ_NIBBLE):
        out[:, column::8] = ((words >> np.uint64(4 * nibble)) & np.uint64(15)).astype(np.int64)
    return torch.from_numpy(out)


def awq(t, module, group_size):
    """w[k, n] = (q - z) * scales[g, n], all packed along n, zeros stored as they are."""
    scales = t[module + ".scales"].float()
    n = scales.shape[1]
    q, zeros = (awq_unpack(t[module + part])[:, :n] for part in (".qweight", ".qzeros"))
    group = _groups(q.shape[0], group_size, len(scales))
    return ((q - zeros[group]).float() * scales[group]).t().contiguous()


def gptq_is_v1(config):
    """Whether zeros are stored minus one: the format is "gptq" or unnamed."""
    return (config.get("checkpoint_format") or config.get("format") or "gptq") == "gptq"


def autoround(t, module, config):
    """GPTQ's v1 or v2, or AWQ, by the packing's name; extra_config overrides single modules."""
    packing = config.get("packing_format", "auto_round:gptq").replace("auto_gptq", "gptq")
    packing = packing.replace("auto_awq", "awq")
    own = {**config, **(config.get("extra_config") or {}).get(module, {})}
    kind = (packing.split(":") + ["gptqmodel"])[1]  # a kernel's name may follow; none: gptqmodel's
    if kind == "awq":
        return awq(t, module, own["group_size"])
    if kind not in ("gptq", "gptqmodel"):
        raise ValueError(f"unknown packing_format {packing}")
    return gptq(t, module, own["bits"], own["group_size"], v1=kind == "gptq")


# ------------------------------------------------------------------------------------------ HQQ

# packing -> (slabs along dim 0, bits of a slab)
HQQ_PACKING = {"8bit_u8": (1, 8), "4bit_u8": (2, 4), "2bit_u8": (4, 2), "1bit_u8": (8, 1),
               "3bit_32": (10, 3)}


def hqq(t, module):
    """w = (q - zero) * scale over groups; slab i of the grouped rows is the i-th highest field."""
    def text(key):
        return bytes(t[f"{module}.{key}"].numpy()).decode()

    axis, group_size = int(t[module + ".axis"]), int(t[module + ".group_size"])
    n, k = t[module + ".shape"].tolist()
    packing = text("packing")
    slabs, bits = HQQ_PACKING[packing]
    packed = t[module + ".W_q"].contiguous()
    if int(t[module + ".view_as_float"]):  # stored under a float dtype: same bytes
        packed = packed.view(getattr(torch, text("unpack_view_dtype").removeprefix("torch.")))
    packed = packed.to(torch.int64)
    q = torch.cat([(packed >> (bits * (slabs - 1 - i))) & ((1 << bits) - 1) for i in range(slabs)])
    q = q[: group_size if axis == 0 else n * k // group_size]  # 3 bit pads rows to a multiple of 10
    w = (q.float() - t[module + ".zero"].float()) * t[module + ".scale"].float()
    return w.reshape(n, k)


# -------------------------------------------------------------------------------------- torchao


def torchao(t, name, metadata):
    """A tensor subclass flattened to <module>._weight_<attribute>, described in the metadata."""
    module, leaf = name.rsplit(".", 1)
    about = json.loads(metadata[name])
    part = f"{module}._{leaf}_"
    q, scale = t[part + "qdata"], t[part + "scale"].float()
    zero = t.get(part + "zero_point")
    block = about["_data"]["block_size"]  # the last ones of a row or column may be smaller
    if about["_type"] == "Int4Tensor":
        # low nibble first, signed; scale and zero are [K / g, N]; zero is a float, added
        codes = torch.stack([q.view(torch.uint8) & 15, q.view(torch.uint8) >> 4], -1)
        codes = codes.reshape(q.shape[0], -1).long()
        codes = torch.where(codes > 7, codes - 16, codes).float()
        scale, zero = (_expand_blocks(x.float().t(), block, *codes.shape) for x in (scale, zero))
        return codes * scale + zero
    q = q.float()
    if zero is not None:
        q = q - _expand_blocks(zero.float().reshape(zero.shape[0], -1), block, *q.shape)
    return q * _expand_blocks(scale.reshape(scale.shape[0], -1), block, *q.shape)


# --------------------------------------------------------------------------- compressed-tensors


def ct_matches(target, module, class_name="Linear"):
    """A target names a class, a module, or is "re:" and a regex that matches from the start."""
    if target.startswith("re:"):
        return re.match(target[3:], module) is not None
    return target in (module, class_name)


def ct_group(module, config):
    """The config group of a module, None when ignored; precedence: name, regex, class.

    Equal targets of two groups: the later group wins. Several regexes: the first alphabetically.
    """
    if any(ct_matches(target, module) for target in config.get("ignore") or []):
        return None
    by_target = {target: g for g in config["config_groups"].values() for target in g["targets"]}
    found = [x for x in by_target if ct_matches(x, module)]
    found.sort(key=lambda x: (x != module, not x.startswith("re:"), x))
    return by_target[found[0]] if found else None


def ct(t, module, config):
    """w = (q - z) * scale; which tensors hold q says the group's format."""
    group = ct_group(module, config)
    args, layout = group["weights"], group.get("format") or config["format"]
    scale = t[module + ".weight_scale"].float()
    if layout == "nvfp4-pack-quantized":
        packed = t[module + ".weight_packed"]  # U8 [N, K / 2], low nibble first
        q = torch.tensor(E2M1)[torch.stack([packed & 15, packed >> 4], -1).long()]
        q = q.reshape(packed.shape[0], -1)
        return q * _expand_blocks(scale / t[module + ".weight_global_scale"].float(), (1, 16), *q.shape)
    zero = t.get(module + ".weight_zero_point")
    if layout == "pack-quantized":
        bits = args["num_bits"]
        n, k = t[module + ".weight_shape"].tolist()
        offset = 1 << (bits - 1)  # stored unsigned: q + 2^(bits - 1)
        q = (unpack_columns(t[module + ".weight_packed"], bits)[:, :k] - offset).float()
        if zero is not None and zero.dtype == torch.int32:
            zero = unpack_rows(zero, bits)[:n] - offset  # packed along n: [N * bits / 32, G]
    else:
        q = t[module + ".weight"].float()
        n, k = q.shape
    if args["strategy"] == "block":
        return q * _expand_blocks(scale, args["block_structure"], n, k)
    g_idx = t.get(module + ".weight_g_idx")

    def spread(x):  # [N, G], [N, 1], [1] or [] -> [N, K]
        x = x.float().reshape(x.shape[0] if x.ndim > 1 else 1, -1)
        if g_idx is not None and x.shape[1] > 1:
            return x[:, g_idx.long()]
        group = args.get("group_size") if args["strategy"] == "group" else k
        return _expand_blocks(x, (n // x.shape[0], group), n, k)

    return ((q - spread(zero)) if zero is not None else q) * spread(scale)


# ------------------------------------------------------------------------------------------ fp8


def e8m0(x):
    """F8_E8M0, or the same bytes as U8, -> float32 2^(byte - 127)."""
    return torch.exp2(x.view(torch.uint8).double() - 127).float()  # 2^-127 is exact in float32 too


FP8_SCALES = (".weight_scale_inv", ".scale", ".qscale_weight")  # the latter of some releases


def fp8(t, module, config):
    """w = q * scale_inv over blocks, the last ones ragged; a scalar scale without a block size."""
    names = (module + part for part in FP8_SCALES)
    q, scale = t[module + ".weight"].float(), t[next(name for name in names if name in t)]
    scale = e8m0(scale) if scale.dtype in (torch.uint8, torch.float8_e8m0fnu) else scale.float()
    if scale.ndim < 2:
        return q * scale
    return q * _expand_blocks(scale, config["weight_block_size"], *q.shape)


# ---------------------------------------------------------------------------------------- metal


def metal(t, module, config):
    """MLX's affine groups: w = q * scale + qbias, codes along k, the first in the lowest bits."""
    q = unpack_columns(t[module + ".weight"].view(torch.int32), config["bits"]).float()
    block = (1, config["group_size"])
    scale, offset = (_expand_blocks(t[module + part].float(), block, *q.shape)
                     for part in (".scales", ".qbiases"))
    return q * scale + offset


# ---------------------------------------------------------------------------------- checkpoints


def read_checkpoint(folder):
    """-> (tensors by name, the file's metadata, quantization_config or {})."""
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text())
    with safe_open(folder / "model.safetensors", "pt") as file:
        return ({k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {},
                config.get("quantization_config") or {})


def _decode(t, name, metadata, config):
    """(name of the float tensor, its value), or None for a tensor that only belongs to another."""
    method = config.get("quant_method")
    module, leaf = name.rsplit(".", 1)
    if leaf in ("weight", "weight_packed", "qweight", "W_q"):
        weight = module + ".weight"
        if method == "bitsandbytes" and any(k.startswith(name + ".quant_state.") for k in t):
            return weight, bnb4(t, name)
        if method == "bitsandbytes" and module + ".SCB" in t:
            return weight, bnb8(t, module)
        if method == "gptq" and leaf == "qweight":
            return weight, gptq(t, module, config["bits"], config["group_size"], gptq_is_v1(config))
        if method == "awq" and leaf == "qweight":
            return weight, awq(t, module, config["group_size"])
        if method == "auto-round" and leaf == "qweight":
            return weight, autoround(t, module, config)
        if method == "hqq" and leaf == "W_q":
            return weight, hqq(t, module)
        if method == "compressed-tensors" and module + ".weight_scale" in t:
            return weight, ct(t, module, config)
        if method == "fp8" and any(module + part in t for part in FP8_SCALES):
            return weight, fp8(t, module, config)
        if method == "metal" and module + ".qbiases" in t:
            return weight, metal(t, module, config)
    if method == "torchao" and leaf.endswith("_qdata"):
        original = f"{module}.{leaf[1:-len('_qdata')]}"
        return original, torchao(t, original, metadata)
    return (name, t[name].float()) if leaf in ("weight", "bias") else None


def dequant_checkpoint(folder):
    """Every weight and bias of a one-file checkpoint as float32, quantized ones decoded."""
    t, metadata, config = read_checkpoint(folder)
    decoded = (_decode(t, name, metadata, config) for name in t)
    return dict(pair for pair in decoded if pair is not None)
