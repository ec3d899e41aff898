// Reading stored tensors: what every ImportMethod needs. Pure functions.
#pragma once

#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/weights/safetensors.h"
#include "kernels/status.h"

namespace quantd {

/// "F16 [4, 128]".
std::string TypeText(const StoredTensor& t);
int64_t NumElements(const StoredTensor& t);

/// The whole tensor as values of T, whatever its dtype; memcpy, since stored tensors need not be
/// aligned.
template <typename T>
std::vector<T> Values(const StoredTensor& t) {
  std::vector<T> out(t.data.size() / sizeof(T));
  if (!out.empty()) std::memcpy(out.data(), t.data.data(), out.size() * sizeof(T));
  return out;
}

/// Tensor `name` of one of `dtypes` and exactly `shape`; DATA_LOSS naming what is there and what
/// was expected.
absl::StatusOr<const StoredTensor*> RequireTensor(const Checkpoint& checkpoint,
                                                  const std::string& name,
                                                  std::initializer_list<StoredDType> dtypes,
                                                  const std::vector<int64_t>& shape);

/// The elements of an F32, F16, BF16, F8_E4M3 or F8_E8M0 tensor as f32, all finite; DATA_LOSS
/// naming the first that is not.
absl::StatusOr<std::vector<float>> FiniteFloats(const Checkpoint& checkpoint,
                                                const std::string& name);

/// DATA_LOSS naming the first code of an F8_E4M3 tensor that is NaN, which no writer makes.
absl::Status CheckE4M3(const std::vector<uint8_t>& codes, const std::string& name);

/// DATA_LOSS naming the first element that is negative.
absl::Status CheckNotNegative(const std::vector<float>& values, const std::string& name);

}  // namespace quantd
