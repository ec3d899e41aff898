// Division of counts, rounded up.
#pragma once

#include <cstdint>

namespace quantd {

/// The least integer that is not below a / b; a >= 0, b > 0.
constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace quantd
