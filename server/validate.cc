// Validate. Each step notes what it finds and leaves what it could read to the next ones.
#include "server/validate.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "engine/plan/bytes_text.h"
#include "engine/plan/device_check.h"
#include "engine/plan/model_plan.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"
#include "engine/weights/effective_profile.h"
#include "engine/weights/module_match.h"
#include "engine/weights/nearest.h"
#include "engine/weights/quantization_options.h"
#include "kernels/ceil_div.h"
#include "kernels/status.h"
#include "server/backends.h"
#include "server/config.h"
#include "server/open_model.h"
#include "server/plan_load.h"
#include "server/read_input.h"
#include "server/security/api_keys.h"
#include "server/security/tls.h"

namespace quantd {
namespace {

constexpr auto kError = Finding::Severity::kError;
constexpr auto kWarning = Finding::Severity::kWarning;
constexpr char kBroken[] =
    "fetch the model folder again: config.json and *.safetensors are not of one model, or not "
    "whole";
constexpr char kTokenizer[] = "the tokenizer that was published with these weights";

class Validator {
 public:
  explicit Validator(const ValidateOptions& options) : options_(options) {}

  std::vector<Finding> Run() {
    ReadConfig();
    CheckDoors();
    ReadProfile();
    if (ReadFolder()) {
      CheckTexts();
      if (spec_) CheckModel();
    }
    return findings_.Take();
  }

 private:
  void ReadConfig() {
    std::string yaml;
    bool unread = false;
    if (!options_.config.empty()) {
      config_source_ = options_.config;
      auto text = ReadInput(options_.config, options_.config);
      findings_.Add(kError, config_source_, text.status(),
                    "--config FILE; configs/server.yaml of quantd's sources is a complete one");
      unread = !text.ok();
      if (text.ok()) yaml = *std::move(text);
    }
    std::vector<ConfigFault> faults;
    config_ = ReadServerConfig(yaml, config_source_, options_.overrides, faults);
    for (const ConfigFault& fault : faults) {
      if (unread && fault.where == config_source_) continue;  // the file may say what is missed
      findings_.Add(kError, fault.where, fault.what,
                    "configs/server.yaml of quantd's sources says what each key may be");
    }
    engine_ = config_.ToEngineOptions();
    // What is wrong with the two together is noted; further checks need one that is possible.
    engine_.max_num_batched_tokens = std::max(engine_.max_num_batched_tokens, engine_.max_num_seqs);
  }

  void CheckDoors() {
    if (config_.tls.enabled() && !config_.tls.key.empty()) {
      findings_.Add(kError, "tls", ReadTlsFiles(config_.tls).status(),
                    "a certificate that is valid now, and its key, in PEM files that the server's "
                    "user may read");
    }
    if (!config_.security.api_keys.empty()) {
      findings_.Add(kError, "security.api_keys", KeyRing::Load(config_.security.api_keys).status(),
                    "`quantd keys list FILE` checks it, `quantd keys new NAME` makes an entry");
    }
    const auto open = [](const std::string& address) {
      std::string host;
      int port = 0;
      if (!ParseAddress(address, &host, &port).ok()) return false;  // noted by ReadConfig, or none
      return !host.starts_with("127.") && host != "localhost" && host != "::1";
    };
    if (open(config_.listen.admin) && config_.tls.client_ca.empty()) {
      findings_.Add(
          kWarning, "listen.admin",
          fmt::format("{} tells everybody who can reach it about the server, without a key",
                      config_.listen.admin),
          "127.0.0.1, tls.client_ca, or a network policy around it");
    }
    if (!open(config_.listen.grpc)) return;
    if (!config_.security.api_keys.empty() && !config_.tls.enabled()) {
      findings_.Add(kWarning, "listen.grpc",
                    fmt::format("{} takes API keys in clear text", config_.listen.grpc),
                    "tls.certificate and tls.key, or a gateway that encrypts before it");
    }
    if (config_.security.api_keys.empty() && config_.tls.client_ca.empty()) {
      findings_.Add(kWarning, "listen.grpc",
                    fmt::format("{} is open to everybody who can reach it", config_.listen.grpc),
                    "security.api_keys, or tls.client_ca, or a network policy around it");
    }
  }

