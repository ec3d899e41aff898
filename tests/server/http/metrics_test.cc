// The Prometheus page, and the HTTP port as probes see it.
#include "server/http/metrics.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "server/http/http_server.h"
#include "tests/server/eventually.h"
#include "tests/server/http_get.h"

namespace quantd {
namespace {

bool Has(const std::string& page, const std::string& line) {
  return ("\n" + page).find("\n" + line + "\n") != std::string::npos;
}

TEST(Metrics, PageHasCountersGaugesAndHistogramsWithLabels) {
  Metrics::Model model;
  model.name = "m";
  model.profile = "nf4-dq";
  model.formats = "nf4/f32@b64+bf16";
  model.max_model_len = 512;
  model.bits_per_weight = 4.5;
  Metrics metrics(model);
  metrics.OnFirstToken(0.003);
  metrics.OnInterTokenLatency(0.0015);
  metrics.OnStep(8);
  EngineObserver::Finished finished;
  finished.reason = FinishReason::kLength;
  finished.usage = {5, 0, 7};
  finished.max_tokens = 7;
  finished.total_seconds = 0.4;
  metrics.OnFinished(finished);
  EngineStats stats;
  stats.running = 2;
  stats.waiting = 3;
  stats.kv_blocks_total = 8;
  stats.kv_blocks_free = 6;
  stats.prompt_tokens = 11;
  stats.prefix_cache_hits = 4;
  MemoryAccount memory;
  memory.Add(MemoryComponent::kWeights, 123);
  MemoryPlan plan;
  plan.bytes[static_cast<size_t>(MemoryComponent::kKvCache)] = 4096;
  stats.refused_deadline = 3;
  stats.waiting_tokens = 99;
  CallCounts calls;
  calls.live = 6;
  calls.unauthenticated = 2;
  calls.by_key = {{"team-a", 5, 1, 700, 2}};
  const std::string page = metrics.Render(stats, calls, &memory, &plan, 77);
  const std::string labels = "{model_name=\"m\",profile=\"nf4-dq\"}";
  for (const std::string& line : {
           "quantd_num_requests_running" + labels + " 2",
           "quantd_num_requests_waiting" + labels + " 3",
           "quantd_kv_cache_usage_perc" + labels + " 0.25",
           "quantd_prompt_tokens_total" + labels + " 11",
           "quantd_prefix_cache_hits_total" + labels + " 4",
           "quantd_num_waiting_tokens" + labels + " 99",
           "quantd_num_requests_live" + labels + " 6",
           "quantd_bits_per_weight" + labels + " 4.5",
           std::string("quantd_request_refused_total{model_name=\"m\",profile=\"nf4-dq\",reason="
                       "\"deadline\"} 3"),
           std::string("quantd_request_refused_total{model_name=\"m\",profile=\"nf4-dq\",reason="
                       "\"unauthenticated\"} 2"),
           std::string("quantd_key_tokens_total{model_name=\"m\",profile=\"nf4-dq\",key="
                       "\"team-a\"} 700"),
           std::string("quantd_key_requests_live{model_name=\"m\",profile=\"nf4-dq\",key="
                       "\"team-a\"} 2"),
           std::string("# TYPE quantd_prompt_tokens_total counter"),
           std::string("# TYPE quantd_time_to_first_token_seconds histogram"),
           std::string("quantd_memory_bytes{model_name=\"m\",profile=\"nf4-dq\",component="
                       "\"weights\"} 123"),
           std::string("quantd_memory_bytes{model_name=\"m\",profile=\"nf4-dq\",component="
                       "\"driver\"} 77"),
           std::string("quantd_memory_plan_bytes{model_name=\"m\",profile=\"nf4-dq\",component="
                       "\"kv_cache\"} 4096"),
           std::string("quantd_time_to_first_token_seconds_bucket{model_name=\"m\",profile=\"nf4-"
                       "dq\",le=\"0.001\"} 0"),
           std::string("quantd_time_to_first_token_seconds_bucket{model_name=\"m\",profile=\"nf4-"
                       "dq\",le=\"0.005\"} 1"),
           std::string("quantd_inter_token_latency_seconds_bucket{model_name=\"m\",profile=\"nf4-"
                       "dq\",le=\"0.002\"} 1"),
           "quantd_e2e_request_latency_seconds_count" + labels + " 1",
           "quantd_request_prompt_tokens_sum" + labels + " 5",
           "quantd_request_generation_tokens_sum" + labels + " 7",
           "quantd_iteration_tokens_total_sum" + labels + " 8",
       }) {
    EXPECT_TRUE(Has(page, line)) << "lacks " << line << "\n" << page;
  }
  EXPECT_NE(page.find("finished_reason=\"length\""), std::string::npos);
  EXPECT_NE(page.find("le=\"500\""), std::string::npos);
  EXPECT_EQ(
      page.find(
          "quantd_request_prompt_tokens_bucket{model_name=\"m\",profile=\"nf4-dq\",le=\"1000\""),
      std::string::npos)
      << "buckets end at the context";
}

TEST(Metrics, GatewaysFindTheirGaugesUnderVllmsNamesWhenAskedFor) {
  EngineStats stats;
  stats.running = 2;
  stats.waiting = 3;
  stats.kv_blocks_total = 8;
  stats.kv_blocks_free = 6;
  Metrics::Model model;
  model.name = "m";
  model.block_size = 16;
  EXPECT_EQ(Metrics(model).Render(stats, {}, nullptr, nullptr).find("vllm:"), std::string::npos);
  const std::string page = Metrics(model, true).Render(stats, {}, nullptr, nullptr);
  for (const std::string line : {
           "vllm:num_requests_running{model_name=\"m\",engine=\"0\"} 2",
           "vllm:num_requests_waiting{model_name=\"m\",engine=\"0\"} 3",
           "vllm:kv_cache_usage_perc{model_name=\"m\",engine=\"0\"} 0.25",
           "vllm:cache_config_info{model_name=\"m\",engine=\"0\",block_size=\"16\",num_gpu_blocks="
           "\"8\"} 1",
       }) {
    EXPECT_TRUE(Has(page, line)) << "lacks " << line << "\n" << page;
  }
}

TEST(HttpServer, ProbesFollowTheServersState) {
  Serving serving;
  const auto server =
      HttpServer::Start("127.0.0.1:0", serving, [] { return std::string("page\n"); });
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string address = (*server)->address();
  EXPECT_EQ(test::HttpGet(address, "/livez").status, 200);
  EXPECT_EQ(test::HttpGet(address, "/readyz").status, 503);
  EXPECT_EQ(test::HttpGet(address, "/readyz").body, "loading\n");
  ServedModel model;
  serving.SetReady(&model);
  EXPECT_EQ(test::HttpGet(address, "/readyz").status, 200);
  serving.AnnounceEnd();
  EXPECT_EQ(test::HttpGet(address, "/readyz").body, "draining\n");
  serving.SetDraining();
  EXPECT_EQ(test::HttpGet(address, "/readyz").status, 503);
  EXPECT_EQ(test::HttpGet(address, "/livez").status, 200);
  EXPECT_EQ(test::HttpGet(address, "/metrics").body, "page\n");
  EXPECT_EQ(test::HttpGet(address, "/nothing").status, 404);
}

TEST(HttpServer, SecondServerOnAPortFails) {
  Serving serving;
  const auto first = HttpServer::Start("127.0.0.1:0", serving, [] { return std::string(); });
  ASSERT_TRUE(first.ok());
  const auto second = HttpServer::Start((*first)->address(), serving, [] { return std::string(); });
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
}

// Each sends now and then a byte: they are shut out one by one, and keep nobody waiting.
TEST(HttpServer, SlowClientsAreShutOutInTime) {
  Serving serving;
  const auto http = HttpServer::Start(
      "127.0.0.1:0", serving, [] { return std::string(); }, std::chrono::milliseconds(300));
  ASSERT_TRUE(http.ok()) << http.status();
  std::atomic<bool> stop{false};
  std::atomic<int> shut_out{0};
  std::vector<std::thread> slow;
  for (int i = 0; i < 40; ++i) {
    slow.emplace_back([&] {
      const int fd = test::ConnectTcp((*http)->address());
      ASSERT_GE(fd, 0);
      while (!stop && send(fd, "G", 1, MSG_NOSIGNAL) == 1) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      }
      if (!stop) ++shut_out;
      close(fd);
    });
  }
  EXPECT_EQ(test::HttpGet((*http)->address(), "/livez").status, 200);
  EXPECT_TRUE(test::Eventually([&] { return shut_out == 40; }));
  stop = true;
  for (std::thread& client : slow) client.join();
}

TEST(HttpServer, IdleConnectionsKeepNoProbeWaiting) {
  Serving serving;
  std::atomic<int> pages{0};
  const auto http = HttpServer::Start(
      "127.0.0.1:0", serving, [&] { return std::to_string(++pages); }, std::chrono::hours(1));
  ASSERT_TRUE(http.ok()) << http.status();
  std::vector<int> idle;
  for (int i = 0; i < 200; ++i) idle.push_back(test::ConnectTcp((*http)->address()));
  // As none of them ever ends by itself here, an answer shows that this one did not wait for them.
  EXPECT_EQ(test::HttpGet((*http)->address(), "/livez").status, 200);
  EXPECT_EQ(test::HttpGet((*http)->address(), "/metrics").body, "1");
  for (const int fd : idle) {
    EXPECT_GE(fd, 0);
    close(fd);
  }
}

TEST(HttpServer, RangesAreNotLookedAt) {
  Serving serving;
  const auto http = HttpServer::Start("127.0.0.1:0", serving, [] { return std::string("page"); });
  ASSERT_TRUE(http.ok()) << http.status();
  std::string ranges = "bytes=0-";
  for (int i = 0; i < 2000; ++i) ranges += ",0-";
  const test::HttpResult result =
      test::HttpGet((*http)->address(), "/metrics", "Range: " + ranges + "\r\n");
  EXPECT_EQ(result.status, 200);
  EXPECT_EQ(result.body, "page");
}

TEST(HttpServer, ALongPageArrivesWhole) {
  Serving serving;
  const std::string page(8 << 20, 'x');  // more than a socket takes at once
  const auto http = HttpServer::Start("127.0.0.1:0", serving, [&] { return page; });
  ASSERT_TRUE(http.ok()) << http.status();
  EXPECT_EQ(test::HttpGet((*http)->address(), "/metrics").body, page);
}

}  // namespace
}  // namespace quantd
