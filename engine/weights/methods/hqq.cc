// HQQ: on load with its half-quadratic solver, and checkpoints that transformers 4 wrote.
//
// Tensors of a module, from HQQLinear.state_dict of hqq 0.2: W_q, scale, zero, and what describes
// them: shape I64 [2], nbits, group_size, axis I32 [], packing U8 (text), flags U8 []. W is seen as
// rows of groups: axis 1 [n * k / g, g], axis 0 [g, n * k / g]. W_q packs `slabs` rows that are
// rows / slabs apart into one, the first in the highest bits; scale and zero are [n * k / g, 1] or
// [1, n * k / g]; w = (code - zero) * scale.
#include <algorithm>
#include <array>

#include "engine/weights/methods/method.h"
#include "engine/weights/methods/stored.h"
#include "engine/weights/module_match.h"
#include "kernels/quant/quantize_hqq.h"

namespace quantd {
namespace {

/// What a checkpoint's config.json says of the modules whose names end with `tag`.
struct HqqSaid {
  std::string tag;  // "self_attn.q_proj"; empty: of all
  std::optional<int64_t> bits, axis;
  std::optional<int64_t> group_size;  // 0: null

  bool Names(const std::string& module) const {
    return tag.empty() || module == tag || module.ends_with("." + tag);
  }
};

struct HqqSettings : MethodSettings {
  HqqParams params;  // group_size 0: as many as inputs (axis 1) or outputs (axis 0)
  std::vector<HqqSaid> said;

  std::string_view label() const override { return "hqq"; }
  std::string ToYaml() const override {
    std::string text =
        fmt::format("nbits: {}\ngroup_size: {}\naxis: {}\n", params.bits, GroupText(), params.axis);
    if (!params.optimize) text += "optimize: false\n";
    if (params.round_zero != (params.bits == 4)) {
      text += fmt::format("round_zero: {}\n", params.round_zero);
    }
    return text;
  }
  std::string Describe() const override {
    return fmt::format("hqq {}-bit, group_size {}, axis {}", params.bits, GroupText(), params.axis);
  }
  HqqParams For(const WeightShape& shape) const {
    HqqParams own = params;
    if (own.group_size == 0) {
      own.group_size = static_cast<int32_t>(own.axis == 1 ? shape.k : shape.n);
    }
    return own;
  }

