// The two inner loops of the matrix product: a register block of C over packed panels, and dot
// products of rows for products with few columns, which are bound by memory.
#pragma once

#include "rbar/simd/batch.hpp"
#include "rbar/simd/gemm_pack.hpp"

#include <algorithm>
#include <utility>

namespace rbar::simd {

// Register block of C: 8 × 3 vectors of 32 registers, 4 × 3 of 16, leaving 3 for B and 1 or more for A.
inline constexpr Index gemm_rows = register_count / 4;
inline constexpr Index gemm_vectors = 3;
template <class T>
inline constexpr Index gemm_columns = gemm_vectors* lanes<T>;

namespace detail {

// A panel of op(A), whose element (r, p) is data[r·row + p·step]: packed, or where it lies.
template <class T>
struct PanelOfA {
  const T* data;
  Index row, step;
  bool fetches_next = false;  // ask for the panel that follows, gemm_rows rows behind: it comes from afar
};

// What a register block does beside its multiply-adds: nothing, pack B, or ask for the next panel of A.
enum class Beside { nothing, packs_b, fetches_a };

// What a register block computes; simd/bf16_product.hpp has another.
struct FusedProduct {
  template <class T>
  RBAR_INLINE static Batch<T> multiply_add(const Batch<T>& a, const Batch<T>& b, const Batch<T>& sum) {
    return simd::multiply_add(a, b, sum);
  }
};

// The numbers of the sums in a register block: sum i is vector i % Vectors of row i / Vectors.
template <Index Rows, Index Vectors>
using BlockSums = std::make_integer_sequence<Index, Rows * Vectors>;

// C[rows, columns] (+)= Σ_p a(r, p) · b[p·b_step + j], columns in ((Vectors-1)·lanes, Vectors·lanes]. Sums are named by
// constants, not in loops: GCC 12 decides what lives in registers before it unrolls these, and what loops have touched
// it keeps in memory as well, at 48 stores for every block.
// With packs_b, b lies in memory, with rows far apart, and is packed to `copy` by the way. With fetches_a, the inner
// dimension of A is contiguous; its rows are so many streams that the hardware does not see the next ones coming.
template <class Product, Index Vectors, Beside Work, class T, Index... i>
RBAR_NOINLINE void multiply_block(std::integer_sequence<Index, i...>, Index depth, const PanelOfA<T>& panel,
                                  const T* RBAR_RESTRICT b, Index b_step, T* RBAR_RESTRICT c, Index ldc, Index columns,
                                  bool accumulate, [[maybe_unused]] T* RBAR_RESTRICT copy = nullptr) {
  const T* RBAR_RESTRICT a = panel.data;
  const Index a_row = panel.row, a_step = panel.step;
  const auto at = [=](Index number) { return c + number / Vectors * ldc + number % Vectors * lanes<T>; };
  Batch<T> sum[sizeof...(i)];
  ((sum[i] = zero<T>()), ...);
  (RBAR_PREFETCH_WRITE(at(i)), ...);
  for (Index p = 0; p < depth; ++p) {
    Batch<T> right[Vectors];
    RBAR_UNROLL
    for (Index v = 0; v < Vectors; ++v) {
      right[v] = load(b + v * lanes<T>);
      hold(right[v]);
    }
    if constexpr (Work == Beside::packs_b) {
      constexpr Index width = Vectors * lanes<T>, ahead = 32;  // rows, which the hardware does not see coming
      prefetch_row(b + ahead * b_step, width);
      RBAR_UNROLL
      for (Index v = 0; v < Vectors; ++v) store(copy + p * width + v * lanes<T>, right[v]);
    }
    if constexpr (Work == Beside::fetches_a) {
      // A line of each row every `line` steps.
      constexpr Index line = 64 / static_cast<Index>(sizeof(T)), rows = sizeof...(i) / Vectors, pause = line / rows;
      static_assert(line % rows == 0);
      if (p % pause == 0) RBAR_PREFETCH_FAR(a + (rows + p % line / pause) * a_row);
    }
    ((sum[i] = Product::multiply_add(broadcast(a[i / Vectors * a_row]), right[i % Vectors], sum[i])), ...);
    a += a_step;
    b += b_step;
  }
  const Index last = columns - (Vectors - 1) * lanes<T>;
  if (last == lanes<T>) {
    if (accumulate) ((sum[i] = load(at(i)) + sum[i]), ...);
    (store(at(i), sum[i]), ...);
    return;
  }
  // Only the last register of a row may be cut short.
  const auto write = [=](Index number, const Batch<T>& value) {
    T* const to = at(number);
    if (number % Vectors < Vectors - 1)
      store(to, accumulate ? load(to) + value : value);
    else
      store_partial(to, accumulate ? load_partial(to, last) + value : value, last);
  };
  (write(i, sum[i]), ...);
}

// The rows at the lower edge are split into powers of two: 4 × 3 kernels instead of 8 × 3.
template <class Product, Index Rows, Index Vectors, class T>
void multiply_rows(Index depth, PanelOfA<T> a, const T* b, Index b_step, T* c, Index ldc, Index rows, Index columns,
                   bool accumulate) {
  if (rows >= Rows) {
    const auto multiply = [&]<Beside Work>() {
      multiply_block<Product, Vectors, Work>(BlockSums<Rows, Vectors>(), depth, a, b, b_step, c, ldc, columns,
                                             accumulate);
    };
    if constexpr (Rows == gemm_rows) {
      if (a.fetches_next)
        multiply.template operator()<Beside::fetches_a>();
      else
        multiply.template operator()<Beside::nothing>();
    } else {  // the last rows: nothing follows
      multiply.template operator()<Beside::nothing>();
    }
    a.data += Rows * a.row, c += Rows * ldc, rows -= Rows;
  }
  if constexpr (Rows > 1)
    if (rows > 0) multiply_rows<Product, Rows / 2, Vectors>(depth, a, b, b_step, c, ldc, rows, columns, accumulate);
}

// C[Rows, Columns] (+)= rows of A times rows of B, inner dimension contiguous in both.
template <Index Rows, Index Columns, class T>
void dot_block(Index depth, const T* RBAR_RESTRICT a, Index lda, const T* RBAR_RESTRICT b, Index ldb,
               T* RBAR_RESTRICT c, Index ldc, bool accumulate) {
  Batch<T> sum[Rows][Columns];
  RBAR_UNROLL
  for (Index r = 0; r < Rows; ++r) {
    RBAR_UNROLL
    for (Index j = 0; j < Columns; ++j) sum[r][j] = zero<T>();
  }
  Index p = 0;
  for (; p + lanes<T> <= depth; p += lanes<T>) {
    Batch<T> left[Rows];
    RBAR_UNROLL
    for (Index r = 0; r < Rows; ++r) left[r] = load(a + r * lda + p);
    RBAR_UNROLL
    for (Index j = 0; j < Columns; ++j) {
      const auto right = load(b + j * ldb + p);
      RBAR_UNROLL
      for (Index r = 0; r < Rows; ++r) sum[r][j] = multiply_add(left[r], right, sum[r][j]);
    }
  }
  if (p < depth) {
    RBAR_UNROLL
    for (Index j = 0; j < Columns; ++j) {
      const auto right = load_partial(b + j * ldb + p, depth - p);
      RBAR_UNROLL
      for (Index r = 0; r < Rows; ++r)
        sum[r][j] = multiply_add(load_partial(a + r * lda + p, depth - p), right, sum[r][j]);
    }
  }
  RBAR_UNROLL
  for (Index r = 0; r < Rows; ++r) {
    RBAR_UNROLL
    for (Index j = 0; j < Columns; ++j) {
      const T value = reduce_add(sum[r][j]);
      c[r * ldc + j] = accumulate ? c[r * ldc + j] + value : value;
    }
  }
}

template <Index Rows, class T>
void dot_rows(Index depth, const T* a, Index lda, const T* b, Index ldb, T* c, Index ldc, Index rows, Index columns,
              bool accumulate) {
  for (; rows >= Rows; rows -= Rows, a += Rows * lda, c += Rows * ldc) {
    Index j = 0;
    for (; j + 4 <= columns; j += 4) dot_block<Rows, 4>(depth, a, lda, b + j * ldb, ldb, c + j, ldc, accumulate);
    for (; j < columns; ++j) dot_block<Rows, 1>(depth, a, lda, b + j * ldb, ldb, c + j, ldc, accumulate);
  }
  if constexpr (Rows > 1)
    if (rows > 0) dot_rows<Rows / 2>(depth, a, lda, b, ldb, c, ldc, rows, columns, accumulate);
}

}  // namespace detail

// One panel of A (up to gemm_rows rows) times one of B (up to gemm_columns columns; row p of it at b + p·b_step):
// C[rows, columns] (+)= A·B.
template <class Product = detail::FusedProduct, class T>
void multiply_panels(Index depth, const detail::PanelOfA<T>& a, const T* b, Index b_step, T* c, Index ldc, Index rows,
                     Index columns, bool accumulate) {
  static_assert(gemm_vectors == 3);
  if (columns > 2 * lanes<T>)
    detail::multiply_rows<Product, gemm_rows, 3>(depth, a, b, b_step, c, ldc, rows, columns, accumulate);
  else if (columns > lanes<T>)
    detail::multiply_rows<Product, gemm_rows, 2>(depth, a, b, b_step, c, ldc, rows, columns, accumulate);
  else
    detail::multiply_rows<Product, gemm_rows, 1>(depth, a, b, b_step, c, ldc, rows, columns, accumulate);
}

// Rows of C begin as `row` [columns], where a product is added to them next.
template <class T>
void begin_rows(const T* row, T* c, Index ldc, Index rows, Index columns) {
  for (Index i = 0; i < rows; ++i) std::copy_n(row, columns, c + i * ldc);
}

// C[j·ldc + r] (+)= block[r·gemm_columns + j] for up to a register of rows r.
template <class T>
void write_transposed(const T* RBAR_RESTRICT block, T* RBAR_RESTRICT c, Index ldc, Index rows, Index columns,
                      bool accumulate) {
  constexpr Index side = detail::block_lanes<T>;
  for (Index j = 0; j < columns; j += side) {
    Batch<T> square[side];
    RBAR_UNROLL
    for (Index t = 0; t < side; ++t)
      square[t] = detail::load_blocks<T>([&](Index i) { return block + (t + i * side) * gemm_columns<T> + j; });
    detail::transpose_blocks(square);
    for (Index t = 0; t < side && j + t < columns; ++t) {
      T* const to = c + (j + t) * ldc;
      if (rows == lanes<T>)
        store(to, accumulate ? load(to) + square[t] : square[t]);
      else
        store_partial(to, accumulate ? load_partial(to, rows) + square[t] : square[t], rows);
    }
  }
}

// Rows of C that are written at once: those of a panel of A, or four cache lines of each row of C transposed.
template <bool TransposedC>
inline constexpr Index gemm_block_height = TransposedC ? 64 : gemm_rows;

// Up to gemm_block_height × gemm_columns of C, of which (r, j) is c[r·ldc + j], or c[j·ldc + r] with TransposedC.
// multiply(r, to, stride, accumulate): the panel of A that begins with row r, times a panel of B.
template <bool TransposedC, class T, class Multiply>
RBAR_INLINE void write_block(Index rows, Index columns, T* c, Index ldc, bool accumulate, const Multiply& multiply) {
  if constexpr (TransposedC) {
    constexpr Index width = gemm_columns<T>;
    alignas(64) T block[gemm_block_height<true> * width];
    for (Index r = 0; r < rows; r += gemm_rows) {
      if (r % lanes<T> == 0)
        for (Index j = 0; j < columns; ++j) RBAR_PREFETCH_WRITE(c + r + j * ldc);
      multiply(r, block + r * width, width, false);
    }
    for (Index r = 0; r < rows; r += lanes<T>)
      write_transposed(block + r * width, c + r, ldc, std::min(lanes<T>, rows - r), columns, accumulate);
  } else {
    multiply(0, c, ldc, accumulate);
  }
}

// C[rows, columns] (+)= A·Bᵀ straight from memory, for so few columns that B stays in the first cache.
template <class T>
void multiply_few_columns(Index depth, const T* a, Index lda, const T* b, Index ldb, T* c, Index ldc, Index rows,
                          Index columns, bool accumulate) {
  detail::dot_rows<4>(depth, a, lda, b, ldb, c, ldc, rows, columns, accumulate);
}

}  // namespace rbar::simd
