// mma and ldmatrix: fragments are filled by the tables of ptx.cuh, products compared with a double
// loop.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/cuda/numeric.cuh"
#include "tests/kernels/cuda/emulation/emulation_testing.h"

namespace quantd::cuda_emulated {
namespace {

uint32_t Pair(uint16_t low, uint16_t high) { return static_cast<uint32_t>(high) << 16 | low; }

// The 16-bit fragments of lane (g, t), as the table in ptx.cuh gives them.
void FillFragments16(const uint16_t* a, const uint16_t* b, unsigned lane, uint32_t (&fa)[4],
                     uint32_t (&fb)[2]) {
  const unsigned g = lane / 4, t = lane % 4;
  const auto a_at = [&](unsigned row, unsigned k) {
    return Pair(a[row * 16 + k], a[row * 16 + k + 1]);
  };
  fa[0] = a_at(g, 2 * t);
  fa[1] = a_at(g + 8, 2 * t);
  fa[2] = a_at(g, 2 * t + 8);
  fa[3] = a_at(g + 8, 2 * t + 8);
  fb[0] = Pair(b[2 * t * 8 + g], b[(2 * t + 1) * 8 + g]);
  fb[1] = Pair(b[(2 * t + 8) * 8 + g], b[(2 * t + 9) * 8 + g]);
}

template <bool kIsBF16>
void ExpectMma16() {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-2.0f, 2.0f);
  std::vector<uint16_t> a(16 * 16), b(16 * 8);
  std::vector<float> c(16 * 8), d(16 * 8);
  for (auto& v : a) v = kIsBF16 ? BitsOfBF16(uniform(random)) : BitsOfF16(uniform(random));
  for (auto& v : b) v = kIsBF16 ? BitsOfBF16(uniform(random)) : BitsOfF16(uniform(random));
  for (auto& v : c) v = uniform(random);
  RunKernel(1, 32, 0, [&] {
    const unsigned lane = threadIdx.x, g = lane / 4, t = lane % 4;
    uint32_t fa[4], fb[2];
    FillFragments16(a.data(), b.data(), lane, fa, fb);
    float acc[4];
    for (unsigned i = 0; i < 4; ++i) acc[i] = c[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
    if constexpr (kIsBF16) {
      MmaBF16(acc, fa, fb);
    } else {
      MmaF16(acc, fa, fb);
    }
    for (unsigned i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = acc[i];
  });
  const auto value = [](uint16_t bits) { return kIsBF16 ? FloatOfBF16(bits) : FloatOfF16(bits); };
  for (size_t row = 0; row < 16; ++row) {
    for (size_t col = 0; col < 8; ++col) {
      double sum = c[row * 8 + col], magnitude = std::abs(sum);
      for (size_t k = 0; k < 16; ++k) {
        const double term = double{value(a[row * 16 + k])} * double{value(b[k * 8 + col])};
        sum += term;
        magnitude += std::abs(term);
      }
      // 16 additions, each rounded to 24 bits; the products are exact.
      EXPECT_NEAR(d[row * 8 + col], sum, 16 * std::ldexp(magnitude, -24)) << row << " " << col;
    }
  }
}

TEST(MatrixTest, MmaBF16MultipliesTheFragmentsOfAWarp) { ForEachOrder(ExpectMma16<true>); }
TEST(MatrixTest, MmaF16MultipliesTheFragmentsOfAWarp) { ForEachOrder(ExpectMma16<false>); }

TEST(MatrixTest, MmaInt8MultipliesTheFragmentsOfAWarp) {
  ForEachOrder([] {
    std::mt19937 random(2);
    std::uniform_int_distribution<int> uniform(-128, 127);
    std::vector<int8_t> a(16 * 32), b(8 * 32);  // b by column: [8][32]
    std::vector<int32_t> c(16 * 8), d(16 * 8);
    for (auto& v : a) v = static_cast<int8_t>(uniform(random));
    for (auto& v : b) v = static_cast<int8_t>(uniform(random));
    for (auto& v : c) v = uniform(random) * 1000;
    RunKernel(1, 32, 0, [&] {
      const unsigned lane = threadIdx.x, g = lane / 4, t = lane % 4;
      uint32_t fa[4], fb[2];
      std::memcpy(&fa[0], &a[g * 32 + 4 * t], 4);
      std::memcpy(&fa[1], &a[(g + 8) * 32 + 4 * t], 4);
      std::memcpy(&fa[2], &a[g * 32 + 4 * t + 16], 4);
      std::memcpy(&fa[3], &a[(g + 8) * 32 + 4 * t + 16], 4);
      std::memcpy(&fb[0], &b[g * 32 + 4 * t], 4);
      std::memcpy(&fb[1], &b[g * 32 + 4 * t + 16], 4);
      int32_t acc[4];
      for (unsigned i = 0; i < 4; ++i) acc[i] = c[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
      MmaInt8(acc, fa, fb);
      for (unsigned i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = acc[i];
    });
    for (size_t row = 0; row < 16; ++row) {
      for (size_t col = 0; col < 8; ++col) {
        int sum = c[row * 8 + col];
        for (size_t k = 0; k < 32; ++k) sum += a[row * 32 + k] * b[col * 32 + k];
        EXPECT_EQ(d[row * 8 + col], sum);
      }
    }
  });
}

TEST(MatrixTest, LdMatrixGivesEachLaneItsPairOfEveryMatrix) {
  constexpr unsigned kStride = 24;  // elements from row to row: 48 bytes, 16-byte aligned
  ForEachOrder([] {
    for (bool transposed : {false, true}) {
      std::vector<uint32_t> got(32 * 4);
      RunKernel(1, 32, 32 * kStride * 2, [&] {
        DYN_SMEM(uint16_t, s);
        const unsigned lane = threadIdx.x;
        for (unsigned col = 0; col < 8; ++col) {
          s[lane * kStride + col] = static_cast<uint16_t>(lane * 256 + col);
        }
        __syncwarp();
        uint32_t r[4];
        if (transposed) {
          LdMatrix4Transposed(r, s + lane * kStride);
        } else {
          LdMatrix4(r, s + lane * kStride);
        }
        for (unsigned i = 0; i < 4; ++i) got[lane * 4 + i] = r[i];
      });
      for (unsigned lane = 0; lane < 32; ++lane) {
        for (unsigned i = 0; i < 4; ++i) {
          const unsigned g = lane / 4, c = lane % 4 * 2;
          const auto element = [&](unsigned row, unsigned col) {
            return (8 * i + row) * 256 + col;
          };
          const uint32_t expected = transposed ? element(c, g) | element(c + 1, g) << 16
                                               : element(g, c) | element(g, c + 1) << 16;
          EXPECT_EQ(got[lane * 4 + i], expected) << lane << " " << i;
        }
      }
    }
  });
}

TEST(MatrixTest, LdMatrixReadsWhatTheRowsHoldWhenAllLanesHaveArrived) {
  // Without a barrier between the writes and ldmatrix nothing is promised; with it all orders
  // agree.
  ForEachOrder([] {
    std::vector<uint32_t> got(32);
    RunKernel(1, 32, 512, [&] {
      DYN_SMEM(uint32_t, s);
      for (unsigned i = 0; i < 4; ++i) s[(31 - threadIdx.x) * 4 + i] = threadIdx.x;
      __syncwarp();
      uint32_t r[4];
      LdMatrix4(r, s + threadIdx.x * 4);
      got[threadIdx.x] = r[0];
    });
    for (unsigned lane = 0; lane < 32; ++lane) EXPECT_EQ(got[lane], 31 - lane / 4);
  });
}

TEST(MatrixDeathTest, AnMmaThatPartOfAWarpSkipsIsABug) {
  const auto kernel = [] {
    if (threadIdx.x == 3) return;
    float d[4] = {};
    const uint32_t a[4] = {}, b[2] = {};
    MmaBF16(d, a, b);
  };
  EXPECT_DEATH(RunKernel(1, 32, 0, kernel), "all 32 must take part");
}

TEST(MatrixDeathTest, AnMmaOfDivergedLanesIsABug) {
  const auto kernel = [] {
    float d[4] = {};
    const uint32_t a[4] = {}, b[2] = {};
    if (threadIdx.x < 16) {
      MmaF16(d, a, b);
    } else {
      MmaF16(d, a, b);
    }
  };
  EXPECT_DEATH(RunKernel(1, 32, 0, kernel), "mma f16 needs all lanes at one place");
}

TEST(MatrixDeathTest, LdMatrixChecksItsRows) {
  EXPECT_DEATH(RunKernel(1, 32, 1024,
                         [] {
                           DYN_SMEM(char, s);
                           uint32_t r[4];
                           LdMatrix4(r, s + threadIdx.x * 16 + 8);
                         }),
               "ldmatrix.*not aligned to 16");
  EXPECT_DEATH(RunKernel(1, 32, 500,
                         [] {
                           DYN_SMEM(char, s);
                           uint32_t r[4];
                           LdMatrix4(r, s + threadIdx.x * 16);
                         }),
               "ldmatrix.*bytes 496 to 512 of 500");
}

}  // namespace
}  // namespace quantd::cuda_emulated
