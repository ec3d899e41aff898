// Process: the real `quantd` binary as a child, with its output.
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace quantd::test {

class Process {
 public:
  /// Starts quantd with `arguments` and `input` on its stdin.
  explicit Process(std::vector<std::string> arguments, const std::string& input = "");
  ~Process();  // kills what still runs
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  void Signal(int signal);
  /// Exit code; 128 + signal when a signal ended it; -1 when it still runs after `seconds`.
  int Wait(double seconds = 20);
  /// Everything so far.
  std::string out() const { return Text(0); }
  std::string err() const { return Text(1); }
  /// Leaves what the process writes unread until it has ended.
  void StopReading();
  /// Waits until stderr (or, with `in_stdout`, stdout) contains `text`, or the process has closed
  /// it.
  bool WaitFor(const std::string& text, double seconds = 20, bool in_stdout = false);

 private:
  struct Stream {
    int fd = -1;
    bool closed = false;
    std::string text;
    std::thread thread;
  };
  std::string Text(int i) const;

  pid_t pid_ = -1;
  bool reaped_ = false;
  bool reads_ = true;
  int exit_code_ = -1;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Stream streams_[2];
};

/// Runs to the end.
struct Finished {
  int code = -1;
  std::string out;
  std::string err;
};
Finished RunQuantd(const std::vector<std::string>& arguments, const std::string& input = "");

/// Threads of a process. gRPC's pools start one when all are busy, and may keep it.
struct ThreadCount {
  int own = 0;
  int grpc = 0;
};

/// `quantd serve` on free ports with demo/model under nf4-dq.
class ServerProcess {
 public:
  explicit ServerProcess(const std::vector<std::string>& overrides = {}, bool wait_ready = true);

  Process& process() { return *process_; }
  bool ready() const { return ready_; }
  const std::string& grpc() const { return grpc_; }
  const std::string& http() const { return http_; }
  /// Open file descriptors and threads, from /proc.
  int OpenFiles() const;
  ThreadCount Threads() const;
  /// A size of /proc/PID/status: "VmHWM" is the most memory it has had resident, "RssAnon" what it
  /// has now of its own.
  int64_t MemoryBytes(const std::string& key) const;

 private:
  std::unique_ptr<Process> process_;
  bool ready_ = false;
  std::string grpc_;
  std::string http_;
};

/// demo/model's folder.
std::string DemoModel();

}  // namespace quantd::test
