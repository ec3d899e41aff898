// CublasLt as far as it goes without the library: what is refused, and that the emulated one
// computes what is not, in the stream's order.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/runtime.h"
#include "kernels/quant/codecs.h"
#include "kernels/quant/float_types.h"

namespace quantd::cuda_emulated {
namespace {

class CublasLtTest : public ::testing::Test {
 protected:
  static constexpr size_t kBytes = 1 << 16;  // of each operand

  void SetUp() override {
    auto library = CublasLt::Open();
    ASSERT_TRUE(library.ok());
    library_ = *std::move(library);
    stream_ = CreateStream();
    for (unsigned char** p : {&x_, &w_, &y_}) {
      *p = static_cast<unsigned char*>(DeviceAllocate(kBytes));
      std::memset(*p, 0, kBytes);
    }
    workspace_ = DeviceAllocate(CublasLt::kWorkspaceBytes);
  }
  void TearDown() override {
    EXPECT_TRUE(Synchronize(stream_).ok());
    for (void* p :
         {static_cast<void*>(x_), static_cast<void*>(w_), static_cast<void*>(y_), workspace_}) {
      DeviceFree(p);
    }
    DestroyStream(stream_);
  }

  static Matrix Of(FloatType type, void* data, int32_t rows, int32_t cols, int64_t stride) {
    return {type, data, rows, cols, stride};
  }
  absl::Status Int8(int64_t ldx, int64_t ldw, int64_t ldy, int32_t m, int32_t n, int32_t k,
                    size_t x_offset = 0, size_t y_offset = 0) {
    return library_->GemmInt8(
        reinterpret_cast<int8_t*>(x_ + x_offset), ldx, reinterpret_cast<int8_t*>(w_), ldw,
        reinterpret_cast<int32_t*>(y_ + y_offset), ldy, m, n, k, workspace_, stream_);
  }

  std::unique_ptr<CublasLt> library_;
  Stream stream_{};
  unsigned char *x_ = nullptr, *w_ = nullptr, *y_ = nullptr;
  void* workspace_ = nullptr;
};

TEST_F(CublasLtTest, Int8ProductsAreComputedWhenTheStreamGetsThere) {
  constexpr int32_t kM = 5, kN = 8, kK = 36, kLdx = 64, kLdw = 40, kLdy = 12;
  auto *x = reinterpret_cast<int8_t*>(x_), *w = reinterpret_cast<int8_t*>(w_);
  auto* y = reinterpret_cast<int32_t*>(y_);
  for (int i = 0; i < kM * kLdx; ++i) x[i] = static_cast<int8_t>(i * 37 % 255 - 127);
  for (int i = 0; i < kN * kLdw; ++i) w[i] = static_cast<int8_t>(i * 101 % 255 - 127);
  for (int i = 0; i < kM * kLdy; ++i) y[i] = 77;
  ASSERT_TRUE(Int8(kLdx, kLdw, kLdy, kM, kN, kK).ok());
  EXPECT_EQ(y[0], 77) << "before the host waited";
  ASSERT_TRUE(Synchronize(stream_).ok());
  for (int r = 0; r < kM; ++r) {
    for (int c = 0; c < kLdy; ++c) {
      int32_t sum = c < kN ? 0 : 77;
      for (int i = 0; i < kK && c < kN; ++i) sum += x[r * kLdx + i] * w[c * kLdw + i];
      ASSERT_EQ(y[r * kLdy + c], sum) << "row " << r << " column " << c;
    }
  }
}

TEST_F(CublasLtTest, SixteenBitProductsAreSummedInF32AndRoundedToTheTypeOfY) {
  constexpr int32_t kM = 3, kN = 5, kK = 24;
  auto* x = reinterpret_cast<BF16*>(x_);
  auto* w = reinterpret_cast<BF16*>(w_);
  for (int i = 0; i < kM * kK; ++i) x[i] = BF16(std::sin(static_cast<float>(i)));
  for (int i = 0; i < kN * kK; ++i) w[i] = BF16(std::cos(static_cast<float>(3 * i)));
  const Matrix xm = Of(FloatType::kBF16, x_, kM, kK, kK), wm = Of(FloatType::kBF16, w_, kN, kK, kK);
  ASSERT_TRUE(
      library_->Gemm16(xm, wm, Of(FloatType::kF32, y_, kM, kN, 8), workspace_, stream_).ok());
  ASSERT_TRUE(
      library_->Gemm16(xm, wm, Of(FloatType::kBF16, y_ + 4096, kM, kN, 8), workspace_, stream_)
          .ok());
  ASSERT_TRUE(Synchronize(stream_).ok());
  for (int r = 0; r < kM; ++r) {
    for (int c = 0; c < kN; ++c) {
      double sum = 0.0;
      for (int i = 0; i < kK; ++i) {
        sum += double{static_cast<float>(x[r * kK + i])} * static_cast<float>(w[c * kK + i]);
      }
      // 24 products of at most 1, each rounded once and added once.
      EXPECT_NEAR(reinterpret_cast<float*>(y_)[r * 8 + c], sum, 24 * 24 * 0x1p-24);
      EXPECT_NEAR(static_cast<float>(reinterpret_cast<BF16*>(y_ + 4096)[r * 8 + c]), sum,
                  std::fabs(sum) * 0x1p-8 + 24 * 24 * 0x1p-24);
    }
  }
}

TEST_F(CublasLtTest, Int8RefusesWhatTheLibraryRefuses) {
  ASSERT_TRUE(Int8(64, 64, 16, 3, 8, 64).ok());
  EXPECT_TRUE(Int8(64, 64, 16, 0, 8, 64).ok()) << "no rows";
  const absl::Status refused[] = {
      Int8(64, 64, 16, 3, 7, 64),        // n
      Int8(64, 64, 16, 3, 8, 62),        // k
      Int8(65, 64, 16, 3, 8, 64),        // ldx
      Int8(64, 66, 16, 3, 8, 64),        // ldw
      Int8(64, 64, 9, 3, 8, 64),         // ldy
      Int8(60, 64, 16, 3, 8, 64),        // rows overlap
      Int8(64, 64, 4, 3, 8, 64),         // rows of y overlap
      Int8(64, 64, 16, 3, 8, 64, 4),     // x
      Int8(64, 64, 16, 3, 8, 64, 0, 8),  // y
      library_->GemmInt8(reinterpret_cast<int8_t*>(x_), 64, reinterpret_cast<int8_t*>(w_), 64,
                         reinterpret_cast<int32_t*>(y_), 16, 3, 8, 64, nullptr, stream_),
  };
  for (const absl::Status& status : refused) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument)
        << &status - refused << " " << status;
  }
}

