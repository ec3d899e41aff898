// torchao checkpoints and quantization on load: fixtures, random tensors of every class from a
// packer of our own, metadata against tensors and config.json, every fault by message.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "engine/weights/profile.h"
#include "tests/engine/weights/methods/checkpoint_builder.h"
#include "tests/engine/weights/methods/on_load.h"

namespace quantd {
namespace {

using ::testing::HasSubstr;
using testing_support::CheckpointBuilder;
using testing_support::Config;
using testing_support::Import;
using testing_support::kModule;
using testing_support::ProfileOptions;
using testing_support::Random;
using testing_support::Rounded;
using testing_support::TryConfig;

std::string TorchaoConfigText(const std::string& type, const std::string& data = "") {
  return fmt::format(R"({{"quant_method": "torchao", "quant_type": {{"default": {{"_type": "{}",
    "_version": 2, "_data": {{{}}}}}}}, "modules_to_not_convert": null}})",
                     type, data);
}

// ---- a tensor subclass, and its parts

struct Subclass {
  std::string type;
  int bits = 8;
  int64_t n = 0, k = 0, rows = 1, columns = 0;  // rows and columns: of a block
  bool has_zeros = false;
  DType dtype = DType::kF32;  // of scales and of Int4Tensor's offsets
  std::vector<int> codes;     // [n, k]; bytes of Float8Tensor
  std::vector<int> zeros;     // [grid]
  std::vector<float> scales, offsets;
  std::string more;  // fields of _data

  int64_t grid_columns() const { return (k + columns - 1) / columns; }
  int64_t grid() const { return (n + rows - 1) / rows * grid_columns(); }
  std::string Metadata() const {
    const bool int4 = type == "Int4Tensor";
    std::string fields = fmt::format(R"("block_size": [{}, {}])", rows, columns);
    if (int4) fields += fmt::format(R"(, "shape": [{}, {}])", n, k);
    if (type == "IntxUnpackedToInt8Tensor") {
      fields +=
          fmt::format(R"(, "target_dtype": {{"_type": "torch.dtype", "_data": "int{}"}})", bits);
    }
    const bool zero_part = int4 || has_zeros;
    return fmt::format(R"({{"_type": "{}", "_data": {{{}{}}}, "_tensor_data_names": ["scale", {}
                          "qdata"]}})",
                       type, fields, more, zero_part ? "\"zero_point\"," : "");
  }
};

float E4M3(int byte) {
  const int exponent = byte >> 3 & 15, fraction = byte & 7;
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
  return static_cast<float>(byte & 128 ? -magnitude : magnitude);
}

std::vector<float> Weights(const Subclass& s) {
  std::vector<float> w;
  for (int64_t i = 0; i < s.n * s.k; ++i) {
    const size_t b = static_cast<size_t>(i / s.k / s.rows * s.grid_columns() + i % s.k / s.columns);
    const int code = s.codes[static_cast<size_t>(i)];
    if (s.type == "Int4Tensor") {
      const float product = static_cast<float>(code) * s.scales[b];
      w.push_back(product + s.offsets[b]);
    } else if (s.type == "Float8Tensor") {
      w.push_back(E4M3(code) * s.scales[b]);
    } else {
      w.push_back(static_cast<float>(code - (s.has_zeros ? s.zeros[b] : 0)) * s.scales[b]);
    }
  }
  return w;
}

