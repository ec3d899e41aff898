#include "engine/weights/files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "engine/weights/broken_mapping.h"
#include "kernels/status.h"

namespace quantd {
namespace {

struct OpenedFile {
  int fd = -1;
  int64_t size = 0;
};

// Opens a regular file. O_NONBLOCK: opening a FIFO must fail, not wait for a writer.
absl::StatusOr<OpenedFile> OpenRegular(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    if (errno == ENOENT || errno == ENOTDIR) return NotFound("{}: no such file", path.string());
    return DataLoss("{}: cannot be opened: {}", path.string(), std::strerror(errno));
  }
  struct stat info {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    return DataLoss("{}: not a regular file", path.string());
  }
  return OpenedFile{fd, static_cast<int64_t>(info.st_size)};
}

}  // namespace

absl::StatusOr<std::string> ReadTextFile(const std::filesystem::path& path, int64_t max_bytes) {
  ASSIGN_OR_RETURN(const OpenedFile file, OpenRegular(path));
  if (file.size > max_bytes) {
    ::close(file.fd);
    return DataLoss("{}: {} bytes, at most {} are allowed", path.string(), file.size, max_bytes);
  }
  std::string text(static_cast<size_t>(file.size), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::read(file.fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    done += static_cast<size_t>(n);
  }
  ::close(file.fd);
  if (done != text.size()) {
    return DataLoss("{}: only {} of {} bytes could be read", path.string(), done, text.size());
  }
  return text;
}

absl::StatusOr<MappedFile> MappedFile::Open(const std::filesystem::path& path) {
  ASSIGN_OR_RETURN(const OpenedFile opened, OpenRegular(path));
  MappedFile file;
  file.fd_ = opened.fd;
  file.size_ = static_cast<size_t>(opened.size);
  file.name_ = path.filename().string();
  if (file.size_ == 0) return file;  // mmap refuses empty files; the reader reports it
  void* data = ::mmap(nullptr, file.size_, PROT_READ, MAP_PRIVATE, opened.fd, 0);
  if (data == MAP_FAILED) return DataLoss("{}: mmap: {}", path.string(), std::strerror(errno));
  file.data_ = static_cast<const std::byte*>(data);
  AddMapping(data, file.size_, path.string());
  ::madvise(data, file.size_, MADV_SEQUENTIAL);  // tensors are read once, front to back
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  if (this == &other) return *this;
  Close();
  data_ = std::exchange(other.data_, nullptr);
  size_ = std::exchange(other.size_, 0);
  fd_ = std::exchange(other.fd_, -1);
  name_ = std::move(other.name_);
  return *this;
}

MappedFile::~MappedFile() { Close(); }

void MappedFile::Close() {
  if (data_ != nullptr) {
    RemoveMapping(data_);
    ::munmap(const_cast<std::byte*>(data_), size_);
  }
  if (fd_ >= 0) ::close(fd_);
  data_ = nullptr;
  fd_ = -1;
}

void MappedFile::DropPages(size_t begin, size_t end) const {
  if (data_ == nullptr) return;
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t first = (begin + page - 1) / page * page;
  const size_t last = end / page * page;
  if (last <= first) return;
  ::madvise(const_cast<std::byte*>(data_) + first, last - first, MADV_DONTNEED);
  ::posix_fadvise(fd_, static_cast<off_t>(first), static_cast<off_t>(last - first),
                  POSIX_FADV_DONTNEED);
}

}  // namespace quantd
