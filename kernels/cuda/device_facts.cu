// MeasureDevice: copy and read bandwidth and the bf16 tensor-core rate of the GPU at hand. Not part
// of the backend: benchmarks compare its kernels with these, `quantd plan` computes with them.
//
// Copy and read: grid-stride loops of 16-byte accesses over 1 GiB, far beyond any L2. bf16 rate:
// mma.sync m16n8k16 from registers, eight independent accumulators a warp, every SM filled.
// mma.sync is what our own kernels use; wgmma on Hopper goes higher. Medians of 9.
#include "kernels/cuda/device_facts.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <vector>

namespace quantd::cuda {
namespace {

constexpr int kRuns = 9;
constexpr size_t kBytes = size_t{1} << 30;

__global__ void FactsCopyKernel(const uint4* __restrict__ in, uint4* __restrict__ out,
                                size_t count) {
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    out[i] = in[i];
  }
}

__global__ void FactsReadKernel(const uint4* __restrict__ in, uint32_t* sink, size_t count) {
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  uint32_t sum = 0;
#pragma unroll 8
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const uint4 v = in[i];
    sum ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  if (sum == 0x12345678u) *sink = sum;  // keeps the loop alive
}

__global__ void FactsMmaKernel(float* sink, int iterations) {
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

template <typename Launch>
double MedianSeconds(Launch launch) {
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
  std::nth_element(times.begin(), times.begin() + kRuns / 2, times.end());
  return times[kRuns / 2] * 1e-3;
}

constexpr size_t kCount = kBytes / sizeof(uint4);

int Blocks(int multiprocessors) { return multiprocessors * 8; }

double ReadRate(int multiprocessors, const uint4* in, uint32_t* sink) {
  return static_cast<double>(kBytes) / MedianSeconds([&] {
           FactsReadKernel<<<Blocks(multiprocessors), 512>>>(in, sink, kCount);
         });
}

void Measure(DeviceMeasurements& m, uint4* in, uint4* out) {
  cudaMemset(in, 1, kBytes);
  m.copy_bytes_per_second = 2 * static_cast<double>(kBytes) / MedianSeconds([&] {
                              FactsCopyKernel<<<Blocks(m.multiprocessors), 512>>>(in, out, kCount);
                            });
  m.read_bytes_per_second = ReadRate(m.multiprocessors, in, reinterpret_cast<uint32_t*>(out));
  constexpr int kIterations = 4096, kWarps = 8;
  const double flops = 2.0 * 16 * 8 * 16 * 8 * kIterations * kWarps * 2 * m.multiprocessors;
  m.mma_flops_per_second = flops / MedianSeconds([&] {
                             FactsMmaKernel<<<m.multiprocessors * 2, kWarps * 32>>>(
                                 reinterpret_cast<float*>(out), kIterations);
                           });
}

}  // namespace

DeviceMeasurements MeasureDevice() {
  DeviceMeasurements m;
  const auto failed = [&](cudaError_t error) {
    if (error != cudaSuccess && m.error.empty()) m.error = cudaGetErrorString(error);
    return error != cudaSuccess;
  };
  cudaDeviceProp p;
  if (failed(cudaGetDeviceProperties(&p, 0))) return m;
  m.name = p.name;
  m.major = p.major;
  m.minor = p.minor;
  m.multiprocessors = p.multiProcessorCount;
  m.shared_memory_per_block = static_cast<int64_t>(p.sharedMemPerBlockOptin);
  m.l2_bytes = p.l2CacheSize;
  m.memory_bytes = static_cast<int64_t>(p.totalGlobalMem);
  cudaDriverGetVersion(&m.driver);
  cudaRuntimeGetVersion(&m.runtime);
  uint4 *in = nullptr, *out = nullptr;
  if (!failed(cudaMalloc(&in, kBytes)) && !failed(cudaMalloc(&out, kBytes))) Measure(m, in, out);
  cudaFree(in);
  cudaFree(out);
  failed(cudaGetLastError());
  return m;
}

double MeasureReadBandwidth() {
  int multiprocessors = 0;
  if (cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0) != cudaSuccess) {
    return 0;
  }
  uint4* in = nullptr;
  double rate = 0;
  // The sink lies in what is read: nothing is written to it.
  if (cudaMalloc(&in, kBytes) == cudaSuccess && cudaMemset(in, 1, kBytes) == cudaSuccess) {
    rate = ReadRate(multiprocessors, in, reinterpret_cast<uint32_t*>(in));
  }
  cudaFree(in);
  return cudaGetLastError() == cudaSuccess ? rate : 0;
}

}  // namespace quantd::cuda
