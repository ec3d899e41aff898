// What docs/formats.md says is held wider than it is stored, and by how much: each figure of its
// table is that of a linear [256, 256] made here, and all others are below 1.05.
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <map>
#include <sstream>

#include "tests/engine/weights/methods/checkpoint_builder.h"

namespace quantd {
namespace {

using testing_support::CheckpointBuilder;
using testing_support::Config;
using testing_support::kModule;

constexpr int64_t kSide = 256;

/// A tensor of zero bytes; methods look at shapes and zero points only.
void AddZeros(CheckpointBuilder& file, const std::string& part, StoredDType dtype,
              std::vector<int64_t> shape) {
  int64_t bytes = BitsOf(dtype) / 8;
  for (const int64_t d : shape) bytes *= d;
  file.Add(kModule + part, dtype, std::move(shape),
           std::vector<uint8_t>(static_cast<size_t>(bytes)));
}

void AddGptqZeros(CheckpointBuilder& file, int bits, int64_t group) {
  AddZeros(file, ".qweight", StoredDType::kI32, {kSide * bits / 32, kSide});
  AddZeros(file, ".qzeros", StoredDType::kI32, {kSide / group, kSide * bits / 32});
  AddZeros(file, ".scales", StoredDType::kF16, {kSide / group, kSide});
}

void AddHqqZeros(CheckpointBuilder& file, const std::string& packing, int bits, int64_t group) {
  const int64_t groups = kSide * kSide / group;
  const bool words = bits == 3;
  AddZeros(file, ".W_q", words ? StoredDType::kI32 : StoredDType::kU8,
           {words ? (groups + 9) / 10 : groups * bits / 8, group});
  for (const char* part : {".scale", ".zero"}) AddZeros(file, part, StoredDType::kF16, {groups, 1});
  file.Add(kModule + ".shape", StoredDType::kI64, {2}, std::vector<int64_t>{kSide, kSide});
  file.Add(kModule + ".nbits", StoredDType::kI32, {}, std::vector<int32_t>{bits});
  file.Add(kModule + ".axis", StoredDType::kI32, {}, std::vector<int32_t>{1});
  file.Add(kModule + ".group_size", StoredDType::kI32, {},
           std::vector<int32_t>{static_cast<int32_t>(group)});
  file.Add(kModule + ".packing", StoredDType::kU8, {static_cast<int64_t>(packing.size())},
           std::vector<uint8_t>(packing.begin(), packing.end()));
}

void AddCtZeros(CheckpointBuilder& file, int bits, int64_t group, bool zero_points) {
  AddZeros(file, ".weight_packed", StoredDType::kI32, {kSide, kSide * bits / 32});
  AddZeros(file, ".weight_scale", StoredDType::kBF16, {kSide, kSide / group});
  if (zero_points) {
    AddZeros(file, ".weight_zero_point", StoredDType::kI32, {kSide * bits / 32, kSide / group});
  }
  file.Add(kModule + ".weight_shape", StoredDType::kI64, {2}, std::vector<int64_t>{kSide, kSide});
}

std::string GptqConfig(int bits, int64_t group) {
  return fmt::format(R"({{"quant_method": "gptq", "bits": {}, "group_size": {}}})", bits, group);
}
std::string CtConfig(int bits, int64_t group, bool symmetric) {
  return fmt::format(
      R"({{"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {{"g": {{
           "targets": ["Linear"], "weights": {{"num_bits": {}, "type": "int", "strategy": "group",
           "group_size": {}, "symmetric": {}}}}}}}}})",
      bits, group, symmetric);
}

/// Bytes held of one byte of the file.
double Ratio(const std::string& config, const std::function<void(CheckpointBuilder&)>& add) {
  CheckpointBuilder file;
  add(file);
  const auto checkpoint = file.Open();
  const MethodOptions options = Config(config);
  const auto source = MethodOf(options).Check(*checkpoint, {kModule, kSide, kSide}, options);
  EXPECT_TRUE(source.ok()) << source.status();
  if (!source.ok()) return 0;
  int64_t stored = 0;
  for (const std::string& name : source->tensors) {
    stored += static_cast<int64_t>(checkpoint->Find(name)->data.size());
  }
  return static_cast<double>(source->format.StoredBytes(kSide, kSide)) /
         static_cast<double>(stored);
}

