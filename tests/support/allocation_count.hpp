// How many heap allocations something makes, and how large: Eigen's and operator new's alike. The counting itself is
// done by support/allocations.hpp, which exactly one source file of the executable must include.
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
inline std::atomic<std::size_t> allocated_bytes{0}, largest_allocation{0};

inline void count_allocation(std::size_t bytes) {
  ++allocation_count;
  allocated_bytes += bytes;
  std::size_t largest = largest_allocation.load();
  while (bytes > largest && !largest_allocation.compare_exchange_weak(largest, bytes)) {
  }
}

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

// Bytes asked for while `body` runs, what is freed again included, and the largest request.
struct AllocatedBytes {
  std::size_t total = 0, largest = 0;
};
template <class Body>
AllocatedBytes bytes_allocated_in(Body&& body) {
  const std::size_t before = allocated_bytes.load();
  largest_allocation = 0;
  body();
  return {allocated_bytes.load() - before, largest_allocation.load()};
}

}  // namespace test
