// fp8 with a scale per tile, as DeepSeek-V3 stores it and transformers' FineGrainedFP8Config makes
// it: on load and from checkpoints.
//
// Layout of the stored tensors, from transformers 5:
//   <m>.weight            F8_E4M3 [n, k]
//   <m>.weight_scale_inv  a float [ceil(n / rows), ceil(k / columns)] of the tensor's own dtype,
//                         whatever scale_fmt says: F32, BF16, F16 or F8_E8M0, a power of two. Only
//                         bytes, U8, are nothing without scale_fmt "ue8m0": 2^(byte - 127). One
//                         scale when weight_block_size is null. Older names: <m>.scale,
//                         <m>.qscale_weight
//   <m>.activation_scale, <m>.input_scale   F32, of activation_scheme "static"
// Despite its name weight_scale_inv is the factor: w = q * weight_scale_inv.
//
// Activations, scheme "dynamic": e4m3 with a scale per row and 128 inputs, as transformers' kernels
// do it on a GPU; on a CPU it leaves them in floating point, as engine.activation: none does.
#include <algorithm>
#include <cmath>

#include "engine/weights/methods/method.h"
#include "engine/weights/methods/stored.h"
#include "engine/weights/module_match.h"
#include "kernels/ceil_div.h"
#include "kernels/quant/quantize_fp8.h"

namespace quantd {
namespace {

struct Fp8Settings : MethodSettings {
  int32_t rows = 128, columns = 128;  // of a tile; 0: one scale for the whole weight
  bool powers_of_two = false;         // scale_fmt ue8m0
  bool static_activations = false;

  std::string_view label() const override { return "fp8"; }
  std::string ToYaml() const override {
    return fmt::format("activation_scheme: {}\nweight_block_size: {}\nscale_fmt: {}\n",
                       static_activations ? "static" : "dynamic",
                       rows == 0 ? "null" : fmt::format("[{}, {}]", rows, columns),
                       powers_of_two ? "ue8m0" : "float");
  }
  std::string Describe() const override {
    const std::string_view scales = powers_of_two ? "powers of two" : "scales";
    return rows == 0 ? fmt::format("fp8, one scale a weight")
                     : fmt::format("fp8, {} per {} x {}", scales, rows, columns);
  }
};

// transformers groups activations by the columns of the tiles.
ActivationQuant DynamicActivation(const Fp8Settings& s) {
  ActivationQuant a;
  a.kind = s.rows == 0 ? ActivationQuant::Kind::kFp8Token : ActivationQuant::Kind::kFp8Group;
  a.group = s.columns;
  return a;
}

QuantFormat FormatFor(const Fp8Settings& s) {
  QuantFormat f;
  f.codec = Codec::kE4M3;
  f.block = s.rows == 0 ? BlockShape{BlockShape::Kind::kRow, 0, 0}  // repeated
                        : BlockShape{BlockShape::Kind::kTile, s.columns, s.rows};
  f.scale = ScaleType::kF32;
  return f;
}

/// The tensor of the scales, under the first of its names that is there.
std::string ScaleName(const Checkpoint& c, const std::string& module) {
  const std::string name = module + ".weight_scale_inv";
  for (const char* old : {".scale", ".qscale_weight"}) {
    if (c.Find(name) == nullptr && c.Find(module + old) != nullptr) return module + old;
  }
  return name;
}

absl::Status CheckScales(const Checkpoint& c, const WeightShape& shape, const Fp8Settings& s,
                         const std::string& name) {
  std::vector<int64_t> grid = {CeilDiv(shape.n, std::max(s.rows, 1)),
                               CeilDiv(shape.k, std::max(s.columns, 1))};
  if (s.rows == 0) {
    const StoredTensor* t = c.Find(name);
    grid = t != nullptr && NumElements(*t) == 1 ? t->shape : std::vector<int64_t>{};
  }
  if (const StoredTensor* t = c.Find(name);
      t != nullptr && t->dtype == StoredDType::kU8 && s.powers_of_two) {
    return RequireTensor(c, name, {StoredDType::kU8}, grid).status();
  }
  return RequireTensor(
             c, name,
             {StoredDType::kF32, StoredDType::kBF16, StoredDType::kF16, StoredDType::kF8E8M0}, grid)
      .status();
}

absl::StatusOr<std::vector<float>> ReadScales(const Checkpoint& c, const std::string& name) {
  const StoredTensor& t = *c.Find(name);
  if (t.dtype != StoredDType::kU8) {
    ASSIGN_OR_RETURN(std::vector<float> scales, FiniteFloats(c, name));
    RETURN_IF_ERROR(CheckNotNegative(scales, name));
    return scales;
  }
  std::vector<float> scales;
  for (const uint8_t byte : Values<uint8_t>(t)) {
    if (byte == 255) return DataLoss("tensor {}: element {} is NaN", name, scales.size());
    scales.push_back(std::ldexp(1.0f, byte - 127));
  }
  return scales;
}

/// activation_scale, or input_scale; empty when there is neither.
std::string StaticScaleName(const Checkpoint& c, const std::string& module) {
  for (const char* part : {".activation_scale", ".input_scale"}) {
    if (c.Find(module + part) != nullptr) return module + part;
  }
  return "";
}

absl::StatusOr<ActivationQuant> ReadActivation(const Checkpoint& c, const WeightShape& shape,
                                               const Fp8Settings& s, const std::string& name) {
  if (!s.static_activations) return DynamicActivation(s);
  if (name.empty()) {
    return DataLoss("tensor {}.activation_scale F32 [] is missing (activation_scheme is static)",
                    shape.module);
  }
  const StoredTensor& t = *c.Find(name);
  const std::vector<int64_t> scalar = NumElements(t) == 1 ? t.shape : std::vector<int64_t>{};
  RETURN_IF_ERROR(
      RequireTensor(c, name, {StoredDType::kF32, StoredDType::kBF16, StoredDType::kF16}, scalar)
          .status());
  ASSIGN_OR_RETURN(const std::vector<float> scale, FiniteFloats(c, name));
  if (!(scale[0] > 0)) {
    return DataLoss("tensor {}: is {}; a scale is positive", name, scale[0]);
  }
  ActivationQuant a;
  a.kind = ActivationQuant::Kind::kFp8Tensor;
  a.scale = scale[0];
  return a;
}

class Fp8 : public Method {
 public:
  std::string_view name() const override { return "fp8"; }
  bool on_load() const override { return true; }
  bool trainable_with_peft(const MethodOptions&) const override { return true; }

