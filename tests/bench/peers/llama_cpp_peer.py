"""quantd's engine and llama.cpp (PyPI's llama-cpp-python) on the same random model in the same run.

    python tests/bench/peers/llama_cpp_peer.py --engine-bench build/release/engine_bench
        [--shape tl11] [--types IQ4_NL,IQ4_NL+f16-head,Q4_0] [--profiles nf4] [--threads 2] [--rounds 3] [--json FILE]

Both engines hold the same shape with random weights (speed only, no quality claim). llama.cpp's 4-bit types quantize
the output head too (Q6_K); quantd's profiles leave it in 16 bits. `+f16-head` gives llama.cpp the same head, so that
both read the same bytes for a token. Rounds alternate
between the two, so that both see the same load of the machine; medians are compared. For each:
prefill of 512 tokens, decode of 128 tokens at batch 1, decode of 64 tokens at batch 8 (tokens per second
over all sequences), resident memory (VmRSS of a process that does only this, at the end). Needs numpy, gguf and
llama-cpp-python; `./dev bench` installs them.
"""
import argparse
import ctypes
import json
import pathlib
import statistics
import subprocess
import sys
import time

SHAPES = {
    "tl11": dict(hidden=2048, inter=5632, layers=22, heads=32, kv_heads=4, vocab=32000, context=2048),
    "m160": dict(hidden=768, inter=2048, layers=12, heads=12, kv_heads=12, vocab=32000, context=2048),
}
PREFILL, DECODE, BATCH, BATCH_DECODE = 512, 128, 8, 64


def write_f16_gguf(path, s):
    import gguf
    import numpy as np
    rng = np.random.default_rng(1)
    w = gguf.GGUFWriter(str(path), "llama")
    w.add_block_count(s["layers"]); w.add_context_length(s["context"]); w.add_embedding_length(s["hidden"])
    w.add_feed_forward_length(s["inter"]); w.add_head_count(s["heads"]); w.add_head_count_kv(s["kv_heads"])
    w.add_layer_norm_rms_eps(1e-5); w.add_rope_dimension_count(s["hidden"] // s["heads"])
    w.add_vocab_size(s["vocab"]); w.add_tokenizer_model("none"); w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)

    def matrix(name, n, k):
        w.add_tensor(name, (rng.standard_normal((n, k), dtype=np.float32) * 0.02).astype(np.float16))

    kv = s["hidden"] // s["heads"] * s["kv_heads"]
    matrix("token_embd.weight", s["vocab"], s["hidden"])
    for i in range(s["layers"]):
        b = f"blk.{i}."
        for name, n, k in (("attn_q", s["hidden"], s["hidden"]), ("attn_k", kv, s["hidden"]), ("attn_v", kv, s["hidden"]),
                           ("attn_output", s["hidden"], s["hidden"]), ("ffn_gate", s["inter"], s["hidden"]),
                           ("ffn_up", s["inter"], s["hidden"]), ("ffn_down", s["hidden"], s["inter"])):
            matrix(b + name + ".weight", n, k)
        for name in ("attn_norm", "ffn_norm"):
            w.add_tensor(b + name + ".weight", np.ones(s["hidden"], dtype=np.float32))
    w.add_tensor("output_norm.weight", np.ones(s["hidden"], dtype=np.float32))
    matrix("output.weight", s["vocab"], s["hidden"])
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()


def peer_model(folder, shape, ftype):
    """Path of the GGUF of this shape and type; made once."""
    import llama_cpp
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{shape}-{ftype}.gguf"
    if target.exists():
        return target
    source = folder / f"{shape}-F16.gguf"
    if not source.exists():
        write_f16_gguf(source, SHAPES[shape])
    params = llama_cpp.llama_model_quantize_default_params()
    base, _, head = ftype.partition("+")
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{base}")
    if head == "f16-head":
        params.output_tensor_type = llama_cpp.GGML_TYPE_F16
    elif head:
        sys.exit(f"{ftype}: the part after + is not f16-head")
    params.nthread = 2
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    assert code == 0, f"llama_model_quantize({ftype}): {code}"
    return target


def vm_rss():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024


