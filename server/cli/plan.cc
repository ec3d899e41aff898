// quantd plan: what every profile takes on a model and a device, and which to choose, as a table or
// JSON.
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/plan/bytes_text.h"
#include "engine/plan/measured_quality.h"
#include "engine/plan/model_plan.h"
#include "engine/weights/effective_profile.h"
#include "engine/weights/json_dump.h"
#include "kernels/status.h"
#include "server/backends.h"
#include "server/cli/commands.h"
#include "server/host_bandwidth.h"
#include "server/one_line.h"
#include "server/sizes.h"

namespace quantd {
namespace {

struct PlanFlags {
  std::string model;
  std::string memory;
  std::string bandwidth;
  std::string goal;
  std::string profile;
  std::string rules;
  std::string quality;
  std::string backend = "auto";
  int64_t context = 0;
  int64_t concurrency = 1;
  bool json = false;
};

nlohmann::json ToJson(const ProfilePlan& p, bool known_memory, bool known_bandwidth) {
  nlohmann::json out = {{"name", p.name}, {"loadable", p.planned && p.refusal.empty()}};
  if (!p.refusal.empty()) out["refusal"] = p.refusal;
  if (!p.planned) return out;
  const MemoryPlan& m = p.memory;
  nlohmann::json components;
  for (int i = 0; i < kNumMemoryComponents; ++i) {
    const auto component = static_cast<MemoryComponent>(i);
    components[std::string(ToString(component))] = m.of(component);
  }
  out["bytes"] = {{"weights", m.weights()},
                  {"kv_per_token", m.kv_bytes_per_token},
                  {"workspace", m.workspace()},
                  {"load_peak_host", m.load_peak_host},
                  {"load_peak_device", m.load_peak_device},
                  {"total", m.total()},
                  {"components", components}};
  out["fits"] = p.fits;
  out["max_kv_tokens"] = known_memory ? nlohmann::json(p.max_kv_tokens) : nlohmann::json();
  out["max_requests"] = known_memory ? nlohmann::json(p.max_requests) : nlohmann::json();
  out["roofline_tokens_per_second"] =
      known_bandwidth ? nlohmann::json(p.tokens_per_second) : nlohmann::json();
  out["roofline_tokens_per_second_concurrent"] =
      known_bandwidth ? nlohmann::json(p.tokens_per_second_concurrent) : nlohmann::json();
  out["trainable_with_peft"] = p.trainable_with_peft;
  out["quality"] = nullptr;
  if (p.measured_quality) {
    const MeasuredQuality& q = *p.measured_quality;
    const auto known = [](std::optional<double> v) {
      return v ? nlohmann::json(*v) : nlohmann::json();
    };
    out["quality"] = {{"retention", q.retention},
                      {"retention_low", known(q.low)},
                      {"retention_high", known(q.high)},
                      {"kl_mean", known(q.kl_mean)},
                      {"measured", true}};
  } else if (p.claimed_quality) {
    out["quality"] = {{"retention_low", p.claimed_quality->low},
                      {"retention_high", p.claimed_quality->high},
                      {"measured", false}};
  }
  return out;
}

// Of `quantd serve`, so that it takes what was planned: by itself it has a smaller KV cache.
std::vector<std::string> ServeArguments(const ModelPlan& plan, const PlanFlags& flags) {
  const ProfilePlan* chosen = plan.Find(plan.recommended);
  if (chosen == nullptr) return {};
  std::vector<std::string> out = {"--model", flags.model};
  if (chosen->name != kCheckpointProfile) out.insert(out.end(), {"--profile", chosen->name});
  const auto set = [&out](const char* key, int64_t value) {
    out.insert(out.end(), {"--set", fmt::format("{}={}", key, value)});
  };
  set("scheduler.max_model_len", plan.context);
  set("kv.cache_bytes", chosen->memory.of(MemoryComponent::kKvCache));
  if (plan.concurrency > EngineOptions().max_num_seqs) {
    set("scheduler.max_num_seqs", plan.concurrency);
  }
  return out;
}

nlohmann::json ToJson(const ModelPlan& plan, const PlanFlags& flags, double bandwidth) {
  nlohmann::json profiles = nlohmann::json::array();
  for (const ProfilePlan& p : plan.profiles) {
    profiles.push_back(ToJson(p, plan.memory_bytes > 0, bandwidth > 0));
  }
  const auto known = [](bool is, const nlohmann::json& value) {
    return is ? value : nlohmann::json();
  };
  return {{"model", flags.model},
          {"architecture", plan.spec.architecture},
          {"parameters", plan.parameters},
          {"quantization", plan.quantization},
          {"memory_bytes", known(plan.memory_bytes > 0, plan.memory_bytes)},
          {"usable_bytes", known(plan.memory_bytes > 0, plan.usable_bytes)},
          {"bytes_per_second", known(bandwidth > 0, bandwidth)},
          {"context", plan.context},
          {"concurrency", plan.concurrency},
          {"goal", plan.goal},
          {"profiles", profiles},
          {"recommended", known(!plan.recommended.empty(), plan.recommended)},
          {"runner_up", known(!plan.runner_up.empty(), plan.runner_up)},
          {"reasons", plan.reasons},
          {"serve_arguments", ServeArguments(plan, flags)}};
}

std::string Quality(const ProfilePlan& p) {
  if (p.measured_quality) return fmt::format("{:.2f}%", 100 * p.measured_quality->retention);
  if (!p.claimed_quality) return "?";
  const double low = 100 * p.claimed_quality->low, high = 100 * p.claimed_quality->high;
  return low == high ? fmt::format("~{:.0f}%", low) : fmt::format("~{:.0f}-{:.0f}%", low, high);
}

void PrintTable(const ModelPlan& plan, const PlanFlags& flags, const PlanDevice& device) {
  fmt::print("{}, {:.4g} B parameters, quantization {}\n", plan.spec.architecture,
             static_cast<double>(plan.parameters) * 1e-9, plan.quantization);
  fmt::print("{}{}; {} request{} of {} tokens\n",
             plan.memory_bytes == 0
                 ? std::string("memory not known")
                 : fmt::format("memory {}, of which {} may be taken", BytesText(plan.memory_bytes),
                               BytesText(plan.usable_bytes)),
             device.bytes_per_second == 0
                 ? ", bandwidth not known"
                 : fmt::format(", {:.4g} GB/s", device.bytes_per_second * 1e-9),
             plan.concurrency, plan.concurrency == 1 ? "" : "s", plan.context);
  fmt::print("\n{:<20} {:>10} {:>10} {:>10} {:>10} {:>10} {:>5} {:>9} {:>9} {:>9} {:>8} {:>5}\n",
             "profile", "weights", "KV/token", "workspace", "load peak", "total", "fits",
             "requests", "tok/s: 1", fmt::format("{}", plan.concurrency), "quality", "PEFT");
  for (const ProfilePlan& p : plan.profiles) {
    if (!p.planned) {
      fmt::print("{:<20} {}\n", p.name, p.refusal);
      continue;
    }
    const MemoryPlan& m = p.memory;
    const auto rate = [&](double value) {
      return device.bytes_per_second == 0 ? std::string("?") : fmt::format("{:.0f}", value);
    };
    fmt::print(
        "{:<20} {:>10} {:>10} {:>10} {:>10} {:>10} {:>5} {:>9} {:>9} {:>9} {:>8} {:>5}{}\n", p.name,
        BytesText(m.weights()),
        fmt::format("{:.1f} kB", static_cast<double>(m.kv_bytes_per_token) * 1e-3),
        BytesText(m.workspace()),
        BytesText(device.backend == PlanBackend::kCuda ? m.load_peak_device : m.load_peak_host),
        BytesText(m.total()), p.fits ? "yes" : "no",
        plan.memory_bytes == 0 ? std::string("?") : fmt::format("{}", p.max_requests),
        rate(p.tokens_per_second), rate(p.tokens_per_second_concurrent), Quality(p),
        p.trainable_with_peft ? "yes" : "no",
        p.refusal.empty() ? "" : "  (needs a full-precision checkpoint)");
  }
  fmt::print(
      "\ntok/s: what the bandwidth allows at most. quality: of that in 16 bits, measured by quantd "
      "eval; with a ~ only commonly claimed.\n\n");
  if (plan.recommended.empty()) {
    fmt::print("recommended: none\n");
  } else {
    fmt::print("recommended: {}\n", plan.recommended);
  }
  for (const std::string& reason : plan.reasons) fmt::print("  - {}\n", OneLine(reason));
  if (!plan.recommended.empty()) {
    fmt::print("as planned: quantd serve {}\n",
               OneLine(fmt::format("{}", fmt::join(ServeArguments(plan, flags), " "))));
  }
}

// The device of this machine, or, where its memory is given, a GPU with so much.
absl::StatusOr<PlanDevice> DeviceOf(const PlanFlags& flags) {
  int64_t memory = 0;
  if (!flags.memory.empty()) {
    const auto bytes = ParseBytes(flags.memory);
    if (!bytes || *bytes == 0) {
      return InvalidArgument("--memory \"{}\": not a size like 16GB, 24GiB", flags.memory);
    }
    memory = *bytes;
  }
  BackendOptions options;
  options.name = flags.backend;
  ASSIGN_OR_RETURN(PlanDevice device, PlanDeviceFor(options, memory));
  if (!flags.bandwidth.empty()) {
    const auto rate = ParseBytesPerSecond(flags.bandwidth);
    if (!rate || *rate == 0) {
      return InvalidArgument("--bandwidth \"{}\": not a rate like 3.35TB/s, 50GB/s",
                             flags.bandwidth);
    }
    device.bytes_per_second = *rate;
  } else if (device.backend == PlanBackend::kCpu) {
    device.bytes_per_second = MeasureHostBandwidth(device.threads);
  } else if (device.backend == PlanBackend::kCuda && memory == 0 &&
             flags.backend != "cuda-emulated") {  // a GPU that is here
    device.bytes_per_second = MeasureGpuBandwidth();
  }
  return device;
}

absl::Status RunPlan(const PlanFlags& flags) {
  ASSIGN_OR_RETURN(const SelectionRules rules, LoadSelectionRules(flags.rules));
  PlanRequest request;
  ASSIGN_OR_RETURN(request.device, DeviceOf(flags));
  request.model = flags.model;
  request.context = flags.context;
  request.concurrency = flags.concurrency;
  request.goal = flags.goal;
  request.profile = flags.profile;
  ASSIGN_OR_RETURN(ModelPlan plan, PlanModel(request, rules));
  RETURN_IF_ERROR(AddMeasuredQuality(flags.model, flags.quality, &plan));
  if (flags.json) {
    fmt::print("{}\n", DumpJson(ToJson(plan, flags, request.device.bytes_per_second), 2));
  } else {
    PrintTable(plan, flags, request.device);
  }
  return absl::OkStatus();
}

}  // namespace

void AddPlan(CLI::App& app, Run* run) {
  auto flags = std::make_shared<PlanFlags>();
  CLI::App* cmd = app.add_subcommand(
      "plan", "Say what each profile would take, before loading, and which one to choose");
  cmd->add_option("model,--model", flags->model, "Model folder, or a config.json alone")
      ->required();
  cmd->add_option("--memory", flags->memory,
                  "Of the device, like 16GB or 24GiB: a GPU's, unless --backend is cpu or ref. "
                  "Without it: what this machine has free");
  cmd->add_option("--context", flags->context,
                  "Tokens of a request, prompt and answer; 0: the model's, at most 4096");
  cmd->add_option("--concurrency", flags->concurrency, "Requests at once");
  cmd->add_option("--goal", flags->goal,
                  "production, limited-vram, best-quality, qlora or research; empty: by memory and "
                  "parameters");
  cmd->add_option(
      "--bandwidth", flags->bandwidth,
      "Of the device's memory, like 3.35TB/s; without it measured, of a device at hand");
  cmd->add_option("--backend", flags->backend, "auto, cuda, cpu or ref");
  cmd->add_option("--profile", flags->profile, "One more profile: a YAML file");
  cmd->add_option("--rules", flags->rules, "Rules of choice instead of configs/selection.yaml");
  cmd->add_option(
      "--quality", flags->quality,
      "Report (.json) of quantd eval; without it quantd-eval.json in the model's folder");
  cmd->add_flag("--json", flags->json, "JSON instead of a table");
  cmd->callback([flags, run] { *run = [flags] { return RunPlan(*flags); }; });
}

}  // namespace quantd
