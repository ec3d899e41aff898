#include "kernels/cuda/emulation/ptx_emulated.h"

#include <cstring>
#include <type_traits>

#include "kernels/cuda/emulation/global_memory.h"
#include "kernels/cuda/emulation/shared_memory.h"
#include "kernels/quant/float_types.h"

namespace quantd::cuda_emulated {
namespace {

constexpr uint32_t kFullWarp = ~0u;

// ---- mma: the last lane to arrive multiplies for all, from and to the registers of each ----
int32_t AddInt32(int32_t a, int32_t b) {  // wraps, as the tensor core does without .satfinite
  return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
}

template <typename D>
struct MmaSlot {
  D* d;
  const uint32_t* a;
  const uint32_t* b;
};

struct BF16Operands {
  using Sum = float;
  static constexpr int kDepth = 16, kPerRegister = 2;
  static float Get(uint32_t reg, int i) {
    return std::bit_cast<float>(i == 0 ? reg << 16 : reg & 0xFFFF0000u);
  }
};
struct F16Operands {
  using Sum = float;
  static constexpr int kDepth = 16, kPerRegister = 2;
  static float Get(uint32_t reg, int i) {
    F16 h;
    h.bits = static_cast<uint16_t>(reg >> 16 * i);
    return static_cast<float>(h);
  }
};
// In f32 too, which holds 32 products of int8 exactly (2^19 of 2^24) and is quicker on SSE2.
struct Int8Operands {
  using Sum = int32_t;
  static constexpr int kDepth = 32, kPerRegister = 4;
  static float Get(uint32_t reg, int i) { return static_cast<int8_t>(reg >> 8 * i); }
};

// Not instrumented: it touches registers of fibers and its own arrays, and takes most of the time
// of a test with sanitizers.
template <typename Operands>
[[gnu::no_sanitize("address", "undefined")]] void RunMma(void* const* slots, uint32_t lanes) {
  using Sum = typename Operands::Sum;
  constexpr int kDepth = Operands::kDepth, kPer = Operands::kPerRegister;
  if (lanes != kFullWarp) Fatal("mma with lanes 0x%08x of a warp: all 32 must take part", lanes);
  // Four columns at a time: the compiler does not find that by itself at -O2.
  using Four [[gnu::vector_size(16)]] = float;
  float a[16][kDepth];
  Four b[kDepth][2], sums[16][2];
  for (int lane = 0; lane < 32; ++lane) {
    const auto* const slot = static_cast<const MmaSlot<Sum>*>(slots[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < kPer; ++i) {
      const int low = kPer * t + i, high = low + kDepth / 2;
      a[g][low] = Operands::Get(slot->a[0], i);
      a[g + 8][low] = Operands::Get(slot->a[1], i);
      a[g][high] = Operands::Get(slot->a[2], i);
      a[g + 8][high] = Operands::Get(slot->a[3], i);
      b[low][g / 4][g % 4] = Operands::Get(slot->b[0], i);
      b[high][g / 4][g % 4] = Operands::Get(slot->b[1], i);
    }
    for (int i = 0; i < 4; ++i) {
      sums[g + i / 2 * 8][t / 2][t % 2 * 2 + i % 2] = std::is_same_v<Sum, float> ? slot->d[i] : 0;
    }
  }
  for (int row = 0; row < 16; ++row) {
    Four left = sums[row][0], right = sums[row][1];
    for (int k = 0; k < kDepth; ++k) {
      left += a[row][k] * b[k][0];
      right += a[row][k] * b[k][1];
    }
    sums[row][0] = left;
    sums[row][1] = right;
  }
  for (int lane = 0; lane < 32; ++lane) {
    auto* const slot = static_cast<MmaSlot<Sum>*>(slots[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const float sum = sums[g + i / 2 * 8][t / 2][t % 2 * 2 + i % 2];
      if constexpr (std::is_same_v<Sum, float>) {
        slot->d[i] = sum;
      } else {
        slot->d[i] = AddInt32(slot->d[i], static_cast<int32_t>(sum));
      }
    }
  }
}

constexpr Collective kMmaBF16{"mma bf16", RunMma<BF16Operands>, true};
constexpr Collective kMmaF16{"mma f16", RunMma<F16Operands>, true};
constexpr Collective kMmaInt8{"mma int8", RunMma<Int8Operands>, true};

// ---- ldmatrix ----
struct LdMatrixSlot {
  uint32_t* r;
  const unsigned char* row;  // 16 bytes of shared memory
};

template <bool kTransposed>
void RunLdMatrix(void* const* slots, uint32_t lanes) {
  if (lanes != kFullWarp) {
    Fatal("ldmatrix with lanes 0x%08x of a warp: all 32 must take part", lanes);
  }
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t m[8][8];
    for (int row = 0; row < 8; ++row) {
      std::memcpy(m[row], static_cast<const LdMatrixSlot*>(slots[8 * matrix + row])->row, 16);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, c = lane % 4 * 2;
      const uint32_t low = kTransposed ? m[c][g] : m[g][c];
      const uint32_t high = kTransposed ? m[c + 1][g] : m[g][c + 1];
      static_cast<LdMatrixSlot*>(slots[lane])->r[matrix] = low | high << 16;
    }
  }
}

constexpr Collective kLdMatrix{"ldmatrix", RunLdMatrix<false>, true};
constexpr Collective kLdMatrixTransposed{"ldmatrix.trans", RunLdMatrix<true>, true};

void CollectLdMatrix(const Collective& collective, uint32_t* r, const void* row, Site site) {
  CheckedSharedAddress(collective.name, row, 16, 16, site);
  LdMatrixSlot slot{r, static_cast<const unsigned char*>(row)};
  Collect(collective, kFullWarp, &slot, site);
}

void StartAsyncCopy(void* shared, const void* global, int source_bytes, int bytes, Site site) {
  if (source_bytes < 0 || source_bytes > bytes) {
    Fatal("cp.async at %s:%u: %d source bytes of %d", site.file_name(), site.line(), source_bytes,
          bytes);
  }
  const auto alignment = static_cast<size_t>(bytes);
  CheckedSharedAddress("cp.async", shared, alignment, alignment, site);
  CheckGlobal("cp.async", global, static_cast<size_t>(source_bytes), alignment, site);
  std::memset(shared, 0xCD, alignment);
  t_thread->copies.copies.push_back({shared, global, source_bytes, bytes});
}

}  // namespace

uint32_t SharedAddress(const void* p, Site site) {
  return CheckedSharedAddress("SharedAddress", p, 0, 1, site);
}

void MmaBF16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  MmaSlot<float> slot{d, a, b};
  Collect(kMmaBF16, kFullWarp, &slot, site);
}
void MmaF16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  MmaSlot<float> slot{d, a, b};
  Collect(kMmaF16, kFullWarp, &slot, site);
}
void MmaInt8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  MmaSlot<int32_t> slot{d, a, b};
  Collect(kMmaInt8, kFullWarp, &slot, site);
}

