// What the GPU at hand is and what it really does: the yardsticks of the benchmarks, and of
// `quantd plan`. Safe to include without CUDA.
#pragma once

#include <cstdint>
#include <string>

namespace quantd::cuda {

struct DeviceMeasurements {
  std::string error;  // why nothing was measured; empty: all fields are set
  std::string name;   // "NVIDIA H100 80GB HBM3"
  int major = 0;      // compute capability
  int minor = 0;
  int multiprocessors = 0;
  int64_t shared_memory_per_block = 0;  // bytes a block may ask for
  int64_t l2_bytes = 0;
  int64_t memory_bytes = 0;
  int driver = 0;                    // CUDA version of the driver, 13000 for 13.0
  int runtime = 0;                   // and of this program
  double copy_bytes_per_second = 0;  // read and write counted
  double read_bytes_per_second = 0;
  double mma_flops_per_second = 0;  // bf16 mma.sync m16n8k16 from registers
};

/// Measures device 0; takes about a second and 2 GiB of its memory.
DeviceMeasurements MeasureDevice();

/// read_bytes_per_second of device 0 alone: some hundredths of a second, and 1 GiB of its memory.
/// 0 where it cannot be measured.
double MeasureReadBandwidth();

}  // namespace quantd::cuda
