// Which kernels ran: what ties a benchmark's item, or a conformance run, to kernel names.
#pragma once

#include <string>
#include <vector>

namespace quantd::gpu {

/// Names of the kernels launched since the last call, on the device or the emulated one: function
/// names without template arguments, sorted, each once.
std::vector<std::string> LaunchedSince();

/// Every kernel, with template arguments, that the emulated device knows in this program.
std::vector<std::string> EmulatedKernels();

/// "(Kernel<A, B>)" or "Kernel<A, B>" -> "Kernel".
std::string BaseName(const std::string& kernel);

}  // namespace quantd::gpu