def run_llama(path, threads):
    """One measurement of llama.cpp, in this process (started once per round): prints JSON."""
    import llama_cpp as lc
    lc.llama_backend_init()
    silent = lc.llama_log_callback(lambda *_: None)
    lc.llama_log_set(silent, ctypes.c_void_p(0))
    mp = lc.llama_model_default_params()
    model = lc.llama_model_load_from_file(str(path).encode(), mp)
    cp = lc.llama_context_default_params()
    cp.n_ctx, cp.n_batch, cp.n_ubatch, cp.n_seq_max, cp.kv_unified = 2048, 512, 512, BATCH, True
    cp.n_threads = cp.n_threads_batch = threads
    ctx = lc.llama_init_from_model(model, cp)
    vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
    memory = lc.llama_get_memory(ctx)
    batch = lc.llama_batch_init(PREFILL, 0, 1)

    def step(tokens):
        """tokens: list of (id, position, sequence, wants logits)."""
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, logits) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, logits
        assert lc.llama_decode(ctx, batch) == 0
        lc.llama_synchronize(ctx)

    def prefill():
        lc.llama_memory_clear(memory, True)
        start = time.perf_counter()
        step([(i * 37 % vocab, i, 0, i == PREFILL - 1) for i in range(PREFILL)])
        return PREFILL / (time.perf_counter() - start)

    def decode(sequences, count):
        lc.llama_memory_clear(memory, True)
        step([(1 + s, 0, s, True) for s in range(sequences)])
        start = time.perf_counter()
        for p in range(1, count + 1):
            step([((p * 31 + s) % vocab, p, s, True) for s in range(sequences)])
        return sequences * count / (time.perf_counter() - start)

    decode(1, 4)
    result = {"prefill": prefill(), "decode_1": decode(1, DECODE), "decode_8": decode(BATCH, BATCH_DECODE),
              "rss": vm_rss()}
    print("RESULT " + json.dumps(result))


def child_result(command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line[7:])
    sys.exit(f"{' '.join(map(str, command))} failed ({done.returncode}):\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def run_quantd(args, profile):
    done = subprocess.run([args.engine_bench, "--shape", args.shape, "--profiles", profile, "--threads", str(args.threads),
                           "--batches", f"1,{BATCH}", "--json"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"engine_bench failed ({done.returncode}):\n{done.stderr[-2000:]}")
    result = json.loads(done.stdout)["profiles"][0]
    decode = result["decode_tokens_per_second"]
    return {"prefill": result["prefill_tokens_per_second"], "decode_1": decode["1"], "decode_8": decode[str(BATCH)],
            "rss": result["rss_bytes"]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine-bench", type=pathlib.Path)
    parser.add_argument("--shape", default="tl11", choices=SHAPES)
    parser.add_argument("--types", default="IQ4_NL,IQ4_NL+f16-head,Q4_0")
    parser.add_argument("--profiles", default="nf4,nf4-dq")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", type=pathlib.Path, default=pathlib.Path("build/bench-models"))
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--llama", type=pathlib.Path, help="internal: measure this GGUF in this process")
    args = parser.parse_args()
    if args.llama:
        return run_llama(args.llama, args.threads)
    paths = {t: peer_model(args.models, args.shape, t) for t in args.types.split(",") if t}
    runs = {}
    for number in range(args.rounds):
        for ftype, path in paths.items():
            runs.setdefault(f"llama.cpp {ftype}", []).append(
                child_result([sys.executable, __file__, "--llama", path, "--threads", args.threads]))
        for profile in args.profiles.split(",") if args.engine_bench else []:
            runs.setdefault(f"quantd {profile}", []).append(run_quantd(args, profile))
        print(f"round {number + 1} of {args.rounds} done", file=sys.stderr)
    table = {name: {key: statistics.median(r[key] for r in rounds) for key in rounds[0]} for name, rounds in runs.items()}
    print(f"{args.shape}, {args.threads} threads, medians of {args.rounds} alternating rounds, tokens/s")
    print(f"{'':28}{'prefill 512':>12}{'decode b1':>11}{'decode b8':>11}{'RSS MB':>13}")
    for name, r in table.items():
        print(f"{name:28}{r['prefill']:12.1f}{r['decode_1']:11.1f}{r['decode_8']:11.1f}{r['rss'] / 1e6:13.0f}")
    if args.json:
        args.json.write_text(json.dumps({"shape": args.shape, "threads": args.threads, "median": table, "rounds": runs}, indent=1))


if __name__ == "__main__":
    main()
