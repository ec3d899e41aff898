// What target.h includes when kernels are compiled for the CPU: CUDA's keywords, built-in
// variables, vector types, intrinsics, LAUNCH and DYN_SMEM. See README.md in this folder.
//
// Keywords and built-in variables are macros; all else lives in quantd::cuda_emulated. Needs no
// CUDA.
#pragma once

#include <math.h>  // so that fabsf, isfinite and the like are found unqualified, as in CUDA

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/cuda/emulation/fibers.h"
#include "kernels/cuda/emulation/intrinsics.h"
#include "kernels/cuda/emulation/launch.h"
#include "kernels/cuda/emulation/vector_types.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
// libstdc++ writes __attribute__((__noinline__)): empty keeps both uses valid.
#define __noinline__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// One block at a time runs on an OS thread, so its static shared memory is the OS thread's.
#define __shared__ static thread_local

#define threadIdx (::quantd::cuda_emulated::t_thread->index)
#define blockIdx (::quantd::cuda_emulated::t_block.index)
#define blockDim (::quantd::cuda_emulated::t_block.dim)
#define gridDim (::quantd::cuda_emulated::t_block.grid)
#define warpSize 32
