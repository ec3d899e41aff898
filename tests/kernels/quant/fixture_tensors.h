// FixtureTensors: the tensors of one small safetensors file of tests/data, for tests of kernels/
// that must not depend on the engine's checkpoint reader. Trusts the file.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace quantd::testing {

struct FixtureTensor {
  std::string dtype;  // as the file spells it: "BF16", "U8", ...
  std::vector<int64_t> shape;
  std::vector<uint8_t> bytes;

  template <typename T>
  std::vector<T> As() const {
    const T* data = reinterpret_cast<const T*>(bytes.data());
    return std::vector<T>(data, data + bytes.size() / sizeof(T));
  }
};

using FixtureTensors = std::map<std::string, FixtureTensor>;

/// The tensors of tests/data/models/<model>/<file>; fails the test when it cannot be read.
FixtureTensors ReadFixture(const std::string& model, const std::string& file = "model.safetensors");

/// The numbers of tests/data/bnb_dynamic_map.json.
std::vector<float> ReadDynamicMapFixture();

/// nested_offset of a quant_state tensor's JSON.
float NestedOffsetOf(const FixtureTensor& quant_state);

}  // namespace quantd::testing
