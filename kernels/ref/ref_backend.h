// `ref`: every op as plain loops. The oracle of the tests, and the example to copy for a new
// backend.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace quantd {

/// Weights stay packed (two 4-bit codes a byte); one thread; no instruction set beyond the
/// compiler's.
std::unique_ptr<Backend> CreateRefBackend();

}  // namespace quantd
