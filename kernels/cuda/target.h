// The two ways the sources of kernels/cuda are compiled, and what differs between them.
//
// By nvcc for the device: namespace quantd::cuda. By the host compiler against emulation/, which
// runs one fiber per CUDA thread (QUANTD_CUDA_EMULATED): namespace quantd::cuda_emulated.
// Everything in this folder, host code included, is compiled both ways from the same text; it opens
//
//   namespace quantd::QUANTD_CUDA_NS { ... }
//
// and uses of CUDA only what is below and in ptx.cuh and numeric.cuh:
//   LAUNCH((Kernel<A, B>), grid, block, shared_bytes, stream, args...)   no <<<>>>
//   DYN_SMEM(type, name)          the block's dynamic shared memory, 1024-byte aligned
//   __global__ __device__ __shared__ __forceinline__ __launch_bounds__ __restrict__, threadIdx,
//   blockIdx, blockDim, gridDim, __syncthreads, __syncwarp, __shfl_*_sync, __ballot_sync,
//   __any_sync,
//   __all_sync, __reduce_*_sync, atomicAdd/Max/Min/Or/Exch/CAS, __threadfence, __byte_perm, __ldg,
//   __popc, __clz, __ffs, __brev, __fdividef, __expf, exp2f, rsqrtf and the usual <cmath> in float.
// No kernel waits for another block: partial sums go to workspace, the last arriver adds them in
// order.
#pragma once

#ifdef QUANTD_CUDA_EMULATED
#define QUANTD_CUDA_NS cuda_emulated
#include "kernels/cuda/emulation/device.h"
#else
#define QUANTD_CUDA_NS cuda
#include <cuda_runtime_api.h>
#ifdef __CUDACC__
#include "kernels/cuda/launch.cuh"
#endif
#endif

namespace quantd::QUANTD_CUDA_NS {

#ifdef QUANTD_CUDA_EMULATED
using Stream = EmulatedStream*;
#else
using Stream = cudaStream_t;
#endif

}  // namespace quantd::QUANTD_CUDA_NS