  void ReadProfile() {
    profile_given_ = !config_.profile.empty() && config_.profile != kAutoProfile;
    if (!profile_given_) return;
    absl::StatusOr<QuantProfile> profile = LoadProfile(config_.profile);
    if (profile.ok()) {
      profile_ = *std::move(profile);
      return;
    }
    std::string fix = "`quantd profiles` lists those that are built in";
    if (absl::IsNotFound(profile.status()) && config_.profile.find('/') == std::string::npos) {
      const std::vector<std::string> names = BuiltInProfiles();
      const std::vector<std::string_view> known(names.begin(), names.end());
      findings_.Add(kError, "profile",
                    fmt::format("no profile \"{}\"; the nearest known one is {}; all: {}, auto",
                                config_.profile, NearestName(config_.profile, known),
                                fmt::join(known, ", ")));
      return;
    }
    findings_.Add(kError, config_.profile, profile.status(), fix);
  }

  // The parts of the model folder, each by itself. False when there is no such folder.
  bool ReadFolder() {
    if (config_.model.empty()) return false;  // noted by ReadConfig
    dir_ = config_.model;
    std::error_code error;
    if (!std::filesystem::is_directory(dir_, error)) {
      findings_.Add(kError, "model", fmt::format("{} is not a folder", config_.model),
                    "the folder that has config.json, *.safetensors and tokenizer.json");
      return false;
    }
    auto spec = ReadDecoderSpec(dir_);
    findings_.Add(kError, config_.model, spec.status(), kBroken);
    if (spec.ok()) spec_ = *std::move(spec);
    auto defaults = ReadGenerationDefaults(dir_);
    findings_.Add(kError, config_.model, defaults.status(),
                  "without generation_config.json the defaults of the API hold");
    if (defaults.ok()) defaults_ = *std::move(defaults);
    prequantized_ = ReadQuantizationConfig(dir_);
    findings_.Add(kError, config_.model, prequantized_.status(), kBroken);
    auto checkpoint = Checkpoint::Open(dir_);
    findings_.Add(kError, config_.model, checkpoint.status(), kBroken);
    if (checkpoint.ok()) checkpoint_ = *std::move(checkpoint);
    return true;
  }

  void CheckTexts() {
    const auto tokenizer = Tokenizer::Load(dir_);
    const bool missing = absl::IsNotFound(tokenizer.status());
    findings_.Add(
        kError, config_.model, tokenizer.status(),
        missing ? "tokenizer.json (or SentencePiece's tokenizer.model) of the model" : kTokenizer);
    if (tokenizer.ok() && spec_) {
      findings_.Add(kError, config_.model, CheckTokenizer(**tokenizer, *spec_), kTokenizer);
    }
    const absl::Status chat = ChatTemplate::Load(dir_).status();
    if (!chat.ok() && !absl::IsNotFound(chat)) {  // many a model has none
      findings_.Add(kWarning, config_.model,
                    fmt::format("{} (requests with messages will be refused)", Message(chat)),
                    "a chat_template.jinja in the folder, which takes the template's place");
    }
    if (spec_ && defaults_ && spec_->eos_token_ids.empty() && defaults_->eos_token_ids.empty()) {
      findings_.Add(kWarning, config_.model,
                    "config.json: no eos_token_id, nor in generation_config.json: only max_tokens "
                    "and stop strings end a generation; add it to either");
    }
  }

  void CheckModel() {
    for (const std::string& fault : FaultsOf(CheckEngineOptions(engine_, *spec_))) {
      findings_.Add(kError, config_source_, "scheduler." + fault);
    }
    if (engine_.max_model_len > spec_->max_position_embeddings) engine_.max_model_len = 0;
    FindDevice();
    if (!prequantized_.ok()) return;  // what the tensors mean is not known
    ModelSource source = SourceOf(*spec_);
    source.prequantized = *prequantized_;
    source.checkpoint = std::move(checkpoint_);
    if (source.checkpoint != nullptr) {
      const auto as_it_is = PlanLoad(source, QuantProfile(), /*profile_given=*/false);
      findings_.Add(kError, config_.model, as_it_is.status(), kBroken);
      if (!as_it_is.ok()) source.checkpoint.reset();
    }
    // What is quantized already cannot be planned without its headers; the rest by the config.
    if (source.prequantized && source.checkpoint == nullptr) return;
    if (profile_given_ && !profile_) return;
    if (config_.profile == kAutoProfile && !Choose(source)) return;
    if (const auto load = PlanUnderProfile(source)) CheckLoad(source, *load);
  }

