// Children by posix_spawn, their output read by a thread each.
#include "tests/server/process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <system_error>

namespace quantd::test {
namespace {

int CountEntries(const std::string& path) {
  int count = 0;
  std::error_code error;
  for (std::filesystem::directory_iterator it(path, error), end; !error && it != end;
       it.increment(error))
    ++count;
  return count;
}

}  // namespace

Process::Process(std::vector<std::string> arguments, const std::string& input) {
  int in[2];
  int out[2];
  int err[2];
  for (int* pair : {in, out, err}) {
    if (pipe2(pair, O_CLOEXEC) != 0) return;
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in[0], 0);
  posix_spawn_file_actions_adddup2(&actions, out[1], 1);
  posix_spawn_file_actions_adddup2(&actions, err[1], 2);
  arguments.insert(arguments.begin(), QUANTD_BINARY_DIR "/quantd");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  if (posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ) != 0) pid_ = -1;
  posix_spawn_file_actions_destroy(&actions);
  for (const int fd : {in[0], out[1], err[1]}) close(fd);
  if (!input.empty() && write(in[1], input.data(), input.size()) < 0) Signal(SIGKILL);
  close(in[1]);
  streams_[0].fd = out[0];
  streams_[1].fd = err[0];
  for (Stream& stream : streams_) {
    stream.thread = std::thread([this, &stream] {
      char buffer[4096];
      for (ssize_t n; (n = read(stream.fd, buffer, sizeof(buffer))) > 0;) {
        std::unique_lock lock(mutex_);
        stream.text.append(buffer, static_cast<size_t>(n));
        changed_.notify_all();
        changed_.wait(lock, [this] { return reads_; });
      }
      std::lock_guard lock(mutex_);
      stream.closed = true;
      changed_.notify_all();
    });
  }
}

Process::~Process() {
  if (!reaped_) Signal(SIGKILL);
  Wait();
  for (Stream& stream : streams_) {
    if (stream.thread.joinable()) stream.thread.join();
    close(stream.fd);
  }
}

void Process::Signal(int signal) {
  if (pid_ > 0 && !reaped_) kill(pid_, signal);
}

int Process::Wait(double seconds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (!reaped_ && pid_ > 0) {
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      reaped_ = true;
      exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    } else if (std::chrono::steady_clock::now() > end) {
      return -1;
    } else {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }
  std::unique_lock lock(mutex_);
  reads_ = true;
  changed_.notify_all();
  changed_.wait(lock, [this] { return streams_[0].closed && streams_[1].closed; });
  return exit_code_;
}

void Process::StopReading() {
  std::lock_guard lock(mutex_);
  reads_ = false;
}

std::string Process::Text(int i) const {
  std::lock_guard lock(mutex_);
  return streams_[i].text;
}

bool Process::WaitFor(const std::string& text, double seconds, bool in_stdout) {
  const Stream& stream = streams_[in_stdout ? 0 : 1];
  std::unique_lock lock(mutex_);
  const auto found = [&] { return stream.text.find(text) != std::string::npos; };
  changed_.wait_for(lock, std::chrono::duration<double>(seconds),
                    [&] { return found() || stream.closed; });
  return found();
}

Finished RunQuantd(const std::vector<std::string>& arguments, const std::string& input) {
  Process process(arguments, input);
  Finished finished;
  finished.code = process.Wait(60);
  finished.out = process.out();
  finished.err = process.err();
  return finished;
}

ServerProcess::ServerProcess(const std::vector<std::string>& overrides, bool wait_ready) {
  std::vector<std::string> arguments = {"serve",       "--model", DemoModel(),
                                        "--profile",   "nf4-dq",  "--listen",
                                        "127.0.0.1:0", "--http",  "127.0.0.1:0"};
  for (const std::string& assignment : overrides) {
    arguments.push_back("--set");
    arguments.push_back(assignment);
  }
  process_ = std::make_unique<Process>(arguments);
  process_->WaitFor("loading ");
  const std::string log = process_->err();
  const auto address = [&](const std::string& kind) -> std::string {
    const size_t end = log.find(" (" + kind + ")");
    if (end == std::string::npos) return "";
    const size_t begin = log.rfind(' ', end - 1) + 1;
    return log.substr(begin, end - begin);
  };
  grpc_ = address("grpc");
  http_ = address("http");
  if (wait_ready) ready_ = process_->WaitFor("ready after");
}

int ServerProcess::OpenFiles() const {
  return CountEntries("/proc/" + std::to_string(process_->pid()) + "/fd");
}

ThreadCount ServerProcess::Threads() const {
  // As gRPC names the threads of its pools; /proc keeps 15 letters. A thread has its parent's name
  // until it has run far enough to name itself.
  static const std::set<std::string> kGrpcNames = {
      "default-executo", "resolver-execut", "event_engine",   "grpc_global_tim",
      "timer_manager",   "grpcpp_sync_ser", "nexting_thread",
  };
  ThreadCount count;
  std::error_code error;
  const std::string folder = "/proc/" + std::to_string(process_->pid()) + "/task";
  for (std::filesystem::directory_iterator task(folder, error), end; !error && task != end;
       task.increment(error)) {
    std::ifstream file(task->path() / "comm");
    std::string name;
    if (std::getline(file, name)) ++(kGrpcNames.contains(name) ? count.grpc : count.own);
  }
  return count;
}

int64_t ServerProcess::MemoryBytes(const std::string& key) const {
  std::ifstream file("/proc/" + std::to_string(process_->pid()) + "/status");
  const std::string name = key + ":";
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(name)) return std::atoll(line.c_str() + name.size()) * 1024;
  }
  return -1;
}

std::string DemoModel() { return QUANTD_SOURCE_DIR "/demo/model"; }

}  // namespace quantd::test
