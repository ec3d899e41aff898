#!/usr/bin/env python3
"""Writes the seed corpora of the fuzz targets: DIR/<target>/<name>.

    tests/fuzz/seeds.py DIR

Seeds are made of files that the tree has anyway (model folders, profiles, tokenizers); what a
fuzzer found is kept in tests/data/fuzz/<target>/ and copied along.
"""

import json
import pathlib
import shutil
import struct
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/data"


def header_of(path):
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return file.read(length)


def safetensors(header, data=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def safetensors_seeds():
    yield "empty", safetensors({})
    yield "two", safetensors(
        {"__metadata__": {"format": "pt"},
         "a": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]},
         "b": {"dtype": "U8", "shape": [3], "data_offsets": [8, 11]}}, bytes(11))
    yield "scalar", safetensors({"s": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}, bytes(4))


def model_folders():
    return sorted(path.parent for path in DATA.glob("models/*/model.safetensors"))


def config_seeds():
    for folder in model_folders():
        yield folder.name, (folder / "config.json").read_bytes()
    for name in ("generation_config.json", "config.json"):
        yield "demo_" + name.split(".")[0], (ROOT / "demo/model" / name).read_bytes()


def checkpoint_seeds():
    for folder in model_folders():
        yield folder.name, ((folder / "config.json").read_bytes() + b"\0"
                            + header_of(folder / "model.safetensors"))


def profile_seeds():
    for path in sorted((ROOT / "configs/profiles").glob("*.yaml")):
        yield path.stem, path.read_bytes()


def small_tokenizer(path, tokens):
    """The file with the `tokens` first of its vocabulary, so that a run of the target is short."""
    spec = json.loads(path.read_text())
    model = spec.get("model", {})
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        kept = {t: i for t, i in vocabulary.items() if i < tokens}
        model["vocab"] = kept
        pairs = [m.split(" ", 1) if isinstance(m, str) else m for m in model.get("merges", [])]
        model["merges"] = [m for m in pairs if m[0] in kept and m[1] in kept and m[0] + m[1] in kept]
    return json.dumps(spec).encode()


def tokenizer_json_seeds():
    for path in sorted(DATA.glob("tokenizers/*/tokenizer.json")):
        yield path.parent.name, small_tokenizer(path, 300)


def sentencepiece_model_seeds():
    """A few pieces of every type, and what says how to use them."""
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("<mark>", 4), ("<0x41>", 6), ("\u2581", 1), ("a", 1),
              ("b", 1), ("ab", 1), ("\u2581a", 1), ("\u2581ab", 1)]
    model = b"".join(
        message(1, message(1, text.encode()) + field(2, 5, struct.pack("<f", -float(i)))
                + field(3, 0, bytes([kind]))) for i, (text, kind) in enumerate(pieces))
    bpe = message(2, field(3, 0, b"\x02") + bytes([35 << 3 & 0x7F | 0x80, 35 >> 4, 1]))
    for prefix in (0, 1):
        yield f"prefix{prefix}", (model + bpe + message(3, message(1, b"identity")
                                                       + field(3, 0, bytes([prefix]))
                                                       + field(4, 0, b"\x00")))


def chat_template_seeds():
    recorded = json.loads((DATA / "chat_templates.json").read_text())
    for name, source in recorded["templates"].items():
        yield name, source.encode()
    for snippet in recorded["snippets"]:
        yield snippet["name"].replace(" ", "_"), snippet["source"].encode()


def tokenize_seeds():
    texts = ["Hello, world! It's 12345 o'clock.\n\n\tdef f(x): return x", "e\u0301 \u00e9 \u4f60\u597d \U0001f469\u200d\U0001f4bb",
             "<s>[INST] hi [/INST]</s><|im_start|>", " " * 40, "a" * 40]
    count = len([*DATA.glob("tokenizers/*"), *DATA.glob("sentencepiece/*")])
    for which in range(count):
        for number, text in enumerate(texts):
            yield f"text{which}_{number}", bytes([which, 0]) + text.encode()
        yield f"ids{which}", bytes([which, 1]) + bytes(range(64))


def field(number, wire, payload):
    return bytes([number << 3 | wire]) + payload


def message(number, payload):
    return field(number, 2, bytes([len(payload)]) + payload)


def request_seeds():
    sampling = (field(1, 5, struct.pack("<f", 0.7)) + field(3, 0, b"\x28") + field(6, 0, b"\x10")
                + message(8, b"stop") + message(9, b"\x02\x03") + field(11, 0, b"\x05"))
    yield "text", message(1, b"id") + message(3, b"Hello") + message(5, sampling)
    chat = message(1, b"user") + message(2, b"hi") + message(3, b"{}")
    yield "messages", message(9, chat) + message(9, chat) + message(10, field(1, 0, b"\x00") + message(2, b"[]"))
    yield "ids", message(4, message(1, b"\x01\x02\x03")) + field(7, 0, b"\x01") + field(8, 0, b"\x01")


def kserve_seeds():
    """What Triton's clients really send."""
    for path in sorted((DATA / "kserve").glob("*Infer.*.bin")):
        yield path.stem, path.read_bytes()


def report_seeds():
    """The demo model's report with a few profiles and modules, and a journal of it."""
    report = json.loads((ROOT / "demo/model/quantd-eval.json").read_text())
    profiles = [dict(p, linears=p["linears"][:2]) for p in report["profiles"] if p["name"] in ("bf16", "int8", "nf4")]
    yield "report", json.dumps(dict(report, profiles=profiles)).encode()
    yield "alone", json.dumps(dict(report, reference=None, profiles=[
        {key: value for key, value in profiles[0].items() if key not in ("retention", "kl", "top1", "top5")},
        {"name": "fp8", "refusal": "it does not fit"}])).encode()
    yield "sums", json.dumps(dict(report, profiles=[dict(profiles[2], greedy_lengths=[2**63 - 1] * 2)])).encode()
    score = {"window": 0, "tokens": 2, "bytes": 9, "nll": 7.5, "seconds": 0.25, "rows": 3, "reference_nll": 7.25,
             "top1": 1, "top5": 9, "kl": [0.0125, 3e-05]}
    lines = [{"quantd_eval": {"text": "t"}}, {"profile": "h", "score": score}, {"facts": profiles[1]}]
    yield "journal", b"".join(json.dumps(line).encode() + b"\n" for line in lines)


SEEDS = {"safetensors": safetensors_seeds, "config": config_seeds, "checkpoint": checkpoint_seeds,
         "profile": profile_seeds, "tokenizer_json": tokenizer_json_seeds, "tokenize": tokenize_seeds,
         "chat_template": chat_template_seeds, "sentencepiece_model": sentencepiece_model_seeds,
         "request": request_seeds, "kserve": kserve_seeds, "report": report_seeds}


def main():
    out = pathlib.Path(sys.argv[1])
    for target, seeds in SEEDS.items():
        folder = out / target
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, content in seeds():
            (folder / name).write_bytes(content)
        for found in sorted((DATA / "fuzz" / target).glob("*")):
            shutil.copy(found, folder / ("found_" + found.name))


if __name__ == "__main__":
    main()
