// TestProcess: one process of `quantd_gpu tests --report` over a list of tests, read line by line.
//
// A test that breaks the device or hangs ends its process, not the stage: the caller starts another
// for the tests that are left. The lines between the two programs:
//
//   @begin SUITE.NAME
//   @end {"test": "SUITE.NAME", "seconds": 0.1, "kernels": [...], "skipped": true,
//         "properties": {"what the test recorded": "..."}, "error": "..."}
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace quantd::gpu {

/// How far a process came with its tests.
struct Progress {
  std::string unfinished;  // begun, and not ended with the process
  bool timed_out = false;  // the process was ended for its time
  int exit_code = 0;
  std::string output;  // the end of what it printed since the last test ended
};

/// Runs `tests` on `backend` in one process of this program, for at most `seconds`; calls
/// `on_result(test, result)` for each as it ends.
Progress RunTestProcess(const std::string& backend, const std::vector<std::string>& tests,
                        int seconds,
                        const std::function<void(const std::string&, nlohmann::json)>& on_result);

/// All tests of this program on `backend`, by asking a process of it; empty when that fails.
std::vector<std::string> ListTests(const std::string& backend);

/// The other side: lets GoogleTest print the lines above and end the process at the first failure.
void AddReportingListener();

}  // namespace quantd::gpu