Subclass RandomSubclass(Random& random) {
  Subclass s;
  s.type = random.Of<std::string>(
      {"Int8Tensor", "Float8Tensor", "IntxUnpackedToInt8Tensor", "Int4Tensor"});
  s.n = random.Integer(1, 40);
  s.k = 2 * random.Integer(1, 80);
  const int kind = static_cast<int>(random.Integer(0, 2));
  s.columns = kind == 0 ? s.k : random.Of<int64_t>({8, 32, 64});
  if (kind == 2 && s.type != "Int4Tensor" && s.type != "IntxUnpackedToInt8Tensor") {
    s.rows = s.n, s.columns = s.k;
  }
  s.dtype = random.Of<DType>({DType::kBF16, DType::kF16, DType::kF32});
  s.has_zeros = s.type != "Float8Tensor" && s.type != "Int4Tensor" && random.Integer(0, 1) == 0;
  if (s.type == "Int4Tensor") s.bits = 4;
  if (s.type == "IntxUnpackedToInt8Tensor") s.bits = static_cast<int>(random.Integer(2, 8));
  const int half = 1 << (s.bits - 1);
  for (int64_t i = 0; i < s.n * s.k; ++i) {
    int code = static_cast<int>(random.Integer(-half, half - 1));
    if (s.type == "Float8Tensor") code = (code & 127) == 127 ? 0 : code & 255;
    s.codes.push_back(code);
  }
  for (int64_t i = 0; i < s.grid(); ++i) {
    s.scales.push_back(Rounded(s.dtype, random.Float(0.0f, 0.1f)));
    s.offsets.push_back(Rounded(s.dtype, random.Float(-0.3f, 0.3f)));
    s.zeros.push_back(static_cast<int>(random.Integer(-half, half - 1)));
  }
  s.zeros[0] = s.has_zeros ? 1 : 0;
  return s;
}

void AddSubclass(CheckpointBuilder& file, const Subclass& s) {
  const std::string part = kModule + "._weight_";
  file.metadata[kModule + ".weight"] = s.Metadata();
  if (s.type == "Int4Tensor") {
    std::vector<uint8_t> packed;
    for (size_t i = 0; i < s.codes.size(); i += 2) {
      packed.push_back(static_cast<uint8_t>((s.codes[i] & 15) | (s.codes[i + 1] & 15) << 4));
    }
    file.Add(part + "qdata", StoredDType::kI8, {s.n, s.k / 2}, packed);
    std::vector<float> scales(s.scales.size()), offsets(s.scales.size());
    const size_t n = static_cast<size_t>(s.n), g = static_cast<size_t>(s.grid_columns());
    for (size_t i = 0; i < s.scales.size(); ++i) {
      scales[i % g * n + i / g] = s.scales[i];
      offsets[i % g * n + i / g] = s.offsets[i];
    }
    file.AddFloats(part + "scale", s.dtype, {s.grid_columns(), s.n}, scales);
    file.AddFloats(part + "zero_point", s.dtype, {s.grid_columns(), s.n}, offsets);
    return;
  }
  const std::vector<int64_t> grid = {s.grid() / s.grid_columns(), s.grid_columns()};
  file.Add(part + "qdata", s.type == "Float8Tensor" ? StoredDType::kF8E4M3 : StoredDType::kI8,
           {s.n, s.k}, std::vector<int8_t>(s.codes.begin(), s.codes.end()));
  file.AddFloats(part + "scale", s.dtype, grid, s.scales);
  if (s.has_zeros) {
    file.Add(part + "zero_point", StoredDType::kI8, grid,
             std::vector<int8_t>(s.zeros.begin(), s.zeros.end()));
  }
}

std::string ConfigFor(const Subclass& s) {
  return TorchaoConfigText(s.type == "Int8Tensor"     ? "Int8WeightOnlyConfig"
                           : s.type == "Float8Tensor" ? "Float8WeightOnlyConfig"
                           : s.type == "Int4Tensor"   ? "Int4WeightOnlyConfig"
                                                      : "IntxWeightOnlyConfig");
}

TEST(TorchAo, FixturesDequantizeToTheLibrarysBits) {
  for (const char* fixture :
       {"torchao_int8wo", "torchao_int8da", "torchao_float8wo", "torchao_intx4wo",
        "torchao_int8da_intx4", "torchao_int4wo_handpacked"}) {
    testing_support::ExpectFixtureWeights(fixture);
  }
}

TEST(TorchAo, RandomTensorsComeBackBitForBit) {
  Random random(21);
  std::set<std::string> codecs;
  for (int i = 0; i < 250; ++i) {
    const Subclass s = RandomSubclass(random);
    SCOPED_TRACE(s.Metadata() + fmt::format(" n {} k {}", s.n, s.k));
    CheckpointBuilder file;
    AddSubclass(file, s);
    const WeightSource source =
        testing_support::ExpectComesBack(file, {kModule, s.n, s.k}, ConfigFor(s), Weights(s));
    const std::string text = source.format.ToString();
    codecs.insert(text.substr(0, text.find('.')));
  }
  EXPECT_THAT(codecs, ::testing::IsSupersetOf({"int4", "uint4", "int8", "uint8", "e4m3"}));
}

