// Test helpers of the import methods: checkpoints of single tensors, packers that share no code
// with the readers, and the way a module takes through a Method. Header-only.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/weights/methods/method.h"
#include "engine/weights/quantization_options.h"
#include "kernels/status.h"
#include "tests/engine/models/tiny_model.h"

namespace quantd::testing_support {

/// The module that single-module tests store and import.
inline const std::string kModule = "model.layers.0.mlp.up_proj";

/// The tensors of a file in the making.
class CheckpointBuilder {
 public:
  template <typename T>
  void Add(const std::string& name, StoredDType dtype, std::vector<int64_t> shape,
           const std::vector<T>& values) {
    std::string bytes(values.size() * sizeof(T), '\0');
    if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
    tensors[name] = {dtype, std::move(shape), std::move(bytes)};
  }
  void AddFloats(const std::string& name, DType dtype, std::vector<int64_t> shape,
                 const std::vector<float>& values) {
    tensors[name] = FloatTensor(values, std::move(shape), dtype);
  }
  /// Writes the file and opens it; it lives as long as the builder.
  std::unique_ptr<Checkpoint> Open() const {
    const auto file = dir_.path() / "model.safetensors";
    WriteTensors(file, tensors, metadata);
    auto checkpoint = Checkpoint::OpenFile(file);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return checkpoint.ok() ? std::move(*checkpoint) : nullptr;
  }

  OwnedTensors tensors;
  std::map<std::string, std::string> metadata = {{"format", "pt"}};

 private:
  TempDir dir_;
};

/// What ReadQuantizationConfig says to a config.json with this quantization_config.
inline absl::StatusOr<std::optional<MethodOptions>> TryConfig(const std::string& json) {
  TempDir dir;
  WriteFile(dir.path() / "config.json", "{\"quantization_config\": " + json + "}");
  return ReadQuantizationConfig(dir.path());
}

inline MethodOptions Config(const std::string& json) {
  auto config = TryConfig(json);
  EXPECT_TRUE(config.ok() && config->has_value()) << config.status() << "\n" << json;
  return config.ok() ? config->value_or(MethodOptions()) : MethodOptions();
}

/// Detect, Check and Load of one module by the method of `config`. The first error, else the
/// matrix, which is what Check promised.
inline absl::StatusOr<QuantizedMatrix> Import(const Checkpoint& checkpoint,
                                              const WeightShape& shape, const MethodOptions& config,
                                              WeightSource* source = nullptr) {
  const Method& method = MethodOf(config);
  EXPECT_TRUE(method.Detect(checkpoint, shape)) << shape.module;
  ASSIGN_OR_RETURN(WeightSource checked, method.Check(checkpoint, shape, config));
  for (const std::string& name : checked.tensors) {
    EXPECT_NE(checkpoint.Find(name), nullptr) << name;
  }
  EXPECT_TRUE(checked.format.Check().ok()) << checked.format.ToString();
  ASSIGN_OR_RETURN(QuantizedMatrix matrix, method.Load(checkpoint, shape, config));
  EXPECT_EQ(matrix.format, checked.format) << matrix.format.ToString();
  EXPECT_EQ(matrix.columns, checked.columns);
  EXPECT_EQ(matrix.n, shape.n);
  EXPECT_EQ(matrix.k, shape.k);
  const size_t blocks = static_cast<size_t>(matrix.format.block.Count(matrix.n, matrix.k));
  const bool nested = matrix.format.scale == ScaleType::kNested;
  EXPECT_EQ(nested ? matrix.nested_codes.size() : matrix.scales.size(), blocks);
  EXPECT_EQ(matrix.zeros.size(), matrix.format.zero == ZeroType::kNone ? 0u : blocks);
  if (source != nullptr) *source = std::move(checked);
  return matrix;
}

/// Elements that differ, as bits.
inline size_t NumDifferent(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  size_t count = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    count += std::memcmp(&a[i], &b[i], sizeof(float)) != 0 ? 1 : 0;
  }
  return count;
}

/// Where QUANTD_DUMP_LINEARS names a folder: the file in a folder of its own there, with its config
/// and `weights`, for tests/reference/packers_test.py to decode by the layouts alone.
inline void DumpLinear(const CheckpointBuilder& file, const WeightShape& shape,
                       const std::string& config, const std::vector<float>& weights) {
  const char* root = std::getenv("QUANTD_DUMP_LINEARS");
  if (root == nullptr) return;
  static int count = 0;
  const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
  const auto dir = std::filesystem::path(root) /
                   fmt::format("{}.{}.{}", test->test_suite_name(), test->name(), count++);
  std::filesystem::create_directories(dir);
  WriteFile(dir / "config.json", "{\"quantization_config\": " + config + "}");
  WriteTensors(dir / "model.safetensors", file.tensors, file.metadata);
  WriteTensors(dir / "expected.safetensors",
               {{shape.module + ".weight", FloatTensor(weights, {shape.n, shape.k}, DType::kF32)}});
}

