"""Frequencies of transformers' rotary embeddings, for tests/data/rope_frequencies.json.

    pip install -r fixtures/requirements.txt
    python rope.py ../data/rope_frequencies.json

Each entry has a config.json in one of transformers' spellings, the length a sequence reaches, and
what transformers' own rotary module then multiplies positions with, and cosines and sines by.
"""
import json
import sys

import torch
import transformers

SIZES = {"vocab_size": 96, "hidden_size": 256, "intermediate_size": 64, "num_hidden_layers": 1,
         "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 4096}
FACTORS = {"short_factor": [1.0 + 0.01 * i for i in range(64)],
           "long_factor": [1.0 + 0.5 * i for i in range(64)]}

# name, architecture, config.json beyond the sizes, length of a sequence
CASES = [
    ("default", "Llama", {}, 10),
    ("theta", "Mistral", {"rope_theta": 1000000.0}, 10),
    ("linear, old type", "Llama", {"rope_scaling": {"type": "linear", "factor": 2.5}}, 10),
    ("linear, new spelling", "Llama", {"rope_parameters": {
        "rope_type": "linear", "factor": 2.5, "rope_theta": 5000.0}}, 10),
    ("dynamic, whole context", "Llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, 4096),
    ("llama3", "Llama", {"rope_theta": 500000.0, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512}}, 4096),
    ("yarn", "Qwen2", {"rope_theta": 1000000.0, "rope_scaling": {
        "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}}, 4096),
    ("yarn, all keys", "Llama", {"rope_parameters": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 16.0, "beta_fast": 24.0,
        "beta_slow": 2.0, "attention_factor": 1.25, "truncate": False,
        "original_max_position_embeddings": 256}}, 4096),
    ("yarn, mscale", "Llama", {"rope_parameters": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "mscale": 0.707,
        "mscale_all_dim": 1.0, "original_max_position_embeddings": 128}}, 4096),
    ("yarn, context of the config", "Qwen3", {"head_dim": 128, "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0}}, 4096),
    ("longrope, short", "Phi3", {"original_max_position_embeddings": 1024, "rope_scaling": {
        "type": "longrope", **FACTORS}}, 1024),
    ("longrope, long", "Phi3", {"original_max_position_embeddings": 1024, "rope_scaling": {
        "type": "longrope", **FACTORS}}, 1025),
    ("longrope, attention factor", "Phi3", {
        "original_max_position_embeddings": 1024, "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 20000.0, "attention_factor": 1.5, **FACTORS}},
     4096),
    ("partial", "Phi3", {"partial_rotary_factor": 0.75}, 10),
    ("gemma3 full, old spelling", "Gemma3", {"head_dim": 64, "num_hidden_layers": 6,
                                             "rope_local_base_freq": 20000.0,
                                             "rope_theta": 500000.0, "rope_scaling": {
                                                 "rope_type": "linear", "factor": 8.0}}, 10),
    ("gemma3 defaults", "Gemma3", {"head_dim": 64, "num_hidden_layers": 6}, 10),
]
CLASSES = {"Llama": ("Llama", "llama"), "Mistral": ("Mistral", "mistral"), "Qwen2": ("Qwen2", "qwen2"),
           "Qwen3": ("Qwen3", "qwen3"), "Phi3": ("Phi3", "phi3"), "Gemma3": ("Gemma3Text", "gemma3")}


def rotary_of(architecture, config):
    stem, module = CLASSES[architecture]
    modeling = __import__(f"transformers.models.{module}.modeling_{module}", fromlist=["x"])
    stem = stem.replace("Gemma3Text", "Gemma3")
    return getattr(modeling, f"{stem}RotaryEmbedding")(config)


def entry(name, architecture, extra, length):
    text = {"architectures": [f"{architecture}ForCausalLM"], **SIZES, **extra}
    config = getattr(transformers, CLASSES[architecture][0] + "Config").from_dict(
        json.loads(json.dumps(text)))
    rotary = rotary_of(architecture, config)
    result = {"name": name, "config": text, "length": length}
    x, positions = torch.zeros(1), torch.arange(length)[None]
    kinds = ["full_attention", "sliding_attention"] if architecture == "Gemma3" else [None]
    for kind in kinds:
        prefix, options = (f"{kind}_", {"layer_type": kind}) if kind else ("", {})
        with torch.no_grad():
            rotary(x, positions, **options)
        result["sliding" if kind == "sliding_attention" else "full"] = {
            "frequencies": getattr(rotary, prefix + "inv_freq").float().tolist(),
            "attention_factor": float(getattr(rotary, prefix + "attention_scaling"))}
    return result


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    made = {"transformers": transformers.__version__, "entries": [entry(*case) for case in CASES]}
    with open(sys.argv[1], "w", encoding="utf-8") as out:
        out.write(json.dumps(made, separators=(",", ":")).replace('{"name"', '\n{"name"') + "\n")
