// OpenModel: a model folder, a profile's name and a backend's name become what an Engine is created
// from. Shared by `serve` and the commands that work in process.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/load.h"
#include "engine/plan/memory_plan.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"
#include "kernels/backend.h"
#include "server/backends.h"

namespace quantd {

struct OpenModelOptions {
  std::string model;    // folder
  std::string profile;  // name or file; empty: the checkpoint as it is; "auto": the planner chooses
  BackendOptions backend;
  EngineOptions engine;        // sizes the model's step buffers
  bool need_tokenizer = true;  // false: `tokenizer` stays null
};

/// Members in the order in which they must outlive each other: the engine made of `loaded` goes
/// first.
struct OpenedModel {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Tokenizer> tokenizer;
  // NOT_FOUND where the folder has none; the model works without.
  absl::StatusOr<std::unique_ptr<ChatTemplate>> chat_template =
      absl::NotFoundError("not looked for");
  MemoryPlan plan;       // of model and engine, as computed before loading
  EngineOptions engine;  // as asked for, with the KV cache that fits where that was left open
  LoadedModel loaded;
  DType compute_dtype = DType::kBF16;
};

/// DATA_LOSS when the tokenizer knows more tokens than the model.
absl::Status CheckTokenizer(const Tokenizer& tokenizer, const DecoderSpec& spec);

/// Errors of CreateBackend, LoadProfile, Tokenizer::Load, CheckTokenizer, PlanLoadFor and
/// LoadModel. The headers are read once; a KV cache that was left open and had to shrink is logged.
/// `on_progress` may be empty.
absl::StatusOr<OpenedModel> OpenModel(const OpenModelOptions& options,
                                      std::function<void(const LoadProgress&)> on_progress);

/// "model demo/model | profile nf4-dq | 5.9 bits/weight | resident 9.3 MB"
std::string DescribeModel(const std::string& name, const std::string& profile,
                          double bits_per_weight, int64_t resident_bytes);

}  // namespace quantd
