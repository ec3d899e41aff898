// The safetensors container: 8 bytes of header length, a JSON header, then the tensors' bytes.
//
// Parsing and the check of every rule happen here, on bytes alone, so that they can be fuzzed;
// nothing proportional to a declared size is allocated before it is checked. Format:
// https://github.com/huggingface/safetensors (the rules follow its Rust reader). Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/tensor.h"

namespace quantd {

/// Every element type of the format. Only some are weights to us; the rest are known by name.
enum class StoredDType : uint8_t {
  kBool,
  kF4,
  kF6E2M3,
  kF6E3M2,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kF8E4M3Fnuz,
  kF8E5M2Fnuz,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64,
};
/// The format's own name: "BF16".
std::string_view ToString(StoredDType t);
std::optional<StoredDType> ParseStoredDType(std::string_view name);
int BitsOf(StoredDType t);
/// The dtype our tensors have for it; nullopt when there is none.
std::optional<DType> ToDType(StoredDType t);
/// The inverse.
StoredDType ToStoredDType(DType t);

struct HeaderEntry {
  StoredDType dtype = StoredDType::kU8;
  std::vector<int64_t> shape;  // empty: a scalar
  size_t begin = 0;            // bytes of the file, not of the data section
  size_t end = 0;
};

struct SafetensorsHeader {
  std::map<std::string, HeaderEntry> tensors;
  std::map<std::string, std::string> metadata;
};

/// `file`: the whole file. DATA_LOSS naming `source`, the tensor and the fault for: a header longer
/// than the file or than 100,000,000 bytes, JSON that is not valid or has a key twice, unknown
/// dtypes, products that overflow, sizes that contradict offsets, holes, overlaps, bytes missing or
/// left over at the end.
absl::StatusOr<SafetensorsHeader> ParseSafetensors(std::span<const std::byte> file,
                                                   const std::string& source);

/// "[512, 256]".
std::string ShapeText(std::span<const int64_t> shape);

}  // namespace quantd
