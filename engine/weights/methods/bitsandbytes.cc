// bitsandbytes 0.50: 4-bit (nf4, fp4, double quantization) and LLM.int8(), on load and from
// checkpoints.
//
// Layout of the stored tensors, from transformers 5 and bitsandbytes' QuantState.as_dict. 4-bit:
//   <m>.weight                                  bytes of two codes (element 2i in the high half),
//   in any dtype <m>.weight.absmax                           F32 [blocks], or U8 [blocks] of nested
//   codes <m>.weight.quant_map                        F32 [16] <m>.weight.nested_absmax,
//   .nested_quant_map F32 [blocks / 256], F32 [256] <m>.weight.quant_state.bitsandbytes__<type> U8:
//   JSON with blocksize, shape, nested_offset, ...
// 8-bit: <m>.weight I8 [n, k], <m>.SCB F32 [n], <m>.weight_format U8 scalar, 0 for row-major.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "engine/weights/json_check.h"
#include "engine/weights/methods/method.h"
#include "engine/weights/quantization_options.h"
#include "engine/weights/value_scan.h"
#include "kernels/quant/quantize.h"

namespace quantd {
namespace {

constexpr char kStatePrefix[] = ".weight.quant_state.bitsandbytes__";

// The whole tensor as values of T; memcpy, since stored tensors need not be aligned.
template <typename T>
std::vector<T> Values(const StoredTensor& t) {
  std::vector<T> out(t.data.size() / sizeof(T));
  if (!out.empty()) std::memcpy(out.data(), t.data.data(), out.size() * sizeof(T));
  return out;
}

std::string TypeText(const StoredTensor& t) {
  return fmt::format("{} {}", ToString(t.dtype), ShapeText(t.shape));
}

int64_t NumElements(const StoredTensor& t) {
  return static_cast<int64_t>(t.data.size()) * 8 / BitsOf(t.dtype);
}

// A one-dimensional companion tensor of `count` elements.
absl::StatusOr<const StoredTensor*> Companion(const Checkpoint& c, const std::string& name,
                                              StoredDType dtype, int64_t count) {
  const StoredTensor* t = c.Find(name);
  if (t == nullptr) return DataLoss("tensor {} is missing", name);
  if (t->dtype != dtype || NumElements(*t) != count || t->shape.size() > 2) {
    return DataLoss("tensor {}: {}, expected {} [{}]", name, TypeText(*t), ToString(dtype), count);
  }
  return t;
}

absl::Status CheckScales(const std::vector<float>& scales, const std::string& name) {
  for (size_t i = 0; i < scales.size(); ++i) {
    if (!std::isfinite(scales[i]) || scales[i] < 0) {
      return DataLoss("tensor {}: element {} is {}; a scale is finite and not negative", name, i,
                      scales[i]);
    }
  }
  return absl::OkStatus();
}

// ---- 4-bit
// --------------------------------------------------------------------------------------------

struct QuantState {
  std::string tensor;  // its name
  Codec codec = Codec::kNf4;
  int32_t block = 0;
  bool nested = false;
  float nested_offset = 0.0f;
};

// The name of the quant_state tensor, whose suffix is the type; empty when there is none.
std::string StateName(const Checkpoint& c, const std::string& module) {
  const std::string prefix = module + kStatePrefix;
  const auto it = c.tensors().lower_bound(prefix);
  return it != c.tensors().end() && it->first.rfind(prefix, 0) == 0 ? it->first : "";
}

absl::Status CheckShapeField(const nlohmann::json& json, const WeightShape& shape) {
  const auto it = json.find("shape");
  if (it != json.end() && it->is_array() && it->size() == 2 && (*it)[0].is_number_unsigned() &&
      (*it)[1].is_number_unsigned() && (*it)[0].get<uint64_t>() == static_cast<uint64_t>(shape.n) &&
      (*it)[1].get<uint64_t>() == static_cast<uint64_t>(shape.k)) {
    return absl::OkStatus();
  }
  return DataLoss("shape is {}, config.json says [{}, {}]",
                  it == json.end() ? "missing" : it->dump(), shape.n, shape.k);
}

absl::StatusOr<QuantState> ParseQuantState(const nlohmann::json& json, const WeightShape& shape) {
  if (!json.is_object()) return DataLoss("not a JSON object");
  RETURN_IF_ERROR(CheckShapeField(json, shape));
  QuantState state;
  const std::string type = json.value("quant_type", nlohmann::json()).is_string()
                               ? json["quant_type"].get<std::string>()
                               : std::string();
  if (type != "nf4" && type != "fp4") {
    return Unimplemented("quant_type \"{}\" is not supported; supported: nf4, fp4", type);
  }
  state.codec = type == "nf4" ? Codec::kNf4 : Codec::kFp4;
  const auto block = json.find("blocksize");
  const uint64_t size =
      block != json.end() && block->is_number_unsigned() ? block->get<uint64_t>() : 0;
  if (size < 32 || size > 4096 || (size & (size - 1)) != 0) {  // what bitsandbytes has kernels for
    return DataLoss("blocksize is {}, not a power of two from 32 to 4096",
                    block == json.end() ? "missing" : block->dump());
  }
  state.block = static_cast<int32_t>(size);

  const bool any_nested = json.contains("nested_blocksize") || json.contains("nested_offset");
  if (!any_nested) return state;
  state.nested = true;
  const auto nested_block = json.find("nested_blocksize");
  if (nested_block == json.end() || !nested_block->is_number_unsigned() ||
      nested_block->get<uint64_t>() != QuantizedMatrix::kNestedBlock) {
    return Unimplemented("nested_blocksize {} is not supported; supported: {}",
                         nested_block == json.end() ? "(missing)" : nested_block->dump(),
                         QuantizedMatrix::kNestedBlock);
  }
  const auto dtype = json.find("nested_dtype");
  if (dtype != json.end() && *dtype != "float32") {
    return Unimplemented("nested_dtype {} is not supported; supported: float32", dtype->dump());
  }
  const auto offset = json.find("nested_offset");
  if (offset == json.end() || !offset->is_number())
    return DataLoss("nested_offset is missing or not a number");
  state.nested_offset = static_cast<float>(offset->get<double>());
  if (!std::isfinite(state.nested_offset)) return DataLoss("nested_offset is not finite");
  return state;
}

absl::StatusOr<QuantState> ReadQuantState(const Checkpoint& c, const WeightShape& shape) {
  constexpr size_t kMaxStateBytes = 4096;  // real ones take 80 to 200
  const std::string name = StateName(c, shape.module);
  if (name.empty()) return DataLoss("tensor {}{}<type> is missing", shape.module, kStatePrefix);
  const StoredTensor& t = *c.Find(name);
  if (t.dtype != StoredDType::kU8 || t.data.size() > kMaxStateBytes) {
    return DataLoss("tensor {}: {}, expected at most {} bytes of U8", name, TypeText(t),
                    kMaxStateBytes);
  }
  const std::string_view text(reinterpret_cast<const char*>(t.data.data()), t.data.size());
  RETURN_IF_ERROR(CheckJson(text, "tensor " + name));
  auto state = ParseQuantState(nlohmann::json::parse(text, nullptr, false), shape);
  if (!state.ok()) return Annotate(state.status(), "tensor " + name);
  state->tensor = name;
  const std::string suffix = name.substr(shape.module.size() + sizeof(kStatePrefix) - 1);
  if (suffix != QuantTypeName(state->codec)) {
    return DataLoss("tensor {}: quant_type is {}", name, QuantTypeName(state->codec));
  }
  return state;
}

absl::Status CheckQuantMap(const StoredTensor& t, Codec codec, const std::string& name) {
  const std::vector<float> stored = Values<float>(t);
  const float* ours = codec == Codec::kNf4 ? kNf4Table : kFp4Table;
  for (size_t i = 0; i < stored.size(); ++i) {
    if (stored[i] == ours[i]) continue;
    return Unimplemented("tensor {}: entry {} is {}, bitsandbytes' {} table has {}", name, i,
                         stored[i], QuantTypeName(codec), ours[i]);
  }
  return absl::OkStatus();
}

class Import4 : public ImportMethod {
 public:
  QuantMethod method() const override { return QuantMethod::kBitsAndBytes4; }

