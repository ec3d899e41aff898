// quantd logits: the model's logits for given token ids, for comparison with another
// implementation. Works on the Model itself, without the engine: one sequence at a time, in chunks.
#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/sequence_runner.h"
#include "engine/weights/safetensors.h"
#include "kernels/status.h"
#include "server/cli/backend_flags.h"
#include "server/cli/commands.h"
#include "server/cli/json_ids.h"
#include "server/open_model.h"
#include "server/read_input.h"

namespace quantd {
namespace {

constexpr int32_t kChunk = 64;  // rows of one Forward; all of them give logits

struct LogitsFlags {
  std::string model;
  std::string profile;
  BackendOptions backend;
  std::string tokens;
  std::string out;
};

absl::StatusOr<std::vector<std::vector<int32_t>>> ReadTokens(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadInput(path, "--tokens " + path));
  return IdListsFromJson(text, path);
}

// Logits [tokens, vocab] of one sequence.
absl::StatusOr<std::vector<float>> Evaluate(SequenceRunner& runner, std::span<const int32_t> ids) {
  std::vector<float> out;
  runner.Restart();
  while (!ids.empty()) {
    const auto step = ids.first(std::min(ids.size(), static_cast<size_t>(runner.max_rows())));
    ASSIGN_OR_RETURN(const std::span<const float> logits, runner.Append(step));
    out.insert(out.end(), logits.begin(), logits.end());
    ids = ids.subspan(step.size());
  }
  return out;
}

absl::Status RunLogits(const LogitsFlags& flags) {
  ASSIGN_OR_RETURN(const auto sequences, ReadTokens(flags.tokens));
  OpenModelOptions options;
  options.model = flags.model;
  options.profile = flags.profile;
  options.backend = flags.backend;
  options.engine.max_num_batched_tokens = kChunk;
  options.engine.max_num_seqs = kChunk;
  options.need_tokenizer = false;
  ASSIGN_OR_RETURN(const OpenedModel opened, OpenModel(options, {}));
  const DecoderSpec& spec = opened.loaded.spec;
  std::vector<std::vector<float>> logits(sequences.size());
  std::vector<NamedTensor> tensors;
  int64_t longest = 1;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const std::vector<int32_t>& ids = sequences[i];
    if (static_cast<int64_t>(ids.size()) > spec.max_position_embeddings) {
      return InvalidArgument("{}: [{}] has {} tokens, the model takes {}", flags.tokens, i,
                             ids.size(), spec.max_position_embeddings);
    }
    for (const int32_t id : ids) {
      if (id >= spec.vocab_size) {
        return InvalidArgument("{}: [{}]: id {} is not in [0, {})", flags.tokens, i, id,
                               spec.vocab_size);
      }
    }
    longest = std::max(longest, static_cast<int64_t>(ids.size()));
  }
  ASSIGN_OR_RETURN(const auto runner, SequenceRunner::Create(*opened.backend, *opened.loaded.model,
                                                             opened.loaded.kv_dtype, longest));
  for (size_t i = 0; i < sequences.size(); ++i) {
    ASSIGN_OR_RETURN(logits[i], Evaluate(*runner, sequences[i]));
    NamedTensor tensor;
    tensor.name = sequences.size() == 1 ? "logits" : fmt::format("logits.{}", i);
    tensor.shape = {static_cast<int64_t>(sequences[i].size()), spec.vocab_size};
    tensor.data = std::as_bytes(std::span(logits[i]));
    tensors.push_back(std::move(tensor));
  }
  return WriteSafetensors(flags.out, tensors,
                          {{"model", flags.model}, {"profile", opened.loaded.report.profile_name}});
}

}  // namespace

void AddLogits(CLI::App& app, Run* run) {
  auto flags = std::make_shared<LogitsFlags>();
  CLI::App* cmd = app.add_subcommand("logits", "Write the model's logits for given token ids");
  cmd->add_option("--model", flags->model, "Folder of the model")->required();
  cmd->add_option("--profile", flags->profile, "Quantization: a profile's name or a YAML file");
  AddBackendFlags(*cmd, flags->backend);
  cmd->add_option("--tokens", flags->tokens, "JSON file: {\"token_ids\": [...]} or a list of such")
      ->required();
  cmd->add_option("--out", flags->out,
                  "Safetensors file: `logits` f32 [tokens, vocab], or logits.0, logits.1, ... for "
                  "a list of more")
      ->required();
  cmd->callback([flags, run] { *run = [flags] { return RunLogits(*flags); }; });
}

}  // namespace quantd
