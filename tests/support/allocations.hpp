// Counts heap allocations of the whole process and their bytes (allocation_count.hpp). Defines malloc itself, so
// include it in exactly one source file of an executable. Only where the C library is glibc and no sanitizer has taken
// malloc already; elsewhere `counts_allocations` is false and the counts stay 0.
#pragma once

#include "support/allocation_count.hpp"

#include <cstddef>
#include <cstdlib>

#if defined(__GLIBC__) && !defined(RBAR_TEST_SANITIZED)
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);

void* malloc(std::size_t size) {
  test::count_allocation(size);
  return __libc_malloc(size);
}
void* calloc(std::size_t count, std::size_t size) {
  test::count_allocation(count * size);
  return __libc_calloc(count, size);
}
void* realloc(void* old, std::size_t size) {
  test::count_allocation(size);
  return __libc_realloc(old, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) {
  test::count_allocation(size);
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** out, std::size_t alignment, std::size_t size) {
  test::count_allocation(size);
  *out = __libc_memalign(alignment, size);
  return *out ? 0 : 12;  // ENOMEM
}
}
#endif
