// quantd inspect: what is in a model folder and how it is quantized, as a table or JSON.
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "engine/inspect.h"
#include "engine/weights/json_dump.h"
#include "kernels/status.h"
#include "server/backends.h"
#include "server/cli/commands.h"

namespace quantd {
namespace {

struct InspectFlags {
  std::string model;
  bool json = false;
  bool no_values = false;
};

std::string Megabytes(int64_t bytes) {
  return fmt::format("{:.2f} MB", static_cast<double>(bytes) * 1e-6);
}

nlohmann::json ToJson(const ModelReport& r) {
  nlohmann::json groups = nlohmann::json::array();
  for (const ModelReport::Group& g : r.groups) {
    groups.push_back({{"method", g.method},
                      {"format", g.format},
                      {"activation", g.activation},
                      {"kinds", g.kinds},
                      {"modules", g.modules},
                      {"parameters", g.parameters},
                      {"file_bytes", g.file_bytes},
                      {"resident_bytes", g.resident_bytes},
                      {"bits_per_weight", g.bits_per_weight()}});
  }
  return {{"architecture", r.spec.architecture},
          {"model_type", r.spec.model_type},
          {"layers", r.spec.num_layers},
          {"hidden_size", r.spec.hidden_size},
          {"vocab_size", r.spec.vocab_size},
          {"max_position_embeddings", r.spec.max_position_embeddings},
          {"dtype", ToString(r.spec.dtype)},
          {"parameters", r.parameters},
          {"quantization", r.quantization},
          {"bits_per_weight", r.bits_per_weight()},
          {"bytes",
           {{"embedding", r.bytes.embedding},
            {"linears", r.bytes.linears},
            {"head", r.bytes.head},
            {"norms", r.bytes.norms},
            {"total", r.bytes.total}}},
          {"groups", groups},
          {"skipped", r.skipped},
          {"suspicious", r.suspicious},
          {"trainable_with_peft", r.trainable_with_peft},
          {"backends", r.refusal.empty() ? BackendNames() : std::vector<std::string>()},
          {"refusal", r.refusal}};
}

void PrintTable(const ModelReport& r) {
  if (!r.spec.architecture.empty()) {
    fmt::print("{}, {} layers, hidden {}, vocabulary {}, context {}, {}\n", r.spec.architecture,
               r.spec.num_layers, r.spec.hidden_size, r.spec.vocab_size,
               r.spec.max_position_embeddings, ToString(r.spec.dtype));
  }
  fmt::print("quantization  {}\n", r.quantization);
  if (r.parameters > 0) {
    fmt::print("parameters    {:.4g} M, {:.3f} bits each over the whole file\n",
               static_cast<double>(r.parameters) * 1e-6, r.bits_per_weight());
    fmt::print("bytes         {}: linears {}, embedding {}, head {}, norms and biases {}\n",
               Megabytes(r.bytes.total), Megabytes(r.bytes.linears), Megabytes(r.bytes.embedding),
               r.bytes.head == 0 ? "tied" : Megabytes(r.bytes.head), Megabytes(r.bytes.norms));
    fmt::print("\n{:<18} {:<38} {:>7} {:>8} {:>12} {:>12}  {}\n", "method", "format", "modules",
               "bits/w", "file", "resident", "which");
    for (const ModelReport::Group& g : r.groups) {
      fmt::print("{:<18} {:<38} {:>7} {:>8.3f} {:>12} {:>12}  {}{}\n", g.method, g.format,
                 g.modules, g.bits_per_weight(), Megabytes(g.file_bytes),
                 Megabytes(g.resident_bytes), fmt::join(g.kinds, ", "),
                 g.activation.empty() ? "" : fmt::format(" (inputs: {})", g.activation));
    }
    fmt::print("\n");
  }
  if (!r.skipped.empty()) fmt::print("not quantized {}\n", fmt::join(r.skipped, ", "));
  fmt::print("suspicious    {}\n",
             r.suspicious.empty() ? std::string("nothing")
                                  : fmt::format("{}", fmt::join(r.suspicious, "\n              ")));
  fmt::print("training      {}\n",
             r.trainable_with_peft ? "adapters can be trained with PEFT" : "inference only");
  if (r.refusal.empty()) {
    fmt::print("served by     {}\n", fmt::join(BackendNames(), ", "));
  } else {
    fmt::print("not served    {}\n", r.refusal);
  }
}

absl::Status RunInspect(const InspectFlags& flags) {
  ASSIGN_OR_RETURN(const ModelReport report, InspectModel(flags.model, !flags.no_values));
  if (flags.json) {
    fmt::print("{}\n", DumpJson(ToJson(report), 2));
  } else {
    PrintTable(report);
  }
  return absl::OkStatus();
}

}  // namespace

void AddInspect(CLI::App& app, Run* run) {
  auto flags = std::make_shared<InspectFlags>();
  CLI::App* cmd =
      app.add_subcommand("inspect", "Say what is in a model folder and how it is quantized");
  cmd->add_option("model,--model", flags->model, "Model folder")->required();
  cmd->add_flag("--json", flags->json, "JSON instead of a table");
  cmd->add_flag("--no-values", flags->no_values,
                "Read headers only; nothing is said about suspicious values");
  cmd->callback([flags, run] { *run = [flags] { return RunInspect(*flags); }; });
}

}  // namespace quantd
