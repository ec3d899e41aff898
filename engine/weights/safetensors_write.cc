// The writing half of safetensors.h.
#include <algorithm>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/weights/json_dump.h"
#include "engine/weights/safetensors.h"
#include "kernels/status.h"

namespace quantd {

absl::Status WriteSafetensors(const std::filesystem::path& path,
                              std::span<const NamedTensor> tensors,
                              const std::map<std::string, std::string>& metadata) {
  std::vector<const NamedTensor*> order;
  std::set<std::string> names;
  for (const NamedTensor& t : tensors) {
    if (t.name == "__metadata__" || !names.insert(t.name).second) {
      return InvalidArgument("{}: tensor name \"{}\" is reserved or occurs twice", path.string(),
                             t.name);
    }
    uint64_t bits = static_cast<uint64_t>(BitsOf(t.dtype));
    for (const int64_t d : t.shape) {
      if (d < 0 || __builtin_mul_overflow(bits, static_cast<uint64_t>(d), &bits)) {
        return InvalidArgument("{}: tensor \"{}\": shape {}", path.string(), t.name,
                               ShapeText(t.shape));
      }
    }
    if (bits != 8 * static_cast<uint64_t>(t.data.size())) {
      return InvalidArgument("{}: tensor \"{}\": {} {} does not take {} bytes", path.string(),
                             t.name, ToString(t.dtype), ShapeText(t.shape), t.data.size());
    }
    order.push_back(&t);
  }
  // Wide elements first, then by name, as the reference writer does: every tensor stays aligned.
  std::sort(order.begin(), order.end(), [](const NamedTensor* a, const NamedTensor* b) {
    return std::pair(-BitsOf(a->dtype), std::string_view(a->name)) <
           std::pair(-BitsOf(b->dtype), std::string_view(b->name));
  });

  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  size_t offset = 0;
  for (const NamedTensor* t : order) {
    header[t->name] = {{"dtype", std::string(ToString(t->dtype))},
                       {"shape", t->shape},
                       {"data_offsets", {offset, offset + t->data.size()}}};
    offset += t->data.size();
  }
  std::string text = DumpJson(header);
  text.resize((text.size() + 7) / 8 * 8, ' ');

  const std::filesystem::path partial = path.string() + ".partial";
  {
    std::ofstream out(partial, std::ios::binary | std::ios::trunc);
    const uint64_t length = text.size();
    char prefix[8];
    std::memcpy(prefix, &length, 8);
    out.write(prefix, 8);
    out.write(text.data(), static_cast<std::streamsize>(text.size()));
    for (const NamedTensor* t : order) {
      out.write(reinterpret_cast<const char*>(t->data.data()),
                static_cast<std::streamsize>(t->data.size()));
    }
    out.close();
    if (!out) {
      std::error_code ignored;
      std::filesystem::remove(partial, ignored);
      return Unavailable("{}: cannot be written", path.string());
    }
  }
  std::error_code error;
  std::filesystem::rename(partial, path, error);
  if (error) return Unavailable("{}: {}", path.string(), error.message());
  return absl::OkStatus();
}

}  // namespace quantd