 private:
  std::string GroupText() const {
    return params.group_size == 0 ? "null" : fmt::format("{}", params.group_size);
  }
};

// ---- checkpoints

struct HqqPacking {
  std::string_view name;
  int slabs;
  int bits;  // of a slab
};
constexpr std::array<HqqPacking, 5> kPackings = {{
    {"8bit_u8", 1, 8},
    {"4bit_u8", 2, 4},
    {"3bit_32", 10, 3},
    {"2bit_u8", 4, 2},
    {"1bit_u8", 8, 1},
}};

/// How a module is stored.
struct Stored {
  HqqPacking packing;
  int bits = 0;                // of a code; 8bit_u8 also holds 5, 6 and 7
  HqqParams params;            // its bits are the packing's
  int64_t rows = 0, cols = 0;  // of W seen as groups
  int64_t packed_rows() const { return (rows + packing.slabs - 1) / packing.slabs; }
  int64_t unit() const { return packing.slabs == 10 ? 4 : 1; }  // bytes of an element of W_q
};

constexpr std::string_view kNumbers[] = {"nbits", "group_size", "axis"};
// Of these, only those that ReadStored asks for change how the others read.
constexpr std::string_view kMore[] = {
    "packing",    "unpack_view_dtype", "compute_dtype",       "view_as_float",
    "quant_zero", "quant_scale",       "channel_wise",        "optimize",
    "round_zero", "offload_meta",      "stores_quant_config", "encoded_state_dict"};

absl::StatusOr<int64_t> Number(const Checkpoint& c, const std::string& name) {
  const StoredTensor* t = c.Find(name);
  if (t == nullptr) return DataLoss("tensor {} is missing", name);
  if (NumElements(*t) == 1) {
    if (t->dtype == StoredDType::kI32) return Values<int32_t>(*t)[0];
    if (t->dtype == StoredDType::kI64) return Values<int64_t>(*t)[0];
  }
  return DataLoss("tensor {}: {}, expected I32 []", name, TypeText(*t));
}

absl::StatusOr<bool> Flag(const Checkpoint& c, const std::string& name, bool absent) {
  const StoredTensor* t = c.Find(name);
  if (t == nullptr) return absent;
  if (NumElements(*t) != 1 || (t->dtype != StoredDType::kU8 && t->dtype != StoredDType::kBool)) {
    return DataLoss("tensor {}: {}, expected U8 []", name, TypeText(*t));
  }
  return t->data[0] != std::byte{0};
}

absl::StatusOr<HqqPacking> ReadPacking(const Checkpoint& c, const std::string& name) {
  const StoredTensor* t = c.Find(name);
  if (t == nullptr) return DataLoss("tensor {} is missing", name);
  constexpr size_t kLongest = 64;
  if (t->dtype != StoredDType::kU8 || t->data.size() > kLongest) {
    return DataLoss("tensor {}: {}, expected the bytes of a name", name, TypeText(*t));
  }
  const std::string_view text(reinterpret_cast<const char*>(t->data.data()), t->data.size());
  for (const HqqPacking& p : kPackings) {
    if (text == p.name) return p;
  }
  return Unimplemented(
      "tensor {}: \"{}\" is not one of 8bit_u8, 4bit_u8, 3bit_32, 2bit_u8, 1bit_u8", name, text);
}

absl::StatusOr<Stored> ReadStored(const Checkpoint& c, const WeightShape& shape) {
  const std::string module = shape.module + ".";
  for (const char* flag : {"quant_scale", "quant_zero", "offload_meta"}) {
    ASSIGN_OR_RETURN(const bool on, Flag(c, module + flag, false));
    if (on) {
      return Unimplemented("tensor {}{}: 1 is not supported: quantized scales; supported: 0",
                           module, flag);
    }
  }
  ASSIGN_OR_RETURN(const bool channel_wise, Flag(c, module + "channel_wise", true));
  if (!channel_wise) {
    return Unimplemented("tensor {}channel_wise: 0 is not supported; supported: 1", module);
  }
  Stored stored;
  ASSIGN_OR_RETURN(stored.packing, ReadPacking(c, module + "packing"));
  stored.params.bits = stored.packing.bits;
  ASSIGN_OR_RETURN(const int64_t bits, Number(c, module + "nbits"));
  const bool byte = stored.packing.bits == 8;  // which also holds 5, 6 and 7 bits
  if (byte ? bits < 5 || bits > 8 : bits != stored.packing.bits) {
    return DataLoss("tensor {}nbits: {} with packing {}", module, bits, stored.packing.name);
  }
  stored.bits = static_cast<int>(bits);
  ASSIGN_OR_RETURN(const int64_t axis, Number(c, module + "axis"));
  if (axis != 0 && axis != 1) return DataLoss("tensor {}axis: {} is not 0 or 1", module, axis);
  stored.params.axis = static_cast<int>(axis);
  ASSIGN_OR_RETURN(const int64_t group, Number(c, module + "group_size"));
  const int64_t count = shape.n * shape.k;
  if (group < 1 || group > INT32_MAX || count % group != 0) {
    return DataLoss("tensor {}group_size: {} does not divide [{}, {}]", module, group, shape.n,
                    shape.k);
  }
  stored.params.group_size = static_cast<int32_t>(group);
  stored.rows = axis == 1 ? count / group : group;
  stored.cols = axis == 1 ? group : count / group;
  if (stored.packing.slabs != 10 && stored.rows % stored.packing.slabs != 0) {
    return DataLoss("tensor {}W_q: {} rows of groups are not a multiple of the {} of {}", module,
                    stored.rows, stored.packing.slabs, stored.packing.name);
  }
  return stored;
}

/// nbits, axis and group_size against what config.json says of them.
absl::Status CheckAgainstConfig(const Stored& stored, const WeightShape& shape,
                                const HqqSettings& config) {
  if (config.said.empty()) return absl::OkStatus();
  const auto said = std::find_if(config.said.begin(), config.said.end(),
                                 [&](const HqqSaid& s) { return s.Names(shape.module); });
  if (said == config.said.end()) {
    return DataLoss(
        "{}: is stored as hqq, but no linear tag of config.json's quant_config names it",
        shape.module);
  }
  const auto compare = [&](const char* name, int64_t is, const std::optional<int64_t>& says) {
    if (!says || *says == is) return absl::OkStatus();
    return DataLoss("tensor {}.{}: is {}, config.json says {}", shape.module, name, is, *says);
  };
  RETURN_IF_ERROR(compare("nbits", stored.bits, said->bits));
  RETURN_IF_ERROR(compare("axis", stored.params.axis, said->axis));
  std::optional<int64_t> group = said->group_size;
  if (group == 0) group = stored.params.axis == 1 ? shape.k : shape.n;
  return compare("group_size", stored.params.group_size, group);
}

absl::StatusOr<WeightSource> CheckStored(const Checkpoint& c, const WeightShape& shape,
                                         const HqqSettings& config) {
  ASSIGN_OR_RETURN(Stored stored, ReadStored(c, shape));
  RETURN_IF_ERROR(CheckAgainstConfig(stored, shape, config));
  const std::string module = shape.module + ".";
  WeightSource source;
  source.label = "hqq";

  ASSIGN_OR_RETURN(const StoredTensor* dims,
                   RequireTensor(c, module + "shape", {StoredDType::kI64}, {2}));
  if (const auto stated = Values<int64_t>(*dims);
      stated != std::vector<int64_t>{shape.n, shape.k}) {
    return DataLoss("tensor {}shape is [{}, {}], config.json says [{}, {}]", module, stated[0],
                    stated[1], shape.n, shape.k);
  }
  // view_as_float stores the same bytes under the compute dtype, so that the last dimension
  // shrinks.
  const std::string codes = module + "W_q";
  ASSIGN_OR_RETURN(const bool as_float, Flag(c, module + "view_as_float", false));
  if (as_float) {
    const StoredTensor* t = c.Find(codes);
    const int64_t bytes = stored.packed_rows() * stored.cols * stored.unit();
    if (t == nullptr) return DataLoss("tensor {} is missing", codes);
    if (static_cast<int64_t>(t->data.size()) != bytes) {
      return DataLoss("tensor {}: {} holds {} bytes, {} of [{}, {}] takes {}", codes, TypeText(*t),
                      t->data.size(), stored.packing.name, shape.n, shape.k, bytes);
    }
  } else {
    const StoredDType dtype = stored.unit() == 4 ? StoredDType::kI32 : StoredDType::kU8;
    RETURN_IF_ERROR(RequireTensor(c, codes, {dtype}, {stored.packed_rows(), stored.cols}).status());
  }
  const bool axis1 = stored.params.axis == 1;
  const std::vector<int64_t> groups = {axis1 ? stored.rows : 1, axis1 ? 1 : stored.cols};
  ASSIGN_OR_RETURN(
      const StoredTensor* scale,
      RequireTensor(c, module + "scale", {StoredDType::kF32, StoredDType::kF16, StoredDType::kBF16},
                    groups));
  RETURN_IF_ERROR(RequireTensor(c, module + "zero", {scale->dtype}, groups).status());

  source.format = HqqFormat(stored.params, *ToDType(scale->dtype));
  source.tensors = {codes, module + "scale", module + "zero", module + "shape"};
  for (const std::string_view name : kNumbers) source.tensors.push_back(module + std::string(name));
  for (const std::string_view name : kMore) {
    const std::string tensor = module + std::string(name);
    if (c.Find(tensor) != nullptr) source.tensors.push_back(tensor);
  }
  return source;
}

template <typename T>
void Unpack(const Stored& stored, const std::vector<T>& packed, std::vector<uint8_t>& codes) {
  const uint32_t mask = (1u << stored.packing.bits) - 1u;
  for (int64_t row = 0; row < stored.rows; ++row) {
    const int64_t slab = row / stored.packed_rows();
    const T* from = packed.data() + row % stored.packed_rows() * stored.cols;
    uint8_t* to = codes.data() + row * stored.cols;
    const int shift = stored.packing.bits * (stored.packing.slabs - 1 - static_cast<int>(slab));
    for (int64_t col = 0; col < stored.cols; ++col) {
      to[col] = static_cast<uint8_t>((static_cast<uint32_t>(from[col]) >> shift) & mask);
    }
  }
}

/// Codes of fewer bits than the byte that holds each.
absl::Status CheckRange(const std::vector<uint8_t>& codes, const Stored& stored,
                        const std::string& module) {
  const auto bad = std::find_if(codes.begin(), codes.end(),
                                [&](uint8_t code) { return code >> stored.bits != 0; });
  if (bad == codes.end()) return absl::OkStatus();
  return DataLoss("tensor {}W_q: element {} is {}, which {} bits do not hold", module,
                  bad - codes.begin(), *bad, stored.bits);
}

// ---- options

constexpr std::array<std::string_view, 10> kHqqKeys = {
    "quant_method", "nbits",      "group_size",   "axis",           "view_as_float",
    "optimize",     "round_zero", "quant_config", "dynamic_config", "skip_modules"};
constexpr std::array<std::string_view, 4> kConfigKeys = {
    "weight_quant_params", "scale_quant_params", "zero_quant_params", "offload_meta"};
constexpr std::array<std::string_view, 7> kParamKeys = {
    "nbits", "channel_wise", "group_size", "optimize", "round_zero", "axis", "view_as_float"};

/// HqqConfig's arguments, or hqq's weight_quant_params.
HqqParams ReadParams(const OptionReader& reader) {
  HqqParams params;
  const int64_t bits = reader.Integer("nbits", 4, 1, 8);
  params.bits = static_cast<int>(bits);
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8) {
    reader.faults().AddUnimplemented("{}: {} is not supported; supported: 8, 4, 3, 2",
                                     reader.Path("nbits"), bits);
    params.bits = 4;
  }
  const bool whole = std::any_of(reader.map().begin(), reader.map().end(), [](const auto& entry) {
    return entry.key == "group_size" && entry.value.kind == OptionValue::Kind::kNull;
  });
  params.group_size =
      whole ? 0 : static_cast<int32_t>(reader.Integer("group_size", 64, 8, INT32_MAX));
  if (params.group_size % 8 != 0) {
    reader.faults().Add("{}: {} is not a multiple of 8", reader.Path("group_size"),
                        params.group_size);
  }
  params.axis = static_cast<int>(reader.Integer("axis", 1, 0, 1));
  params.optimize = reader.Bool("optimize", true);
  params.round_zero = reader.Bool("round_zero", params.bits == 4);
  reader.Bool("view_as_float", false);  // only another dtype for the same bytes
  if (!reader.Bool("channel_wise", true)) {
    reader.faults().AddUnimplemented("{}: false is not supported: one scale for a whole matrix",
                                     reader.Path("channel_wise"));
  }
  return params;
}

/// Scales quantized in turn, which hqq no longer writes.
void RefuseQuantizedScales(const OptionReader& config) {
  for (const char* key : {"scale_quant_params", "zero_quant_params"}) {
    if (config.Find(key) != nullptr) {
      config.faults().AddUnimplemented("{}: quantized scales are not supported; supported: null",
                                       config.Path(key));
    }
  }
  if (config.Bool("offload_meta", false)) {
    config.faults().AddUnimplemented("{}: true is not supported: {}", config.Path("offload_meta"),
                                     kOneBackend);
  }
}

class Hqq : public Method {
 public:
  std::string_view name() const override { return "hqq"; }
  bool trainable_with_peft(const MethodOptions&) const override { return true; }
  bool on_load() const override { return true; }
  std::string_view skip_key() const override { return "skip_modules"; }

