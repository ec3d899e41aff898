// MLX's affine quantization, as MetalConfig of transformers 5 stores it: from checkpoints and on
// load. There is no calibration: every group of a row spans from its least value to its largest.
//
// Layout of the stored tensors, of codes of 2, 4 or 8 bits:
//   <m>.weight            U32 [n, k * bits / 32]: the codes of a row, the first in the lowest bits
//   <m>.scales, .qbiases  BF16, F16 or F32 [n, k / group_size], of one dtype
// w = code * scale + qbias, the product rounded first.
#include <algorithm>

#include "engine/weights/methods/bit_stream.h"
#include "engine/weights/methods/method.h"
#include "engine/weights/methods/stored.h"
#include "engine/weights/module_match.h"
#include "engine/weights/value_scan.h"
#include "kernels/quant/read_row.h"
#include "kernels/quant/rounding.h"

namespace quantd {
namespace {

struct MetalSettings : MethodSettings {
  int bits = 4;
  int32_t group_size = 64;

  std::string_view label() const override { return "metal"; }
  std::string ToYaml() const override {
    return fmt::format("bits: {}\ngroup_size: {}\n", bits, group_size);
  }
  std::string Describe() const override {
    return fmt::format("metal {}-bit, groups of {}", bits, group_size);
  }
  /// With scales and offsets of `dtype`; no format has f16 offsets, so that those take f32.
  QuantFormat Format(DType dtype) const {
    QuantFormat f;
    f.codec = bits == 2 ? Codec::kUInt2 : bits == 4 ? Codec::kUInt4 : Codec::kUInt8;
    f.block = {BlockShape::Kind::kGroup, group_size, 0};
    f.scale = dtype == DType::kBF16  ? ScaleType::kBF16
              : dtype == DType::kF16 ? ScaleType::kF16
                                     : ScaleType::kF32;
    f.zero = dtype == DType::kBF16 ? ZeroType::kAddedBF16 : ZeroType::kAddedF32;
    return f;
  }
  /// What MetalLinear needs: whole groups and whole words.
  bool Suits(const WeightShape& shape) const {
    return shape.k % group_size == 0 && shape.k * bits % 32 == 0;
  }
};

class Metal : public Method {
 public:
  std::string_view name() const override { return "metal"; }
  bool on_load() const override { return true; }

  MethodOptions Read(const OptionReader& reader, OptionSource source) const override {
    constexpr std::string_view kKeys[] = {"quant_method", "bits", "group_size",
                                          "modules_to_not_convert"};
    auto settings = std::make_shared<MetalSettings>();
    const int64_t bits = reader.Integer("bits", 4, 1, 8);
    if (bits == 2 || bits == 4 || bits == 8) {
      settings->bits = static_cast<int>(bits);
    } else {
      reader.faults().AddUnimplemented("{}: {} is not supported; supported: 8, 4, 2",
                                       reader.Path("bits"), bits);
    }
    constexpr int64_t kLargest = 1 << 20;
    settings->group_size = static_cast<int32_t>(reader.Integer("group_size", 64, 1, kLargest));
    MethodOptions options;
    options.method = name();
    options.skip_modules = reader.Strings(skip_key());
    if (source == OptionSource::kProfile) {
      reader.CheckKeys(kKeys);
      for (const std::string& pattern : options.skip_modules) {
        reader.faults().Add(Annotate(CheckSkipPattern(pattern), reader.Path(skip_key())));
      }
    }
    options.settings = std::move(settings);
    return options;
  }

  bool Detect(const Checkpoint& c, const WeightShape& shape) const override {
    return c.Find(shape.module + ".qbiases") != nullptr;
  }

