// Serve. Order of ending: health says NOT_SERVING; a while for load balancers to notice; no new
// requests; live ones finish or are cancelled; the ports close. A second signal skips all waiting.
// A device that has failed ends the process with an error: nothing in it can bring it back, and
// whoever supervises the process can.
#include "server/serve.h"

#include <signal.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <optional>
#include <sstream>
#include <thread>
#include <utility>

#include "engine/plan/bytes_text.h"
#include "kernels/status.h"
#include "server/backends.h"
#include "server/grpc/grpc_server.h"
#include "server/http/http_server.h"
#include "server/http/metrics.h"
#include "server/kserve/statistics.h"
#include "server/load_progress.h"
#include "server/open_model.h"
#include "server/serving.h"
#include "server/signals.h"
#include "server/version.h"

namespace quantd {
namespace {

constexpr std::chrono::seconds kFlush{2};  // for the last bytes of finished calls to be read
constexpr double kHealthSeconds = 0.5;     // between two looks at the engine's health

std::chrono::milliseconds Milliseconds(double seconds) {
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
}

// Everything of the loaded model. The engine ends first, the backend last.
struct Loaded {
  OpenedModel opened;
  std::unique_ptr<Metrics> metrics;
  std::unique_ptr<ServingStatistics> statistics;
  std::unique_ptr<Engine> engine;
  ServedModel served;
};

Metrics::Model LabelsOf(const ServerConfig& config, const OpenedModel& opened) {
  const QuantizationReport& report = opened.loaded.report;
  std::vector<std::string> formats;
  for (const QuantizationReport::Group& group : report.groups) {
    if (std::find(formats.begin(), formats.end(), group.format) == formats.end()) {
      formats.push_back(group.format);
    }
  }
  return {
      .name = config.served_model_name,
      .profile = report.profile_name,
      .architecture = opened.loaded.spec.architecture,
      .backend = report.backend,
      .compute_dtype = std::string(ToString(opened.compute_dtype)),
      .kv_cache_dtype = std::string(ToString(opened.loaded.kv_dtype)),
      .formats = fmt::format("{}", fmt::join(formats, "+")),
      .version = kVersion,
      .bits_per_weight = report.bits_per_weight(),
      .max_model_len = opened.engine.max_model_len > 0 ? opened.engine.max_model_len
                                                       : opened.loaded.spec.max_position_embeddings,
      .block_size = opened.engine.block_size,
  };
}

absl::StatusOr<std::unique_ptr<Loaded>> Load(const ServerConfig& config, Serving& serving) {
  auto out = std::make_unique<Loaded>();
  OpenModelOptions options;
  options.model = config.model;
  options.profile = config.profile;
  options.backend.name = config.backend;
  options.backend.threads = static_cast<int>(config.threads);
  options.backend.determinism = config.determinism;
  options.engine = config.ToEngineOptions();
  LoadProgressReporter reporter(isatty(STDERR_FILENO) != 0);
  ASSIGN_OR_RETURN(
      out->opened, OpenModel(options, [&](const LoadProgress& progress) {
        reporter(progress);
        serving.SetLoadProgress(static_cast<double>(progress.bytes_done) /
                                static_cast<double>(std::max<int64_t>(progress.bytes_total, 1)));
      }));
  LoadedModel& loaded = out->opened.loaded;
  const DType kv_dtype = loaded.kv_dtype;
  out->metrics =
      std::make_unique<Metrics>(LabelsOf(config, out->opened), config.metrics.vllm_aliases);
  out->statistics = std::make_unique<ServingStatistics>(out->metrics.get());
  ASSIGN_OR_RETURN(out->engine, Engine::Create(*out->opened.backend, std::move(loaded),
                                               out->opened.tokenizer.get(), out->opened.engine,
                                               out->statistics.get()));
  out->served = {config.served_model_name,  out->engine.get(),         out->opened.tokenizer.get(),
                 out->opened.backend.get(), out->opened.compute_dtype, kv_dtype};
  out->served.plan = &out->opened.plan;
  out->served.driver_bytes = DriverBytes(*out->opened.backend);
  out->served.statistics = out->statistics.get();
  if (out->opened.chat_template.ok()) out->served.chat_template = out->opened.chat_template->get();
  return out;
}

void LogLines(const std::string& text) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) spdlog::info("  {}", line);
}

// What was planned beside what was taken. Kernels take their workspace when they first need it.
void LogMemory(const MemoryPlan& plan, const MemoryAccount& taken) {
  spdlog::info("memory planned {}, taken {}; planned and taken by component:",
               BytesText(plan.total()), BytesText(taken.Total()));
  for (int i = 0; i < kNumMemoryComponents; ++i) {
    const auto component = static_cast<MemoryComponent>(i);
    spdlog::info("  {:<12} {:>12} {:>12}", ToString(component), BytesText(plan.of(component)),
                 BytesText(taken.Bytes(component)));
  }
}