/// The module of a file that a packer made of `weights` is read as these, to the bit, and every
/// tensor belongs to it.
inline WeightSource ExpectComesBack(const CheckpointBuilder& file, const WeightShape& shape,
                                    const std::string& config, const std::vector<float>& weights) {
  DumpLinear(file, shape, config, weights);
  const auto checkpoint = file.Open();
  WeightSource source;
  const auto matrix = Import(*checkpoint, shape, Config(config), &source);
  EXPECT_TRUE(matrix.ok()) << matrix.status() << "\n" << config;
  if (!matrix.ok()) return source;
  EXPECT_EQ(NumDifferent(matrix->DequantizeAll(), weights), 0u)
      << matrix->format.ToString() << " [" << shape.n << ", " << shape.k << "] " << config;
  EXPECT_EQ(source.tensors.size(), file.tensors.size()) << "every tensor is named\n" << config;
  return source;
}

inline std::vector<float> Floats(const StoredTensor& t) {
  std::vector<float> values(t.data.size() / sizeof(float));
  if (!values.empty()) std::memcpy(values.data(), t.data.data(), t.data.size());
  return values;
}

/// Loads every dequantized weight that the fixture's library recorded, and compares bits.
inline void ExpectFixtureWeights(const std::string& fixture) {
  const auto dir = std::filesystem::path(QUANTD_TEST_DATA) / "models" / fixture;
  auto config = ReadQuantizationConfig(dir);
  ASSERT_TRUE(config.ok() && config->has_value()) << config.status();
  auto checkpoint = Checkpoint::Open(dir);
  auto expected = Checkpoint::OpenFile(dir / "expected.safetensors");
  ASSERT_TRUE(checkpoint.ok() && expected.ok()) << checkpoint.status() << expected.status();
  const std::string prefix = "dequant.", suffix = ".weight";
  int modules = 0;
  for (const auto& [name, tensor] : (*expected)->tensors()) {
    if (name.rfind(prefix, 0) != 0) continue;
    const WeightShape shape{name.substr(prefix.size(), name.size() - prefix.size() - suffix.size()),
                            tensor.shape[0], tensor.shape[1]};
    const auto matrix = Import(**checkpoint, shape, **config);
    ASSERT_TRUE(matrix.ok()) << fixture << ": " << matrix.status();
    EXPECT_EQ(NumDifferent(matrix->DequantizeAll(), Floats(tensor)), 0u) << fixture << " " << name;
    ++modules;
  }
  EXPECT_GT(modules, 0) << fixture;
}

/// Numbers of a seed, the same with every standard library.
class Random {
 public:
  explicit Random(uint32_t seed) : random_(seed) {}
  int64_t Integer(int64_t least, int64_t most) {
    return least + static_cast<int64_t>(random_() % static_cast<uint64_t>(most - least + 1));
  }
  float Float(float least, float most) {
    return least + (most - least) * static_cast<float>(random_() >> 8) * 0x1p-24f;
  }
  template <typename T>
  const T& Of(const std::vector<T>& choices) {
    return choices[static_cast<size_t>(Integer(0, static_cast<int64_t>(choices.size()) - 1))];
  }

 private:
  std::mt19937 random_;
};

/// The value of an e4m3 byte, written out once more: not by the code under test.
inline float E4M3(uint8_t byte) {
  const int exponent = byte >> 3 & 15, fraction = byte & 7;
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
  return static_cast<float>(byte & 0x80 ? -magnitude : magnitude);
}

/// `v` as `dtype` holds it.
inline float Rounded(DType dtype, float v) {
  if (dtype == DType::kF16) return static_cast<float>(F16(v));
  return dtype == DType::kBF16 ? static_cast<float>(BF16(v)) : v;
}

/// A linear of GPTQ's family before it is packed.
struct GroupedLinear {
  int64_t n = 0, k = 0, group = 0;
  int bits = 4;
  std::vector<int> codes;      // [k, n]
  std::vector<int> zeros;      // [groups, n]
  std::vector<float> scales;   // [groups, n]
  std::vector<int32_t> g_idx;  // [k]
  DType scale_dtype = DType::kF16;
  int64_t groups() const { return (k + group - 1) / group; }

  /// (code - zero) * scale of every weight, [n, k].
  std::vector<float> Weights() const {
    std::vector<float> w(static_cast<size_t>(n * k));
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t o = 0; o < n; ++o) {
        const size_t g = static_cast<size_t>(g_idx[static_cast<size_t>(i)] * n + o);
        const float code = static_cast<float>(codes[static_cast<size_t>(i * n + o)]);
        w[static_cast<size_t>(o * k + i)] = (code - static_cast<float>(zeros[g])) * scales[g];
      }
    }
    return w;
  }
};

