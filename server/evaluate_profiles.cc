#include "server/evaluate_profiles.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <utility>

#include "engine/eval/eval_journal.h"
#include "engine/eval/eval_summary.h"
#include "engine/eval/eval_text.h"
#include "engine/eval/evaluator.h"
#include "engine/plan/profile_choice.h"
#include "engine/weights/effective_profile.h"
#include "engine/weights/fingerprint.h"
#include "engine/weights/profile.h"
#include "engine/weights/quantization_options.h"
#include "kernels/ceil_div.h"
#include "kernels/fault_list.h"
#include "kernels/status.h"
#include "server/open_model.h"
#include "server/plan_load.h"
#include "server/read_input.h"
#include "server/utc_date.h"
#include "server/version.h"

namespace quantd {
namespace {

constexpr int64_t kDefaultContext = 2048;
constexpr int32_t kStepTokens = 128;

class ProfileEvaluation {
 public:
  ProfileEvaluation(const EvaluateOptions& options,
                    std::function<void(const EvaluateProgress&)> on_progress)
      : options_(options), on_progress_(std::move(on_progress)) {}

  absl::StatusOr<EvalReport> Run() {
    // What can be refused at once comes before what takes long.
    RETURN_IF_ERROR(ReadModel());
    RETURN_IF_ERROR(ReadProfiles());
    RETURN_IF_ERROR(ReadText());
    ASSIGN_OR_RETURN(const EvalJournal::Identity identity, Identity());
    ASSIGN_OR_RETURN(journal_, EvalJournal::Open(options_.journal, identity));
    RETURN_IF_ERROR(OpenReference());
    for (size_t i = 0; i < profiles_.size(); ++i) {
      progress_.profile = profiles_[i];
      progress_.profile_index = i;
      absl::StatusOr<ProfileResult> result = MeasureProfile(profiles_[i]);
      if (!result.ok()) {
        const absl::Status refusal = result.status();
        // The journal, the device; the reference.
        if (absl::IsUnavailable(refusal) || absl::IsFailedPrecondition(refusal)) return refusal;
        result = ProfileResult();
        result->refusal = Message(refusal);
        result->facts.name = profiles_[i];
      }
      const bool again = std::any_of(
          report_.profiles.begin(), report_.profiles.end(), [&](const ProfileResult& p) {
            return p.facts.name == result->facts.name && p.facts.hash == result->facts.hash;
          });
      if (!again) report_.profiles.push_back(*std::move(result));  // auto may be another's name
    }
    std::stable_sort(report_.profiles.begin(), report_.profiles.end(),
                     [](const ProfileResult& a, const ProfileResult& b) {
                       return a.facts.resident_bytes > b.facts.resident_bytes;
                     });
    report_.date = UtcDate();
    return std::move(report_);
  }

 private:
  // A folder as far as it is known without loading it.
  struct Folder {
    std::string path;
    DecoderSpec spec;
    bool quantized = false;
    std::string fingerprint;
  };

  static absl::StatusOr<Folder> ReadFolder(const std::string& path) {
    std::error_code error;
    if (!std::filesystem::is_directory(path, error)) {
      return NotFound("model: {} is not a folder", path);
    }
    Folder folder;
    folder.path = path;
    ASSIGN_OR_RETURN(folder.spec, ReadDecoderSpec(path));
    ASSIGN_OR_RETURN(const auto prequantized, ReadQuantizationConfig(path));
    folder.quantized = prequantized.has_value();
    ASSIGN_OR_RETURN(folder.fingerprint, ModelFingerprint(path));
    return folder;
  }

  absl::Status ReadModel() {
    ASSIGN_OR_RETURN(model_, ReadFolder(options_.model));
    reference_model_ = model_;
    if (!options_.reference_model.empty()) {
      ASSIGN_OR_RETURN(reference_model_, ReadFolder(options_.reference_model));
    }
    if (model_.spec.vocab_size != reference_model_.spec.vocab_size) {
      return InvalidArgument("{} has a vocabulary of {}, the reference in {} one of {}",
                             model_.path, model_.spec.vocab_size, reference_model_.path,
                             reference_model_.spec.vocab_size);
    }
    ASSIGN_OR_RETURN(tokenizer_, Tokenizer::Load(model_.path));
    RETURN_IF_ERROR(Annotate(CheckTokenizer(*tokenizer_, model_.spec), model_.path));
    report_.version = kVersion;
    report_.model = model_.path;
    report_.fingerprint = model_.fingerprint;
    report_.architecture = model_.spec.architecture;
    return absl::OkStatus();
  }

