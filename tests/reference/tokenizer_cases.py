#!/usr/bin/env python3
"""Makes the recorded cases of the tokenizer tests, by the libraries themselves.

    build/venv/bin/python tests/reference/tokenizer_cases.py

Writes tests/data/sentencepiece/<name>/{tokenizer.model,cases.json}: small models trained by
SentencePiece on sentences of our own, with what its library makes of random strings; and
tests/data/tokenizer_variants.json: changed tokenizers of the differential fuzz
(tests/fuzz/tokenizers_differential.py), with what Hugging Face's tokenizers makes of its strings.
Needs the PyPI packages `tokenizers` and `sentencepiece`.
"""

import json
import pathlib
import random
import sys
import tempfile

import sentencepiece

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/fuzz"))
import tokenizers_differential as fuzz  # noqa: E402

DATA = ROOT / "tests/data"
NOUNS = ["river", "engine", "letter", "winter", "garden", "number", "window", "teacher", "story",
         "mountain", "kitchen", "scheduler", "tokenizer", "memory", "kernel", "café", "Straße"]
VERBS = ["opens", "remembers", "follows", "holds", "returns", "measures", "begins", "carries"]
MODELS = {
    "dummy_prefix": {"add_dummy_prefix": True, "vocab_size": 700},
    "user_defined": {"add_dummy_prefix": False, "vocab_size": 600,
                     "user_defined_symbols": ["<start>", "\u2581\u2581", "\n\n", "the"]},
}


def corpus(rng):
    for _ in range(4000):
        words = [f"the {rng.choice(NOUNS)} {rng.choice(VERBS)}" for _ in range(rng.randint(1, 3))]
        yield ", and ".join(words).capitalize() + rng.choice([".", "!", f" in {rng.randint(1, 2030)}."])


def train(name, options, rng):
    folder = DATA / "sentencepiece" / name
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        prefix = pathlib.Path(scratch) / "model"
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(list(corpus(rng))), model_prefix=str(prefix), model_type="bpe",
            byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
            character_coverage=1.0, minloglevel=2, **options)
        (folder / "tokenizer.model").write_bytes(prefix.with_suffix(".model").read_bytes())
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    texts = ["", " ", "  two  spaces ", "The river opens, and the café begins in 1999.\n\n<start>"]
    texts += [fuzz.random_string(rng, options.get("user_defined_symbols", [])).replace("\0", "")
              for _ in range(250)]
    cases = [[text, model.encode(text), model.decode(model.encode(text))] for text in texts]
    write(folder / "cases.json", cases)


def record_variants(rng):
    """For each base some variants: what is changed, and [text, ids, [ids, decoded, skipping]]."""
    out = []
    for base_name, count in (("llama2_bytefallback", 24), ("qwen2_nfc", 8)):
        base = json.loads((DATA / "tokenizers" / base_name / "tokenizer.json").read_text())
        for name, changed in fuzz.variants(base, rng, count):
            parts = {part: changed[part]
                     for part in ("pre_tokenizer", "normalizer", "decoder", "added_tokens")}
            model = {k: v for k, v in changed["model"].items() if k not in ("vocab", "merges")}
            missing = sorted(set(base["model"]["vocab"]) - set(changed["model"]["vocab"]))
            with tempfile.TemporaryDirectory() as scratch:
                path = pathlib.Path(scratch) / "tokenizer.json"
                path.write_text(json.dumps(changed))
                reference = fuzz.load_reference(path)
            contents = [token["content"] for token in changed["added_tokens"]]
            texts = [fuzz.random_string(rng, contents) for _ in range(32)]
            cases = []
            for text, ids in zip(texts, fuzz.reference_ids(reference, texts)):
                if ids is None or len(text) > 120:
                    continue
                case = [text, ids]
                if not fuzz.is_byte_level(changed):
                    some = fuzz.decodable(fuzz.random_ids(rng, reference.get_vocab_size(True), ids),
                                          changed["added_tokens"])
                    case.append([some, reference.decode(some, skip_special_tokens=False),
                                 reference.decode(some, skip_special_tokens=True)])
                cases.append(case)
            out.append({"base": base_name, "name": name, "parts": parts, "model": model,
                        "missing": missing, "cases": cases})
    write(DATA / "tokenizer_variants.json", out)


def write(path, rows):
    """One row a line, so that a change shows."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {len(rows)} rows, {path.stat().st_size} bytes")


def main():
    for name, options in MODELS.items():
        train(name, options, random.Random(name))
    record_variants(random.Random(5))


if __name__ == "__main__":
    main()