TEST(TorchAo, Activations) {
  using Kind = ActivationQuant::Kind;
  using Rounding = ActivationQuant::Rounding;
  const struct {
    std::string type, config, more;
    Kind kind;
    Rounding rounding;
  } kCases[] = {
      {"Int8Tensor", "Int8WeightOnlyConfig", R"(, "act_quant_kwargs": null)", Kind::kNone,
       Rounding::kF32},
      {"Int8Tensor", "Int8DynamicActivationInt8WeightConfig",
       R"(, "act_quant_kwargs": {"_type": "QuantizeTensorToInt8Kwargs", "_data": {"granularity":
          {"_type": "PerRow", "_data": {"dim": -1}}, "mapping_type": {"_type": "MappingType",
          "_data": "SYMMETRIC"}, "reduce_range": false}})",
       Kind::kInt8Token, Rounding::kScale},
      {"Int8Tensor", "Int8DynamicActivationInt8WeightConfig",
       R"(, "act_quant_kwargs": {"_type": "QuantizeTensorToInt8Kwargs", "_data": {"granularity":
          {"_type": "PerRow", "_data": {}}, "mapping_type": {"_type": "MappingType",
          "_data": "ASYMMETRIC"}}})",
       Kind::kInt8TokenAsym, Rounding::kScale},
      {"Float8Tensor", "Float8DynamicActivationFloat8WeightConfig",
       R"(, "act_quant_kwargs": {"_type": "QuantizeTensorToFloat8Kwargs", "_data": {"granularity":
          {"_type": "PerRow", "_data": {}}}})",
       Kind::kFp8Token, Rounding::kScale},
      {"IntxUnpackedToInt8Tensor", "Int8DynamicActivationIntxWeightConfig",
       R"(, "activation_quantization": "int8_asym_per_token")", Kind::kInt8TokenAsym,
       Rounding::kEveryStep},
  };
  for (const auto& c : kCases) {
    Random random(1);
    Subclass s = RandomSubclass(random);
    while (s.type != c.type) s = RandomSubclass(random);
    s.more = c.more;
    CheckpointBuilder file;
    AddSubclass(file, s);
    WeightSource source;
    const auto matrix =
        Import(*file.Open(), {kModule, s.n, s.k}, Config(TorchaoConfigText(c.config)), &source);
    ASSERT_TRUE(matrix.ok()) << matrix.status();
    EXPECT_EQ(source.activation.kind, c.kind) << c.config;
    EXPECT_EQ(source.activation.rounding, c.rounding) << c.config;
  }
}

// ---- faults