void LogReady(const Loaded& loaded) {
  const QuantizationReport& report = loaded.engine->report();
  spdlog::info("{}", DescribeModel(loaded.served.name, report.profile_name,
                                   report.bits_per_weight(), report.resident_bytes));
  spdlog::info("backend {} ({}), loaded in {:.2f} s, peak while loading {:.1f} MB, context {}",
               report.backend, loaded.opened.backend->info().description, report.seconds,
               static_cast<double>(report.peak_load_bytes) / 1e6, loaded.engine->max_model_len());
  for (const QuantizationReport::Group& g : report.groups) {
    spdlog::info("  {} modules {} as {}: {} parameters, {} bytes", g.modules, g.method, g.format,
                 g.parameters, g.bytes);
  }
  if (const absl::Status chat = loaded.opened.chat_template.status(); !chat.ok()) {
    // A model without one was not trained on conversations; one that cannot be read is a pity.
    spdlog::log(absl::IsNotFound(chat) ? spdlog::level::info : spdlog::level::warn,
                "requests with messages are refused: {}", Message(chat));
  }
  LogMemory(loaded.opened.plan, loaded.opened.backend->memory());
  if (loaded.served.driver_bytes > 0) {
    spdlog::info("  {:<12} {:>12} {:>12}", "driver", "-", BytesText(loaded.served.driver_bytes));
  }
  spdlog::info("effective profile {} ({}):", report.profile_name, report.profile_hash);
  LogLines(report.effective_profile);
}

// From the first signal to the last call.
void DrainAndStop(const ServerConfig& config, TerminationSignals& signals, Serving& serving,
                  GrpcServer& grpc, Engine& engine) {
  spdlog::info("signal: draining, {} requests live", grpc.live_calls());
  grpc.SetHealthy(false);
  serving.AnnounceEnd();
  bool hurry = config.timeouts.pre_drain_seconds > 0 &&
               WaitFor(signals, nullptr, config.timeouts.pre_drain_seconds) == Wakeup::kSignal;
  serving.SetDraining();
  Event drained;
  int64_t cut_off = 0;                // by a second signal
  std::atomic<int64_t> cancelled{0};  // for want of time
  std::thread drain([&] {
    const Clock::time_point until = Clock::now() + Milliseconds(config.timeouts.drain_seconds);
    grpc.FinishTexts(until);  // the engine takes no more requests once it is drained
    cancelled = engine.Drain(
        std::max(std::chrono::milliseconds(0),
                 std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now())));
    drained.Set();
  });
  while (true) {
    if (hurry) {
      const int64_t live = grpc.live_calls();
      cut_off = std::max(cut_off, live);
      spdlog::warn("second signal: cancelling {} requests", live);
      grpc.CancelAll(Unavailable("the server is shutting down"));
    }
    const Wakeup wakeup = WaitFor(signals, &drained, -1);
    if (wakeup == Wakeup::kEvent) break;
    hurry = true;
  }
  drain.join();
  grpc.Shutdown(hurry ? std::chrono::milliseconds(100) : kFlush);
  // Nothing new comes while draining: of the two, what came later found no others than the first.
  spdlog::info("drained: {} requests were cancelled; bye", std::max(cut_off, cancelled.load()));
}

}  // namespace

absl::Status Serve(const ServerConfig& config) {
  TerminationSignals signals;  // before any thread
  signal(SIGPIPE, SIG_IGN);    // a client that goes away is an error code, not a signal
  spdlog::info("quantd {}", kVersion);
  spdlog::info("effective configuration:");
  LogLines(ToYaml(config));

  Serving serving;
  std::unique_ptr<Loaded> loaded;
  std::atomic<const Loaded*> page_source{nullptr};
  ASSIGN_OR_RETURN(const std::unique_ptr<GrpcServer> grpc, GrpcServer::Start(config, serving));
  spdlog::info("listening on {} (grpc){}", grpc->address(), config.tls.enabled() ? ", TLS" : "");
  if (!grpc->admin_address().empty())
    spdlog::info("listening on {} (admin)", grpc->admin_address());
  std::unique_ptr<HttpServer> http;
  if (!config.listen.http.empty()) {
    auto page = [&]() -> std::string {
      const Loaded* source = page_source.load(std::memory_order_acquire);
      if (source == nullptr) return Metrics::RenderLoading(serving.load_progress());
      return source->metrics->Render(source->engine->Stats(), grpc->counts(),
                                     &source->opened.backend->memory(), &source->opened.plan,
                                     source->served.driver_bytes);
    };
    ASSIGN_OR_RETURN(http, HttpServer::Start(config.listen.http, serving, std::move(page)));
    spdlog::info("listening on {} (http)", http->address());
  }

  spdlog::info("loading {} under profile {}", config.model,
               config.profile.empty() ? "none" : config.profile);
  Event finished;
  absl::StatusOr<std::unique_ptr<Loaded>> result = Unavailable("not loaded");
  std::thread loader([&] {
    result = Load(config, serving);
    finished.Set();
  });
  if (WaitFor(signals, &finished, -1) == Wakeup::kSignal) {
    spdlog::info("signal while loading: bye");
    http.reset();
    grpc->Shutdown(std::chrono::milliseconds(0));
    spdlog::default_logger()->flush();
    // The loader cannot be interrupted and may need minutes; it only reads, so the process may just
    // end.
    std::_Exit(0);
  }
  loader.join();
  if (!result.ok()) return result.status();
  loaded = std::move(*result);
  LogReady(*loaded);
  page_source.store(loaded.get(), std::memory_order_release);
  serving.SetLoadProgress(1.0);
  serving.SetReady(&loaded->served);
  grpc->SetHealthy(true);
  spdlog::info("ready after {:.2f} s", serving.uptime_seconds());

  while (WaitFor(signals, nullptr, kHealthSeconds) != Wakeup::kSignal) {
    if (const absl::Status health = loaded->engine->Health(); !health.ok()) {
      grpc->SetHealthy(false);
      grpc->Shutdown(kFlush);
      return Unavailable("the device failed: {}", Message(health));
    }
  }
  DrainAndStop(config, signals, serving, *grpc, *loaded->engine);
  http.reset();
  return absl::OkStatus();
}

}  // namespace quantd
