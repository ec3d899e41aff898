// Memory of every backend, ref included: alignment, zeroing, refusal, booking, and how much more
// than a checkpoint a packed weight takes.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/kernels/conformance.h"

namespace quantd {
namespace {

using testing::BackendAt;
using testing::BackendIndices;
using testing::BackendsUnderTest;
using testing::MatrixOf;
using testing::Pack;
using testing::RandomFloats;
using testing::Ref;

std::vector<std::pair<std::string, Backend*>> Backends() {
  std::vector<std::pair<std::string, Backend*>> backends = {{"ref", &Ref()}};
  for (size_t i : BackendIndices()) {
    if (BackendsUnderTest()[i].baseline.empty())
      backends.push_back({BackendsUnderTest()[i].name, &BackendAt(i)});
  }
  return backends;
}

TEST(BackendMemory, IsAlignedZeroedAndBookedUntilFreed) {
  for (const auto& [name, backend] : Backends()) {
    SCOPED_TRACE(name);
    const int64_t before = backend->memory().Bytes(MemoryComponent::kKvCache);
    for (size_t bytes :
         {size_t{1}, size_t{63}, size_t{4096}, size_t{1} << 20, (size_t{1} << 26) + 5}) {
      auto buffer = backend->Allocate(bytes, MemoryComponent::kKvCache);
      ASSERT_TRUE(buffer.ok());
      EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0u);
      EXPECT_GE(backend->memory().Bytes(MemoryComponent::kKvCache) - before,
                static_cast<int64_t>(bytes));
      const uint8_t* data = buffer->as<uint8_t>();
      EXPECT_TRUE(std::all_of(data, data + bytes, [](uint8_t b) { return b == 0; })) << bytes;
      std::fill_n(buffer->as<uint8_t>(), bytes,
                  uint8_t{0xee});  // the next one must be zeroed again
    }
    EXPECT_EQ(backend->memory().Bytes(MemoryComponent::kKvCache), before);
    EXPECT_TRUE(backend->Allocate(0, MemoryComponent::kKvCache).ok());
  }
}

TEST(BackendMemory, WhatDoesNotFitIsRefusedByName) {
  for (const auto& [name, backend] : Backends()) {
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
  for (const char* text : {"f32", "f16", "bf16", "int8.row.f32", "nf4.flat64.f32",
                           "nf4.flat64.nested", "fp4.flat64.f32", "fp4.flat64.nested",
                           "nf4.flat32.f32", "fp4.flat128.nested", "nf4.flat4096.f32"}) {
    const QuantFormat format = *QuantFormat::Parse(text);
    for (const auto& shape : shapes) {
      std::vector<QuantizedMatrix> matrices;
      int64_t stored = 0;
      for (int64_t n : shape.segments) {
        std::vector<float> values = RandomFloats(static_cast<size_t>(n * shape.k), 1);
        matrices.push_back(MatrixOf(format, values, n));
        stored += format.StoredBytes(n, shape.k);
      }
      for (const auto& [name, backend] : Backends()) {
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
}  // namespace quantd