void LdMatrix4(uint32_t (&r)[4], const void* row, Site site) {
  CollectLdMatrix(kLdMatrix, r, row, site);
}
void LdMatrix4Transposed(uint32_t (&r)[4], const void* row, Site site) {
  CollectLdMatrix(kLdMatrixTransposed, r, row, site);
}

void CpAsync16(void* shared, const void* global, int source_bytes, Site site) {
  StartAsyncCopy(shared, global, source_bytes, 16, site);
}
void CpAsync4(void* shared, const void* global, int source_bytes, Site site) {
  StartAsyncCopy(shared, global, source_bytes, 4, site);
}

void CpAsyncCommit() {
  AsyncCopies& c = t_thread->copies;
  c.group_ends.push_back(c.copies.size());
}

void FinishAsyncCopies(size_t pending) {
  AsyncCopies& c = t_thread->copies;
  while (c.group_ends.size() - c.next_group > pending) {
    for (const size_t end = c.group_ends[c.next_group++]; c.next_copy < end; ++c.next_copy) {
      const AsyncCopies::Copy& copy = c.copies[c.next_copy];
      const auto bytes = static_cast<size_t>(copy.source_bytes);
      auto* const to = static_cast<unsigned char*>(copy.to);
      if (bytes != 0) std::memcpy(to, copy.from, bytes);
      std::memset(to + bytes, 0, static_cast<size_t>(copy.bytes) - bytes);
    }
  }
  if (c.next_copy == c.copies.size() && c.next_group == c.group_ends.size()) c.Clear();
}

uint4 LoadStreaming(const void* global, Site site) {
  CheckGlobal("LoadStreaming", global, 16, 16, site);
  uint4 v;
  std::memcpy(&v, global, 16);
  return v;
}

uint32_t LoadShared(uint32_t address, Site site) {
  uint32_t v = 0;
  std::memcpy(&v, CheckedSharedPointer("LoadShared", address, 4, 4, site), 4);
  return v;
}

}  // namespace quantd::cuda_emulated
