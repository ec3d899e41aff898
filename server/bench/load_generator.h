// RunLoad: sends a load to a server and records what comes of each request.
//
// Truly open: the calls are asynchronous, and the one thread that starts them never waits for an
// answer, so a server that is late does not delay later arrivals. Where it was late itself, the
// record says so (`sent` after `scheduled`), and latencies count from `scheduled` all the same.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "server/bench/measurement.h"
#include "server/bench/request_source.h"
#include "server/grpc/client.h"

namespace quantd::bench {

struct LoadOptions {
  OfferedLoad load;
  double burstiness = 1.0;   // of the arrivals (arrivals.h)
  int64_t num_requests = 0;  // 0: no limit; either this or `duration` is one
  double duration = 0.0;     // seconds in which requests come; 0: no limit
  double timeout = 0.0;      // deadline of a request, in seconds from `scheduled`; 0: none
  int32_t retries = 0;       // of a request that was UNAVAILABLE, or refused
  uint64_t seed = 0;
  uint64_t run = 0;          // RequestSource's
  bool sample_queue = true;  // ask the server for its queue, four times a second
};

struct RunProgress {
  int64_t sent = 0, done = 0, not_ok = 0;
  double seconds = 0.0;
};

struct Load {
  std::vector<RequestRecord> records;  // in the order of arrival
  QueueSamples queue;
};

class LoadGenerator {
 public:
  /// `connections` of them, which take requests in turn: a server takes so many calls on one (a
  /// further one waits in the client, and its time counts).
  LoadGenerator(const ChannelOptions& channel, int connections);
  ~LoadGenerator();

  /// Returns when the last request has ended. `on_progress`, which may be empty, is called by this
  /// thread some times a second. How requests ended is in their records; it is no error.
  Load Run(const RequestSource& source, const LoadOptions& options,
           const std::function<void(const RunProgress&)>& on_progress);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace quantd::bench