/// The last column of the table under "## Held wider than stored", by the first.
std::map<std::string, std::string> DocumentedFigures() {
  std::ifstream page(std::string(QUANTD_SOURCE_DIR) + "/docs/formats.md");
  std::map<std::string, std::string> figures;
  bool inside = false;
  for (std::string line; std::getline(page, line);) {
    if (line.rfind("## ", 0) == 0) inside = line == "## Held wider than stored";
    if (!inside || line.rfind("| ", 0) != 0 || line.rfind("| what ", 0) == 0) continue;
    const size_t end = line.rfind(" |"), last = line.rfind("| ", end - 1);
    figures[line.substr(2, line.find(" | ") - 2)] = line.substr(last + 2, end - last - 2);
  }
  return figures;
}

TEST(HeldWider, TheFiguresOfTheDocumentationAreTheFormats) {
  const std::map<std::string, double> ours = {
      {"3-bit codes", Ratio(GptqConfig(3, 32), [](auto& f) { AddGptqZeros(f, 3, 32); })},
      {"HQQ's 3-bit codes",
       Ratio(R"({"quant_method": "hqq"})", [](auto& f) { AddHqqZeros(f, "3bit_32", 3, 64); })},
      {"HQQ's 1-bit codes",
       Ratio(R"({"quant_method": "hqq"})", [](auto& f) { AddHqqZeros(f, "1bit_u8", 1, 64); })},
      {"2-bit zero points", Ratio(GptqConfig(2, 32), [](auto& f) { AddGptqZeros(f, 2, 32); })},
      {"symmetric 2-bit codes of compressed-tensors",
       Ratio(CtConfig(2, 32, true), [](auto& f) { AddCtZeros(f, 2, 32, false); })},
      {"offsets of torchao's Int4Tensor in F16",
       Ratio(R"({"quant_method": "torchao", "quant_type": {"default": {"_type":
                 "Int4WeightOnlyConfig", "_data": {}}}})",
             [](auto& f) {
               AddZeros(f, "._weight_qdata", StoredDType::kI8, {kSide, kSide / 2});
               for (const char* part : {"._weight_scale", "._weight_zero_point"}) {
                 AddZeros(f, part, StoredDType::kF16, {kSide / 32, kSide});
               }
               f.metadata[kModule + ".weight"] =
                   R"({"_type": "Int4Tensor", "_data": {"block_size": [1, 32], "shape": [256, 256]},
                       "_tensor_data_names": ["qdata", "scale", "zero_point"]})";
             })},
      {"scales of fp8 tiles in 8 or 16 bits",
       Ratio(R"({"quant_method": "fp8", "weight_block_size": [1, 32]})",
             [](auto& f) {
               AddZeros(f, ".weight", StoredDType::kF8E4M3, {kSide, kSide});
               AddZeros(f, ".weight_scale_inv", StoredDType::kF8E8M0, {kSide, kSide / 32});
             })},
      {"one scale of a whole weight",
       Ratio(R"({"quant_method": "fp8", "weight_block_size": null})",
             [](auto& f) {
               AddZeros(f, ".weight", StoredDType::kF8E4M3, {kSide, kSide});
               AddZeros(f, ".weight_scale_inv", StoredDType::kF32, {});
             })},
  };
  std::map<std::string, std::string> rounded;
  for (const auto& [what, ratio] : ours) rounded[what] = fmt::format("{:.2f}", ratio);
  EXPECT_EQ(DocumentedFigures(), rounded);
}

TEST(HeldWider, OtherZeroPointsAndScalesStayBelow) {
  for (const int bits : {4, 8}) {
    EXPECT_LE(Ratio(GptqConfig(bits, 32), [&](auto& f) { AddGptqZeros(f, bits, 32); }), 1.05);
    EXPECT_LE(Ratio(CtConfig(bits, 32, false), [&](auto& f) { AddCtZeros(f, bits, 32, true); }),
              1.05);
  }
  EXPECT_LE(Ratio(GptqConfig(2, 64), [](auto& f) { AddGptqZeros(f, 2, 64); }), 1.05);
  EXPECT_LE(Ratio(R"({"quant_method": "fp8"})",
                  [](auto& f) {
                    AddZeros(f, ".weight", StoredDType::kF8E4M3, {kSide, kSide});
                    AddZeros(f, ".weight_scale_inv", StoredDType::kF8E8M0, {2, 2});
                  }),
            1.05);
}

}  // namespace
}  // namespace quantd
