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
#include "server/serving.h"

namespace quantd {

class Metrics : public EngineObserver {
 public:
  /// What is served, as labels.
  struct Model {
    std::string name;
    std::string profile;
    std::string architecture;   // "LlamaForCausalLM"
    std::string backend;        // "cpu"
    std::string compute_dtype;  // "bf16"
    std::string kv_cache_dtype;
    std::string formats;  // of its weights, "nf4/f32@b64+bf16"
    std::string version;  // of quantd
    double bits_per_weight = 0;
    int64_t max_model_len = 0;  // bounds the buckets of prompt and generation lengths
    int64_t block_size = 0;     // tokens of a KV block
  };
  /// `vllm_aliases`: gauges that gateways look for are there under vLLM's names, too.
  explicit Metrics(const Model& model, bool vllm_aliases = false);
  ~Metrics() override;

  void OnFirstToken(double seconds_since_submit) override;
  void OnInterTokenLatency(double seconds) override;
  void OnStep(int32_t tokens) override;
  void OnFinished(const Finished& finished) override;

  /// The page, in Prometheus' text format. `memory` and `plan` may be null. `driver_bytes`: booked
  /// by nobody, a component of its own where there are any.
  std::string Render(const EngineStats& stats, const CallCounts& calls, const MemoryAccount* memory,
                     const MemoryPlan* plan, int64_t driver_bytes = 0) const;
  /// The page of a server that is still loading.
  static std::string RenderLoading(double progress);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace quantd
