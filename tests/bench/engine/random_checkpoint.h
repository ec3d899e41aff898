// RandomCheckpoint: a Llama folder of a named shape with random weights, for measuring speed and
// memory.
//
// Written once, a few megabytes at a time by all threads, as bf16 N(0, 0.02) from fixed seeds.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace quantd {

struct BenchShape {
  std::string name;
  int64_t hidden = 0;
  int64_t intermediate = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t vocab = 0;
  int64_t context = 2048;
};

/// The shapes other engines are measured with: "tl11" (TinyLlama's, 1.1 B), "m160" (134 M).
const std::vector<BenchShape>& BenchShapes();

/// The folder of `shape` under `root`, written if it is not there or incomplete. UNAVAILABLE when
/// writing fails (no room).
absl::StatusOr<std::filesystem::path> RandomCheckpoint(const BenchShape& shape,
                                                       const std::filesystem::path& root);

}  // namespace quantd
