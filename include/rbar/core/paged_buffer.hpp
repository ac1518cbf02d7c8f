// Memory for what is read whole and often, such as weights.
#pragma once

#include "rbar/config.hpp"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace rbar {

// `size` elements whose contents are unspecified. Where the system has pages of 2 MiB for those who ask (Linux), large
// buffers lie in them: a pass over small pages waits for the page table at each 4 KiB.
template <class T>
class PagedBuffer {
 public:
  static_assert(std::is_trivially_copyable_v<T>);

  PagedBuffer() = default;
  explicit PagedBuffer(std::size_t size) : size_(size) {
    if (size == 0) return;
    const std::size_t bytes = size * sizeof(T);
    memory_ = Memory(static_cast<T*>(::operator new[](bytes, alignment(bytes))), Free{alignment(bytes)});
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    // Advice: where it is refused, the pages are small.
    if (const std::size_t whole = bytes / huge_page * huge_page; whole > 0)
      static_cast<void>(madvise(memory_.get(), whole, MADV_HUGEPAGE));
#endif
  }
  PagedBuffer(const PagedBuffer& other) : PagedBuffer(other.size_) { std::copy_n(other.data(), size_, data()); }
  PagedBuffer& operator=(const PagedBuffer& other) { return *this = PagedBuffer(other); }
  PagedBuffer(PagedBuffer&& other) noexcept : memory_(std::move(other.memory_)), size_(std::exchange(other.size_, 0)) {}
  PagedBuffer& operator=(PagedBuffer&& other) noexcept {
    memory_ = std::move(other.memory_);
    size_ = std::exchange(other.size_, 0);
    return *this;
  }
  ~PagedBuffer() = default;

  T* data() { return memory_.get(); }
  const T* data() const { return memory_.get(); }
  std::size_t size() const { return size_; }

 private:
  static constexpr std::size_t huge_page = std::size_t{2} << 20;
  static std::align_val_t alignment(std::size_t bytes) { return std::align_val_t{bytes < huge_page ? 64 : huge_page}; }
  struct Free {
    std::align_val_t alignment{64};
    void operator()(T* memory) const { ::operator delete[](memory, alignment); }
  };
  using Memory = std::unique_ptr<T[], Free>;

  Memory memory_;
  std::size_t size_ = 0;
};

}  // namespace rbar