  MethodOptions Read(const OptionReader& reader, OptionSource source) const override {
    constexpr std::string_view kKeys[] = {
        "quant_method",   "activation_scheme",  "weight_block_size", "modules_to_not_convert",
        "ignored_layers", "modules_to_convert", "dequantize",        "scale_fmt",
        "expert_dtype"};
    FaultList& faults = reader.faults();
    const bool profile = source == OptionSource::kProfile;
    if (profile) reader.CheckKeys(kKeys);
    auto settings = std::make_shared<Fp8Settings>();
    ReadBlock(reader, *settings);
    constexpr std::string_view kSchemes[] = {"dynamic", "static"};
    settings->static_activations =
        reader.OneOf("activation_scheme", "dynamic", kSchemes) == "static";
    if (profile && settings->static_activations) {
      faults.AddUnimplemented("{}: static scales are found with data; on load: dynamic",
                              reader.Path("activation_scheme"));
    }
    constexpr std::string_view kScales[] = {"float", "ue8m0"};
    settings->powers_of_two = reader.OneOf("scale_fmt", "float", kScales) == "ue8m0";
    constexpr std::string_view kExperts[] = {"fp8", "fp4"};
    if (reader.OneOf("expert_dtype", "fp8", kExperts) == "fp4") {
      faults.AddUnimplemented(
          "{}: fp4 experts are not supported; instead: a checkpoint with fp8 experts",
          reader.Path("expert_dtype"));
    }
    const bool dequantize = reader.Bool("dequantize", false);  // of loading it in transformers
    if (profile && dequantize) {
      faults.AddUnimplemented("{}: not supported: a profile without quantization does that",
                              reader.Path("dequantize"));
    }
    if (profile && !reader.Strings("modules_to_convert").empty()) {
      faults.AddUnimplemented("{}: only linears are quantized; overrides: can name the head",
                              reader.Path("modules_to_convert"));
    }

    MethodOptions options;
    options.method = name();
    const char* skips = reader.Find("modules_to_not_convert") != nullptr ? "modules_to_not_convert"
                                                                         : "ignored_layers";
    options.skip_modules = reader.Strings(skips);
    if (profile) {
      for (const std::string& pattern : options.skip_modules) {
        faults.Add(Annotate(CheckSkipPattern(pattern), reader.Path(skips)));
      }
    }
    options.settings = std::move(settings);
    return options;
  }

