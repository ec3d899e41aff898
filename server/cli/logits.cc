// quantd logits: the model's logits for given token ids, for comparison with another
// implementation. Works on the Model itself, without the engine: one sequence at a time, in chunks.
#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "engine/kv_cache.h"
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
constexpr int32_t kBlockSize = 16;

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

// An int32 array in backend memory.
class DeviceInts {
 public:
  static absl::StatusOr<DeviceInts> Create(Backend& backend, size_t count) {
    DeviceInts out;
    out.backend_ = &backend;
    ASSIGN_OR_RETURN(out.buffer_,
                     backend.Allocate(count * sizeof(int32_t), MemoryComponent::kWorkspace));
    return out;
  }
  std::span<const int32_t> Set(const std::vector<int32_t>& values) {
    backend_->Upload(values.data(), values.size() * sizeof(int32_t), buffer_.data());
    return {buffer_.as<int32_t>(), values.size()};
  }

 private:
  Backend* backend_ = nullptr;
  Buffer buffer_;
};

std::vector<int32_t> Iota(int32_t first, int32_t count) {
  std::vector<int32_t> out(static_cast<size_t>(count));
  std::iota(out.begin(), out.end(), first);
  return out;
}

// Logits [tokens, vocab] of one sequence, appended to `*out`.
absl::Status Evaluate(Backend& backend, const LoadedModel& loaded, const std::vector<int32_t>& ids,
                      std::vector<float>* out) {
  const int32_t length = static_cast<int32_t>(ids.size());
  const int32_t blocks = (length + kBlockSize - 1) / kBlockSize;
  const int64_t vocab = loaded.spec.vocab_size;
  ASSIGN_OR_RETURN(const std::unique_ptr<KvCache> kv,
                   KvCache::Create(backend, loaded.spec, loaded.kv_dtype, blocks + 1, kBlockSize));
  ASSIGN_OR_RETURN(DeviceInts tokens, DeviceInts::Create(backend, kChunk));
  ASSIGN_OR_RETURN(DeviceInts positions, DeviceInts::Create(backend, kChunk));
  ASSIGN_OR_RETURN(DeviceInts slots, DeviceInts::Create(backend, kChunk));
  ASSIGN_OR_RETURN(DeviceInts sequences, DeviceInts::Create(backend, kChunk));
  ASSIGN_OR_RETURN(DeviceInts rows, DeviceInts::Create(backend, kChunk));
  ASSIGN_OR_RETURN(DeviceInts table, DeviceInts::Create(backend, static_cast<size_t>(blocks)));
  ASSIGN_OR_RETURN(const Buffer logits,
                   backend.Allocate(static_cast<size_t>(kChunk * vocab) * sizeof(float),
                                    MemoryComponent::kWorkspace));
  Batch batch;
  batch.attention.num_seqs = 1;
  batch.attention.max_blocks = blocks;
  batch.attention.block_tables = table.Set(Iota(1, blocks));  // block 0 is reserved
  for (int32_t first = 0; first < length; first += kChunk) {
    const int32_t count = std::min(kChunk, length - first);
    batch.token_ids = tokens.Set({ids.begin() + first, ids.begin() + first + count});
    batch.logit_rows = rows.Set(Iota(0, count));
    batch.attention.positions = positions.Set(Iota(first, count));
    batch.attention.slots = slots.Set(Iota(kBlockSize + first, count));
    batch.attention.seq_of_row = sequences.Set(std::vector<int32_t>(static_cast<size_t>(count), 0));
    loaded.model->Forward(batch, *kv, TensorView(DType::kF32, logits.data(), count, vocab));
    RETURN_IF_ERROR(backend.Synchronize());
    const size_t values = static_cast<size_t>(count * vocab);
    out->resize(out->size() + values);
    backend.Download(logits.data(), values * sizeof(float), out->data() + out->size() - values);
  }
  return absl::OkStatus();
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
    RETURN_IF_ERROR(Evaluate(*opened.backend, opened.loaded, ids, &logits[i]));
    NamedTensor tensor;
    tensor.name = sequences.size() == 1 ? "logits" : fmt::format("logits.{}", i);
    tensor.shape = {static_cast<int64_t>(ids.size()), spec.vocab_size};
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
