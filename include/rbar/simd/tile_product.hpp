// The product that all tiles of the attention engine are made of, on operands as they lie:
//
//   C[m, n] (+)= Σ_k A(m, k)·B[k, n],   A(m, k) = a[m·a_row + k·a_step]
//
// B and C are read and written in vectors along n, A is read by scalar broadcast, so A may be row-major (a_step = 1) or
// transposed (a_row = 1) without packing. gemm's kernel wants both operands packed, which pays for large products only.
#pragma once

#include "rbar/simd/batch.hpp"

namespace rbar::simd {

namespace detail {

// One register block of C. With Tail the one vector has only `tail` columns in memory.
template <bool Accumulate, bool Tail, int Rows, int Vectors, class T>
RBAR_INLINE void tile_block(Index depth, const T* a, Index a_row, Index a_step, const T* b, Index ldb, T* c, Index ldc,
                            [[maybe_unused]] Index tail) {
  static_assert(!Tail || Vectors == 1);
  const auto load_columns = [&](const T* from) {
    if constexpr (Tail)
      return load_partial(from, tail);
    else
      return load(from);
  };
  Batch<T> sum[Rows][Vectors];
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < Vectors; ++v) sum[r][v] = Accumulate ? load_columns(c + r * ldc + v * lanes<T>) : zero<T>();
  for (Index k = 0; k < depth; ++k, a += a_step, b += ldb) {
    Batch<T> right[Vectors];
    for (int v = 0; v < Vectors; ++v) {
      right[v] = load_columns(b + v * lanes<T>);
      hold(right[v]);
    }
    for (int r = 0; r < Rows; ++r) {
      const auto left = broadcast(a[r * a_row]);
      for (int v = 0; v < Vectors; ++v) sum[r][v] = multiply_add(left, right[v], sum[r][v]);
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < Vectors; ++v) {
      if constexpr (Tail)
        store_partial(c + r * ldc, sum[r][v], tail);
      else
        store(c + r * ldc + v * lanes<T>, sum[r][v]);
    }
}

template <bool Accumulate, bool Tail, int Rows, int Vectors, class T>
RBAR_NOINLINE void tile_columns(Index m, Index depth, const T* a, Index a_row, Index a_step, const T* b, Index ldb,
                                T* c, Index ldc, Index tail = 0) {
  for (; m >= Rows; m -= Rows, a += Rows * a_row, c += Rows * ldc)
    tile_block<Accumulate, Tail, Rows, Vectors>(depth, a, a_row, a_step, b, ldb, c, ldc, tail);
  for (; m > 0; --m, a += a_row, c += ldc)
    tile_block<Accumulate, Tail, 1, Vectors>(depth, a, a_row, a_step, b, ldb, c, ldc, tail);
}

}  // namespace detail

// Widest register block: 4 rows × 4 vectors of 32 registers, 4 × 2 of 16; narrower ones are 8 rows high.
inline constexpr int tile_vectors = register_count == 32 ? 4 : 2;

template <bool Accumulate, class T>
void tile_product(Index m, Index n, Index depth, const T* a, Index a_row, Index a_step, const T* b, Index ldb, T* c,
                  Index ldc) {
  constexpr Index width = tile_vectors * lanes<T>;
  for (; n >= width; n -= width, b += width, c += width)
    detail::tile_columns<Accumulate, false, 4, tile_vectors>(m, depth, a, a_row, a_step, b, ldb, c, ldc);
  if constexpr (tile_vectors == 4)
    if (n >= 2 * lanes<T>) {
      detail::tile_columns<Accumulate, false, 8, 2>(m, depth, a, a_row, a_step, b, ldb, c, ldc);
      n -= 2 * lanes<T>, b += 2 * lanes<T>, c += 2 * lanes<T>;
    }
  if (n >= lanes<T>) {
    detail::tile_columns<Accumulate, false, 8, 1>(m, depth, a, a_row, a_step, b, ldb, c, ldc);
    n -= lanes<T>, b += lanes<T>, c += lanes<T>;
  }
  if (n > 0) detail::tile_columns<Accumulate, true, 4, 1>(m, depth, a, a_row, a_step, b, ldb, c, ldc, n);
}

}  // namespace rbar::simd