TEST_F(CublasLtTest, SixteenBitRefusesWhatTheLibraryRefuses) {
  constexpr FloatType kBF16 = FloatType::kBF16, kF16 = FloatType::kF16, kF32 = FloatType::kF32;
  const auto gemm = [&](Matrix x, Matrix w, Matrix y) {
    return library_->Gemm16(x, w, y, workspace_, stream_);
  };
  const Matrix x = Of(kBF16, x_, 3, 64, 64), w = Of(kBF16, w_, 5, 64, 64);
  ASSERT_TRUE(gemm(x, w, Of(kF32, y_, 3, 5, 8)).ok());
  const absl::Status refused[] = {
      gemm(x, Of(kF16, w_, 5, 64, 64), Of(kF32, y_, 3, 5, 8)),  // two types
      gemm(x, w, Of(kF16, y_, 3, 5, 8)),                        // y of a third
      gemm(Of(kF32, x_, 3, 64, 64), Of(kF32, w_, 5, 64, 64), Of(kF32, y_, 3, 5, 8)),
      gemm(Of(kBF16, x_, 3, 60, 64), Of(kBF16, w_, 5, 60, 64), Of(kF32, y_, 3, 5, 8)),  // k
      gemm(Of(kBF16, x_, 3, 64, 68), w, Of(kF32, y_, 3, 5, 8)),  // stride of x
      gemm(x, w, Of(kF32, y_, 3, 5, 5)),                         // stride of y
      gemm(Of(kBF16, x_ + 2, 3, 64, 64), w, Of(kF32, y_, 3, 5, 8)),
      gemm(x, w, Of(kF32, y_, 4, 5, 8)),  // rows of y
      gemm(x, w, Of(kF32, y_, 3, 6, 8)),  // columns of y
  };
  for (const absl::Status& status : refused) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument)
        << &status - refused << " " << status;
  }
}

TEST_F(CublasLtTest, Fp8ProductsAreSummedInF32AndPaddingIsAskedFor) {
  constexpr int32_t kM = 16, kN = 32, kK = 48;
  for (int i = 0; i < 64 * 64; ++i) {
    x_[i] = static_cast<uint8_t>(i * 37 % 0x78);
    w_[i] = static_cast<uint8_t>(0x80 * (i % 2) + i * 11 % 0x78);
  }
  auto* const y = reinterpret_cast<float*>(y_);
  const auto gemm = [&](int64_t ldx, int64_t ldw, int64_t ldy, int32_t m, int32_t n, int32_t k,
                        size_t offset = 0) {
    return library_->GemmFp8(x_ + offset, ldx, w_, ldw, y, ldy, m, n, k, workspace_, stream_);
  };
  ASSERT_TRUE(gemm(64, 48, 48, kM, kN, kK).ok());
  ASSERT_TRUE(Synchronize(stream_).ok());
  for (int r = 0; r < kM; ++r) {
    for (int c = 0; c < kN; ++c) {
      double sum = 0.0, magnitude = 0.0;
      for (int i = 0; i < kK; ++i) {
        const double product =
            double{E4M3Codec::Decode(x_[r * 64 + i])} * double{E4M3Codec::Decode(w_[c * 48 + i])};
        sum += product;
        magnitude += std::fabs(product);
      }
      EXPECT_NEAR(y[r * 48 + c], sum, magnitude * kK * 0x1p-24);
    }
  }
  for (const absl::Status& refused :
       {gemm(64, 48, 48, 17, kN, kK), gemm(64, 48, 48, kM, 24, kK), gemm(64, 48, 48, kM, kN, 40),
        gemm(56, 48, 48, kM, kN, kK), gemm(64, 56, 48, kM, kN, kK), gemm(64, 48, 36, kM, kN, kK),
        gemm(32, 48, 48, kM, kN, kK), gemm(64, 48, 48, kM, kN, kK, 8)}) {
    EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument) << refused;
  }
}

TEST_F(CublasLtTest, MemoryOfTheHostIsRefused) {
  alignas(16) int8_t host[64] = {};
  EXPECT_EQ(library_
                ->GemmInt8(host, 64, reinterpret_cast<int8_t*>(w_), 64,
                           reinterpret_cast<int32_t*>(y_), 8, 1, 8, 64, workspace_, stream_)
                .code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace quantd::cuda_emulated
