// Metrics: the Prometheus page. Names, suffixes and buckets are vLLM's under `quantd_`, so that
// public dashboards port; labels are model_name and profile. Histograms are fed by the engine
// thread (EngineObserver), counters and gauges are read from Engine::Stats when scraped.
// Thread-safe.
#pragma once

#include <memory>
#include <string>

#include "engine/engine.h"
#include "engine/plan/memory_plan.h"
#include "kernels/memory_account.h"

namespace quantd {

class Metrics : public EngineObserver {
 public:
  /// `max_model_len` bounds the buckets of prompt and generation lengths.
  Metrics(const std::string& model_name, const std::string& profile, int64_t max_model_len);
  ~Metrics() override;

  void OnFirstToken(double seconds_since_submit) override;
  void OnInterTokenLatency(double seconds) override;
  void OnStep(int32_t tokens) override;
  void OnFinished(const Finished& finished) override;

  /// The page, in Prometheus' text format. `memory` and `plan` may be null.
  std::string Render(const EngineStats& stats, const MemoryAccount* memory,
                     const MemoryPlan* plan) const;
  /// The page of a server that is still loading.
  static std::string RenderLoading(double progress);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace quantd
