// BytesText: bytes as people read them. Pure function.
#pragma once

#include <cstdint>
#include <string>

namespace quantd {

/// "4.17 GB", "25.32 MB": powers of 1000.
std::string BytesText(int64_t bytes);

}  // namespace quantd