  bool Detect(const Checkpoint& c, const std::string& module) const override {
    return c.Find(module + ".weight.absmax") != nullptr || !StateName(c, module).empty();
  }

  absl::StatusOr<Source> Check(const Checkpoint& c, const WeightShape& shape) const override {
    const std::string weight = shape.module + ".weight";
    ASSIGN_OR_RETURN(const QuantState state, ReadQuantState(c, shape));
    const StoredTensor* codes = c.Find(weight);
    if (codes == nullptr) return DataLoss("tensor {} is missing", weight);
    // bnb_4bit_quant_storage only changes the dtype in which the same bytes are stored.
    const int64_t bytes = (shape.n * shape.k + 1) / 2;
    const int64_t unit = (BitsOf(codes->dtype) + 7) / 8;
    if (static_cast<int64_t>(codes->data.size()) != (bytes + unit - 1) / unit * unit) {
      return DataLoss("tensor {}: {} holds {} bytes, 4-bit [{}, {}] takes {}", weight,
                      TypeText(*codes), codes->data.size(), shape.n, shape.k, bytes);
    }
    const int64_t blocks = (shape.n * shape.k + state.block - 1) / state.block;
    RETURN_IF_ERROR(Companion(c, weight + ".absmax",
                              state.nested ? StoredDType::kU8 : StoredDType::kF32, blocks)
                        .status());
    ASSIGN_OR_RETURN(const StoredTensor* map,
                     Companion(c, weight + ".quant_map", StoredDType::kF32, 16));
    RETURN_IF_ERROR(CheckQuantMap(*map, state.codec, weight + ".quant_map"));

    Source source;
    source.format = QuantFormat::Block4(state.codec, state.block, state.nested);
    source.tensors = {weight, weight + ".absmax", weight + ".quant_map", state.tensor};
    if (state.nested) {
      const int64_t nested =
          (blocks + QuantizedMatrix::kNestedBlock - 1) / QuantizedMatrix::kNestedBlock;
      RETURN_IF_ERROR(Companion(c, weight + ".nested_absmax", StoredDType::kF32, nested).status());
      RETURN_IF_ERROR(Companion(c, weight + ".nested_quant_map", StoredDType::kF32, 256).status());
      source.tensors.push_back(weight + ".nested_absmax");
      source.tensors.push_back(weight + ".nested_quant_map");
    }
    source.stored.method = QuantMethod::kBitsAndBytes4;
    source.stored.codec = state.codec;
    source.stored.double_quant = state.nested;
    source.stored.block_size = state.block;
    return source;
  }

