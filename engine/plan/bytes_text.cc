#include "engine/plan/bytes_text.h"

#include <cstdlib>

#include "kernels/status.h"

namespace quantd {

std::string BytesText(int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  return std::llabs(bytes) < 100'000'000 ? fmt::format("{:.2f} MB", value * 1e-6)
                                         : fmt::format("{:.2f} GB", value * 1e-9);
}

}  // namespace quantd
