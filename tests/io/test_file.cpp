// Reading by memory map, and writing that either happens whole or not at all.
#include "rbar/io/file.hpp"

#include "io/temporary_folder.hpp"
#include "support/catch.hpp"

#if RBAR_POSIX_FILES
#include <sys/resource.h>

#include <csignal>
#endif

#if RBAR_POSIX_FILES
TEST_CASE("a write that fails leaves the old file and nothing else", "[io]") {
  const test::TemporaryFolder folder;
  rbar::write_file_atomically(folder / "file", std::string_view("the old contents"));
  const std::string large(1 << 20, 'x');

  // A limit on file size fails in write(2) the way a full disk does.
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const rlimit tight{4096, before.rlim_max};
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &tight);
  std::string message;
  try {
    rbar::write_file_atomically(folder / "file", large);
  } catch (const rbar::Error& error) {
    message = error.what();
  }
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  CHECK_THAT(message, ContainsText((folder / "file").string()) && ContainsText("File too large"));
  CHECK(rbar::MappedFile(folder / "file").text() == "the old contents");
  CHECK(folder.count() == 1);

  std::filesystem::create_directory(folder / "folder");  // a rename that fails
  CHECK_THROWS_AS(rbar::write_file_atomically(folder / "folder", std::string_view("x")), rbar::Error);
  CHECK(folder.count() == 2);
  CHECK_THROWS_AS(rbar::write_file_atomically(folder / "no/such/file", std::string_view("x")), rbar::Error);

  rbar::write_file_atomically(folder / "file", large);
  CHECK(rbar::MappedFile(folder / "file").text() == large);
}
#endif

TEST_CASE("MappedFile reads what it can and says what it cannot", "[io]") {
  const test::TemporaryFolder folder;
  rbar::write_file_atomically(folder / "empty", std::string_view());
  CHECK(rbar::MappedFile(folder / "empty").bytes().empty());
  CHECK_THROWS_WITH(rbar::MappedFile(folder / "none"), ContainsText("No such file"));
  CHECK_THROWS_WITH(rbar::MappedFile(folder / ""), ContainsText("folder"));
  if (std::filesystem::exists("/proc/self/status"))  // cannot be mapped
    CHECK_THAT(std::string(rbar::MappedFile("/proc/self/status").text()), Catch::Matchers::StartsWith("Name:"));
  rbar::write_file_atomically(folder / "a", std::string_view("some text"));
  rbar::MappedFile file(folder / "a"), other(folder / "empty");
  other = std::move(file);
  CHECK(rbar::MappedFile(std::move(other)).text() == "some text");
}