inline GroupedLinear RandomLinear(Random& random, int64_t n, int64_t k, int64_t group, int bits,
                                  bool symmetric, DType scale_dtype) {
  GroupedLinear l;
  l.n = n, l.k = k, l.group = group, l.bits = bits, l.scale_dtype = scale_dtype;
  const int top = (1 << bits) - 1;
  for (int64_t i = 0; i < n * k; ++i) l.codes.push_back(static_cast<int>(random.Integer(0, top)));
  for (int64_t i = 0; i < n * l.groups(); ++i) {
    l.zeros.push_back(symmetric ? 1 << (bits - 1) : static_cast<int>(random.Integer(0, top)));
    l.scales.push_back(Rounded(scale_dtype, random.Float(-0.01f, 0.05f)));
  }
  for (int64_t i = 0; i < k; ++i) l.g_idx.push_back(static_cast<int32_t>(i / group));
  return l;
}

/// Bit b of value r of a column is bit r * bits + b of the column's words, [ceil(rows * bits / 32),
/// cols].
inline std::vector<uint32_t> PackDownColumns(const std::vector<int>& values, int64_t rows,
                                             int64_t cols, int bits) {
  std::vector<uint32_t> words(static_cast<size_t>((rows * bits + 31) / 32 * cols));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      for (int b = 0; b < bits; ++b) {
        const uint32_t bit = static_cast<uint32_t>(values[static_cast<size_t>(r * cols + c)]) >> b;
        const int64_t at = r * bits + b;
        words[static_cast<size_t>(at / 32 * cols + c)] |= (bit & 1u) << (at % 32);
      }
    }
  }
  return words;
}

/// GPTQ's tensors. `minus_one`: the first format, whose writers subtract from whole words (from
/// every field where 3 bits straddle words).
inline void AddGptq(CheckpointBuilder& file, const std::string& module, const GroupedLinear& l,
                    bool minus_one, bool with_g_idx) {
  const int64_t groups = l.groups();
  file.Add(module + ".qweight", StoredDType::kI32, {(l.k * l.bits + 31) / 32, l.n},
           PackDownColumns(l.codes, l.k, l.n, l.bits));
  std::vector<int> turned(l.zeros.size());
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t o = 0; o < l.n; ++o) {
      const int zero = l.zeros[static_cast<size_t>(g * l.n + o)];
      turned[static_cast<size_t>(o * groups + g)] =
          minus_one && l.bits == 3 ? (zero + 7) % 8 : zero;
    }
  }
  const std::vector<uint32_t> columns = PackDownColumns(turned, l.n, groups, l.bits);
  const int64_t words = (l.n * l.bits + 31) / 32;
  std::vector<uint32_t> zeros(columns.size());
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t w = 0; w < words; ++w) {
      uint32_t word = columns[static_cast<size_t>(w * groups + g)];
      if (minus_one && l.bits == 2) word -= 0x55555555u;
      if (minus_one && l.bits == 4) word -= 0x11111111u;
      if (minus_one && l.bits == 8) word -= 0x01010101u;
      zeros[static_cast<size_t>(g * words + w)] = word;
    }
  }
  file.Add(module + ".qzeros", StoredDType::kI32, {groups, words}, zeros);
  file.AddFloats(module + ".scales", l.scale_dtype, {groups, l.n}, l.scales);
  if (with_g_idx) file.Add(module + ".g_idx", StoredDType::kI32, {l.k}, l.g_idx);
}

/// AWQ's tensors: nibble i of a word is column kOrder[i] of its eight.
inline void AddAwq(CheckpointBuilder& file, const std::string& module, const GroupedLinear& l) {
  constexpr int64_t kOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};
  const int64_t words = (l.n + 7) / 8;
  const auto pack = [&](const std::vector<int>& values, int64_t rows) {
    std::vector<uint32_t> packed(static_cast<size_t>(rows * words));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < words * 8; ++i) {
        const int64_t column = i / 8 * 8 + kOrder[i % 8];
        if (column >= l.n) continue;
        packed[static_cast<size_t>(r * words + i / 8)] |=
            static_cast<uint32_t>(values[static_cast<size_t>(r * l.n + column)]) << (4 * (i % 8));
      }
    }
    return packed;
  };
  file.Add(module + ".qweight", StoredDType::kI32, {l.k, words}, pack(l.codes, l.k));
  file.Add(module + ".qzeros", StoredDType::kI32, {l.groups(), words}, pack(l.zeros, l.groups()));
  file.AddFloats(module + ".scales", l.scale_dtype, {l.groups(), l.n}, l.scales);
}

}  // namespace quantd::testing_support
