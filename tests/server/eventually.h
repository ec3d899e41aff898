// Eventually: waiting in a test for what another thread or process does.
#pragma once

#include <chrono>
#include <thread>

namespace quantd::test {

/// Waits until `condition` holds, for at most `seconds`. Whether it does.
template <class Condition>
bool Eventually(Condition condition, double seconds = 10) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

}  // namespace quantd::test
