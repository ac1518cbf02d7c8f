// Memory that a thread keeps from call to call, so that the second call of the same size allocates nothing, and calls
// of ever other sizes (the tokens that a router chose, a stream that grows) soon nothing either.
#pragma once

#include "rbar/simd/batch.hpp"

#include <algorithm>
#include <memory>
#include <new>

namespace rbar::simd {

// At least `size` elements, aligned to 64 bytes, contents unspecified. One block per thread, T and Purpose (any
// type): callers that may be inside one another name different purposes. Grows by half at least, from 64 KiB.
template <class T, class Purpose>
T* thread_scratch(Index size) {
  struct Free {
    void operator()(T* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
  };
  static thread_local std::unique_ptr<T, Free> memory;
  static thread_local Index capacity = 0;
  if (size > capacity) {
    constexpr Index least = (Index{64} << 10) / static_cast<Index>(sizeof(T));
    const Index grown = std::max({size, capacity + capacity / 2, least});
    memory.reset();
    capacity = 0;  // holds if the allocation throws
    memory.reset(static_cast<T*>(::operator new[](sizeof(T) * static_cast<std::size_t>(grown), std::align_val_t{64})));
    capacity = grown;
  }
  return memory.get();
}

}  // namespace rbar::simd