TEST(TorchAo, FaultsAreNamed) {
  const std::string part = kModule + "._weight_";
  Subclass s;
  s.type = "IntxUnpackedToInt8Tensor";
  s.bits = 4, s.n = 2, s.k = 8, s.columns = 4, s.has_zeros = true;
  s.codes.assign(16, -3), s.zeros.assign(4, 2), s.scales.assign(4, 0.5f);
  const auto meta = [&s](CheckpointBuilder& f, const std::string& from, const std::string& to) {
    std::string text = s.Metadata();
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos);
    f.metadata[kModule + ".weight"] = text.replace(at, from.size(), to);
  };
  const struct {
    std::string what;
    std::function<void(CheckpointBuilder&)> damage;
    std::string message;
  } kCases[] = {
      {"no metadata", [](auto& f) { f.metadata.erase(kModule + ".weight"); },
       "model.safetensors: __metadata__ says nothing of " + kModule + ".weight"},
      {"not JSON", [](auto& f) { f.metadata[kModule + ".weight"] = "{"; },
       "model.safetensors: __metadata__ of " + kModule + ".weight"},
      {"not an object", [](auto& f) { f.metadata[kModule + ".weight"] = "[]"; },
       "has no _type, _data and _tensor_data_names"},
      {"device packing",
       [&](auto& f) { meta(f, "IntxUnpackedToInt8Tensor", "Int4TilePackedTo4dTensor"); },
       "\"Int4TilePackedTo4dTensor\" is packed for one device; save with int4_packing_format "
       "PLAIN"},
      {"device packing",
       [&](auto& f) { meta(f, "IntxUnpackedToInt8Tensor", "Int4PlainInt32Tensor"); },
       "\"Int4PlainInt32Tensor\" is packed for one device"},
      {"mx", [&](auto& f) { meta(f, "IntxUnpackedToInt8Tensor", "MXTensor"); },
       "\"MXTensor\" is not supported; supported: Int8Tensor"},
      {"nvfp4", [&](auto& f) { meta(f, "IntxUnpackedToInt8Tensor", "NVFP4Tensor"); },
       "\"NVFP4Tensor\" is not supported"},
      {"another class", [&](auto& f) { meta(f, "IntxUnpackedToInt8Tensor", "Int8Tensor"); },
       "is stored as Int8Tensor, config.json's quant_type makes IntxUnpackedToInt8Tensor"},
      {"block", [&](auto& f) { meta(f, "[1, 4]", "[1, 0]"); }, "block_size is [1,0]"},
      {"block of another grid", [&](auto& f) { meta(f, "[1, 4]", "[1, 2]"); },
       "F32 [2, 2], expected BF16 or F16 or F32 [2, 4]"},
      {"dtype", [&](auto& f) { meta(f, "\"int4\"", "\"int9\""); }, "target_dtype is \"int9\""},
      {"no codes", [&](auto& f) { f.tensors.erase(part + "qdata"); },
       "tensor " + part + "qdata is missing"},
      {"no scales", [&](auto& f) { f.tensors.erase(part + "scale"); },
       "tensor " + part + "scale BF16 or F16 or F32 [2, 2] is missing"},
      {"no zero points", [&](auto& f) { f.tensors.erase(part + "zero_point"); },
       "tensor " + part + "zero_point I8 [2, 2] is missing"},
      {"float zero points",
       [&](auto& f) {
         f.AddFloats(part + "zero_point", DType::kBF16, {2, 2}, {0, 0, 0, 0});
       },
       "BF16 zero points are not supported"},
      {"code out of range", [&](auto& f) { f.tensors[part + "qdata"].bytes[3] = 8; },
       "qdata: element 3 is 8, not one of int4"},
      {"zero point out of range", [&](auto& f) { f.tensors[part + "zero_point"].bytes[1] = -9; },
       "zero_point: element 1 is -9, not one of int4"},
      {"NaN",
       [&](auto& f) {
         f.AddFloats(part + "scale", DType::kF32, {2, 2}, {1, 1, NAN, 1});
       },
       "scale: element 2 is nan"},
  };
  for (const auto& c : kCases) {
    CheckpointBuilder file;
    AddSubclass(file, s);
    const MethodOptions config = Config(ConfigFor(s));
    ASSERT_TRUE(Import(*file.Open(), {kModule, 2, 8}, config).ok());
    c.damage(file);
    const auto matrix = Import(*file.Open(), {kModule, 2, 8}, config);
    EXPECT_THAT(std::string(matrix.status().message()), HasSubstr(c.message)) << c.what;
  }
}

TEST(TorchAo, NaNCodesAndUnknownPartsAreFound) {
  Subclass s;
  s.type = "Float8Tensor";
  s.n = 2, s.k = 4, s.columns = 4;
  s.codes.assign(8, 0x38), s.scales.assign(2, 1.0f);
  s.codes[6] = 0x7f;
  CheckpointBuilder file;
  AddSubclass(file, s);
  const auto nan = Import(*file.Open(), {kModule, 2, 4}, Config(ConfigFor(s)));
  EXPECT_THAT(std::string(nan.status().message()), HasSubstr("qdata: element 6 is NaN (0x7f)"));

  s.type = "Int8Tensor";
  for (const char* act : {"act_quant_scale", "act_pre_scale"}) {
    CheckpointBuilder scaled;
    AddSubclass(scaled, s);
    std::string& text = scaled.metadata[kModule + ".weight"];
    text.replace(text.find("\"qdata\""), 7, fmt::format("\"qdata\", \"{}\"", act));
    const auto matrix = Import(*scaled.Open(), {kModule, 2, 4}, Config(ConfigFor(s)));
    EXPECT_EQ(matrix.status().code(), absl::StatusCode::kUnimplemented);
    EXPECT_THAT(std::string(matrix.status().message()), HasSubstr(act));
  }
}