  // The names of profiles and reference; all faults of profiles at once.
  absl::Status ReadProfiles() {
    profiles_ = options_.profiles;
    if (profiles_.empty()) {
      profiles_ =
          model_.quantized ? std::vector<std::string>{kCheckpointProfile} : BuiltInProfiles();
    }
    FaultList faults;
    for (size_t i = 0; i < profiles_.size(); ++i) {
      const auto rest = profiles_.begin() + static_cast<ptrdiff_t>(i) + 1;
      profiles_.erase(std::remove(rest, profiles_.end(), profiles_[i]), profiles_.end());
      if (profiles_[i].empty()) {
        faults.Add("profiles: one of them has no name");
      } else if (const absl::Status status = HashOf(profiles_[i]).status(); !status.ok()) {
        faults.Add("{}", Message(status));
      }
    }
    RETURN_IF_ERROR(faults.ToStatus(absl::StatusCode::kInvalidArgument));
    progress_.num_profiles = profiles_.size();
    reference_ = options_.reference;
    if (reference_ == kNoReference) {
      if (!options_.reference_model.empty() || !options_.reference_backend.empty()) {
        return InvalidArgument("reference is none, and a model or a backend is given for it");
      }
      reference_.clear();
    } else if (reference_.empty() && !reference_model_.quantized) {
      reference_ = SixteenBitProfile(reference_model_.spec);
    }
    return absl::OkStatus();
  }

  // What is in a profile; the name of one that is known only when it is loaded.
  static absl::StatusOr<std::string> HashOf(const std::string& profile) {
    if (profile.empty() || profile == kCheckpointProfile || profile == kAutoProfile) return profile;
    ASSIGN_OR_RETURN(const QuantProfile loaded, LoadProfile(profile));
    return loaded.Hash();
  }

  absl::Status ReadText() {
    ASSIGN_OR_RETURN(const std::string contents, ReadInput(options_.text, "text " + options_.text));
    ASSIGN_OR_RETURN(const auto documents, SplitDocuments(contents, options_.text));
    const int64_t longest = model_.spec.max_position_embeddings;
    EvalTextOptions cut;
    cut.context = options_.context > 0 ? options_.context : std::min(kDefaultContext, longest);
    if (cut.context > longest) {
      return InvalidArgument("context is {}, allowed: at most the model's {}", cut.context,
                             longest);
    }
    cut.stride = options_.stride;
    cut.max_tokens = options_.max_tokens;
    absl::StatusOr<EvalText> text = MakeEvalText(*tokenizer_, documents, cut);
    if (!text.ok()) return Annotate(text.status(), options_.text);
    text_ = *std::move(text);
    settings_.context = cut.context;
    settings_.threads = HostThreads(options_.backend);
    report_.text = options_.text;
    report_.text_hash = text_.hash;
    report_.documents = text_.documents;
    report_.windows = static_cast<int64_t>(text_.windows.size());
    report_.tokens = text_.tokens;
    report_.bytes = text_.bytes;
    report_.context = cut.context;
    report_.stride = text_.stride;
    report_.greedy_tokens = settings_.greedy_tokens;
    progress_.num_windows = report_.windows;
    return absl::OkStatus();
  }

  absl::StatusOr<OpenedModel> Open(const std::string& model, const std::string& profile,
                                   const BackendOptions& backend) const {
    OpenModelOptions open;
    open.model = model;
    open.profile = profile == kCheckpointProfile ? "" : profile;
    open.backend = backend;
    open.need_tokenizer = false;
    open.engine.max_num_batched_tokens = kStepTokens;
    open.engine.max_num_seqs = kStepTokens - kExtraLogitRows;  // logits of every row
    open.engine.max_model_len = static_cast<int32_t>(settings_.context);
    open.engine.num_kv_blocks =
        static_cast<int32_t>(CeilDiv(settings_.context, int64_t{open.engine.block_size})) + 1;
    return OpenModel(open, {});
  }

  absl::Status OpenReference() {
    if (reference_.empty()) return absl::OkStatus();
    BackendOptions backend = options_.backend;
    if (!options_.reference_backend.empty()) backend.name = options_.reference_backend;
    absl::StatusOr<OpenedModel> opened = Open(reference_model_.path, reference_, backend);
    if (!opened.ok()) {
      return Annotate(opened.status(), fmt::format("the reference, {}", reference_));
    }
    opened_reference_.emplace(*std::move(opened));
    if (reference_ == kAutoProfile) reference_ = opened_reference_->loaded.report.profile_name;
    report_.reference = reference_;
    if (reference_model_.path != model_.path) report_.reference_model = reference_model_.path;
    return absl::OkStatus();
  }

  absl::StatusOr<EvalJournal::Identity> Identity() const {
    EvalJournal::Identity identity = {{"checkpoint", report_.fingerprint},
                                      {"text", text_.hash},
                                      {"reference", reference_},
                                      {"backend", options_.backend.name},
                                      {"determinism", options_.backend.determinism},
                                      {"context", fmt::format("{}", settings_.context)},
                                      {"quantd", report_.version}};
    if (reference_.empty()) return identity;
    ASSIGN_OR_RETURN(identity["reference profile"], HashOf(reference_));
    identity["reference checkpoint"] = reference_model_.fingerprint;
    identity["reference backend"] = options_.reference_backend;
    return identity;
  }