  absl::StatusOr<QuantizedMatrix> Load(const Checkpoint& c,
                                       const WeightShape& shape) const override {
    const std::string weight = shape.module + ".weight";
    ASSIGN_OR_RETURN(const QuantState state, ReadQuantState(c, shape));
    QuantizedMatrix m;
    m.format = QuantFormat::Block4(state.codec, state.block, state.nested);
    m.n = shape.n;
    m.k = shape.k;
    if (!state.nested) {
      m.scales = Values<float>(*c.Find(weight + ".absmax"));
      RETURN_IF_ERROR(CheckScales(m.scales, weight + ".absmax"));
    } else {
      m.nested_codes = Values<uint8_t>(*c.Find(weight + ".absmax"));
      m.nested_absmax = Values<float>(*c.Find(weight + ".nested_absmax"));
      m.nested_map = Values<float>(*c.Find(weight + ".nested_quant_map"));
      m.nested_offset = state.nested_offset;
      RETURN_IF_ERROR(CheckScales(m.nested_absmax, weight + ".nested_absmax"));
      for (size_t i = 0; i < m.nested_map.size(); ++i) {
        if (!std::isfinite(m.nested_map[i])) {
          return DataLoss("tensor {}.nested_quant_map: element {} is {}", weight, i,
                          m.nested_map[i]);
        }
      }
    }
    const std::span<const std::byte> packed = c.Find(weight)->data;
    const size_t count = static_cast<size_t>(shape.n * shape.k);
    m.codes.resize(count);
    for (size_t i = 0; i < count; ++i) {
      const uint8_t byte = static_cast<uint8_t>(packed[i / 2]);
      m.codes[i] = i % 2 == 0 ? byte >> 4 : byte & 0x0f;
    }
    return m;
  }
};

class Quantize4 : public QuantizeMethod {
 public:
  QuantMethod method() const override { return QuantMethod::kBitsAndBytes4; }
  QuantFormat FormatOf(const MethodOptions& o, DType) const override {
    return QuantFormat::Block4(o.codec, o.block_size, o.double_quant);
  }
  absl::StatusOr<QuantizedMatrix> Quantize(const TensorView& w, const MethodOptions& o,
                                           DType) const override {
    QuantizedMatrix m = QuantizeBlock4(w, o.codec, o.block_size);
    if (o.double_quant) NestScales(m);
    return m;
  }
  absl::Status CheckQuantizeRows(const TensorView&, const MethodOptions&) const override {
    return absl::OkStatus();
  }
};

// ---- 8-bit
// --------------------------------------------------------------------------------------------

class Import8 : public ImportMethod {
 public:
  QuantMethod method() const override { return QuantMethod::kBitsAndBytes8; }

