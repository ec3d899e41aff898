// Memory of every backend, ref included: alignment, zeroing, refusal, booking, and how much more
// than a checkpoint a packed weight takes.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/kernels/conformance.h"

namespace quantd::testing {
namespace {

struct NamedBackend {
  std::string name;
  Backend* backend = nullptr;
  int64_t tile_columns = 1;
};

std::vector<NamedBackend> Backends() {
  std::vector<NamedBackend> backends = {{"ref", &Ref()}};
  for (size_t i : BackendIndices()) {
    const BackendUnderTest& b = BackendsUnderTest()[i];
    if (b.baseline.empty()) backends.push_back({b.name, &BackendAt(i), b.tile_columns});
  }
  return backends;
}

int64_t RoundUp(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

TEST(BackendMemory, IsAlignedZeroedAndBookedUntilFreed) {
  for (const auto& [name, backend, unused] : Backends()) {
    SCOPED_TRACE(name);
    const int64_t before = backend->memory().Bytes(MemoryComponent::kKvCache);
    for (size_t bytes :
         {size_t{1}, size_t{63}, size_t{4096}, size_t{1} << 20, (size_t{1} << 26) + 5}) {
      auto buffer = backend->Allocate(bytes, MemoryComponent::kKvCache);
      ASSERT_TRUE(buffer.ok());
      EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0u);
      EXPECT_GE(backend->memory().Bytes(MemoryComponent::kKvCache) - before,
                static_cast<int64_t>(bytes));
      std::vector<uint8_t> values(bytes, 1);
      backend->Download(buffer->data(), bytes, values.data());
      EXPECT_TRUE(std::all_of(values.begin(), values.end(), [](uint8_t b) { return b == 0; }))
          << bytes;
      values.assign(bytes, 0xee);  // the next one must be zeroed again
      backend->Upload(values.data(), bytes, buffer->data());
    }
    EXPECT_EQ(backend->memory().Bytes(MemoryComponent::kKvCache), before);
    EXPECT_TRUE(backend->Allocate(0, MemoryComponent::kKvCache).ok());
  }
}

TEST(BackendMemory, WhatDoesNotFitIsRefusedByName) {
  for (const auto& [name, backend, unused] : Backends()) {
    SCOPED_TRACE(name);
    const int64_t before = backend->memory().Total();
    const auto buffer = backend->Allocate(size_t{1} << 50, MemoryComponent::kKvCache);
    EXPECT_EQ(buffer.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_NE(std::string(buffer.status().message()).find("kv_cache"), std::string::npos);
    EXPECT_EQ(backend->memory().Total(), before);
  }
}

TEST(PackedWeightBytes, AreWithinFivePercentOfTheCheckpointAndBooked) {
  struct {
    std::vector<int64_t> segments;
    int64_t k;
  } const shapes[] = {{{384}, 384}, {{1000}, 400}, {{512, 128, 128}, 512}, {{513, 511}, 1024}};
  for (const char* text : {"f32",
                           "f16",
                           "bf16",
                           "int8.row.absmax",
                           "nf4.flat64.f32",
                           "nf4.flat64.nested",
                           "fp4.flat64.f32",
                           "fp4.flat64.nested",
                           "nf4.flat32.f32",
                           "fp4.flat128.nested",
                           "nf4.flat4096.f32",
                           "int4.group128.bf16",
                           "int4.group32.f16",
                           "int4.row.f16",
                           "uint4.group64.f16.zero_u8",
                           "uint4.group128.f16.zero_u8.reordered",
                           "int4.group32.bf16.offset_bf16",
                           "uint4.flat64.bf16.zero_bf16",
                           "uint4.strided64.f16.zero_f16",
                           "uint2.group64.f16.zero_u8",
                           "uint2.flat16.f32.zero_f32",
                           "uint8.group128.f16.zero_u8",
                           "int8.row.f32",
                           "int8.row.bf16",
                           "int8.group128.bf16",
                           "e4m3.row.f32",
                           "e4m3.tile128x128.f32",
                           "e4m3.tile128x128.bf16",
                           "e2m1.group16.e4m3"}) {
    const QuantFormat format = *QuantFormat::Parse(text);
    for (const auto& shape : shapes) {
      std::vector<QuantizedMatrix> matrices;
      for (int64_t n : shape.segments) {
        std::vector<float> values = RandomFloats(static_cast<size_t>(n * shape.k), 1);
        matrices.push_back(MatrixOf(format, values, n));
      }
      for (const auto& [name, backend, tile_columns] : Backends()) {
        int64_t stored = 0;
        for (int64_t n : shape.segments) {
          stored += format.StoredBytes(
              n, BitsOf(format.codec) == 4 ? RoundUp(shape.k, tile_columns) : shape.k);
        }
        SCOPED_TRACE(fmt::format("{} {} {}x{}", name, text, shape.segments.size(), shape.k));
        const MemoryAccount& account = backend->memory();
        const int64_t codes = account.Bytes(MemoryComponent::kWeights);
        const int64_t scales = account.Bytes(MemoryComponent::kScales);
        const auto weight = Pack(*backend, matrices);
        EXPECT_LE(static_cast<double>(weight->bytes()), 1.05 * static_cast<double>(stored));
        EXPECT_EQ(account.Bytes(MemoryComponent::kWeights) - codes +
                      account.Bytes(MemoryComponent::kScales) - scales,
                  weight->bytes());
        EXPECT_EQ(account.Bytes(MemoryComponent::kScales) > scales,
                  format.scale != ScaleType::kNone);
      }
    }
  }
}

}  // namespace
}  // namespace quantd::testing
