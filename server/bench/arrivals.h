// Arrivals: when the requests of an open load come. Pure; the same seed gives the same times.
#pragma once

#include <cstdint>
#include <random>

namespace quantd::bench {

class Arrivals {
 public:
  /// `rate`: requests a second on average, > 0; infinite: all at once. `burstiness`, as in vLLM, is
  /// the shape of the gamma distribution of the gaps: 1 is a Poisson process, less comes in bursts,
  /// more is more even, infinite is a constant gap of 1 / rate.
  Arrivals(double rate, double burstiness, uint64_t seed);

  /// Seconds after the load began, never before the last one. The first request comes at 0.
  double Next();

 private:
  double rate_;
  double burstiness_;
  std::mt19937_64 random_;
  int64_t count_ = 0;
  double last_ = 0.0;
};

}  // namespace quantd::bench
