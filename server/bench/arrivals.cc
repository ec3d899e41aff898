#include "server/bench/arrivals.h"

#include <cmath>

namespace quantd::bench {

Arrivals::Arrivals(double rate, double burstiness, uint64_t seed)
    : rate_(rate), burstiness_(burstiness), random_(seed) {}

double Arrivals::Next() {
  const int64_t index = count_++;
  if (index == 0 || std::isinf(rate_)) return last_;
  if (std::isinf(burstiness_)) {
    last_ = static_cast<double>(index) / rate_;  // not summed up: no error grows
  } else {
    last_ += std::gamma_distribution<double>(burstiness_, 1.0 / (rate_ * burstiness_))(random_);
  }
  return last_;
}

}  // namespace quantd::bench