TEST(TorchAo, ConfigFaults) {
  EXPECT_THAT(std::string(TryConfig(R"({"quant_method": "torchao",
                                        "quant_type": "int4_weight_only"})")
                              .status()
                              .message()),
              HasSubstr("quant_type: \"int4_weight_only\": names of this kind go with pickled"));
  EXPECT_THAT(std::string(TryConfig(R"({"quant_method": "torchao"})").status().message()),
              HasSubstr("quant_type: missing; one of Int4WeightOnlyConfig"));
  // The tensors of a config that quantd does not know say what they are.
  EXPECT_TRUE(TryConfig(TorchaoConfigText("FqnToConfig")).ok());
}

TEST(TorchAo, ProfileFaults) {
  const struct {
    const char *quantization, *message;
  } kCases[] = {
      {"{quant_type: int4_weight_only}", "\"int4_weight_only\" is not one of Int4WeightOnlyConfig"},
      {"{}", "quantization.quant_type: missing"},
      {"{quant_type: Int4WeightOnlyConfig, groupsize: 32}", "nearest known one is \"group_size\""},
      {"{quant_type: {default: {_type: Int4WeightOnlyConfig, _data: {groupsize: 32}}}}",
       "quantization.quant_type.default._data.groupsize: unknown key"},
      {"{quant_type: Int4WeightOnlyConfig, group_size: 0}", "not an integer from 1"},
      {"{quant_type: Int4WeightOnlyConfig, int4_packing_format: TILE_PACKED_TO_4D}",
       "int4_packing_format: \"TILE_PACKED_TO_4D\" is not supported; supported: PLAIN"},
      {"{quant_type: Float8DynamicActivationFloat8WeightConfig}",
       "granularity: PerTensor is not supported: the scale of activations would depend"},
      {"{quant_type: Int8DynamicActivationInt8WeightConfig, granularity: [PerRow, PerTensor]}",
       "granularity: \"different ones\" is not supported"},
      {"{quant_type: Int8WeightOnlyConfig, group_size: 32}",
       "groups of 32 are not supported; instead: IntxWeightOnlyConfig"},
      {"{quant_type: IntxWeightOnlyConfig, weight_dtype: int1}", "\"int1\" is not one of int2"},
      {"{quant_type: IntxWeightOnlyConfig, mapping_type: SYMMETRIC_NO_CLIPPING_ERR}",
       "mapping_type: \"SYMMETRIC_NO_CLIPPING_ERR\" is not supported"},
      {"{quant_type: Int8WeightOnlyConfig, include_input_output_embeddings: true}",
       "an embedding cannot be quantized"},
  };
  for (const auto& c : kCases) {
    const std::string text = c.quantization;
    const auto profile = ParseProfile(
        "quantization: {quant_method: torchao" + (text == "{}" ? "}" : ", " + text.substr(1)), "p");
    EXPECT_THAT(std::string(profile.status().message()), HasSubstr(c.message)) << text;
  }
}

// ---- on load

TEST(TorchAo, OnLoadMakesTheFixturesBytes) {
  const auto options = [](const std::string& fields) {
    return ProfileOptions("{quant_method: torchao, quant_type: " + fields + "}");
  };
  using testing_support::ExpectQuantizesToFixture;
  ExpectQuantizesToFixture("torchao_int8wo", options("Int8WeightOnlyConfig"));
  ExpectQuantizesToFixture("torchao_int8da", options("Int8DynamicActivationInt8WeightConfig"));
  ExpectQuantizesToFixture("torchao_float8wo", options("Float8WeightOnlyConfig"));
  ExpectQuantizesToFixture("torchao_int4wo_handpacked",
                           options("Int4WeightOnlyConfig, group_size: 64"));
  ExpectQuantizesToFixture(
      "torchao_intx4wo",
      options(
          "IntxWeightOnlyConfig, weight_dtype: int4, group_size: 32, mapping_type: ASYMMETRIC"));
  ExpectQuantizesToFixture("torchao_int8da_intx4",
                           options("Int8DynamicActivationIntxWeightConfig, weight_dtype: int4"));
}

