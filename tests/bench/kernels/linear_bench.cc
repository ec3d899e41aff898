// Linear of the cpu backend: op/format/shape/m, as bytes of weights and floating-point operations a
// second. Each iteration takes the next of several copies of the weight, together larger than any
// cache, as a decode step does. Compare GB/s with memory_bench's read bandwidth of the same run.
//
//   kernels_bench --benchmark_filter='linear/nf4.*' --benchmark_min_time=0.3
#include <benchmark/benchmark.h>

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
// A 1.1-billion-parameter decoder: hidden 2048, intermediate 5632, 32 heads, 4 KV heads.
constexpr Shape kShapes[] = {{"qkv", 2560, 2048}, {"gate_up", 11264, 2048}, {"down", 2048, 5632}};
constexpr const char* kFormats[] = {
    "nf4.flat64.f32", "nf4.flat64.nested", "int8.row.f32", "bf16", "f16", "f32"};

/// Random codes, not a quantized matrix: speed does not depend on the values.
QuantizedMatrix RandomMatrix(const QuantFormat& format, int64_t n, int64_t k) {
  QuantizedMatrix q;
  q.format = format;
  q.n = n;
  q.k = k;
  std::mt19937_64 rng(1);
  const bool plain = IsPlain(format.codec);
  q.codes.resize(static_cast<size_t>(n * k * (plain ? BitsOf(format.codec) / 8 : 1)));
  for (uint8_t& code : q.codes)
    code = static_cast<uint8_t>(BitsOf(format.codec) == 4 ? rng() & 15 : rng() & 63);
  const size_t blocks =
      format.block.kind == BlockShape::Kind::kFlat
          ? static_cast<size_t>((n * k + format.block.size - 1) / format.block.size)
          : static_cast<size_t>(n);
  if (format.scale == ScaleType::kNested) {
    q.nested_codes.assign(blocks, 100);
    q.nested_map.assign(256, 0.01f);
    q.nested_absmax.assign((blocks + 255) / 256, 1.0f);
  } else if (!plain) {
    q.scales.assign(blocks, 0.01f);
  }
  return q;
}

Backend& Cpu() {
  static const std::unique_ptr<Backend> backend = CreateCpuBackend().value();
  return *backend;
}

void BM_Linear(benchmark::State& state, const std::string& format_name, Shape shape, int64_t m,
               bool int8) {
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
  ActivationQuant quant;
  if (int8)
    quant = {ActivationQuant::Kind::kInt8Outlier, 6.0f, ActivationQuant::OutlierScope::kRow};
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
      for (int64_t m : {1, 2, 4, 8, 16, 512}) {
        const std::string tail = std::string(format) + "/" + shape.name + "/m:" + std::to_string(m);
        const auto add = [&](const std::string& name, bool int8) {
          benchmark::RegisterBenchmark((name + tail).c_str(), BM_Linear, std::string(format), shape,
                                       m, int8)
              ->UseRealTime()
              ->Unit(benchmark::kMicrosecond);
        };
        add("linear/", false);
        if (std::string(format) == "int8.row.f32") add("linear_int8_activations/", true);
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace quantd
