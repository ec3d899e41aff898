// signalfd and eventfd.
#include "server/signals.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>

#include "kernels/check.h"

namespace quantd {

TerminationSignals::TerminationSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  // A signal that is ignored and blocked would still come through the descriptor.
  struct sigaction hangup;
  const bool ignored = sigaction(SIGHUP, nullptr, &hangup) == 0 && hangup.sa_handler == SIG_IGN;
  if (!ignored) sigaddset(&set, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  fd_ = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  QUANTD_CHECK(fd_ >= 0, "signalfd: errno {}", errno);
}

TerminationSignals::~TerminationSignals() { close(fd_); }

int TerminationSignals::Take() {
  signalfd_siginfo info;
  if (read(fd_, &info, sizeof(info)) != static_cast<ssize_t>(sizeof(info))) return 0;
  return static_cast<int>(info.ssi_signo);
}

Event::Event() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  QUANTD_CHECK(fd_ >= 0, "eventfd: errno {}", errno);
}

Event::~Event() { close(fd_); }

void Event::Set() {
  const uint64_t one = 1;
  QUANTD_CHECK(write(fd_, &one, sizeof(one)) == static_cast<ssize_t>(sizeof(one)));
}

Wakeup WaitFor(TerminationSignals& signals, const Event* event, double seconds) {
  using SteadyClock = std::chrono::steady_clock;
  const auto end = SteadyClock::now() + std::chrono::duration<double>(std::max(seconds, 0.0));
  while (true) {
    pollfd fds[2] = {{signals.fd(), POLLIN, 0}, {event != nullptr ? event->fd() : -1, POLLIN, 0}};
    int timeout_ms = -1;
    if (seconds >= 0) {
      const double left = std::chrono::duration<double>(end - SteadyClock::now()).count();
      timeout_ms = static_cast<int>(std::clamp(left * 1000 + 1, 0.0, 1e9));
    }
    const int ready = poll(fds, 2, timeout_ms);
    if (ready == 0) return Wakeup::kTimeout;
    if (ready < 0) continue;  // EINTR
    if ((fds[0].revents & POLLIN) != 0 && signals.Take() != 0) return Wakeup::kSignal;
    if ((fds[1].revents & POLLIN) != 0) return Wakeup::kEvent;
  }
}

}  // namespace quantd