  absl::StatusOr<WeightSource> Check(const Checkpoint& c, const WeightShape& shape,
                                     const MethodOptions& config) const override {
    const auto& s = SettingsOf<MetalSettings>(config);
    const std::string weight = shape.module + ".weight", scales = shape.module + ".scales",
                      offsets = shape.module + ".qbiases";
    const auto annotated = [&](const absl::Status& status) {
      return Annotate(status, fmt::format("{} ({})", shape.module, s.Describe()));
    };
    if (!s.Suits(shape)) {
      return annotated(DataLoss("{} inputs are not whole groups and words", shape.k));
    }
    const std::vector<int64_t> grid = {shape.n, shape.k / s.group_size};
    const auto codes = RequireTensor(c, weight, {StoredDType::kU32, StoredDType::kI32},
                                     {shape.n, WordsFor(shape.k, s.bits)});
    if (!codes.ok()) return annotated(codes.status());
    const auto scale =
        RequireTensor(c, scales, {StoredDType::kBF16, StoredDType::kF16, StoredDType::kF32}, grid);
    if (!scale.ok()) return annotated(scale.status());
    const auto offset = RequireTensor(c, offsets, {(*scale)->dtype}, grid);
    if (!offset.ok()) return annotated(offset.status());
    WeightSource source;
    source.format = s.Format(*ToDType((*scale)->dtype));
    source.label = name();
    source.tensors = {weight, scales, offsets};
    return source;
  }

  absl::StatusOr<QuantizedMatrix> Load(const Checkpoint& c, const WeightShape& shape,
                                       const MethodOptions& config) const override {
    const auto& s = SettingsOf<MetalSettings>(config);
    const std::string scales = shape.module + ".scales";
    QuantizedMatrix m;
    m.format = s.Format(*ToDType(c.Find(scales)->dtype));
    m.n = shape.n;
    m.k = shape.k;
    // Of either sign: MLX's own quantizer counts down from the end that is further from zero.
    ASSIGN_OR_RETURN(m.scales, FiniteFloats(c, scales));
    ASSIGN_OR_RETURN(m.zeros, FiniteFloats(c, shape.module + ".qbiases"));
    const auto words = Values<uint32_t>(*c.Find(shape.module + ".weight"));
    m.codes.resize(static_cast<size_t>(m.n * m.k));
    // Rows are whole words, so that all are one stream.
    for (size_t i = 0; i < m.codes.size(); ++i) {
      m.codes[i] = static_cast<uint8_t>(CodeAt(words.data(), 1, static_cast<int64_t>(i), s.bits));
    }
    return m;
  }

  absl::Status CheckShape(const WeightShape& shape, const MethodOptions& options) const override {
    const auto& s = SettingsOf<MetalSettings>(options);
    if (s.Suits(shape)) return absl::OkStatus();
    return InvalidArgument("{} inputs are not whole groups of {} and whole words of {}-bit codes",
                           shape.k, s.group_size, s.bits);
  }
  QuantFormat FormatOf(const WeightShape&, const MethodOptions& options,
                       DType plain) const override {
    return SettingsOf<MetalSettings>(options).Format(plain);
  }

  /// s = (high - low) / (2^bits - 1), at least 1e-8; offset low; code = rint((x - low) / s), in f32
  /// of what the model's dtype holds; then s is rounded to that dtype.
  absl::StatusOr<QuantizedMatrix> Quantize(const TensorView& w, const MethodOptions& options,
                                           DType plain) const override {
    if (plain == DType::kF16) RETURN_IF_ERROR(CheckFitsF16(w));
    const auto& s = SettingsOf<MetalSettings>(options);
    const float most = static_cast<float>((1 << s.bits) - 1);
    const size_t group = static_cast<size_t>(s.group_size);
    QuantizedMatrix m;
    m.format = s.Format(plain);
    m.n = w.rows;
    m.k = w.cols;
    m.codes.reserve(static_cast<size_t>(m.n * m.k));
    std::vector<float> row(static_cast<size_t>(w.cols));
    WithRounding(plain, [&](const auto& round) {
      for (int64_t r = 0; r < w.rows; ++r) {
        ReadRow(w, r, 0, row);
        for (float& v : row) v = round(v);
        for (auto x = row.begin(); x != row.end(); x += static_cast<std::ptrdiff_t>(group)) {
          const auto end = x + static_cast<std::ptrdiff_t>(group);
          const auto [low, high] = std::minmax_element(x, end);
          const float offset = *low;
          const float scale = std::max((*high - offset) / most, 1e-8f);
          m.scales.push_back(round(scale));
          m.zeros.push_back(offset);
          for (auto v = x; v != end; ++v) {
            const float code = std::nearbyint((*v - offset) / scale);
            m.codes.push_back(static_cast<uint8_t>(std::clamp(code, 0.0f, most)));
          }
        }
      }
    });
    return m;
  }
};

}  // namespace

const Method& MetalMethod() {
  static const Metal kMethod;
  return kMethod;
}

}  // namespace quantd
