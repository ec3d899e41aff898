#!/usr/bin/env python3
"""Compares `quantd tokenize` with Hugging Face's tokenizers on random strings.

    tests/fuzz/tokenizers_differential.py --quantd build/release/quantd [--count N] [DIR]...

Each DIR holds a tokenizer.json; without one, the fixtures and the demo model are taken. Beside the
files as they are, variants of each are tried: added tokens with every combination of flags, other
pre-tokenizers, normalizers and decoders, merges ignored or not, bytes missing. A folder with
tokenizer.model only is compared with the library of SentencePiece. Needs the PyPI packages
`tokenizers` and `sentencepiece`. Exits 1 when a string is encoded, or ids are decoded, differently,
after printing the shortest such strings.
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

import sentencepiece
import tokenizers

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEFAULT_DIRS = ["tests/data/tokenizers/llama3_bytelevel", "tests/data/tokenizers/qwen2_nfc",
                "tests/data/tokenizers/llama2_bytefallback", "tests/data/sentencepiece/dummy_prefix",
                "tests/data/sentencepiece/user_defined", "demo/model"]

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
SPACE = "\u2581"
REPLACE_SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def metaspace(scheme, cut, **more):
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": cut} | more


# Of vocabularies whose tokens are characters: Llama 2, Mistral, Gemma and what else there is.
CHARACTER_PRE_TOKENIZERS = {
    "none": None,
    "mistral": metaspace("first", False),
    "metaspace": metaspace("always", True, add_prefix_space=True),
    "metaspace-first": metaspace("first", True),
    "metaspace-never": metaspace("never", True, add_prefix_space=False),
    "gemma": split(" ", "MergedWithPrevious", literal=True),
    "gemma-inverted": split(" ", "MergedWithPrevious", True, literal=True),
    "next": split(r"[aeiou ]", "MergedWithNext"),
    "next-inverted": split(r"[a-z ]", "MergedWithNext", True),
    "contiguous": split(r"[a-m0-4]", "Contiguous"),
    "digits": sequence({"type": "Digits", "individual_digits": True}, metaspace("first", True)),
    "numbers": sequence({"type": "Digits", "individual_digits": False}, metaspace("always", False)),
    "words-metaspace": sequence(split(r"\w+|[^\w\s]+"), metaspace("first", False)),
    "removed-metaspace": sequence(split(r"\s+", "Removed"), metaspace("first", True)),
}


def normalizers(*parts):
    return {"type": "Sequence", "normalizers": list(parts)}


PREPEND = {"type": "Prepend", "prepend": SPACE}
CHARACTER_NORMALIZERS = {
    "none": None,
    "llama": normalizers(PREPEND, REPLACE_SPACE),
    "gemma": REPLACE_SPACE,
    "nfkc": normalizers({"type": "NFKC"}, REPLACE_SPACE),
    "spaces": normalizers({"type": "Replace", "pattern": {"Regex": r" {2,}"}, "content": " "},
                          REPLACE_SPACE),
    "words": {"type": "Replace", "pattern": {"Regex": r"the|[0-9]+"}, "content": "<n>"},
}
REPLACE = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
FALLBACK, FUSE = {"type": "ByteFallback"}, {"type": "Fuse"}


def strip(start):
    return {"type": "Strip", "content": " ", "start": start, "stop": 0}


def decoders(*parts):
    return {"type": "Sequence", "decoders": list(parts)}


DECODERS = {
    "llama": decoders(REPLACE, FALLBACK, FUSE, strip(1)),
    "strip": decoders(REPLACE, FALLBACK, FUSE, strip(3)),
    "gemma": decoders(REPLACE, FALLBACK, FUSE),
    "metaspace": {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True},
    "metaspace-never": decoders({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never",
                                 "split": False}, FALLBACK),
    "fuse": decoders(FALLBACK, FUSE),
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
    bytes_only = is_byte_level(base)
    for _ in range(count):
        changed = copy.deepcopy(base)
        name = []

        def choose(part, table):
            key = rng.choice(list(table))
            changed[part] = table[key]
            name.append(f"{part} {key}")

        if rng.random() < 0.7:
            choose("pre_tokenizer", PRE_TOKENIZERS if bytes_only else CHARACTER_PRE_TOKENIZERS)
        if bytes_only:
            choose("normalizer", NORMALIZERS)
        else:
            # Whether a piece is the first goes by its offset in the text before normalizers, which
            # in the library moves in odd ways where they change the text's first characters.
            first = '"first"' in json.dumps(changed["pre_tokenizer"])
            choose("normalizer", {k: v for k, v in CHARACTER_NORMALIZERS.items()
                                  if not first or k in ("none", "gemma")})
            choose("decoder", DECODERS)
            model = changed["model"]
            model["fuse_unk"] = rng.random() < 0.5
            model["byte_fallback"] = rng.random() < 0.8
            model["unk_token"] = rng.choice([None, "<unk>"])
            if rng.random() < 0.4:
                byte = f"<0x{rng.randrange(0x80, 0xF5):02X}>"
                model["vocab"][byte.lower()] = model["vocab"].pop(byte)  # no token of that byte
            name.append(f"fuse {model['fuse_unk']}, bytes {model['byte_fallback']}, {model['unk_token']}")
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


def is_byte_level(spec):
    return (spec.get("decoder") or {}).get("type") == "ByteLevel"


def quantd_lines(quantd, folder, values, *flags):
    """One JSON value in, one out."""
    command = [quantd, "tokenize", "--model", folder, "--stdin-jsonl", *flags]
    lines = "".join(json.dumps(value) + "\n" for value in values)
    done = subprocess.run(command, text=True, check=False, input=lines, capture_output=True)
    if done.returncode != 0:
        sys.exit(f"{quantd} tokenize exits {done.returncode}: {done.stderr.strip()}")
    return [json.loads(line) for line in done.stdout.removesuffix("\n").split("\n") if line]


def load_reference(path):
    reference = tokenizers.Tokenizer.from_file(str(path))
    reference.no_truncation()
    reference.no_padding()
    return reference


def reference_ids(reference, texts):
    """The library's ids, and None where it panics (as on some overlaps of rstrip and lstrip)."""
    for text in texts:
        try:
            yield reference.encode(text).ids  # special tokens added, as by quantd tokenize
        except BaseException as error:  # a Rust panic is no Exception
            if type(error).__name__ != "PanicException":
                raise
            yield None


