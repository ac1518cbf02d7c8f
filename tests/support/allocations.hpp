// Counts heap allocations of the whole process, Eigen's and operator new's alike. Defines malloc itself, so
// include it in exactly one source file of an executable. Only where the C library is glibc and no sanitizer
// has taken malloc already; elsewhere `counts_allocations` is false and the count stays 0.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdlib>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define RBAR_TEST_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define RBAR_TEST_SANITIZED 1
#endif

namespace test {

inline std::atomic<long> allocation_count{0};

#if defined(__GLIBC__) && !defined(RBAR_TEST_SANITIZED)
inline constexpr bool counts_allocations = true;
#else
inline constexpr bool counts_allocations = false;
#endif

// Allocations made while `body` runs.
template <class Body>
long allocations_in(Body&& body) {
  const long before = allocation_count.load();
  body();
  return allocation_count.load() - before;
}

}  // namespace test

#if defined(__GLIBC__) && !defined(RBAR_TEST_SANITIZED)
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);

void* malloc(std::size_t size) {
  ++test::allocation_count;
  return __libc_malloc(size);
}
void* calloc(std::size_t count, std::size_t size) {
  ++test::allocation_count;
  return __libc_calloc(count, size);
}
void* realloc(void* old, std::size_t size) {
  ++test::allocation_count;
  return __libc_realloc(old, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) {
  ++test::allocation_count;
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** out, std::size_t alignment, std::size_t size) {
  ++test::allocation_count;
  *out = __libc_memalign(alignment, size);
  return *out ? 0 : 12;  // ENOMEM
}
}
#endif