  static EvalTarget TargetOf(const OpenedModel& opened) {
    return {opened.backend.get(), opened.loaded.model.get(), opened.loaded.kv_dtype};
  }

  absl::StatusOr<ProfileResult> MeasureProfile(const std::string& name) {
    ReportProgress(0);
    ASSIGN_OR_RETURN(const OpenedModel opened, Open(model_.path, name, options_.backend));
    const QuantizationReport& loaded = opened.loaded.report;
    report_.parameters = loaded.parameters;
    report_.backend = std::string(opened.backend->name());
    report_.device = opened.backend->info().description;
    std::optional<EvalTarget> reference;
    if (opened_reference_) reference = TargetOf(*opened_reference_);
    ASSIGN_OR_RETURN(const auto evaluator,
                     Evaluator::Create(text_, settings_, TargetOf(opened), reference));
    const std::string hash = loaded.profile_hash;
    for (int64_t window = 0; window < report_.windows; ++window) {
      if (!journal_->Of(hash).windows.contains(window)) {
        ASSIGN_OR_RETURN(WindowScore score, evaluator->Score(window));
        RETURN_IF_ERROR(journal_->Add(hash, std::move(score)));
        ++scored_;
      }
      ReportProgress(window + 1);
    }
    if (!journal_->Of(hash).facts) {
      ProfileFacts facts;
      facts.name = name;
      facts.hash = hash;
      facts.description = name == kCheckpointProfile ? "" : DescriptionOf(name);
      facts.compute_dtype = std::string(ToString(opened.compute_dtype));
      facts.resident_bytes = loaded.resident_bytes;
      facts.bits_per_weight = loaded.bits_per_weight();
      facts.kv_bytes_per_token = KvCache::BytesPerToken(opened.loaded.spec, opened.loaded.kv_dtype);
      facts.load_seconds = loaded.seconds;
      RETURN_IF_ERROR(evaluator->Measure(&facts));
      RETURN_IF_ERROR(journal_->Add(std::move(facts)));
    }
    std::vector<WindowScore> scores;
    for (const auto& [index, score] : journal_->Of(hash).windows) {
      const EvalWindow* window =
          index < report_.windows ? &text_.windows[static_cast<size_t>(index)] : nullptr;
      if (window == nullptr || score.tokens != window->scored() || score.bytes != window->bytes ||
          score.kl.empty() == reference.has_value()) {
        return FailedPrecondition("{}: window {} of {} is not of this text", options_.journal,
                                  index, name);
      }
      scores.push_back(score);
    }
    ProfileFacts facts = *journal_->Of(hash).facts;
    facts.name = name == kAutoProfile ? loaded.profile_name : name;
    ProfileResult result = SummarizeProfile(std::move(facts), scores, reference.has_value());
    if (!std::isfinite(result.perplexity) || (result.compared && !(result.retention.value > 0))) {
      return DataLoss("its perplexity is beyond all numbers: nothing of the model is left");
    }
    return result;
  }

  static std::string DescriptionOf(const std::string& name) {
    const auto profile = LoadProfile(name);
    return profile.ok() ? profile->description : "";
  }

  void ReportProgress(int64_t windows_done) {
    if (!on_progress_) return;
    const double elapsed =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    const double profiles_left =
        static_cast<double>(progress_.num_profiles - progress_.profile_index - 1);
    const double left = static_cast<double>(report_.windows) * profiles_left +
                        static_cast<double>(report_.windows - windows_done);
    progress_.window = windows_done;
    progress_.seconds_left = scored_ > 0 ? elapsed / static_cast<double>(scored_) * left : 0.0;
    on_progress_(progress_);
  }

  const EvaluateOptions& options_;
  const std::function<void(const EvaluateProgress&)> on_progress_;
  Folder model_, reference_model_;
  std::unique_ptr<Tokenizer> tokenizer_;
  EvalText text_;
  EvalSettings settings_;
  std::vector<std::string> profiles_;
  std::string reference_;  // profile; empty: none
  std::optional<OpenedModel> opened_reference_;
  std::unique_ptr<EvalJournal> journal_;
  EvalReport report_;
  EvaluateProgress progress_;
  int64_t scored_ = 0;  // windows, by this run
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace

absl::StatusOr<EvalReport> EvaluateProfiles(
    const EvaluateOptions& options, std::function<void(const EvaluateProgress&)> on_progress) {
  return ProfileEvaluation(options, std::move(on_progress)).Run();
}

}  // namespace quantd
