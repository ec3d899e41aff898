// StepGraphs: steps as graphs. The first time a key comes its step runs op by op, which lets
// scratch grow; the second time it is captured and run; from then on the graph is launched.
#pragma once

#include <functional>
#include <map>

#include "kernels/backend.h"
#include "kernels/cuda/scratch.h"

namespace quantd::QUANTD_CUDA_NS {

/// Rows of a decode step are padded to the next of these; more rows are not captured.
inline constexpr int32_t kGraphRows[] = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128};

/// `shape` with rows, seqs and logits of the next bucket and max_blocks a power of two; unchanged
/// when it is not worth a graph.
StepShape PaddedStepShape(const StepShape& shape);

class StepGraphs {
 public:
  explicit StepGraphs(DeviceContext& context) : context_(context) {}
  ~StepGraphs() { DropGraphs(); }
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;

  void Run(const StepKey& key, const std::function<void()>& step);
  /// Forgets the graphs of `owner`.
  void Forget(uint64_t owner);
  /// Destroys all graphs: the scratch they use is about to move. Their steps are captured again.
  void DropGraphs();
  const StepCounts& counts() const { return counts_; }

 private:
  // Kept at once; beyond it all are dropped, and what is still used comes back in two steps.
  static constexpr size_t kMaxEntries = 512;

  struct Entry {
    Graph graph = nullptr;
    bool seen = false;
    bool refused = false;  // cannot be captured
  };

  // Runs what the stream holds, so that graphs in it may go.
  void WaitBeforeDestroying();

  DeviceContext& context_;
  std::map<StepKey, Entry> entries_;
  StepCounts counts_;
};

}  // namespace quantd::QUANTD_CUDA_NS
