#include "engine/weights/value_scan.h"

#include <bit>
#include <cstring>

#include "kernels/quant/float_types.h"

namespace quantd {
namespace {

// A float is not finite when its exponent bits are all ones.
template <typename T>
std::optional<int64_t> FindExponent(const TensorView& w, T mask) {
  for (int64_t r = 0; r < w.rows; ++r) {
    const T* row = w.Row<T>(r);
    for (int64_t c = 0; c < w.cols; ++c) {
      if ((row[c] & mask) == mask) return r * w.cols + c;
    }
  }
  return std::nullopt;
}

}  // namespace

std::optional<int64_t> FindNonFinite(const TensorView& w) {
  switch (w.dtype) {
    case DType::kF32: return FindExponent<uint32_t>(w, 0x7f800000u);
    case DType::kF16: return FindExponent<uint16_t>(w, 0x7c00u);
    case DType::kBF16: return FindExponent<uint16_t>(w, 0x7f80u);
    default: break;
  }
  QUANTD_CHECK(false, "dtype {}", ToString(w.dtype));
  return std::nullopt;
}

absl::Status CheckFitsF16(const TensorView& w) {
  if (w.dtype == DType::kF16) return absl::OkStatus();
  // Magnitudes compare as integers once the sign is cleared. 65520 is the first to round to
  // infinity.
  const uint32_t limit = std::bit_cast<uint32_t>(65520.0f);
  for (int64_t r = 0; r < w.rows; ++r) {
    for (int64_t c = 0; c < w.cols; ++c) {
      const uint32_t bits = w.dtype == DType::kF32
                                ? w.Row<uint32_t>(r)[c]
                                : static_cast<uint32_t>(w.Row<uint16_t>(r)[c]) << 16;
      if ((bits & 0x7fffffffu) >= limit) {
        return InvalidArgument("element [{}, {}] is {}, beyond float16's 65504; choose bfloat16", r,
                               c, std::bit_cast<float>(bits));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace quantd
