// device_facts: prints what the GPU at hand is and what it really does: name, SMs, copy bandwidth,
// bf16 tensor-core rate. A small program of its own, so that it runs wherever a driver is; `./dev
// gpu`.
//
// Copy bandwidth: a grid-stride copy kernel over 1 GiB (read + write counted), median of 9.
// bf16 rate: mma.sync m16n8k16 from registers, every SM filled, median of 9. mma.sync is what our
// own kernels use; wgmma on Hopper goes higher.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

namespace {

constexpr int kRuns = 9;

__global__ void CopyKernel(const uint4* __restrict__ in, uint4* __restrict__ out, size_t count) {
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    out[i] = in[i];
  }
}

// Eight independent accumulators hide the latency of mma.sync.
__global__ void MmaKernel(float* sink, int iterations) {
  float c[8][4] = {};
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = threadIdx.x + i;
  for (int i = 0; i < 2; ++i) b[i] = threadIdx.x * 3 + i;
  for (int it = 0; it < iterations; ++it) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
          "{%8,%9}, "
          "{%0,%1,%2,%3};"
          : "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
  }
  float sum = 0;
  for (int j = 0; j < 8; ++j) sum += c[j][0] + c[j][1] + c[j][2] + c[j][3];
  if (sum == 12345.678f) *sink = sum;  // keeps the loop alive
}

bool Ok(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    std::fprintf(stderr, "device_facts: %s: %s\n", what, cudaGetErrorString(error));
  return error == cudaSuccess;
}

template <typename Launch>
float MedianMilliseconds(Launch launch) {
  cudaEvent_t start, stop;
  cudaEventCreate(&start);
  cudaEventCreate(&stop);
  launch();  // warm up
  std::vector<float> times;
  for (int i = 0; i < kRuns; ++i) {
    cudaEventRecord(start);
    launch();
    cudaEventRecord(stop);
    cudaEventSynchronize(stop);
    float ms = 0;
    cudaEventElapsedTime(&ms, start, stop);
    times.push_back(ms);
  }
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

}  // namespace

int main() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    std::printf("no GPU here: %s\n",
                error == cudaSuccess ? "the driver lists none" : cudaGetErrorString(error));
    return 0;
  }
  cudaDeviceProp p{};
  if (!Ok(cudaGetDeviceProperties(&p, 0), "cudaGetDeviceProperties")) return 1;
  size_t free_bytes = 0, total_bytes = 0;
  if (!Ok(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo")) return 1;
  std::printf(
      "name            %s\ncompute         %d.%d\nSMs             %d\nshared/block    %zu KiB\nL2  "
      "            %d MiB\n",
      p.name, p.major, p.minor, p.multiProcessorCount, p.sharedMemPerBlockOptin / 1024,
      p.l2CacheSize >> 20);
  std::printf("memory          %.1f GiB free of %.1f GiB\n",
              static_cast<double>(free_bytes) / (1 << 30),
              static_cast<double>(total_bytes) / (1 << 30));

  const size_t bytes = size_t{1} << 30;
  uint4 *in = nullptr, *out = nullptr;
  if (!Ok(cudaMalloc(&in, bytes), "cudaMalloc") || !Ok(cudaMalloc(&out, bytes), "cudaMalloc"))
    return 1;
  cudaMemset(in, 1, bytes);
  const int blocks = p.multiProcessorCount * 8;
  const float copy_ms =
      MedianMilliseconds([&] { CopyKernel<<<blocks, 512>>>(in, out, bytes / sizeof(uint4)); });
  std::printf("copy            %.0f GB/s\n", 2.0 * static_cast<double>(bytes) / copy_ms / 1e6);

  const int iterations = 4096, warps = 8;
  const float mma_ms = MedianMilliseconds([&] {
    MmaKernel<<<p.multiProcessorCount * 2, warps * 32>>>(reinterpret_cast<float*>(out), iterations);
  });
  const double flops = 2.0 * 16 * 8 * 16 * 8 * iterations * warps * 2 * p.multiProcessorCount;
  std::printf("bf16 mma.sync   %.0f TFLOP/s\n", flops / mma_ms / 1e9);
  cudaFree(in);
  cudaFree(out);
  return Ok(cudaGetLastError(), "kernels") ? 0 : 1;
}
