// What cuBLASLt is not asked for; see cublaslt.h. The rules are those of the library's own page on
// cublasLtMatmul ("regular" layouts, compute capability 9.0).
#include "kernels/cuda/cublaslt.h"

#include "kernels/status.h"

namespace quantd::QUANTD_CUDA_NS {
namespace {

bool Aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

absl::Status CheckWorkspace(const void* workspace) {
  if (workspace == nullptr || !Aligned(workspace, 256)) {
    return InvalidArgument("cuBLASLt: the workspace must be 256-byte aligned, it is at {}",
                           workspace);
  }
  return absl::OkStatus();
}

absl::Status CheckRows(const Matrix& v, std::string_view name) {
  const int64_t bytes = v.type == FloatType::kF32 ? 4 : 2;
  if (v.stride < v.cols || v.stride * bytes % 16 != 0 || !Aligned(v.data, 16)) {
    return InvalidArgument("cuBLASLt: rows of {} must be 16-byte aligned: at {}, {} bytes apart",
                           name, static_cast<const void*>(v.data), v.stride * bytes);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckGemm16(const Matrix& x, const Matrix& w, const Matrix& y, const void* workspace) {
  if (x.cols != w.cols || y.rows != x.rows || y.cols != w.rows || w.rows < 1 || x.cols < 1) {
    return InvalidArgument("cuBLASLt: x [{}, {}] * w [{}, {}]^T is not y [{}, {}]", x.rows, x.cols,
                           w.rows, w.cols, y.rows, y.cols);
  }
  if (x.type != w.type || x.type == FloatType::kF32 ||
      (y.type != x.type && y.type != FloatType::kF32)) {
    return InvalidArgument(
        "cuBLASLt: x and w must be f16 or both bf16, and y that type or f32; types {}, {}, {}",
        static_cast<int>(x.type), static_cast<int>(w.type), static_cast<int>(y.type));
  }
  if (x.cols % 8 != 0) return InvalidArgument("cuBLASLt: k {} is no multiple of 8", x.cols);
  RETURN_IF_ERROR(CheckRows(x, "x"));
  RETURN_IF_ERROR(CheckRows(w, "w"));
  RETURN_IF_ERROR(CheckRows(y, "y"));
  return CheckWorkspace(workspace);
}

absl::Status CheckGemmInt8(const int8_t* x, int64_t ldx, const int8_t* w, int64_t ldw,
                           const int32_t* y, int64_t ldy, int32_t m, int32_t n, int32_t k,
                           const void* workspace) {
  if (m < 0 || n < 1 || k < 1 || ldx < k || ldw < k || ldy < n) {
    return InvalidArgument("cuBLASLt: m {} n {} k {} with strides {}, {}, {}", m, n, k, ldx, ldw,
                           ldy);
  }
  if (n % 4 != 0 || k % 4 != 0 || ldx % 4 != 0 || ldw % 4 != 0 || ldy % 4 != 0) {
    return InvalidArgument(
        "cuBLASLt: an int8 product needs multiples of 4: n {} k {} strides {}, {}, {}", n, k, ldx,
        ldw, ldy);
  }
  if (!Aligned(x, 16) || !Aligned(w, 16) || !Aligned(y, 16)) {
    return InvalidArgument("cuBLASLt: an int8 product needs 16-byte aligned matrices: {}, {}, {}",
                           static_cast<const void*>(x), static_cast<const void*>(w),
                           static_cast<const void*>(y));
  }
  return CheckWorkspace(workspace);
}

absl::Status CheckGemmFp8(const uint8_t* x, int64_t ldx, const uint8_t* w, int64_t ldw,
                          const float* y, int64_t ldy, int32_t m, int32_t n, int32_t k,
                          const void* workspace) {
  if (m < 0 || n < 1 || k < 1 || ldx < k || ldw < k || ldy < n) {
    return InvalidArgument("cuBLASLt: m {} n {} k {} with strides {}, {}, {}", m, n, k, ldx, ldw,
                           ldy);
  }
  for (const int64_t size : {int64_t{m}, int64_t{n}, int64_t{k}, ldx, ldw, ldy}) {
    if (size % 16 == 0) continue;
    return InvalidArgument(
        "cuBLASLt: an fp8 product needs multiples of 16: m {} n {} k {} strides {}, {}, {}", m, n,
        k, ldx, ldw, ldy);
  }
  if (!Aligned(x, 16) || !Aligned(w, 16) || !Aligned(y, 16)) {
    return InvalidArgument("cuBLASLt: an fp8 product needs 16-byte aligned matrices: {}, {}, {}",
                           static_cast<const void*>(x), static_cast<const void*>(w),
                           static_cast<const void*>(y));
  }
  return CheckWorkspace(workspace);
}

}  // namespace quantd::QUANTD_CUDA_NS
