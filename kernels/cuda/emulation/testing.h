// What tests may do to the emulated device, beyond fibers.h's SetScheduleOrder.
#pragma once

#include <cstddef>
#include <string>

namespace quantd::cuda_emulated {

/// Bytes of device memory from now on. Before the first call: QUANTD_EMULATION_MEMORY, else 4 GiB.
void SetDeviceMemory(size_t bytes);
/// The nth DeviceAllocate from now on (1 is the next) finds no room; 0 takes it back.
void FailAllocation(int nth);
/// Multiprocessors OpenDevice reports (4 at first).
void SetMultiprocessors(int count);
/// Bytes of dynamic shared memory a block may have (227 KiB at first, and at most).
void SetSharedMemory(size_t bytes);

/// The device fails: nothing submitted runs any more, and FirstError, Synchronize and Wait say
/// UNAVAILABLE with `message`. From outside of the process: when the file exists that
/// QUANTD_EMULATION_FAILURE names, the next launch does it.
void InjectDeviceFailure(const std::string& message);
/// Forgets failures, which a real device never does.
void ClearDeviceFailures();

/// Bytes of device memory allocated now, and how many allocations.
size_t DeviceBytesInUse();
size_t DeviceAllocationsInUse();

}  // namespace quantd::cuda_emulated
