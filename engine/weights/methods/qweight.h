// Weights stored as GPTQ and its relatives do: `qweight`, `qzeros`, `scales` and, with GPTQ,
// `g_idx`. gptq.cc, awq.cc and auto_round.cc read their configs; what the tensors mean is here.
//
// Of a module W [n, k] with codes of `bits` in G = ceil(k / group_size) groups:
//   GPTQ  qweight I32 [k * bits / 32, n]: a little-endian stream down every column
//         qzeros  I32 [G, n * bits / 32]: the same stream along every row
//         g_idx   I32 [k]: the group of each input; absent: input / group_size
//   AWQ   qweight I32 [k, n / 8], qzeros I32 [G, n / 8]: eight columns a word, interleaved; 4 bits
//   both  scales F16, BF16 or F32 [G, n]; w = (code - zero) * scale
#pragma once

#include <string>
#include <vector>

#include "engine/weights/methods/method.h"

namespace quantd {

struct QWeightLayout {
  enum class Packing { kGptq, kAwq };
  Packing packing = Packing::kGptq;
  int bits = 4;              // 2, 3, 4 or 8
  int64_t group_size = 128;  // -1: a group a row
  /// GPTQ's first format stores zero points minus one. Its writers subtract 0x11111111 (and the
  /// like) from whole words, so that a zero point of 0 borrows from its neighbour; 3 bits, which
  /// straddle words, are decremented one by one.
  bool zeros_minus_one = true;
};

/// What one module's own entry of a config changes.
struct QWeightOverride {
  std::string pattern;  // of OverrideMatches
  std::optional<int> bits;
  std::optional<int64_t> group_size;
};

struct QWeightSettings : MethodSettings {
  std::string method;
  QWeightLayout layout;
  std::vector<QWeightOverride> overrides;  // the first that matches counts

  std::string_view label() const override { return method; }
  std::string ToYaml() const override;
  std::string Describe() const override;
  QWeightLayout LayoutOf(const std::string& module) const;
};

/// `bits`, of which 2, 3, 4 and 8 are read; others are faults.
int ReadQWeightBits(const OptionReader& reader, int fallback);
/// `group_size`, -1 or at least 1.
int64_t ReadGroupSize(const OptionReader& reader, int64_t fallback);

/// True when the module has a qweight of a shape that `packing` can have, or of none that any has.
bool DetectQWeight(const Checkpoint& checkpoint, const WeightShape& shape,
                   QWeightLayout::Packing packing);

/// The methods whose settings are QWeightSettings. Codes whose zero points are all in the middle of
/// their range become signed ones without zero points; 3-bit codes are held as 4-bit ones. A g_idx
/// that is not monotonic makes a reordered matrix; UNIMPLEMENTED when its groups differ in size.
class QWeightMethod : public Method {
 public:
  absl::StatusOr<WeightSource> Check(const Checkpoint& checkpoint, const WeightShape& shape,
                                     const MethodOptions& config) const override;
  absl::StatusOr<QuantizedMatrix> Load(const Checkpoint& checkpoint, const WeightShape& shape,
                                       const MethodOptions& config) const override;
};

}  // namespace quantd