  bool Detect(const Checkpoint& c, const WeightShape& shape) const override {
    if (c.Find(shape.module + ".weight_scale_inv") != nullptr) return true;
    const StoredTensor* weight = c.Find(shape.module + ".weight");
    return weight != nullptr && weight->dtype == StoredDType::kF8E4M3;
  }

  absl::StatusOr<WeightSource> Check(const Checkpoint& c, const WeightShape& shape,
                                     const MethodOptions& config) const override {
    const auto& s = SettingsOf<Fp8Settings>(config);
    const std::string weight = shape.module + ".weight";
    const std::string scales = ScaleName(c, shape.module);
    RETURN_IF_ERROR(RequireTensor(c, weight, {StoredDType::kF8E4M3}, {shape.n, shape.k}).status());
    RETURN_IF_ERROR(CheckScales(c, shape, s, scales));
    WeightSource source;
    source.format = FormatFor(s);
    source.label = name();
    source.tensors = {weight, scales};
    const std::string activation = StaticScaleName(c, shape.module);
    ASSIGN_OR_RETURN(source.activation, ReadActivation(c, shape, s, activation));
    if (!activation.empty()) source.tensors.push_back(activation);  // dynamic ones ignore it
    return source;
  }

  absl::StatusOr<QuantizedMatrix> Load(const Checkpoint& c, const WeightShape& shape,
                                       const MethodOptions& config) const override {
    const auto& s = SettingsOf<Fp8Settings>(config);
    QuantizedMatrix m;
    m.format = FormatFor(s);
    m.n = shape.n;
    m.k = shape.k;
    m.codes = Values<uint8_t>(*c.Find(shape.module + ".weight"));
    RETURN_IF_ERROR(CheckE4M3(m.codes, shape.module + ".weight"));
    ASSIGN_OR_RETURN(m.scales, ReadScales(c, ScaleName(c, shape.module)));
    if (s.rows == 0) m.scales.assign(static_cast<size_t>(m.n), m.scales.front());
    return m;
  }

  QuantFormat FormatOf(const WeightShape&, const MethodOptions& options, DType) const override {
    return FormatFor(SettingsOf<Fp8Settings>(options));
  }

  absl::StatusOr<QuantizedMatrix> Quantize(const TensorView& w, const MethodOptions& options,
                                           DType) const override {
    const auto& s = SettingsOf<Fp8Settings>(options);
    if (s.rows > 0) return QuantizeE4M3Tiles(w, s.rows, s.columns, s.powers_of_two);
    // One tile; its scale is repeated, as that of a checkpoint is.
    QuantizedMatrix m = QuantizeE4M3Tiles(w, static_cast<int32_t>(w.rows),
                                          static_cast<int32_t>(w.cols), s.powers_of_two);
    m.format = FormatFor(s);
    m.scales.assign(static_cast<size_t>(m.n), m.scales.front());
    return m;
  }

  ActivationQuant ActivationOf(const MethodOptions& options) const override {
    return DynamicActivation(SettingsOf<Fp8Settings>(options));
  }

 private:
  static void ReadBlock(const OptionReader& reader, Fp8Settings& s) {
    constexpr std::string_view kKey = "weight_block_size";
    for (const auto& [key, value] : reader.map()) {
      if (key == kKey && value.kind == OptionValue::Kind::kNull) s.rows = s.columns = 0;
    }
    const OptionValue* v = reader.Find(kKey);
    if (v == nullptr) return;
    const std::vector<int64_t> sides = reader.Integers(kKey);
    constexpr int64_t kLargest = 1 << 20;
    if (sides.size() == 2 && std::min(sides[0], sides[1]) > 0 &&
        std::max(sides[0], sides[1]) <= kLargest) {
      s.rows = static_cast<int32_t>(sides[0]);
      s.columns = static_cast<int32_t>(sides[1]);
    } else {
      reader.faults().Add("{}: \"{}\" is not [rows, columns]", reader.Path(kKey), v->text);
    }
  }
};

}  // namespace

const Method& Fp8Method() {
  static const Fp8 kMethod;
  return kMethod;
}

}  // namespace quantd