  MethodOptions Read(const OptionReader& reader, OptionSource source) const override {
    auto settings = std::make_shared<HqqSettings>();
    MethodOptions options;
    options.method = name();
    if (source == OptionSource::kProfile) {
      ReadProfile(reader, *settings);
      options.skip_modules = reader.Strings("skip_modules");
      for (const std::string& pattern : options.skip_modules) {
        reader.faults().Add(Annotate(CheckSkipPattern(pattern), reader.Path("skip_modules")));
      }
    } else {
      ReadCheckpoint(reader, *settings);
    }
    options.settings = std::move(settings);
    return options;
  }

  bool Detect(const Checkpoint& c, const WeightShape& shape) const override {
    return c.Find(shape.module + ".W_q") != nullptr;
  }
  absl::StatusOr<WeightSource> Check(const Checkpoint& c, const WeightShape& shape,
                                     const MethodOptions& config) const override {
    return CheckStored(c, shape, SettingsOf<HqqSettings>(config));
  }
  absl::StatusOr<QuantizedMatrix> Load(const Checkpoint& c, const WeightShape& shape,
                                       const MethodOptions&) const override {
    ASSIGN_OR_RETURN(const Stored stored, ReadStored(c, shape));
    const std::string module = shape.module + ".";
    QuantizedMatrix m;
    m.format = HqqFormat(stored.params, *ToDType(c.Find(module + "scale")->dtype));
    m.n = shape.n;
    m.k = shape.k;
    ASSIGN_OR_RETURN(m.scales, FiniteFloats(c, module + "scale"));
    RETURN_IF_ERROR(CheckNotNegative(m.scales, module + "scale"));
    ASSIGN_OR_RETURN(m.zeros, FiniteFloats(c, module + "zero"));
    m.codes.resize(static_cast<size_t>(shape.n * shape.k));
    const StoredTensor& codes = *c.Find(module + "W_q");
    if (stored.unit() == 4) {
      Unpack(stored, Values<uint32_t>(codes), m.codes);
    } else {
      Unpack(stored, Values<uint8_t>(codes), m.codes);
    }
    if (stored.bits < stored.packing.bits) RETURN_IF_ERROR(CheckRange(m.codes, stored, module));
    return m;
  }

