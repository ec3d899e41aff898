// What the tests of the emulation share: kernels as lambdas, all schedules, device arrays.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/runtime.h"

namespace quantd::cuda_emulated {

/// Runs `body` as every thread of a grid, at once and without a stream.
inline void RunKernel(dim3 grid, dim3 block, size_t shared_bytes,
                      const std::function<void()>& body) {
  RunGrid("TestKernel", grid, block, shared_bytes, body);
}

inline const std::vector<ScheduleOrder>& AllOrders() {
  using Kind = ScheduleOrder::Kind;
  static const std::vector<ScheduleOrder> orders = {{Kind::kForward, 0},
                                                    {Kind::kReverse, 0},
                                                    {Kind::kRandom, 1},
                                                    {Kind::kRandom, 2},
                                                    {Kind::kRandom, 3}};
  return orders;
}

/// Calls `test` under every schedule.
inline void ForEachOrder(const std::function<void()>& test) {
  const ScheduleOrder before = GetScheduleOrder();
  for (const ScheduleOrder& order : AllOrders()) {
    SCOPED_TRACE("order " + std::to_string(static_cast<int>(order.kind)) + ", seed " +
                 std::to_string(order.seed));
    SetScheduleOrder(order);
    test();
  }
  SetScheduleOrder(before);
}

/// Device memory that a test reads and writes directly.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t size)
      : data_(static_cast<T*>(DeviceAllocate(size * sizeof(T)))), size_(size) {}
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    for (size_t i = 0; i < size_; ++i) data_[i] = values[i];
  }
  ~DeviceArray() { DeviceFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  T& operator[](size_t i) const { return data_[i]; }
  std::vector<T> Values() const { return std::vector<T>(data_, data_ + size_); }

 private:
  T* data_;
  size_t size_;
};

}  // namespace quantd::cuda_emulated
