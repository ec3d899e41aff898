// Linear of the cpu backend: op/format/shape/m, as bytes of weights and floating-point operations a
// second. Each iteration takes the next of several copies of the weight, together larger than any
// cache, as a decode step does. Compare GB/s with memory_bench's read bandwidth of the same run.
//
//   kernels_bench --benchmark_filter='linear/nf4.*' --benchmark_min_time=0.3
#include <benchmark/benchmark.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/quant/format.h"
#include "kernels/status.h"

namespace quantd {
namespace {

/// Copies of a weight add up to this: several times the last-level cache of the machines we tune
/// on.
constexpr int64_t kRotatedBytes = int64_t{256} << 20;

struct Shape {
  const char* name;
  int64_t n, k;
};
// A 1.1-billion-parameter decoder: hidden 2048, intermediate 5632, 32 heads, 4 KV heads; and a
// square.
constexpr Shape kShapes[] = {
    {"qkv", 2560, 2048}, {"gate_up", 11264, 2048}, {"down", 2048, 5632}, {"square", 4096, 4096}};
constexpr const char* kFormats[] = {"nf4.flat64.f32",
                                    "nf4.flat64.nested",
                                    "int4.group128.bf16",
                                    "uint4.group64.f16.zero_u8",
                                    "uint4.strided64.f16.zero_f16",
                                    "e2m1.group16.e4m3",
                                    "uint2.group64.f16.zero_u8",
                                    "int8.row.absmax",
                                    "int8.row.bf16",
                                    "e4m3.row.f32",
                                    "e4m3.tile128x128.f32",
                                    "bf16",
                                    "f16",
                                    "f32"};

/// Random codes, not a quantized matrix: speed does not depend on the values. Those of int8 and
/// e4m3 are small, so that no sum overflows.
QuantizedMatrix RandomMatrix(const QuantFormat& format, int64_t n, int64_t k) {
  QuantizedMatrix q;
  q.format = format;
  q.n = n;
  q.k = k;
  std::mt19937_64 rng(1);
  const bool plain = IsPlain(format.codec);
  const uint64_t mask = (uint64_t{1} << std::min(BitsOf(format.codec), 6)) - 1;
  q.codes.resize(static_cast<size_t>(n * k * (plain ? BitsOf(format.codec) / 8 : 1)));
  for (uint8_t& code : q.codes) code = static_cast<uint8_t>(rng() & mask);
  const size_t blocks = static_cast<size_t>(format.block.Count(n, k));
  if (format.scale == ScaleType::kNested) {
    q.nested_codes.assign(blocks, 100);
    q.nested_map.assign(256, 0.01f);
    q.nested_absmax.assign((blocks + 255) / 256, 1.0f);
  } else if (!plain) {
    q.scales.assign(blocks, 0.015625f);
  }
  if (format.zero != ZeroType::kNone) q.zeros.assign(blocks, 1.0f);
  if (format.reordered) {
    q.columns.resize(static_cast<size_t>(k));
    std::iota(q.columns.rbegin(), q.columns.rend(), 0);
  }
  return q;
}

/// Activations of a benchmark's name: "linear" takes x as it is.
struct Activations {
  const char* name;
  ActivationQuant quant;
  const char* format;  // the only one it is measured on; null: every one
};
using Kind = ActivationQuant::Kind;
const Activations kActivations[] = {
    {"linear", {}, nullptr},
    {"linear_int8_activations", {.kind = Kind::kInt8Outlier, .threshold = 6.0f}, "int8.row.absmax"},
    {"linear_int8_token", {.kind = Kind::kInt8Token}, "int8.row.bf16"},
    {"linear_fp8_token", {.kind = Kind::kFp8Token}, "e4m3.row.f32"},
    {"linear_fp8_group", {.kind = Kind::kFp8Group, .group = 128}, "e4m3.tile128x128.f32"},
};

Backend& Cpu() {
  static const std::unique_ptr<Backend> backend = CreateCpuBackend().value();
  return *backend;
}

void BM_Linear(benchmark::State& state, const std::string& format_name, Shape shape, int64_t m,
               const ActivationQuant& quant) {
  Backend& cpu = Cpu();
  const QuantFormat format = QuantFormat::Parse(format_name).value();
  const QuantizedMatrix q = RandomMatrix(format, shape.n, shape.k);
  std::vector<std::unique_ptr<PackedWeight>> weights;
  for (int64_t bytes = 0; bytes < kRotatedBytes; bytes += weights.back()->bytes()) {
    weights.push_back(
        cpu.CreatePacked(format, shape.k, {{"w", 0, shape.n}}, MemoryComponent::kWeights).value());
    if (!cpu.PackRows(*weights.back(), 0, q).ok()) std::abort();
  }
  const bool wide = format.codec == Codec::kF16 || format.codec == Codec::kF32;
  const DType dtype = wide ? DType::kF32 : DType::kBF16;
  const Buffer x =
      cpu.Allocate(static_cast<size_t>(m * shape.k) * SizeOf(dtype), MemoryComponent::kActivations)
          .value();
  const Buffer y =
      cpu.Allocate(static_cast<size_t>(m * shape.n) * SizeOf(dtype), MemoryComponent::kActivations)
          .value();
  for (int64_t i = 0; i < m * shape.k; ++i) {
    const float v = static_cast<float>(i % 31) * 0.01f - 0.15f;
    if (wide) {
      x.as<float>()[i] = v;
    } else {
      x.as<BF16>()[i] = BF16(v);
    }
  }
  size_t next = 0;
  for (auto _ : state) {
    cpu.Linear(*weights[next], quant, TensorView(dtype, x.data(), m, shape.k), nullptr,
               TensorView(dtype, y.data(), m, shape.n));
    next = (next + 1) % weights.size();
  }
  state.SetBytesProcessed(state.iterations() * weights[0]->bytes());
  state.counters["GFLOP/s"] = benchmark::Counter(
      2e-9 * static_cast<double>(shape.n * shape.k * m) * static_cast<double>(state.iterations()),
      benchmark::Counter::kIsRate);
}

const bool kRegistered = [] {
  for (const char* format : kFormats) {
    for (const Shape& shape : kShapes) {
      for (int64_t m : {1, 2, 4, 8, 16, 64, 512}) {
        for (const Activations& a : kActivations) {
          if (a.format != nullptr && std::string(a.format) != format) continue;
          const std::string name =
              std::string(a.name) + "/" + format + "/" + shape.name + "/m:" + std::to_string(m);
          benchmark::RegisterBenchmark(name.c_str(), BM_Linear, std::string(format), shape, m,
                                       a.quant)
              ->UseRealTime()
              ->Unit(benchmark::kMicrosecond);
        }
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace quantd
