// cuBLASLt, found at run time: the only header that knows it. cublaslt_cuda.cc opens the library
// with dlopen; emulation/cublaslt_emulated.cc computes with plain loops. Both refuse, by the same
// functions, what the library refuses on Hopper, so that padding is done by us.
//
// All products are "TN" in cuBLASLt's column-major view: y [m, n] = x [m, k] * w [n, k]^T,
// everything row-major for us. One thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cuda/ops.h"

namespace quantd::QUANTD_CUDA_NS {

class CublasLt {
 public:
  virtual ~CublasLt() = default;

  /// UNAVAILABLE naming the places searched when there is no library (libcublasLt.so.13 or .12):
  /// the environment variable QUANTD_CUBLASLT (the library or its folder; then nothing else is
  /// tried), the loader's path, CUDA_HOME, /usr/local/cuda, and the nvidia/*/lib folders of
  /// Python's packages (VIRTUAL_ENV, CONDA_PREFIX, ~/.local, /usr/local, /usr).
  static absl::StatusOr<std::unique_ptr<CublasLt>> Open();

  /// Bytes of workspace every call may use; 256-byte aligned.
  static constexpr size_t kWorkspaceBytes = size_t{32} << 20;

  /// x, w 16-bit of one type; y of their type or f32; f32 sums. INVALID_ARGUMENT unless shapes fit,
  /// k is a multiple of 8, rows are 16-byte aligned (pointers and strides).
  virtual absl::Status Gemm16(Matrix x, Matrix w, Matrix y, void* workspace, Stream stream) = 0;

  /// y int32 [m, n] (row stride ldy) = x int8 [m, k] (ldx) * w int8 [n, k]^T (ldw).
  /// INVALID_ARGUMENT unless k, n, ldx, ldw and ldy are multiples of 4 and pointers are 16-byte
  /// aligned. There is no other type of y: cuBLASLt rounds int8 products to int8 or not at all.
  virtual absl::Status GemmInt8(const int8_t* x, int64_t ldx, const int8_t* w, int64_t ldw,
                                int32_t* y, int64_t ldy, int32_t m, int32_t n, int32_t k,
                                void* workspace, Stream stream) = 0;

  /// y f32 [m, n] (ldy) = x e4m3 [m, k] (ldx) * w e4m3 [n, k]^T (ldw), not scaled, f32 sums;
  /// compute capability 8.9 or later. INVALID_ARGUMENT unless m, n, k and the strides are multiples
  /// of 16 and pointers are 16-byte aligned.
  virtual absl::Status GemmFp8(const uint8_t* x, int64_t ldx, const uint8_t* w, int64_t ldw,
                               float* y, int64_t ldy, int32_t m, int32_t n, int32_t k,
                               void* workspace, Stream stream) = 0;
};

/// What CublasLt refuses: INVALID_ARGUMENT, or OK.
absl::Status CheckGemm16(const Matrix& x, const Matrix& w, const Matrix& y, const void* workspace);
absl::Status CheckGemmInt8(const int8_t* x, int64_t ldx, const int8_t* w, int64_t ldw,
                           const int32_t* y, int64_t ldy, int32_t m, int32_t n, int32_t k,
                           const void* workspace);
absl::Status CheckGemmFp8(const uint8_t* x, int64_t ldx, const uint8_t* w, int64_t ldw,
                          const float* y, int64_t ldy, int32_t m, int32_t n, int32_t k,
                          const void* workspace);

}  // namespace quantd::QUANTD_CUDA_NS