def random_ids(rng, size, some):
    """Ids to decode: any, bytes of a fallback, and those of a text cut off anywhere."""
    kind = rng.random()
    if kind < 0.3:
        return [rng.randrange(size) for _ in range(rng.randint(1, 12))]
    if kind < 0.6:
        return [rng.randrange(min(size, 300)) for _ in range(rng.randint(1, 12))]
    cut = some[rng.randrange(len(some) + 1):] or some
    return cut[:rng.randint(1, len(cut))] if cut else []


def decodable(ids, added):
    """Without tokens that are special and normalized: the library looks a special token up by its
    normalized content, does not find it and so keeps it in a text without special tokens."""
    left_out = {token["id"] for token in added if token["special"] and token["normalized"]}
    return [i for i in ids if i not in left_out]


class Comparison:
    """Counts what was compared, keeps what differs."""

    def __init__(self):
        self.compared = self.panicked = 0
        self.failures = []

    def add(self, name, given, ours, expected, added=()):
        self.compared += 1
        if expected is None:
            self.panicked += 1
        elif ours != expected:
            found = [token for token in added if token["content"] in str(given)]
            self.failures.append((given, name, ours, expected, found))

    def report(self, seed):
        self.failures.sort(key=lambda failure: len(failure[0]))
        for given, name, ours, expected, found in self.failures[:10]:
            print(f"{name}: {given!r}\n  quantd     {ours!r}\n  reference  {expected!r}\n"
                  f"  added tokens {found}")
        print(f"{self.compared} strings compared (seed {seed}), {len(self.failures)} differ, "
              f"{self.panicked} left out because tokenizers panicked")
        return 1 if self.failures else 0


def compare_json(folder, args, rng, comparison):
    base = json.loads((folder / "tokenizer.json").read_text())
    half = max(1, args.count // 2)  # for the file as it is; the variants share the other
    for index, (name, changed) in enumerate(variants(base, rng, args.variants)):
        added = changed["added_tokens"]
        count = half if index == 0 else max(1, half // args.variants)
        contents = [token["content"] for token in added]
        texts = [random_string(rng, contents) for _ in range(count)]
        with tempfile.TemporaryDirectory() as copy_dir:
            path = pathlib.Path(copy_dir) / "tokenizer.json"
            path.write_text(json.dumps(changed))
            reference = load_reference(path)
            expected = list(reference_ids(reference, texts))
            ours = quantd_lines(args.quantd, copy_dir, texts)
            for text, ids, theirs in itertools.zip_longest(texts, ours, expected):
                comparison.add(f"{folder} ({name})", text, ids, theirs, added)
            # Byte-level vocabularies spell added tokens as they are, which the library decodes as
            # if they were in the alphabet.
            if is_byte_level(changed):
                continue
            size = reference.get_vocab_size(with_added_tokens=True)
            rows = [decodable(random_ids(rng, size, theirs or []), added) for theirs in expected]
            for flags, skip in (((), False), (("--no-special",), True)):
                ours = quantd_lines(args.quantd, copy_dir, rows, "--decode", *flags)
                for ids, text in itertools.zip_longest(rows, ours):
                    comparison.add(f"{folder} ({name}), decode, skip {skip}", ids, text,
                                   reference.decode(ids, skip_special_tokens=skip))


def compare_model(folder, args, rng, comparison):
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    texts = [random_string(rng, []).replace("\0", "") for _ in range(args.count)]
    with tempfile.TemporaryDirectory() as copy_dir:
        (pathlib.Path(copy_dir) / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
        ours = quantd_lines(args.quantd, copy_dir, texts, "--no-special")
        rows = [model.encode(text) for text in texts]
        for text, ids, theirs in itertools.zip_longest(texts, ours, rows):
            comparison.add(str(folder), text, ids, theirs)
        decoded = quantd_lines(args.quantd, copy_dir, rows, "--decode", "--no-special")
        for ids, text in itertools.zip_longest(rows, decoded):
            if model.unk_id() not in ids:  # " ⁇ " there
                comparison.add(f"{folder}, decode", ids, text, model.decode(ids))


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
    comparison = Comparison()
    for folder in map(pathlib.Path, args.dirs or [ROOT / d for d in DEFAULT_DIRS]):
        json_file = (folder / "tokenizer.json").exists()
        (compare_json if json_file else compare_model)(folder, args, rng, comparison)
    return comparison.report(args.seed)


if __name__ == "__main__":
    sys.exit(main())
