// The product that all tiles of the attention engine are made of, on operands as they lie:
//
//   C[m, n] (+)= Σ_k A(m, k)·B[k, n]
//
// B and C are read and written in vectors along n, A is read by scalar broadcast, so A may lie by rows or by columns
// without packing. gemm's kernel wants both operands packed, which pays for large products only.
#pragma once

#include "rbar/simd/batch.hpp"

#include <type_traits>

namespace rbar::simd {

// How A lies in memory: A(m, k) = a[m·lda + k] or a[k·lda + m].
enum class Lies { by_rows, by_columns };

// What happens to a finished register block of C: it is written, unless a caller has something better to do with it.
struct WriteBlock {};

namespace detail {

// One register block of C, given to `finish(sum)` in the end. With Tail the one vector has only `tail` columns in
// memory. Two steps at a time halve the loop's own work and let the processor foresee where it ends.
template <bool Accumulate, bool Tail, int Rows, int Vectors, Lies A, class T, class Finish>
RBAR_INLINE void tile_block(Index depth, const T* a, Index lda, const T* b, Index ldb, T* c, Index ldc,
                            [[maybe_unused]] Index tail, const Finish& finish) {
  static_assert(!Tail || Vectors == 1);
  const auto load_columns = [&](const T* from) {
    if constexpr (Tail)
      return load_partial(from, tail);
    else
      return load(from);
  };
  Batch<T> sum[Rows][Vectors];
  RBAR_UNROLL
  for (int r = 0; r < Rows; ++r) {
    RBAR_UNROLL
    for (int v = 0; v < Vectors; ++v) sum[r][v] = Accumulate ? load_columns(c + r * ldc + v * lanes<T>) : zero<T>();
  }
  for (Index k = 0; k < depth; k += 2)
    for (int step = 0; step < 2; ++step) {
      if (step == 1 && k + 1 == depth) break;
      Batch<T> right[Vectors];
      RBAR_UNROLL
      for (int v = 0; v < Vectors; ++v) {
        right[v] = load_columns(b + v * lanes<T>);
        hold(right[v]);
      }
      RBAR_UNROLL
      for (int r = 0; r < Rows; ++r) {
        const auto left = broadcast(A == Lies::by_rows ? a[r * lda] : a[r]);
        RBAR_UNROLL
        for (int v = 0; v < Vectors; ++v) sum[r][v] = multiply_add(left, right[v], sum[r][v]);
      }
      a += A == Lies::by_rows ? 1 : lda;
      b += ldb;
    }
  if constexpr (!std::is_same_v<Finish, WriteBlock>) {
    finish(sum);
  } else {
    RBAR_UNROLL
    for (int r = 0; r < Rows; ++r) {
      RBAR_UNROLL
      for (int v = 0; v < Vectors; ++v) {
        if constexpr (Tail)
          store_partial(c + r * ldc, sum[r][v], tail);
        else
          store(c + r * ldc + v * lanes<T>, sum[r][v]);
      }
    }
  }
}

// body(rows, first), rows a constant, over all m rows: blocks of Rows, then single ones. Of sixes as many give way to
// fours as leave the fewest rows alone; tiles have multiples of 16 rows, as a rule.
template <int Rows, class Body>
RBAR_INLINE void visit_row_blocks(Index m, const Body& body) {
  Index row = 0;
  if constexpr (Rows == 6) {
    const Index rest = m % 6, fours = rest >= 4 ? 1 : rest >= 2 && m >= 8 ? 2 : 0;
    for (; row < (m - 4 * fours) / 6 * 6; row += 6) body(std::integral_constant<int, 6>{}, row);
    for (Index four = 0; four < fours; ++four, row += 4) body(std::integral_constant<int, 4>{}, row);
  } else {
    for (; row + Rows <= m; row += Rows) body(std::integral_constant<int, Rows>{}, row);
  }
  for (; row < m; ++row) body(std::integral_constant<int, 1>{}, row);
}

template <bool Accumulate, bool Tail, int Rows, int Vectors, Lies A, class T>
RBAR_NOINLINE void tile_columns(Index m, Index depth, const T* a, Index lda, const T* b, Index ldb, T* c, Index ldc,
                                Index tail = 0) {
  const Index a_row = A == Lies::by_rows ? lda : 1;
  visit_row_blocks<Rows>(m, [&](auto rows, Index row) RBAR_INLINE_LAMBDA {
    tile_block<Accumulate, Tail, rows(), Vectors, A>(depth, a + row * a_row, lda, b, ldb, c + row * ldc, ldc, tail,
                                                     WriteBlock{});
  });
}

}  // namespace detail

// Widest register block: 4 rows × 4 vectors of 32 registers, 6 × 2 of 16, which two multiply-adds a cycle with a
// latency of 4 need more than 8 sums for; narrower ones are 8 rows high.
inline constexpr int tile_vectors = register_count == 32 ? 4 : 2;
inline constexpr int tile_rows = register_count == 32 ? 4 : 6;

template <bool Accumulate, Lies A, class T>
void tile_product(Index m, Index n, Index depth, const T* a, Index lda, const T* b, Index ldb, T* c, Index ldc) {
  constexpr Index width = tile_vectors * lanes<T>;
  for (; n >= width; n -= width, b += width, c += width)
    detail::tile_columns<Accumulate, false, tile_rows, tile_vectors, A>(m, depth, a, lda, b, ldb, c, ldc);
  if constexpr (tile_vectors == 4)
    if (n >= 2 * lanes<T>) {
      detail::tile_columns<Accumulate, false, 8, 2, A>(m, depth, a, lda, b, ldb, c, ldc);
      n -= 2 * lanes<T>, b += 2 * lanes<T>, c += 2 * lanes<T>;
    }
  if (n >= lanes<T>) {
    detail::tile_columns<Accumulate, false, 8, 1, A>(m, depth, a, lda, b, ldb, c, ldc);
    n -= lanes<T>, b += lanes<T>, c += lanes<T>;
  }
  if (n > 0) detail::tile_columns<Accumulate, true, 4, 1, A>(m, depth, a, lda, b, ldb, c, ldc, n);
}

// The same product, without C: `finish(row, column, sum)` takes every block of up to tile_rows × tile_vectors registers
// while they are still that. n is a multiple of such a block's columns.
template <Lies A, class T, class Finish>
RBAR_NOINLINE void tile_product_into(Index m, Index n, Index depth, const T* a, Index lda, const T* b, Index ldb,
                                     const Finish& finish) {
  const Index a_row = A == Lies::by_rows ? lda : 1;
  for (Index column = 0; column < n; column += tile_vectors * lanes<T>)
    detail::visit_row_blocks<tile_rows>(m, [&](auto rows, Index row) RBAR_INLINE_LAMBDA {
      detail::tile_block<false, false, rows(), tile_vectors, A, T>(
          depth, a + row * a_row, lda, b + column, ldb, nullptr, 0, 0, [&](auto& sum) { finish(row, column, sum); });
    });
}

}  // namespace rbar::simd
