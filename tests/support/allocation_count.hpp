// How many heap allocations something makes: Eigen's and operator new's alike. The counting itself is done by
// support/allocations.hpp, which exactly one source file of the executable must include.
#pragma once

#include <atomic>
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
