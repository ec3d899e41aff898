// CublasLt by plain loops, in the stream's order. It refuses what cublaslt.cc refuses, and memory
// that is not the device's, which the library would crash on.
#include "kernels/cuda/cublaslt.h"

#include "kernels/cuda/emulation/global_memory.h"
#include "kernels/cuda/emulation/launch.h"
#include "kernels/quant/codecs.h"
#include "kernels/quant/float_types.h"
#include "kernels/status.h"

namespace quantd::cuda_emulated {
namespace {

float Load(const Matrix& v, int64_t row, int64_t col) {
  const int64_t at = row * v.stride + col;
  if (v.type == FloatType::kF16) return static_cast<float>(static_cast<const F16*>(v.data)[at]);
  return static_cast<float>(static_cast<const BF16*>(v.data)[at]);
}

void Store(const Matrix& v, int64_t row, int64_t col, float value) {
  const int64_t at = row * v.stride + col;
  switch (v.type) {
    case FloatType::kF32: static_cast<float*>(v.data)[at] = value; break;
    case FloatType::kF16: static_cast<F16*>(v.data)[at] = F16(value); break;
    case FloatType::kBF16: static_cast<BF16*>(v.data)[at] = BF16(value); break;
  }
}

absl::Status CheckDevice(const void* data, int64_t rows, int64_t cols, int64_t stride,
                         size_t element) {
  const auto bytes = static_cast<size_t>((rows - 1) * stride + cols) * element;
  if (KindOfRange("cuBLASLt", data, bytes) == MemoryKind::kDevice) return absl::OkStatus();
  return InvalidArgument("cuBLASLt: {} is not device memory", data);
}

absl::Status CheckDevice(const Matrix& v) {
  return CheckDevice(v.data, v.rows, v.cols, v.stride, v.type == FloatType::kF32 ? 4 : 2);
}

class EmulatedCublasLt final : public CublasLt {
 public:
  absl::Status Gemm16(Matrix x, Matrix w, Matrix y, void* workspace, Stream stream) override {
    RETURN_IF_ERROR(CheckGemm16(x, w, y, workspace));
    if (x.rows == 0) return absl::OkStatus();
    for (const Matrix& v : {x, w, y}) RETURN_IF_ERROR(CheckDevice(v));
    RETURN_IF_ERROR(CheckDevice(workspace, 1, kWorkspaceBytes, kWorkspaceBytes, 1));
    Enqueue(stream, [=] {
      for (int64_t i = 0; i < x.rows; ++i) {
        for (int64_t j = 0; j < w.rows; ++j) {
          float sum = 0.0f;
          for (int64_t c = 0; c < x.cols; ++c) sum += Load(x, i, c) * Load(w, j, c);
          Store(y, i, j, sum);
        }
      }
    });
    return absl::OkStatus();
  }

  absl::Status GemmInt8(const int8_t* x, int64_t ldx, const int8_t* w, int64_t ldw, int32_t* y,
                        int64_t ldy, int32_t m, int32_t n, int32_t k, void* workspace,
                        Stream stream) override {
    RETURN_IF_ERROR(CheckGemmInt8(x, ldx, w, ldw, y, ldy, m, n, k, workspace));
    if (m == 0) return absl::OkStatus();
    RETURN_IF_ERROR(CheckDevice(x, m, k, ldx, 1));
    RETURN_IF_ERROR(CheckDevice(w, n, k, ldw, 1));
    RETURN_IF_ERROR(CheckDevice(y, m, n, ldy, 4));
    RETURN_IF_ERROR(CheckDevice(workspace, 1, kWorkspaceBytes, kWorkspaceBytes, 1));
    Enqueue(stream, [=] {
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) {
          int32_t sum = 0;
          for (int64_t c = 0; c < k; ++c) sum += x[i * ldx + c] * w[j * ldw + c];
          y[i * ldy + j] = sum;
        }
      }
    });
    return absl::OkStatus();
  }

  absl::Status GemmFp8(const uint8_t* x, int64_t ldx, const uint8_t* w, int64_t ldw, float* y,
                       int64_t ldy, int32_t m, int32_t n, int32_t k, void* workspace,
                       Stream stream) override {
    RETURN_IF_ERROR(CheckGemmFp8(x, ldx, w, ldw, y, ldy, m, n, k, workspace));
    if (m == 0) return absl::OkStatus();
    RETURN_IF_ERROR(CheckDevice(x, m, k, ldx, 1));
    RETURN_IF_ERROR(CheckDevice(w, n, k, ldw, 1));
    RETURN_IF_ERROR(CheckDevice(y, m, n, ldy, 4));
    RETURN_IF_ERROR(CheckDevice(workspace, 1, kWorkspaceBytes, kWorkspaceBytes, 1));
    Enqueue(stream, [=] {
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) {
          float sum = 0.0f;
          for (int64_t c = 0; c < k; ++c) {
            sum += E4M3Codec::Decode(x[i * ldx + c]) * E4M3Codec::Decode(w[j * ldw + c]);
          }
          y[i * ldy + j] = sum;
        }
      }
    });
    return absl::OkStatus();
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<CublasLt>> CublasLt::Open() {
  return std::make_unique<EmulatedCublasLt>();
}

}  // namespace quantd::cuda_emulated
