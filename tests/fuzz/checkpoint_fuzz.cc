// A whole model folder: config.json, then a zero byte, then the JSON header of model.safetensors,
// whose data the target makes up. Inspected, and loaded by the reference backend.
#include <algorithm>
#include <cstring>

#include "engine/inspect.h"
#include "engine/load.h"
#include "engine/weights/profile.h"
#include "kernels/ref/ref_backend.h"
#include "tests/fuzz/fuzz_target.h"

namespace quantd {
namespace {

constexpr size_t kMaxData = 1 << 20;

// The largest number in `header` that could be an offset: how much data the file has.
size_t DataBytes(std::string_view header) {
  size_t largest = 0, number = 0;
  for (const char c : header) {
    const bool digit = c >= '0' && c <= '9';
    number = digit ? std::min(number * 10 + static_cast<size_t>(c - '0'), kMaxData + 1) : 0;
    if (number <= kMaxData) largest = std::max(largest, number);
  }
  return largest;
}

std::string File(std::string_view header) {
  const uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  file += header;
  const size_t begin = file.size();
  file.resize(begin + DataBytes(header));
  for (size_t i = begin; i < file.size(); ++i) file[i] = static_cast<char>((i * 7) & 0x3f);
  return file;
}

FUZZ_TARGET(checkpoint) {
  const std::string input = fuzz::Text(bytes);
  const size_t cut = input.find('\0');
  if (cut == std::string::npos) return;
  static const fuzz::Folder folder;
  folder.Write("config.json", std::string_view(input).substr(0, cut));
  folder.Write("model.safetensors", File(std::string_view(input).substr(cut + 1)));
  (void)InspectModel(folder.path(), /*values=*/true);

  // A plain checkpoint is quantized on load as well.
  for (const char* profile : {"", "nf4-dq", "hqq4"}) {
    const auto backend = CreateRefBackend();
    LoadOptions options;
    options.model_dir = folder.path();
    options.profile_given = *profile != '\0';
    options.max_rows = 4;
    options.max_logit_rows = 1;
    options.max_positions = 16;
    if (options.profile_given) options.profile = *LoadProfile(profile);
    if (!LoadModel(*backend, options).ok()) return;
  }
}

}  // namespace
}  // namespace quantd