  // Where a device is not here and its memory not given, the rest is checked all the same.
  void FindDevice() {
    BackendOptions backend;
    backend.name = config_.backend;
    backend.threads = static_cast<int>(config_.threads);
    backend.determinism = config_.determinism;
    const std::vector<std::string> built_in = BackendNames();
    if (backend.name == "cuda" && std::count(built_in.begin(), built_in.end(), "cuda") == 0) {
      findings_.Add(kWarning, "backend",
                    "this build of quantd has no cuda; build it where the CUDA toolkit is");
    }
    auto device = PlanDeviceFor(backend, options_.memory_bytes);
    if (device.ok()) {
      device_ = *device;
    } else if (backend.name == "cuda") {
      findings_.Add(kWarning, "backend",
                    fmt::format("the memory was not checked: {}", Message(device.status())),
                    "--memory SIZE, of the device that it is for");
      device_ = PlanDevice();
      device_->backend = PlanBackend::kCuda;
    } else {
      findings_.Add(kError, "backend", device.status(),
                    fmt::format("one of auto, {}", fmt::join(built_in, ", ")));
    }
  }

  // What `profile: auto` would be. False: nothing.
  bool Choose(const ModelSource& source) {
    if (!device_) return false;
    const auto chosen = ChooseProfile(source, *device_, engine_);
    if (!chosen.ok()) {
      findings_.Add(kError, "memory", chosen.status());
      return false;
    }
    profile_given_ = !chosen->name.empty();
    if (profile_given_) profile_ = LoadProfile(chosen->name).value();
    return true;
  }

  std::optional<LoadPlan> PlanUnderProfile(const ModelSource& source) {
    const QuantProfile& profile = profile_ ? *profile_ : none_;
    const std::string& where = profile_given_ ? config_.profile : config_.model;
    if (profile_given_) CheckOverrides(source);
    const auto effective = EffectiveProfile(profile, profile_given_, source.prequantized);
    if (!effective.ok()) {
      findings_.Add(kError, where, effective.status());
      profile_given_ = false;  // what it takes as it is
    } else if (profile_given_ && source.prequantized) {
      findings_.Add(kWarning, where,
                    fmt::format("the checkpoint is quantized already ({}): of the profile only "
                                "dtype, kv_cache and engine count",
                                Describe(*source.prequantized)),
                    "no profile, unless these are wanted");
    }
    auto load = PlanLoad(source, profile, profile_given_);
    if (load.ok()) return *std::move(load);
    findings_.Add(kError, where, load.status(), WhatSuits(source, profile));
    return std::nullopt;
  }

  void CheckOverrides(const ModelSource& source) {
    std::vector<std::string> modules = {source.expected.embedding.module};
    modules.push_back(source.expected.head ? source.expected.head->module
                                           : source.expected.tied_head);
    for (const ExpectedGroup& group : source.expected.groups) {
      for (const ExpectedLinear& linear : group) modules.push_back(linear.module);
    }
    for (size_t i = 0; i < profile_->overrides.size(); ++i) {
      const std::string& match = profile_->overrides[i].match;
      if (std::any_of(modules.begin(), modules.end(),
                      [&](const std::string& m) { return OverrideMatches(match, m); })) {
        continue;
      }
      findings_.Add(kWarning, config_.profile,
                    fmt::format("overrides[{}].match: \"{}\" matches no module of the model; they "
                                "are called as {}",
                                i, match, modules.back()));
    }
  }

