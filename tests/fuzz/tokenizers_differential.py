#!/usr/bin/env python3
"""Compares `quantd tokenize` with Hugging Face's tokenizers on random strings.

    tests/fuzz/tokenizers_differential.py --quantd build/release/quantd [--count N] [DIR]...

Each DIR holds a tokenizer.json; without one, the fixtures and the demo model are taken. Beside the
files as they are, variants of each are tried: added tokens with every combination of flags, other
pre-tokenizers and normalizers, merges ignored or not. Needs the PyPI package `tokenizers`. Exits 1
when a string is encoded differently, after printing the shortest such strings.
"""

import argparse
import copy
import itertools
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import unicodedata

import tokenizers

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEFAULT_DIRS = ["tests/data/tokenizers/llama3_bytelevel", "tests/data/tokenizers/qwen2_nfc",
                "demo/model"]

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
              "use_regex": False}
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
CL100K = (CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + SPACES)
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
         + CONTRACTIONS + r"?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
         r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + CONTRACTIONS
         + r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + SPACES)
DEEPSEEK = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*" + SPACES)
POSSESSIVE = (r"[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
              r"|\s+(?!\S)|\s")


def split(pattern, behavior="Isolated", invert=False, literal=False):
    return {"type": "Split", "pattern": {"String" if literal else "Regex": pattern},
            "behavior": behavior, "invert": invert}


def sequence(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts)}


def byte_level(prefix, regex):
    return BYTE_LEVEL | {"add_prefix_space": prefix, "use_regex": regex}


PRE_TOKENIZERS = {
    "gpt2": byte_level(False, True),
    "gpt2-prefix": byte_level(True, True),
    "bytes-prefix": byte_level(True, False),
    "cl100k-removed-inverted": sequence(split(CL100K, "Removed", True), BYTE_LEVEL),
    "o200k": sequence(split(O200K), BYTE_LEVEL),
    "deepseek": sequence(split(r"\p{N}{1,3}"), split(r"[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK),
                         BYTE_LEVEL),
    "words": sequence(split(r"\w+|[^\w\s]+"), byte_level(False, True)),
    "remove-space": sequence(split(r"\s+", "Removed"), byte_level(True, False)),
    "literal": sequence(split("the", literal=True), split(".", "Removed", literal=True),
                        BYTE_LEVEL),
    "empty-matches": sequence(split(r"a*|(?=\n)"), BYTE_LEVEL),
    "lines": sequence(split(r"^\d+|.$|\S\z"), BYTE_LEVEL),
    "scripts": sequence(split(r"\p{Han}+|\p{^Lu}\P{Ll}|\p{Cyrillic}"), BYTE_LEVEL),
    "possessive": sequence(split(POSSESSIVE), BYTE_LEVEL),
}
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
NORMALIZERS = {"none": None} | {form: {"type": form} for form in ("NFC", "NFD", "NFKC", "NFKD")}
ADDED = ["[A]", "the", "e\u0301", "\u212b", "  ", "\n\n", "<|x|>", "<|x|>y", "ab", "abc", "漢", "ﬁ",
         "in "]

ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz", "ABCXYZ", "0123456789", "٣०௧²½Ⅷ", " ", " \t\n\r", "\n",
    "\u00a0\u1680\u180e\u2003\u2028\u202f\u3000\u0085\x0b\x0c\ufeff\u200b",
    "'sStTrRvVmMlLdD", "'\u017f\u212aſK", ".,;:!?()[]{}<>|/\\-_=+*&^%$#@~`\"", "éüñçøåß",
    "\u0300\u0301\u0323\u0315\u0345\u0344\u0f73", "漢字かなカナ한글", "\u1100\u1161\u11a8각", "привет",
    "שלום", "مرحبا", "नमस्ते", "ไทย", "😀👍🏽👨‍👩‍👧🇩🇪", "\x00\x01\x1b\x7f",
    "\u200d\u200c\u203f\u2040", "ⓐⒷⅰ",
    "ﬁﬂ①㎏ｱﾞ", "\u0340\u0341\u0374\u212b\u2126", "\U00010400\U0001d400\U000e0001\U0010ffff",
]
WORDS = [
    "the", "The", " the", "def ", "return", "I'm", "we'LL", "it'ſ", "hello", "world", "http://",
    "    ", "\n\n", "\r\n", "'ve", "1234567", "...", "café", "cafe\u0301", "abc", "ab", "in ",
    "[A]", "<|x|>", "<|x|>y", "<|",
]


