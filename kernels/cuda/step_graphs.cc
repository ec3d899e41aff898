// StepGraphs: see step_graphs.h.
#include "kernels/cuda/step_graphs.h"

#include <algorithm>
#include <bit>
#include <iterator>

namespace quantd::QUANTD_CUDA_NS {

StepShape PaddedStepShape(const StepShape& shape) {
  if (!shape.decode_only || shape.rows < 1 || shape.rows > *std::rbegin(kGraphRows)) return shape;
  StepShape padded = shape;
  padded.rows = *std::lower_bound(std::begin(kGraphRows), std::end(kGraphRows), shape.rows);
  padded.seqs = padded.logits = padded.rows;
  padded.max_blocks = static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(shape.max_blocks)));
  return padded;
}

void StepGraphs::Run(const StepKey& key, const std::function<void()>& step) {
  const bool worth = key.owner != 0 && key.shape.decode_only && key.shape.rows > 0 &&
                     key.shape.rows <= *std::rbegin(kGraphRows);
  if (!worth) {
    ++counts_.eager;
    step();
    return;
  }
  if (entries_.size() >= kMaxEntries && !entries_.contains(key)) {
    DropGraphs();
    entries_.clear();
  }
  Entry& entry = entries_[key];
  if (entry.graph == nullptr && entry.seen && !entry.refused) {
    context_.capturing = true;
    context_.capture_failed = false;
    BeginCapture(context_.stream);
    step();
    Graph graph = EndCapture(context_.stream);
    context_.capturing = false;
    entry.refused = graph == nullptr;
    if (graph != nullptr && !context_.capture_failed) {
      entry.graph = graph;
      ++counts_.captured;
      LaunchGraph(graph, context_.stream);
      return;
    }
    if (graph != nullptr) DestroyGraph(graph);  // run as it is, so that scratch may grow
  }
  if (entry.graph != nullptr) {
    ++counts_.replayed;
    LaunchGraph(entry.graph, context_.stream);
    return;
  }
  entry.seen = true;
  ++counts_.eager;
  step();
}

void StepGraphs::WaitBeforeDestroying() {
  // Errors stay in the runtime, where the next wait of the backend finds them.
  Synchronize(context_.stream).IgnoreError();
}

void StepGraphs::Forget(uint64_t owner) {
  WaitBeforeDestroying();
  std::erase_if(entries_, [owner](const auto& item) {
    if (item.first.owner != owner) return false;
    if (item.second.graph != nullptr) DestroyGraph(item.second.graph);
    return true;
  });
}

void StepGraphs::DropGraphs() {
  if (entries_.empty()) return;
  WaitBeforeDestroying();
  for (auto& [key, entry] : entries_) {
    if (entry.graph != nullptr) DestroyGraph(entry.graph);
    entry.graph = nullptr;
  }
}

}  // namespace quantd::QUANTD_CUDA_NS