  bool Detect(const Checkpoint& c, const std::string& module) const override {
    return c.Find(module + ".SCB") != nullptr;
  }

  absl::StatusOr<Source> Check(const Checkpoint& c, const WeightShape& shape) const override {
    const std::string weight = shape.module + ".weight";
    const StoredTensor* codes = c.Find(weight);
    if (codes == nullptr) return DataLoss("tensor {} is missing", weight);
    if (codes->dtype != StoredDType::kI8 ||
        codes->shape != std::vector<int64_t>{shape.n, shape.k}) {
      return DataLoss("tensor {}: {}, expected I8 [{}, {}]", weight, TypeText(*codes), shape.n,
                      shape.k);
    }
    RETURN_IF_ERROR(Companion(c, shape.module + ".SCB", StoredDType::kF32, shape.n).status());
    Source source;
    source.format = QuantFormat::Int8Row();
    source.tensors = {weight, shape.module + ".SCB"};
    // Absent in files of old versions, which were row-major too.
    const std::string format = shape.module + ".weight_format";
    if (c.Find(format) != nullptr) {
      ASSIGN_OR_RETURN(const StoredTensor* t, Companion(c, format, StoredDType::kU8, 1));
      if (t->data[0] != std::byte{0}) {
        return Unimplemented("tensor {}: {} is not supported; supported: 0 (row-major)", format,
                             static_cast<int>(t->data[0]));
      }
      source.tensors.push_back(format);
    }
    source.stored.method = QuantMethod::kBitsAndBytes8;
    return source;
  }

  absl::StatusOr<QuantizedMatrix> Load(const Checkpoint& c,
                                       const WeightShape& shape) const override {
    QuantizedMatrix m;
    m.format = QuantFormat::Int8Row();
    m.n = shape.n;
    m.k = shape.k;
    m.codes = Values<uint8_t>(*c.Find(shape.module + ".weight"));
    m.scales = Values<float>(*c.Find(shape.module + ".SCB"));
    RETURN_IF_ERROR(CheckScales(m.scales, shape.module + ".SCB"));
    if (std::find(m.codes.begin(), m.codes.end(), uint8_t{0x80}) != m.codes.end()) {
      return DataLoss("tensor {}.weight: a code is -128; LLM.int8() has -127 to 127", shape.module);
    }
    return m;
  }
};

class Quantize8 : public QuantizeMethod {
 public:
  QuantMethod method() const override { return QuantMethod::kBitsAndBytes8; }
  QuantFormat FormatOf(const MethodOptions&, DType) const override {
    return QuantFormat::Int8Row();
  }
  absl::StatusOr<QuantizedMatrix> Quantize(const TensorView& w, const MethodOptions&,
                                           DType) const override {
    RETURN_IF_ERROR(CheckFitsF16(w));  // the method rounds weights to f16 first
    return QuantizeInt8Rows(w);
  }
  absl::Status CheckQuantizeRows(const TensorView& w, const MethodOptions&) const override {
    return CheckFitsF16(w);
  }
};

}  // namespace

const ImportMethod& BitsAndBytes4Import() {
  static const Import4 kMethod;
  return kMethod;
}
const ImportMethod& BitsAndBytes8Import() {
  static const Import8 kMethod;
  return kMethod;
}
const QuantizeMethod& BitsAndBytes4Method() {
  static const Quantize4 kMethod;
  return kMethod;
}
const QuantizeMethod& BitsAndBytes8Method() {
  static const Quantize8 kMethod;
  return kMethod;
}

}  // namespace quantd
