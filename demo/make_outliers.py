"""Makes demo/outliers: the demo model with activation outliers, the same function.

    python3 demo/make_outliers.py [--model demo/model] [--out demo/outliers]

In every norm 0.5% of the channels (at least two) are multiplied by 30 and the columns of the linears that
read them are divided by 30. The products, and so the model, stay the same but for rounding to bf16;
the activations between them rise above 6.0, which is what LLM.int8's outlier decomposition is for.
Needs nothing but Python.
"""
import argparse
import json
import pathlib
import random
import shutil
import struct

FACTOR = 30.0
SHARE = 0.005


def to_bf16(value):
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


def from_bf16(bits):
    return struct.unpack("<f", struct.pack("<I", bits << 16))[0]


class Checkpoint:
    """A safetensors file in memory; bf16 elements can be scaled in place."""

    def __init__(self, path):
        self.data = bytearray(path.read_bytes())
        size = struct.unpack_from("<Q", self.data)[0]
        self.header = json.loads(self.data[8:8 + size])
        self.start = 8 + size

    def scale(self, name, indices, factor):
        entry = self.header[name]
        assert entry["dtype"] == "BF16", f"{name}: dtype {entry['dtype']}, expected BF16"
        base = self.start + entry["data_offsets"][0]
        for i in indices:
            at = base + 2 * i
            value = from_bf16(struct.unpack_from("<H", self.data, at)[0]) * factor
            struct.pack_into("<H", self.data, at, to_bf16(value))

    def scale_columns(self, name, columns, factor):
        rows, width = self.header[name]["shape"]
        self.scale(name, (r * width + c for r in range(rows) for c in columns), factor)


def main():
    here = pathlib.Path(__file__).resolve().parent
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=pathlib.Path, default=here / "model")
    parser.add_argument("--out", type=pathlib.Path, default=here / "outliers")
    args = parser.parse_args()
    checkpoint = Checkpoint(args.model / "model.safetensors")
    config = json.loads((args.model / "config.json").read_text())
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    consumers = {"model.norm.weight": ["lm_head.weight"]}
    for i in range(layers):
        layer = f"model.layers.{i}."
        consumers[layer + "input_layernorm.weight"] = [
            f"{layer}self_attn.{p}_proj.weight" for p in ("q", "k", "v")]
        consumers[layer + "post_attention_layernorm.weight"] = [
            f"{layer}mlp.{p}_proj.weight" for p in ("gate", "up")]
    rng = random.Random(20)
    for norm, linears in consumers.items():
        channels = rng.sample(range(hidden), max(2, round(SHARE * hidden)))
        checkpoint.scale(norm, channels, FACTOR)
        for linear in linears:
            checkpoint.scale_columns(linear, channels, 1.0 / FACTOR)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "model.safetensors").write_bytes(checkpoint.data)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(args.model / name, args.out / name)
    print(f"{args.out}: {len(consumers)} norms changed")


if __name__ == "__main__":
    main()
