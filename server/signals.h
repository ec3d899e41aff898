// TerminationSignals: SIGTERM, SIGINT and SIGHUP (a terminal that closes) as something to poll.
// SIGHUP stays ignored where it was when the process began (nohup). Construct it before any other
// thread starts (gRPC's included): threads inherit the blocked mask, and a signal that one thread
// does not block kills the process.
#pragma once

namespace quantd {

class TerminationSignals {
 public:
  TerminationSignals();
  ~TerminationSignals();
  TerminationSignals(const TerminationSignals&) = delete;
  TerminationSignals& operator=(const TerminationSignals&) = delete;

  /// Readable when a signal is pending.
  int fd() const { return fd_; }
  /// Takes one pending signal: its number, 0 when there is none.
  int Take();

 private:
  int fd_ = -1;
};

/// A flag that can be polled beside signals (an eventfd). Set from any thread.
class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  int fd() const { return fd_; }
  void Set();

 private:
  int fd_ = -1;
};

enum class Wakeup { kSignal, kEvent, kTimeout };
/// Waits for a signal (which it takes), for `event` (which stays set; may be null), or for
/// `seconds` (negative: forever).
Wakeup WaitFor(TerminationSignals& signals, const Event* event, double seconds);

}  // namespace quantd
