// Bytes on the heap of the whole process, Eigen's and operator new's alike: now, the most there have been since the
// last restart, and the largest block since then. Defines malloc itself, so include it in exactly one source file of an
// executable, after all else. Only where the C library is glibc and no sanitizer has taken malloc already; elsewhere
// `measures_heap` is false and everything is 0.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdlib>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define RBAR_BENCH_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define RBAR_BENCH_SANITIZED 1
#endif
#if defined(__GLIBC__) && !defined(RBAR_BENCH_SANITIZED)
#define RBAR_BENCH_METERS_HEAP 1
#include <malloc.h>
#endif

namespace rbar::bench {

#if defined(RBAR_BENCH_METERS_HEAP)
inline constexpr bool measures_heap = true;
#else
inline constexpr bool measures_heap = false;
#endif

inline std::atomic<long long> heap_bytes{0}, heap_peak{0}, heap_largest{0};

inline void restart_heap_peak() {
  heap_peak = heap_bytes.load();
  heap_largest = 0;
}

// Bytes that `body` needs at once beyond what lies on the heap before it.
template <class Body>
double heap_needed_by(Body&& body) {
  const long long before = heap_bytes.load();
  restart_heap_peak();
  body();
  return static_cast<double>(heap_peak.load() - before);
}

}  // namespace rbar::bench

#if defined(RBAR_BENCH_METERS_HEAP)
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
void __libc_free(void*);
}

namespace rbar::bench::detail {

inline void raise(std::atomic<long long>& highest, long long bytes) {
  long long before = highest.load();
  while (bytes > before && !highest.compare_exchange_weak(before, bytes)) {
  }
}
inline void* counted(void* pointer) {
  if (!pointer) return pointer;
  const long long size = static_cast<long long>(malloc_usable_size(pointer));
  raise(heap_peak, heap_bytes += size);
  raise(heap_largest, size);
  return pointer;
}
inline void uncount(void* pointer) {
  if (pointer) heap_bytes -= static_cast<long long>(malloc_usable_size(pointer));
}

}  // namespace rbar::bench::detail

extern "C" {
void* malloc(std::size_t size) { return rbar::bench::detail::counted(__libc_malloc(size)); }
void* calloc(std::size_t count, std::size_t size) { return rbar::bench::detail::counted(__libc_calloc(count, size)); }
void* realloc(void* old, std::size_t size) {
  rbar::bench::detail::uncount(old);
  return rbar::bench::detail::counted(__libc_realloc(old, size));
}
void* memalign(std::size_t alignment, std::size_t size) {
  return rbar::bench::detail::counted(__libc_memalign(alignment, size));
}
void* aligned_alloc(std::size_t alignment, std::size_t size) { return memalign(alignment, size); }
int posix_memalign(void** out, std::size_t alignment, std::size_t size) {
  *out = memalign(alignment, size);
  return *out ? 0 : 12;  // ENOMEM
}
void free(void* pointer) {
  rbar::bench::detail::uncount(pointer);
  __libc_free(pointer);
}
}
#endif
