// Files as bytes: read through a memory map, written so that a reader sees the old file or the whole
// new one and nothing else.
#pragma once

#include "rbar/core/error.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#if __has_include(<sys/mman.h>)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#define RBAR_POSIX_FILES 1
#else
#include <fstream>
#define RBAR_POSIX_FILES 0
#endif

namespace rbar {

namespace detail {

inline std::string system_message(int code) { return std::generic_category().message(code); }

[[noreturn]] inline void throw_file_error(std::string_view operation, const std::filesystem::path& path,
                                          std::string_view expected, int code) {
  throw Error(operation, path.string(), expected, system_message(code));
}

// Text of strangers on its way into a message: short, and without bytes that a terminal would obey.
inline std::string printable(std::string_view text) {
  constexpr std::size_t limit = 200;
  std::string out;
  for (const char c : text.substr(0, limit)) out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  return text.size() > limit ? out + "..." : out;
}

#if RBAR_POSIX_FILES

class FileDescriptor {
 public:
  FileDescriptor(const std::filesystem::path& path, int flags, mode_t mode = 0) {
    do value_ = ::open(path.c_str(), flags | O_CLOEXEC, mode);
    while (value_ < 0 && errno == EINTR);
  }
  ~FileDescriptor() { close(); }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;

  explicit operator bool() const { return value_ >= 0; }
  int get() const { return value_; }
  bool close() { return value_ < 0 || ::close(std::exchange(value_, -1)) == 0; }

 private:
  int value_ = -1;
};

// 0, or the errno of the failure.
inline int write_all(int descriptor, std::span<const std::byte> bytes) {
  constexpr std::size_t most = std::size_t{1} << 30;  // Linux writes at most 2 GiB at a time
  while (!bytes.empty()) {
    const ssize_t count = ::write(descriptor, bytes.data(), std::min(bytes.size(), most));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return count < 0 ? errno : ENOSPC;
    bytes = bytes.subspan(static_cast<std::size_t>(count));
  }
  return 0;
}

#endif

}  // namespace detail

// The bytes of a file, mapped where the system can and read where it cannot. Like every memory map
// this trusts that nobody shortens the file meanwhile; files replaced by write_file_atomically are safe.
// Errors: a path that cannot be read, or is no regular file.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path) {
    constexpr std::string_view operation = "MappedFile", expected = "a readable file";
#if RBAR_POSIX_FILES
    const detail::FileDescriptor file(path, O_RDONLY | O_NONBLOCK);  // a pipe must not block us here
    struct stat status {};
    if (!file || ::fstat(file.get(), &status) != 0) detail::throw_file_error(operation, path, expected, errno);
    require(S_ISREG(status.st_mode), operation, path.string(), expected,
            S_ISDIR(status.st_mode) ? "a folder" : "a device or pipe");
    const auto size = static_cast<std::size_t>(status.st_size);
    if (size > 0) {
      void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
      if (address != MAP_FAILED) {
        mapping_ = {static_cast<const std::byte*>(address), size};
        return;
      }
    }
    for (;;) {  // no map: an empty file, or one of a file system (/proc) that only lets itself be read
      std::byte block[4096];
      const ssize_t count = ::read(file.get(), block, sizeof block);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) detail::throw_file_error(operation, path, expected, errno);
      if (count == 0) break;
      copy_.insert(copy_.end(), block, block + count);
    }
#else
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    require(file.good(), operation, path.string(), expected, "an error on opening");
    copy_.resize(static_cast<std::size_t>(file.tellg()));
    file.seekg(0).read(reinterpret_cast<char*>(copy_.data()), static_cast<std::streamsize>(copy_.size()));
    require(file.good(), operation, path.string(), expected, "an error on reading");
#endif
  }
  MappedFile(MappedFile&& other) noexcept
      : mapping_(std::exchange(other.mapping_, {})), copy_(std::exchange(other.copy_, {})) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(mapping_, other.mapping_);
    std::swap(copy_, other.copy_);
    return *this;
  }
  ~MappedFile() {
#if RBAR_POSIX_FILES
    if (!mapping_.empty()) ::munmap(const_cast<std::byte*>(mapping_.data()), mapping_.size());
#endif
  }

  std::span<const std::byte> bytes() const { return mapping_.empty() ? std::span<const std::byte>(copy_) : mapping_; }
  std::string_view text() const { return {reinterpret_cast<const char*>(bytes().data()), bytes().size()}; }

 private:
  std::span<const std::byte> mapping_;
  std::vector<std::byte> copy_;
};

// Writes the pieces one after the other into a temporary file beside `path`, flushes it to the disk
// and renames it onto `path`. On any failure (disk full, no permission) the old file stays as it was,
// the temporary one is removed, and an Error says path and reason.
inline void write_file_atomically(const std::filesystem::path& path,
                                  std::span<const std::span<const std::byte>> pieces) {
  constexpr std::string_view operation = "write_file_atomically";
  static std::atomic<unsigned> counter{0};
#if RBAR_POSIX_FILES
  const auto temporary_name = [&] {
    return std::filesystem::path(path.string() + ".tmp" + std::to_string(::getpid()) + "-" + std::to_string(counter++));
  };
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
  for (;;) {
    const std::filesystem::path temporary = temporary_name();
    detail::FileDescriptor file(temporary, O_WRONLY | O_CREAT | O_EXCL, 0666);
    if (!file && errno == EEXIST) continue;  // left behind by a process that died
    if (!file) detail::throw_file_error(operation, path, "a folder that can be written to", errno);
    int failure = 0;
    for (const auto& piece : pieces)
      if (failure == 0) failure = detail::write_all(file.get(), piece);
    if (failure == 0 && ::fsync(file.get()) != 0) failure = errno;
    if (!file.close() && failure == 0) failure = errno;
    if (failure == 0 && ::rename(temporary.c_str(), path.c_str()) != 0) failure = errno;
    if (failure != 0) {
      ::unlink(temporary.c_str());
      detail::throw_file_error(operation, path, "a complete write", failure);
    }
    break;
  }
  // The rename itself must survive a power cut too. Some file systems cannot flush folders: theirs
  // is the order of the journal, and nothing better is to be had.
  const detail::FileDescriptor entry(folder, O_RDONLY);
  if (entry) ::fsync(entry.get());
#else
  const std::filesystem::path temporary = path.string() + ".tmp" + std::to_string(counter++);
  std::error_code failure;
  {
    std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
    for (const auto& piece : pieces)
      file.write(reinterpret_cast<const char*>(piece.data()), static_cast<std::streamsize>(piece.size()));
    file.close();
    if (!file) failure = std::make_error_code(std::errc::io_error);
  }
  if (!failure) std::filesystem::rename(temporary, path, failure);
  if (failure) {
    std::error_code ignored;
    std::filesystem::remove(temporary, ignored);
    throw Error(operation, path.string(), "a complete write", failure.message());
  }
#endif
}

inline void write_file_atomically(const std::filesystem::path& path, std::string_view text) {
  const std::span<const std::byte> piece = std::as_bytes(std::span(text));
  write_file_atomically(path, std::span(&piece, 1));
}

}  // namespace rbar