  absl::Status CheckShape(const WeightShape& shape, const MethodOptions& options) const override {
    const HqqParams params = SettingsOf<HqqSettings>(options).For(shape);
    if (shape.n * shape.k % params.group_size == 0) return absl::OkStatus();
    return InvalidArgument("[{}, {}] is not a multiple of group_size {}", shape.n, shape.k,
                           params.group_size);
  }
  QuantFormat FormatOf(const WeightShape& shape, const MethodOptions& options,
                       DType plain) const override {
    return HqqFormat(SettingsOf<HqqSettings>(options).For(shape), plain);
  }
  absl::StatusOr<QuantizedMatrix> Quantize(const TensorView& w, const MethodOptions& options,
                                           DType plain) const override {
    return QuantizeHqq(w, SettingsOf<HqqSettings>(options).For({"", w.rows, w.cols}), plain);
  }

 private:
  /// HqqConfig's own arguments, or the quant_config that it writes.
  static void ReadProfile(const OptionReader& reader, HqqSettings& settings) {
    reader.CheckKeys(kHqqKeys);
    if (reader.Find("dynamic_config") != nullptr) {
      reader.faults().AddUnimplemented("{}: not supported; instead: the profile's overrides",
                                       reader.Path("dynamic_config"));
    }
    if (reader.Find("quant_config") == nullptr) {
      settings.params = ReadParams(reader);
      return;
    }
    for (const auto& [key, value] : reader.map()) {
      if (key != "quant_method" && key != "quant_config" && key != "skip_modules") {
        reader.faults().Add("{}: stands beside quant_config, which has it too", reader.Path(key));
      }
    }
    const OptionReader config(reader.Map("quant_config"), reader.Path("quant_config"),
                              reader.faults());
    if (config.Find("weight_quant_params") == nullptr) {
      reader.faults().AddUnimplemented(
          "{}: has no weight_quant_params; for a config by linear tag: the profile's overrides",
          reader.Path("quant_config"));
      return;
    }
    config.CheckKeys(kConfigKeys);
    RefuseQuantizedScales(config);
    const OptionReader params(config.Map("weight_quant_params"), config.Path("weight_quant_params"),
                              reader.faults());
    params.CheckKeys(kParamKeys);
    settings.params = ReadParams(params);
  }