// The object that transformers writes into config.json does the same as a profile's short form.
TEST(TorchAo, ProfilesTakeTheObjectOfTransformers) {
  const auto yaml = [](const std::string& quantization) {
    const MethodOptions options = ProfileOptions("{quant_method: torchao, " + quantization + "}");
    return options.settings == nullptr ? "" : options.settings->ToYaml();
  };
  EXPECT_EQ(yaml(R"(quant_type: {"default": {"_type": "Int4WeightOnlyConfig", "_version": 2,
      "_data": {"group_size": 64, "int4_packing_format": {"_type": "Int4PackingFormat",
      "_data": "PLAIN"}, "set_inductor_config": true}}})"),
            yaml("quant_type: Int4WeightOnlyConfig, group_size: 64"));
  EXPECT_EQ(yaml(R"(quant_type: {"default": {"_type": "IntxWeightOnlyConfig", "_data":
      {"weight_dtype": {"_type": "torch.dtype", "_data": "int3"}, "granularity":
      {"_type": "PerGroup", "_data": {"group_size": 16}}, "mapping_type":
      {"_type": "MappingType", "_data": "ASYMMETRIC"}}}})"),
            "quant_type: IntxWeightOnlyConfig\nweight_dtype: int3\ngroup_size: 16\n"
            "mapping_type: ASYMMETRIC\n");
  // What is printed reads back as itself.
  for (const char* fields :
       {"Int4WeightOnlyConfig", "Int8WeightOnlyConfig, granularity: PerTensor",
        "Int8DynamicActivationInt8WeightConfig, act_mapping_type: ASYMMETRIC",
        "Float8WeightOnlyConfig", "Float8DynamicActivationFloat8WeightConfig, granularity: PerRow",
        "IntxWeightOnlyConfig", "Int8DynamicActivationIntxWeightConfig, weight_dtype: int4",
        "Int8DynamicActivationIntxWeightConfig, weight_granularity: PerAxis"}) {
    const std::string printed = yaml(fmt::format("quant_type: {}", fields));
    std::string again = printed;
    for (char& c : again) c = c == '\n' ? ',' : c;
    EXPECT_EQ(yaml(again), printed) << fields;
  }
}

TEST(TorchAo, OnLoadErrorsAreHalfAStep) {
  Random random(2);
  for (const char* fields :
       {"Int8WeightOnlyConfig", "Int8WeightOnlyConfig, granularity: PerTensor",
        "IntxWeightOnlyConfig, weight_dtype: int2, group_size: 8",
        "IntxWeightOnlyConfig, weight_dtype: int5, mapping_type: ASYMMETRIC",
        "IntxWeightOnlyConfig, weight_dtype: int4, group_size: 48, mapping_type: ASYMMETRIC",
        "Int4WeightOnlyConfig, group_size: 48"}) {
    const MethodOptions options =
        ProfileOptions(fmt::format("{{quant_method: torchao, quant_type: {}}}", fields));
    for (const int64_t k : {1, 48, 100, 200}) {
      const int64_t n = 5;
      std::vector<float> values;
      for (int64_t i = 0; i < n * k; ++i) values.push_back(random.Float(-1, 1));
      const TensorView w(DType::kF32, values.data(), n, k);
      const auto m = MethodOf(options).Quantize(w, options, DType::kF32);
      ASSERT_TRUE(m.ok() && m->format.Check().ok()) << fields;
      const std::vector<float> back = m->DequantizeAll();
      for (size_t i = 0; i < values.size(); ++i) {
        const float step = m->Scale(static_cast<int64_t>(i) / k, static_cast<int64_t>(i) % k);
        // Symmetric codes reach a half step less on the positive side; zero points are rounded.
        ASSERT_LE(std::fabs(back[i] - values[i]), 1.01f * step) << fields << " k " << k;
      }
    }
  }
}

}  // namespace
}  // namespace quantd
