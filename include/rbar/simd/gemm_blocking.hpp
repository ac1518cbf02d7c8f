// How a matrix product is cut into pieces. The inner dimension is cut by its own length alone, so that an element of C
// is summed in the same order whatever the shape of the product around it.
#pragma once

#include "rbar/simd/batch.hpp"

namespace rbar::simd::detail {

constexpr Index divide_up(Index a, Index b) { return (a + b - 1) / b; }

// The parts of an even cut of `size` into the fewest parts of at most `most`, rounded up to `multiple`.
constexpr Index even_part(Index size, Index most, Index multiple) {
  return divide_up(divide_up(size, divide_up(size, most)), multiple) * multiple;
}

// A slice of the inner dimension. C is read and written once for each, so long ones are better; but where A has to be
// packed as well, its panels share the caches with B's.
template <class T>
constexpr Index gemm_max_depth(bool transpose_a) {
  return (transpose_a ? 1024 : 2048) / static_cast<Index>(sizeof(T));
}
template <class T>
constexpr Index gemm_depth(bool transpose_a, Index k) {
  return even_part(k, gemm_max_depth<T>(transpose_a), lanes<T>);
}

// Rows of C up to which y = x Wᵀ is computed transposed, as yᵀ = W xᵀ. Writing C transposed touches many pages, and
// that costs more than packing W when there are many rows to share it.
inline constexpr Index gemm_transposed_most = 256;

// Multiply-adds that pay for a hand-over to another thread.
inline constexpr Index gemm_min_work = Index{1} << 19;

}  // namespace rbar::simd::detail