  // A group size that divides, where that is what is wrong, else the profiles that suit.
  static std::string WhatSuits(const ModelSource& source, const QuantProfile& profile) {
    constexpr std::string_view kKey = "group_size: ";
    constexpr std::array<int, 6> kSizes = {64, 128, 32, 16, 8, 256};  // usual ones first
    const std::string yaml = profile.ToYaml();
    for (const int size : kSizes) {
      if (yaml.find(kKey) == std::string::npos) break;
      std::string other = yaml;
      for (size_t at = 0; (at = other.find(kKey, at)) != std::string::npos;) {
        at += kKey.size();
        const size_t end = std::min(other.find('\n', at), other.size());
        other.replace(at, end - at, std::to_string(size));
      }
      const auto changed = ParseProfile(other, "");
      if (changed.ok() && PlanLoad(source, *changed, true).ok()) {
        return fmt::format("group_size: {} divides the weights of this model", size);
      }
    }
    std::vector<std::string> suitable;
    if (const auto plan = PlanProfiles(source, PlanRequest()); plan.ok()) {
      for (const ProfilePlan& p : plan->profiles) {
        if (p.planned && p.refusal.empty()) suitable.push_back(p.name);
      }
    }
    return fmt::format("profiles that suit the model: {}", fmt::join(suitable, ", "));
  }

  void CheckLoad(const ModelSource& source, const LoadPlan& load) {
    CheckRounding(load);
    if (!device_) return;
    const std::string backend =
        device_->backend == PlanBackend::kCuda ? "backend cuda" : "backend " + config_.backend;
    for (const std::string& slow : SlowPaths(*spec_, load, *device_)) {
      findings_.Add(kWarning, backend, slow);
    }
    if (const absl::Status status = CheckDevice(load, *device_); !status.ok()) {
      findings_.Add(kError, backend, status, "--backend cpu, which takes every format and size");
      return;
    }
    const auto memory = PlanLoadFor(source, load, *device_, engine_);
    if (!memory.ok()) {
      findings_.Add(kError, absl::IsResourceExhausted(memory.status()) ? "memory" : config_source_,
                    memory.status());
      return;
    }
    CheckKvCache(*memory);
  }

  // Values beyond float16's range are found, and refused, only when the weights are read.
  void CheckRounding(const LoadPlan& load) {
    const DType stored = load.weights.embedding.stored;
    if (load.options.compute_dtype != DType::kF16 || stored == DType::kF16) return;
    if (load.options.prequantized) return;
    findings_.Add(
        kWarning, profile_given_ ? config_.profile : config_.model,
        fmt::format("weights stored as {} are rounded to float16, and the load is refused "
                    "if one is beyond 65504; dtype: bfloat16, whose range is that of float32",
                    ToString(stored)));
  }

  void CheckKvCache(const LoadMemory& memory) {
    const int64_t block = engine_.block_size;
    const int64_t tokens = memory.kv_blocks * block;
    const int64_t context =
        engine_.max_model_len > 0 ? engine_.max_model_len : spec_->max_position_embeddings;
    const int64_t wanted = memory.wanted_kv_blocks * block;
    const int64_t bytes_per_token = memory.plan.of(MemoryComponent::kKvCache) / (tokens + block);
    if (tokens < wanted) {
      findings_.Add(
          kWarning, "memory",
          fmt::format("the default KV cache of {} tokens does not fit beside the model: "
                      "it will have {}, {}; a smaller profile, or fewer and shorter "
                      "requests (scheduler.max_num_seqs, scheduler.max_model_len)",
                      wanted, tokens, BytesText(memory.plan.of(MemoryComponent::kKvCache))));
    }
    if (tokens < context) {
      findings_.Add(kWarning, config_source_,
                    fmt::format("kv: the cache holds {} tokens, the context is {}: longer requests "
                                "will be refused; scheduler.max_model_len: {}, or kv.cache_bytes: "
                                "{}",
                                tokens, context, tokens,
                                (CeilDiv(context, block) + 1) * block * bytes_per_token));
    }
  }

  const ValidateOptions& options_;
  FindingList findings_;
  std::string config_source_ = kNoConfigFile;
  ServerConfig config_;  // keys that are wrong have their defaults
  EngineOptions engine_;
  bool profile_given_ = false;
  std::optional<QuantProfile> profile_;  // nullopt: none was given, or it is faulty
  const QuantProfile none_;
  std::filesystem::path dir_;
  std::optional<DecoderSpec> spec_;
  std::optional<GenerationDefaults> defaults_;
  absl::StatusOr<std::optional<MethodOptions>> prequantized_ = absl::NotFoundError("not read");
  std::unique_ptr<Checkpoint> checkpoint_;
  std::optional<PlanDevice> device_;
};

}  // namespace

std::vector<Finding> Validate(const ValidateOptions& options) { return Validator(options).Run(); }

}  // namespace quantd