  /// What the tensors are compared with; config.json is also searched for what they may not be. Its
  /// quant_config is one config, or several by linear tag ("self_attn.q_proj").
  static void ReadCheckpoint(const OptionReader& reader, HqqSettings& settings) {
    const OptionReader config(reader.Map("quant_config"), reader.Path("quant_config"),
                              reader.faults());
    if (const OptionMap& params = config.Map("weight_quant_params"); !params.empty()) {
      const OptionReader own(params, config.Path("weight_quant_params"), reader.faults());
      settings.said.push_back(ReadSaid("", own));
      const HqqSaid& said = settings.said.back();
      settings.params.bits = static_cast<int>(said.bits.value_or(4));
      settings.params.axis = static_cast<int>(said.axis.value_or(1));
      settings.params.group_size = static_cast<int32_t>(said.group_size.value_or(0));
      RefuseQuantizedScales(config);
      return;
    }
    for (const auto& [tag, value] : config.map()) {
      if (value.kind != OptionValue::Kind::kMap) continue;
      const OptionReader own(value.map, config.Path(tag), reader.faults());
      RefuseQuantizedScales(own);
      settings.said.push_back(
          ReadSaid(tag, OptionReader(own.Map("weight_quant_params"),
                                     own.Path("weight_quant_params"), reader.faults())));
    }
  }

  static HqqSaid ReadSaid(const std::string& tag, const OptionReader& params) {
    HqqSaid said{tag, {}, {}, {}};
    if (params.Find("nbits") != nullptr) said.bits = params.Integer("nbits", 4, 1, 8);
    if (params.Find("axis") != nullptr) said.axis = params.Integer("axis", 1, 0, 1);
    for (const auto& [key, value] : params.map()) {
      if (key != "group_size") continue;
      said.group_size = params.Integer("group_size", 0, 1, INT32_MAX);  // 0: null
    }
    return said;
  }
};

}  // namespace

const Method& HqqMethod() {
  static const Hqq kMethod;
  return kMethod;
}

}  // namespace quantd
