"""peers: the same matrices through other people's kernels, on the same GPU, captured in CUDA graphs.

    python3 tests/bench/cuda/peers.py --out tests/bench/results [--seconds 450] [--fresh]

Needs torch with CUDA; bitsandbytes where it is installed. Weights are rotated over copies that exceed
the L2 together, as bench does; times are medians of seven runs of one graph.
"""
import argparse
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import results as result_files  # noqa: E402

SHAPES = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048)
ROTATED_BYTES = 256 << 20
MAX_COPIES = 64
RUNS = 7


class Peers:
    def __init__(self, torch):
        self.torch = torch
        self.weights = {}  # of one (peer, shape) at a time

    def copies(self, key, one_bytes, make):
        if key not in self.weights:
            self.weights.clear()
            self.torch.cuda.empty_cache()
            count = min(MAX_COPIES, max(1, -(-ROTATED_BYTES // one_bytes)))
            self.weights[key] = [make() for _ in range(count)]
        return self.weights[key]

    def seconds(self, calls):
        """Median seconds of one of `calls`, all of them in one graph."""
        torch = self.torch
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            for call in calls[:2]:
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            for call in calls:
                call()
        graph.replay()
        torch.cuda.synchronize()

        def timed(replays):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(replays):
                graph.replay()
            stop.record()
            stop.synchronize()
            return start.elapsed_time(stop) * 1e-3

        replays = 1
        while replays < 1 << 16 and timed(replays) < 0.01:
            replays *= 2
        return statistics.median(timed(replays) for _ in range(RUNS)) / replays / len(calls)

    def measure(self, shape, m, weight_bytes, calls):
        n, k = SHAPES[shape]
        seconds = self.seconds(calls)
        moved = weight_bytes + m * (n + k) * 2
        return {"us": seconds * 1e6, "bytes": moved, "gb_per_s": moved / seconds * 1e-9,
                "tflop_per_s": 2 * m * n * k / seconds * 1e-12}

    def bf16(self, shape, m):
        torch, (n, k) = self.torch, SHAPES[shape]
        ws = self.copies(("bf16", shape), n * k * 2,
                         lambda: torch.randn(n, k, device="cuda", dtype=torch.bfloat16) * 0.02)
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        return self.measure(shape, m, n * k * 2,
                            [lambda w=w: torch.nn.functional.linear(x, w) for w in ws])

    def tinygemm(self, shape, m):
        torch, (n, k), group = self.torch, SHAPES[shape], 64

        def make():
            codes = torch.randint(0, 255, (n, k // 2), device="cuda", dtype=torch.uint8)
            packed = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
            scales = torch.full((k // group, n, 2), 0.01, device="cuda", dtype=torch.bfloat16)
            return packed, scales

        weight_bytes = n * k // 2 + n * k // group * 4
        ws = self.copies(("tinygemm", shape), weight_bytes, make)
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        return self.measure(shape, m, weight_bytes, [
            lambda w=w: torch.ops.aten._weight_int4pack_mm(x, w[0], group, w[1]) for w in ws])

    def scaled_mm(self, shape, m):
        torch, (n, k) = self.torch, SHAPES[shape]
        f8 = torch.float8_e4m3fn
        ws = self.copies(("scaled_mm", shape), n * k,
                         lambda: torch.randn(n, k, device="cuda").to(f8))
        x = torch.randn(max(m, 16), k, device="cuda").to(f8)  # it takes multiples of 16 rows
        row = torch.ones(max(m, 16), 1, device="cuda")
        col = torch.ones(1, n, device="cuda")
        return self.measure(shape, m, n * k, [
            lambda w=w: torch._scaled_mm(x, w.t(), scale_a=row, scale_b=col,
                                         out_dtype=torch.bfloat16, use_fast_accum=True) for w in ws])

    def bitsandbytes_4bit(self, shape, m, nested):
        import bitsandbytes as bnb
        torch, (n, k) = self.torch, SHAPES[shape]

        def make():
            w = torch.randn(n, k, device="cuda", dtype=torch.bfloat16) * 0.02
            return bnb.functional.quantize_4bit(w, blocksize=64, quant_type="nf4",
                                                compress_statistics=nested)

        weight_bytes = n * k // 2 + n * k // 64 * (1 if nested else 4)
        ws = self.copies(("bnb", nested, shape), weight_bytes, make)
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        return self.measure(shape, m, weight_bytes, [
            lambda w=w: bnb.matmul_4bit(x, w[0].t(), quant_state=w[1]) for w in ws])

    def bitsandbytes_int8(self, shape, m):
        import bitsandbytes as bnb
        torch, (n, k) = self.torch, SHAPES[shape]

        def make():
            layer = bnb.nn.Linear8bitLt(k, n, bias=False, has_fp16_weights=False, threshold=0.0)
            # Moving it from the host to the device quantizes it.
            layer.weight.data = (torch.randn(n, k, device="cuda") * 0.02).half().cpu()
            return layer.cuda()

        ws = self.copies(("bnb_int8", shape), n * k, make)
        x = torch.randn(m, k, device="cuda", dtype=torch.float16)
        return self.measure(shape, m, n * k + 4 * n, [lambda w=w: w(x) for w in ws])


def items(peers):
    kinds = {
        "torch_bf16": peers.bf16,
        "torch_tinygemm_int4_g64": peers.tinygemm,
        "torch_scaled_mm_fp8_rowwise": peers.scaled_mm,
        "bitsandbytes_nf4": lambda shape, m: peers.bitsandbytes_4bit(shape, m, False),
        "bitsandbytes_nf4_nested": lambda shape, m: peers.bitsandbytes_4bit(shape, m, True),
        "bitsandbytes_int8_no_threshold": peers.bitsandbytes_int8,
    }
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        print("bitsandbytes is not installed here: left out")
        kinds = {name: kind for name, kind in kinds.items() if "bitsandbytes" not in name}
    return [(f"linear/{name}/{shape}/m:{m}", lambda k=kind, s=shape, r=m: k(s, r))
            for name, kind in kinds.items() for shape in SHAPES for m in ROWS]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="tests/bench/results")
    parser.add_argument("--seconds", type=int, default=450)
    parser.add_argument("--fresh", action="store_true")
    flags = parser.parse_args()
    try:
        import torch
    except ImportError:
        print("peers: no torch in this Python: nothing was measured")
        return 1
    if not torch.cuda.is_available():
        print("peers: no GPU that torch can use")
        return 1
    torch.manual_seed(1)
    results = result_files.ResultFile(flags.out, torch.cuda.get_device_name(0), "peers",
                                      result_files.build_of_script(__file__), flags.fresh)
    return result_files.run_items(results, items(Peers(torch)), flags.seconds)


if __name__ == "__main__":
    sys.exit(main())
