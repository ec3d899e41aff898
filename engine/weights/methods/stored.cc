#include "engine/weights/methods/stored.h"

#include <algorithm>
#include <cmath>

#include "kernels/quant/codecs.h"
#include "kernels/quant/float_types.h"

namespace quantd {
namespace {

float ElementAt(const StoredTensor& t, size_t i) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(t.data.data());
  switch (t.dtype) {
    case StoredDType::kF32: {
      float f;
      std::memcpy(&f, bytes + 4 * i, 4);
      return f;
    }
    case StoredDType::kF8E4M3: return E4M3Codec::Decode(bytes[i]);
    case StoredDType::kF8E8M0:  // 2^(byte - 127); 255 is NaN, 0 is 2^-127, below f32's normal range
      return bytes[i] == 255 ? NAN : std::ldexp(1.0f, bytes[i] - 127);
    default: break;
  }
  uint16_t bits;
  std::memcpy(&bits, bytes + 2 * i, 2);
  return t.dtype == StoredDType::kF16 ? static_cast<float>(std::bit_cast<F16>(bits))
                                      : static_cast<float>(std::bit_cast<BF16>(bits));
}

}  // namespace

std::string TypeText(const StoredTensor& t) {
  return fmt::format("{} {}", ToString(t.dtype), ShapeText(t.shape));
}

int64_t NumElements(const StoredTensor& t) {
  return static_cast<int64_t>(t.data.size()) * 8 / BitsOf(t.dtype);
}

absl::StatusOr<const StoredTensor*> RequireTensor(const Checkpoint& checkpoint,
                                                  const std::string& name,
                                                  std::initializer_list<StoredDType> dtypes,
                                                  const std::vector<int64_t>& shape) {
  std::string allowed;
  for (const StoredDType t : dtypes) {
    allowed += fmt::format("{}{}", allowed.empty() ? "" : " or ", ToString(t));
  }
  const StoredTensor* t = checkpoint.Find(name);
  if (t == nullptr) {
    return DataLoss("tensor {} {} {} is missing", name, allowed, ShapeText(shape));
  }
  if (t->shape != shape || std::find(dtypes.begin(), dtypes.end(), t->dtype) == dtypes.end()) {
    return DataLoss("{}: tensor {}: {}, expected {} {}", checkpoint.file_name(t->file), name,
                    TypeText(*t), allowed, ShapeText(shape));
  }
  return t;
}

absl::StatusOr<std::vector<float>> FiniteFloats(const Checkpoint& checkpoint,
                                                const std::string& name) {
  const StoredTensor& t = *checkpoint.Find(name);
  std::vector<float> values(static_cast<size_t>(NumElements(t)));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = ElementAt(t, i);
    if (!std::isfinite(values[i])) {
      return DataLoss("tensor {}: element {} is {}", name, i, values[i]);
    }
  }
  return values;
}

absl::Status CheckE4M3(const std::vector<uint8_t>& codes, const std::string& name) {
  const auto bad =
      std::find_if(codes.begin(), codes.end(), [](uint8_t code) { return (code & 0x7f) == 0x7f; });
  if (bad == codes.end()) return absl::OkStatus();
  return DataLoss("tensor {}: element {} is NaN (0x{:02x})", name, bad - codes.begin(), *bad);
}

absl::Status CheckNotNegative(const std::vector<float>& values, const std::string& name) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] < 0) {
      return DataLoss("tensor {}: element {} is {}; a scale is finite and not negative", name, i,
                      values[i]);
    }
  }
  return absl::OkStatus();
}

}  // namespace quantd