def random_string(rng, specials):
    parts = []
    for _ in range(rng.choice([1, 1, 2, 3, 5, 8, 20])):
        kind = rng.random()
        if kind < 0.5:
            alphabet = rng.choice(ALPHABETS)
            parts.append("".join(rng.choices(alphabet, k=rng.choice([1, 1, 2, 3, 5, 9]))))
        elif kind < 0.75:
            parts.append(rng.choice(WORDS))
        elif kind < 0.87 and specials:
            token = rng.choice(specials)
            parts.append(token if rng.random() < 0.7 else token[:rng.randint(1, len(token))])
        elif kind < 0.93:
            repeated = rng.choice(["a", " ", "\n", "7", "!", "é", "\u0301", "😀"])
            parts.append(repeated * rng.choice([2, 3, 17, 100]))
        else:
            # Newer code points are letters, or marks, only to the side with the newer Unicode.
            char = chr(rng.choice([rng.randrange(0x20, 0x3000), rng.randrange(0x3000, 0x30000)]))
            known = unicodedata.ucd_3_2_0.category(char) not in ("Cn", "Cs")
            parts.append(char if known else "x")
    return "".join(parts)


def variants(base, rng, count):
    """Yields (name, tokenizer.json): the file itself, then `count` changed ones."""
    yield "as it is", base
    for _ in range(count):
        changed = copy.deepcopy(base)
        name = []
        if rng.random() < 0.7:
            key = rng.choice(list(PRE_TOKENIZERS))
            changed["pre_tokenizer"] = PRE_TOKENIZERS[key]
            name.append(key)
        key = rng.choice(list(NORMALIZERS))
        changed["normalizer"] = NORMALIZERS[key]
        name.append(key)
        changed["model"]["ignore_merges"] = rng.random() < 0.5
        vocab = changed["model"]["vocab"]
        next_id = 1 + max([*vocab.values(), *(token["id"] for token in base["added_tokens"])])
        for content in rng.sample(ADDED, rng.randint(0, len(ADDED))):
            token = {flag: rng.random() < 0.4 for flag in FLAGS}
            token["content"] = content
            token["id"] = vocab.get(content, next_id)
            next_id += token["id"] == next_id
            changed["added_tokens"].append(token)
        yield ", ".join(name), changed


def quantd_ids(quantd, folder, texts):
    command = [quantd, "tokenize", "--model", folder, "--stdin-jsonl"]
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    done = subprocess.run(command, text=True, check=False, input=lines, capture_output=True)
    if done.returncode != 0:
        sys.exit(f"{quantd} tokenize exits {done.returncode}: {done.stderr.strip()}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def reference_ids(path, texts):
    """The library's ids, and None where it panics (as on some overlaps of rstrip and lstrip)."""
    reference = tokenizers.Tokenizer.from_file(str(path))
    reference.no_truncation()
    reference.no_padding()
    for text in texts:
        try:
            yield reference.encode(text).ids  # special tokens added, as by quantd tokenize
        except BaseException as error:  # a Rust panic is no Exception
            if type(error).__name__ != "PanicException":
                raise
            yield None


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dirs", nargs="*", metavar="DIR")
    parser.add_argument("--quantd", required=True)
    parser.add_argument("--count", type=int, default=20000, help="strings per folder")
    parser.add_argument("--variants", type=int, default=20, help="changed tokenizers per folder")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    compared = panicked = 0
    failures = []
    for folder in args.dirs or [ROOT / d for d in DEFAULT_DIRS]:
        base = json.loads((pathlib.Path(folder) / "tokenizer.json").read_text())
        half = max(1, args.count // 2)  # for the file as it is; the variants share the other
        for index, (name, changed) in enumerate(variants(base, rng, args.variants)):
            added = changed["added_tokens"]
            count = half if index == 0 else max(1, half // args.variants)
            contents = [token["content"] for token in added]
            texts = [random_string(rng, contents) for _ in range(count)]
            with tempfile.TemporaryDirectory() as copy_dir:
                path = pathlib.Path(copy_dir) / "tokenizer.json"
                path.write_text(json.dumps(changed))
                ours = quantd_ids(args.quantd, copy_dir, texts)
                for text, ids, expected in itertools.zip_longest(
                        texts, ours, reference_ids(path, texts)):
                    compared += 1
                    panicked += expected is None
                    if expected is not None and ids != expected:
                        found = [token for token in added if token["content"] in text]
                        failures.append((text, f"{folder} ({name})", ids, expected, found))
    failures.sort(key=lambda failure: len(failure[0]))
    for text, name, ids, expected, found in failures[:10]:
        print(f"{name}: {text!r}\n  quantd     {ids}\n  tokenizers {expected}\n"
              f"  added tokens {found}")
    print(f"{compared} strings compared (seed {args.seed}), {len(failures)} differ, "
          f"{panicked} left out because tokenizers panicked")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
