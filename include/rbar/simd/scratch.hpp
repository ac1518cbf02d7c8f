// Memory that a thread keeps from call to call, so that the second call of the same size allocates nothing.
#pragma once

#include "rbar/simd/batch.hpp"

#include <memory>
#include <new>

namespace rbar::simd {

// At least `size` elements, aligned to 64 bytes, contents unspecified. One block per thread, T and Purpose (any
// type): callers that may be inside one another name different purposes. Grows to the largest size asked for.
template <class T, class Purpose>
T* thread_scratch(Index size) {
  struct Free {
    void operator()(T* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
  };
  static thread_local std::unique_ptr<T, Free> memory;
  static thread_local Index capacity = 0;
  if (size > capacity) {
    memory.reset();
    capacity = 0;  // holds if the allocation throws
    memory.reset(static_cast<T*>(::operator new[](sizeof(T) * static_cast<std::size_t>(size), std::align_val_t{64})));
    capacity = size;
  }
  return memory.get();
}

}  // namespace rbar::simd
