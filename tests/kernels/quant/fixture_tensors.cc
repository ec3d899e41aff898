// The safetensors and JSON reading behind fixture_tensors.h.
#include "tests/kernels/quant/fixture_tensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

namespace quantd::testing {
namespace {

std::vector<uint8_t> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace

FixtureTensors ReadFixture(const std::string& model, const std::string& file) {
  const std::vector<uint8_t> bytes =
      ReadFile(std::string(QUANTD_TEST_DATA) + "/models/" + model + "/" + file);
  uint64_t header_bytes = 0;
  if (bytes.size() < sizeof(header_bytes)) return {};
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  const uint8_t* data = bytes.data() + sizeof(header_bytes) + header_bytes;
  FixtureTensors tensors;
  const nlohmann::json header = nlohmann::json::parse(bytes.data() + sizeof(header_bytes), data);
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    const auto offsets = entry["data_offsets"].get<std::vector<size_t>>();
    tensors[name] = {entry["dtype"], entry["shape"], {data + offsets[0], data + offsets[1]}};
  }
  return tensors;
}

std::vector<float> ReadDynamicMapFixture() {
  return nlohmann::json::parse(ReadFile(std::string(QUANTD_TEST_DATA) + "/bnb_dynamic_map.json"));
}

float NestedOffsetOf(const FixtureTensor& quant_state) {
  return nlohmann::json::parse(quant_state.bytes)["nested_offset"].get<float>();
}

}  // namespace quantd::testing
