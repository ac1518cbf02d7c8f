// The blocked matrix product after Goto and van de Geijn, "Anatomy of high-performance matrix
// multiplication", ACM TOMS 34 (2008), and Van Zee and van de Geijn, "BLIS", ACM TOMS 41 (2015): slices of
// B are packed once for all threads, and chunks of rows of C pack their part of A on their own stack, so
// that everything packed stays in L2. While one slice is multiplied the next is packed.
// An element of C is summed front to back within each slice of the inner dimension, slice after slice, and k alone
// says where slices end: the same bits for any number of threads, and for a row of C among any number of rows.
#pragma once

#include "rbar/core/parallel.hpp"
#include "rbar/simd/gemm_blocking.hpp"
#include "rbar/simd/gemm_few_rows.hpp"
#include "rbar/simd/gemm_kernel.hpp"
#include "rbar/simd/gemm_pack.hpp"
#include "rbar/simd/scratch.hpp"

#include <algorithm>

namespace rbar::simd {

namespace detail {

// Slices of B, packed: at most 2 × 512 KiB, kept by the calling thread.
struct PackedSlices {};

// How one problem is cut. A slice of B is depth × columns; a chunk of C is rows × columns.
template <class T>
struct GemmBlocking {
  static constexpr Index max_depth = gemm_max_depth<T>;
  static constexpr Index max_columns = divide_up(512, gemm_columns<T>) * gemm_columns<T>;
  static constexpr Index max_rows = 128;
  static constexpr Index min_work = Index{1} << 19;  // multiply-adds that pay for a hand-over to another thread

  Index depth, columns, rows;

  GemmBlocking(Index m, Index n, Index k) {
    depth = gemm_depth<T>(k);
    columns = even_part(n, max_columns, gemm_columns<T>);
    rows = even_part(m, max_rows, gemm_rows);
    while (rows > 2 * gemm_rows && divide_up(m, rows) < 16 && rows * columns * depth >= 2 * min_work)
      rows = even_part(rows, divide_up(rows, 2), gemm_rows);
  }
};

}  // namespace detail

// C[m,n] (+)= op(A)·op(B); A is stored [m,k], or [k,m] if transpose_a; B [k,n], or [n,k] if transpose_b.
template <class T>
void blocked_gemm(bool transpose_a, bool transpose_b, Index m, Index n, Index k, const T* a, Index lda, const T* b,
                  Index ldb, T* c, Index ldc, bool accumulate) {
  using namespace detail;
  if (!transpose_a && transpose_b && n <= 4) {
    // Bound by reading A once, in dot products that do not know of other rows: no packing.
    const Index chunk_rows = std::max<Index>(8, GemmBlocking<T>::min_work / 2 / (n * k));
    parallel_for(m, chunk_rows, [&](Index row, Index end) {
      multiply_few_columns(k, a + row * lda, lda, b, ldb, c + row * ldc, ldc, end - row, n, accumulate);
    });
    return;
  }
  if (m <= gemm_few_rows) {
    few_rows_gemm(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, c, ldc, accumulate);
    return;
  }

  using Blocking = GemmBlocking<T>;
  constexpr Index width_a = gemm_rows, width_b = gemm_columns<T>;
  const Blocking block(m, n, k);
  const Index slice_size = block.depth * block.columns, depth_slices = divide_up(k, block.depth);
  const Index slices = divide_up(n, block.columns) * depth_slices;
  T* const packed = thread_scratch<T, PackedSlices>(std::min<Index>(slices, 2) * slice_size);

  struct Slice {
    Index column, columns, inner, depth;
  };
  const auto slice_at = [&](Index number) {
    const Index column = number / depth_slices * block.columns, inner = number % depth_slices * block.depth;
    return Slice{column, std::min(block.columns, n - column), inner, std::min(block.depth, k - inner)};
  };
  const auto pack_b = [&](Index number, Index panel) {
    const Slice slice = slice_at(number);
    const Index j = panel * width_b, column = slice.column + j;
    pack_panels<width_b>(transpose_b, b + (transpose_b ? column * ldb + slice.inner : slice.inner * ldb + column), ldb,
                         std::min(width_b, slice.columns - j), slice.depth,
                         packed + number % 2 * slice_size + j * slice.depth);
  };
  const auto multiply = [&](Index number, Index row) {
    const Slice slice = slice_at(number);
    const Index rows = std::min(block.rows, m - row);
    alignas(64) T packed_a[Blocking::max_rows * Blocking::max_depth];
    pack_panels<width_a>(!transpose_a, a + (transpose_a ? slice.inner * lda + row : row * lda + slice.inner), lda, rows,
                         slice.depth, packed_a);
    const T* const packed_b = packed + number % 2 * slice_size;
    for (Index i = 0; i < rows; i += width_a)
      for (Index j = 0; j < slice.columns; j += width_b)
        multiply_panels(slice.depth, packed_a + i * slice.depth, packed_b + j * slice.depth, width_b,
                        c + (row + i) * ldc + slice.column + j, ldc, std::min(width_a, rows - i),
                        std::min(width_b, slice.columns - j), accumulate || slice.inner > 0);
  };

  // Step s multiplies slice s-1 and packs slice s.
  for (Index step = 0; step <= slices; ++step) {
    const Index panels = step < slices ? divide_up(slice_at(step).columns, width_b) : 0;
    const Index chunks = step > 0 ? divide_up(m, block.rows) : 0;
    const Index work = (chunks > 0 ? m : 16) * slice_size;
    parallel_for(panels + chunks, work < Blocking::min_work ? panels + chunks : 1, [&](Index begin, Index end) {
      for (Index task = begin; task < end; ++task)
        task < panels ? pack_b(step, task) : multiply(step - 1, (task - panels) * block.rows);
    });
  }
}

}  // namespace rbar::simd
