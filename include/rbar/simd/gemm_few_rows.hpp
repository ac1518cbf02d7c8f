// Products with few rows of A (decoding: a token or a few against a weight matrix), bound by reading B: it is read
// once, where it lies, and not packed. Rows of Bᵀ are transposed between memory and the multiply-adds, in registers,
// so that a lane is a column of C and every element is summed in the order of the large products.
#pragma once

#include "rbar/core/parallel.hpp"
#include "rbar/simd/gemm_blocking.hpp"
#include "rbar/simd/gemm_kernel.hpp"
#include "rbar/simd/gemm_pack.hpp"
#include "rbar/simd/scratch.hpp"

#include <algorithm>
#include <utility>

namespace rbar::simd {

// At most this many rows: accumulators for one register of columns.
inline constexpr Index gemm_few_rows = 2 * gemm_rows;

namespace detail {

// Rows this far apart have their cache lines in one set of a first-level cache. It holds fewer than a register has
// lanes, so a line would be gone before its next 16 bytes are wanted.
template <class T>
constexpr bool rows_share_a_set(Index stride) {
  return stride * static_cast<Index>(sizeof(T)) % 4096 == 0;
}

// C[Rows, columns] (+)= A·Bᵀ for up to a register of columns. A(r, p) = a[r/gemm_rows·a_panel + p·a_step +
// r%gemm_rows]; column j of C comes from the row b + row(j) of B.
template <Index Rows, class T, class Row>
void multiply_transposed(Index depth, const T* a, Index a_step, Index a_panel, const T* b, const Row& row,
                         Index ahead_stride, T* c, Index ldc, Index rows, Index columns, bool accumulate) {
  constexpr Index side = block_lanes<T>;
  Batch<T> sum[Rows];
  RBAR_UNROLL
  for (Index r = 0; r < Rows; ++r) sum[r] = zero<T>();
  const auto multiply = [&](Index p, const Batch<T>& right) RBAR_INLINE_LAMBDA {
    RBAR_UNROLL
    for (Index r = 0; r < Rows; ++r)
      sum[r] = multiply_add(broadcast(a[r / gemm_rows * a_panel + p * a_step + r % gemm_rows]), right, sum[r]);
  };
  // The inner indices p, p + 1 ... p + side − 1; at(j) is where row j has them.
  const auto multiply_square = [&](Index p, const auto& at) RBAR_INLINE_LAMBDA {
    Batch<T> v[side];
    // Part of a line of the rows that come next: the hardware does not see so many streams coming.
    const T* const next = b + (lanes<T> + p % lanes<T>)*ahead_stride + p;
    RBAR_UNROLL
    for (Index t = 0; t < side; ++t) {
      RBAR_PREFETCH_FAR(next + t * ahead_stride);
      v[t] = load_blocks<T>([&](Index i) { return at(t + i * side); });
    }
    transpose_blocks(v);
    RBAR_UNROLL
    for (Index t = 0; t < side; ++t) multiply(p + t, v[t]);
  };
  Index p = 0;
  constexpr Index line = 64 / static_cast<Index>(sizeof(T));
  if (rows_share_a_set<T>(ahead_stride) && depth >= line) {
    // Lines are copied while those before them are multiplied, a few rows at each step.
    alignas(64) T copies[2][lanes<T> * line];
    const auto copy_line = [&](Index j, Index from, T* lines) {
      RBAR_UNROLL
      for (Index i = 0; i < line; i += lanes<T>) store(lines + j * line + i, load(b + row(j) + from + i));
    };
    T *current = copies[0], *following = copies[1];
    RBAR_UNROLL
    for (Index j = 0; j < lanes<T>; ++j) copy_line(j, 0, current);
    const Index last = (depth / line - 1) * line;
    for (; p <= last; p += line) {
      const Index from = std::min(p + line, last);
      for (Index q = 0; q < line; q += side) {
        constexpr Index rows_a_step = std::max<Index>(1, lanes<T> * side / line);
        RBAR_UNROLL
        for (Index i = 0; i < rows_a_step; ++i)
          // Of registers of two numbers, the first steps copy all there is.
          if (const Index j = q / side * rows_a_step + i; lanes<T> * side >= line || j < lanes<T>)
            copy_line(j, from, following);
        multiply_square(p + q, [&](Index j) { return current + j * line + q; });
      }
      std::swap(current, following);
    }
  }
  for (; p + side <= depth; p += side) multiply_square(p, [&](Index j) { return b + row(j) + p; });
  for (; p < depth; ++p) {
    alignas(64) T column[lanes<T>];
    RBAR_UNROLL
    for (Index j = 0; j < lanes<T>; ++j) column[j] = b[row(j) + p];
    multiply(p, load(column));
  }
  for (Index r = 0; r < Rows && r < rows; ++r) {
    T* const to = c + r * ldc;
    if (columns == lanes<T>)
      store(to, accumulate ? load(to) + sum[r] : sum[r]);
    else
      store_partial(to, accumulate ? load_partial(to, columns) + sum[r] : sum[r], columns);
  }
}

template <Index Rows, class T>
void multiply_transposed_columns(Index depth, const T* a, Index a_step, Index a_panel, const T* b, Index ldb, T* c,
                                 Index ldc, Index rows, Index columns, bool accumulate) {
  if (columns == lanes<T>)
    multiply_transposed<Rows>(
        depth, a, a_step, a_panel, b, [ldb](Index j) { return j * ldb; }, ldb, c, ldc, rows, columns, accumulate);
  else  // the last row stands in for missing ones
    multiply_transposed<Rows>(
        depth, a, a_step, a_panel, b, [=](Index j) { return std::min(j, columns - 1) * ldb; }, 0, c, ldc, rows, columns,
        accumulate);
}

template <Index Rows, class T>
void multiply_transposed_rows(Index depth, const T* a, Index a_step, Index a_panel, const T* b, Index ldb, T* c,
                              Index ldc, Index rows, Index columns, bool accumulate) {
  if constexpr (Rows > 1)
    if (rows <= Rows / 2)
      return multiply_transposed_rows<Rows / 2>(depth, a, a_step, a_panel, b, ldb, c, ldc, rows, columns, accumulate);
  multiply_transposed_columns<Rows>(depth, a, a_step, a_panel, b, ldb, c, ldc, rows, columns, accumulate);
}

// C[rows, columns] (+)= A·B for up to gemm_columns columns of B, which lie side by side.
template <class T>
void multiply_in_place(Index depth, const T* a, const T* b, Index ldb, T* c, Index ldc, Index rows, Index columns,
                       bool accumulate) {
  constexpr Index width = gemm_columns<T>;
  alignas(64) T packed[width * gemm_max_depth<T>(false)];
  if (columns < width) {  // the kernel reads whole registers
    pack_panels<width>(false, b, ldb, columns, depth, packed);
    b = packed, ldb = width;
  }
  for (Index i = 0; i < rows; i += gemm_rows)
    multiply_panels(depth, PanelOfA<T>{a + i * depth, 1, gemm_rows}, b, ldb, c + i * ldc, ldc,
                    std::min(gemm_rows, rows - i), columns, accumulate);
}

struct PackedRows {};

}  // namespace detail

// C[m,n] (+)= op(A)·op(B) for m <= gemm_few_rows; arguments as in blocked_gemm.
template <class T>
void few_rows_gemm(bool transpose_a, bool transpose_b, Index m, Index n, Index k, const T* a, Index lda, const T* b,
                   Index ldb, T* c, Index ldc, bool accumulate) {
  using namespace detail;
  const Index depth_step = gemm_depth<T>(transpose_a, k);
  // Panels of all of A, slice after slice; a single row needs none if it lies in order.
  const bool in_place = m == 1 && !transpose_a && transpose_b;
  const Index a_rows = in_place ? 1 : divide_up(m, gemm_rows) * gemm_rows, a_step = in_place ? 1 : gemm_rows;
  T* const packed = in_place ? nullptr : thread_scratch<T, PackedRows>(a_rows * k);
  if (!in_place)
    for (Index inner = 0; inner < k; inner += depth_step)
      pack_panels<gemm_rows>(!transpose_a, a + (transpose_a ? inner * lda : inner), lda, m,
                             std::min(depth_step, k - inner), packed + a_rows * inner);
  const T* const rows_of_a = in_place ? a : packed;

  constexpr Index work = Index{1} << 15;  // elements of B that pay for a hand-over to another thread
  const Index width = transpose_b ? lanes<T> : gemm_columns<T>;
  const Index chunk = divide_up(std::max<Index>(work / k, 1), width) * width;
  parallel_for(n, chunk, [&](Index begin, Index end) {
    for (Index j = begin; j < end; j += width) {
      const Index columns = std::min(width, end - j);
      for (Index inner = 0; inner < k; inner += depth_step) {
        const Index depth = std::min(depth_step, k - inner);
        const T* const left = rows_of_a + a_rows * inner;
        const bool add = accumulate || inner > 0;
        if (transpose_b)
          multiply_transposed_rows<gemm_few_rows>(depth, left, a_step, gemm_rows * depth, b + j * ldb + inner, ldb,
                                                  c + j, ldc, m, columns, add);
        else
          multiply_in_place(depth, left, b + inner * ldb + j, ldb, c + j, ldc, m, columns, add);
      }
    }
  });
}

}  // namespace rbar::simd
