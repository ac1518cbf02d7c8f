// The blocked matrix product after Goto and van de Geijn, "Anatomy of high-performance matrix
// multiplication", ACM TOMS 34 (2008), and Van Zee and van de Geijn, "BLIS", ACM TOMS 41 (2015). One operand fills
// registers and is packed, slice after slice, once for all threads; of the other, single elements are broadcast, which
// needs no packing where its inner dimension is contiguous. For y = x Wᵀ with fewer rows of x than of W that is W: the
// product computed is yᵀ = W xᵀ, and the weights are read where they lie.
// An element of C is summed front to back within each slice of the inner dimension, slice after slice, and k alone
// says where slices end: the same bits for any number of threads, and for a row of C among any number of rows.
#pragma once

#include "rbar/core/parallel.hpp"
#include "rbar/simd/gemm_blocking.hpp"
#include "rbar/simd/gemm_copying.hpp"
#include "rbar/simd/gemm_few_rows.hpp"
#include "rbar/simd/gemm_kernel.hpp"
#include "rbar/simd/gemm_pack.hpp"
#include "rbar/simd/gemm_schedule.hpp"
#include "rbar/simd/scratch.hpp"

#include <algorithm>
#include <type_traits>

namespace rbar::simd {

namespace detail {

// Slices of B, packed: up to four of at most 800 KiB, kept by the calling thread.
struct PackedSlices {};

// How one problem is cut. A slice of B is depth × columns; a chunk of C is rows × (columns / parts).
template <class T>
struct GemmBlocking {
  static constexpr Index max_packed_depth = gemm_max_depth<T>(true);
  static constexpr Index max_rows = 128;

  Index depth, max_slice, columns, rows;
  Index parts = 1;  // what other threads packed comes from afar: with few rows to meet it, a thread takes part of it

  // A is packed again for every slice, so that there are to be few; where it lies ready, it has some of the cache.
  GemmBlocking(Index m, Index n, Index depth_, bool packs_a)
      : depth(depth_), max_slice((Index{packs_a ? 800 : 576} << 10) / static_cast<Index>(sizeof(T))) {
    constexpr Index width = gemm_columns<T>;
    columns = even_part(n, std::max(max_slice / depth / width, Index{1}) * width, width);
    rows = even_part(m, max_rows, gemm_rows);
    const Index threads = usable_threads();
    while (threads > 1 && 2 * parts * parts * m < n * threads && 2 * parts * m <= 128 * threads &&
           4 * parts * width <= columns)
      parts *= 2;
    while (rows > 2 * gemm_rows && divide_up(m, rows) * parts < tasks_for_threads() &&
           rows * columns * depth >= 2 * parts * gemm_min_work)
      rows = even_part(rows, divide_up(rows, 2), gemm_rows);
  }
};

// An operand of rows × k: element (i, p) at data[i·stride + p], or at data[p·stride + i] unless `inner_contiguous`.
template <class T>
struct GemmOperand {
  const T* data;
  Index stride;
  bool inner_contiguous;

  const T* at(Index i, Index p) const { return data + (inner_contiguous ? i * stride + p : p * stride + i); }
};

// C[m,n] (+)= A·Bᵀ of two operands; with TransposedC, C(i, j) is c[j·ldc + i]. A bias runs along what lies together in
// c, and is where C begins.
template <bool TransposedC, class T>
void sliced_gemm(Index m, Index n, Index k, Index depth, const GemmOperand<T>& a, const GemmOperand<T>& b, T* c,
                 Index ldc, bool accumulate, const T* bias) {
  using Blocking = GemmBlocking<T>;
  constexpr Index far_bytes = Index{1} << 20;  // what no second cache holds beside the other operand
  constexpr Index width_a = gemm_rows, width_b = gemm_columns<T>;
  const Blocking block(m, n, depth, !a.inner_contiguous);
  const Index slice_size = block.depth * block.columns, depth_slices = divide_up(k, block.depth);
  const Index slices = divide_up(n, block.columns) * depth_slices;
  // Slices of all of k are multiplied by a chunk of A together where they fit: it is read, and C written, in one visit.
  const Index together = depth_slices * slice_size <= block.max_slice && n <= block.columns ? depth_slices : 1;
  const Index panels = divide_up(std::min(block.columns, n), width_b), row_blocks = divide_up(m, block.rows);
  // Where a group has few panels, several threads pack one of them.
  const Index pieces = panels * together >= usable_threads() ? 1 : std::min<Index>(4, divide_up(block.depth, 64));
  const GemmSchedule schedule(slices / together, panels * together * pieces, row_blocks * block.parts, m, m * n * k);
  const Index in_memory = schedule.places() * together;
  T* const packed = thread_scratch<T, PackedSlices>(in_memory * slice_size);

  struct Slice {
    Index column, columns, inner, depth;
  };
  const auto slice_at = [&](Index number) {
    const Index column = number / depth_slices * block.columns, inner = number % depth_slices * block.depth;
    return Slice{column, std::min(block.columns, n - column), inner, std::min(block.depth, k - inner)};
  };
  const auto packed_slice = [&](Index number) { return packed + number % in_memory * slice_size; };
  const auto pack_b = [&](Index number, Index panel, Index piece) {
    const Slice slice = slice_at(number);
    const Index j = panel * width_b, step = divide_up(slice.depth, pieces * lanes<T>) * lanes<T>;
    const Index first = piece * step, depth_here = std::min(step, slice.depth - first);
    if (j >= slice.columns || depth_here <= 0) return;  // the last slice may be smaller
    pack_panels<width_b>(b.inner_contiguous, b.at(slice.column + j, slice.inner + first), b.stride,
                         std::min(width_b, slice.columns - j), depth_here,
                         packed_slice(number) + j * slice.depth + first * width_b);
  };
  // The panels of A at `first`, `panel_step` apart, times a part of a slice of B. Threads begin at different panels of
  // it: they would all ask the thread that packed it for the same lines.
  const auto multiply_chunk = [&](const Slice& slice, const T* packed_b, Index part, Index row, Index rows,
                                  const PanelOfA<T>& first, Index panel_step) {
    const Index all = divide_up(slice.columns, width_b), begin = all * part / block.parts;
    const Index here = all * (part + 1) / block.parts - begin;
    const bool begin_with_bias = bias != nullptr && slice.inner == 0;
    const bool add = accumulate || bias != nullptr || slice.inner > 0;
    constexpr Index height = gemm_block_height<TransposedC>;
    for (Index i = 0; i < rows; i += height)
      for (Index turn = 0; turn < here; ++turn) {
        const Index j = (begin + (row / block.rows + turn) % here) * width_b, column = slice.column + j;
        const Index columns = std::min(width_b, slice.columns - j), block_rows = std::min(height, rows - i);
        T* const to = TransposedC ? c + column * ldc + row + i : c + (row + i) * ldc + column;
        if (begin_with_bias && TransposedC)
          begin_rows(bias + row + i, to, ldc, columns, block_rows);
        else if (begin_with_bias)
          begin_rows(bias + column, to, ldc, block_rows, columns);
        write_block<TransposedC>(block_rows, columns, to, ldc, add, [&](Index r, T* at, Index stride, bool add_to) {
          const PanelOfA<T> panel{first.data + (i + r) / width_a * panel_step, first.row, first.step,
                                  first.fetches_next && turn == 0};
          multiply_panels(slice.depth, panel, packed_b + j * slice.depth, width_b, at, stride,
                          std::min(width_a, block_rows - r), columns, add_to);
        });
      }
  };
  // Short rows of a matrix from afar end before the hardware knows them, and two of them in a page confuse it.
  const bool fetches_a = m * a.stride * static_cast<Index>(sizeof(T)) > far_bytes && !rows_share_a_set<T>(a.stride);
  const auto multiply = [&](Index number, Index row, Index part) {
    const Slice slice = slice_at(number);
    const Index rows = std::min(block.rows, m - row);
    const T* const packed_b = packed_slice(number);
    const T* const source = a.at(row, slice.inner);
    if (a.inner_contiguous)
      return multiply_chunk(slice, packed_b, part, row, rows, {source, a.stride, 1, fetches_a}, width_a * a.stride);
    alignas(64) T packed_a[Blocking::max_rows * Blocking::max_packed_depth];
    pack_panels<width_a>(false, source, a.stride, rows, slice.depth, packed_a);
    multiply_chunk(slice, packed_b, part, row, rows, {packed_a, 1, width_a}, width_a * slice.depth);
  };

  schedule.run(
      [&](Index group, Index task) {
        const Index panel = task / pieces;
        pack_b(group * together + panel / panels, panel % panels, task % pieces);
      },
      [&](Index group, Index chunk) {
        for (Index number = group * together; number < (group + 1) * together; ++number)
          multiply(number, chunk % row_blocks * block.rows, chunk / row_blocks);
      });
}

}  // namespace detail

// C[m,n] (+)= op(A)·op(B), or with a bias [n] C = bias + op(A)·op(B); A is stored [m,k], or [k,m] if transpose_a; B
// [k,n], or [n,k] if transpose_b.
template <class T>
void blocked_gemm(bool transpose_a, bool transpose_b, Index m, Index n, Index k, const T* a, Index lda, const T* b,
                  Index ldb, T* c, Index ldc, bool accumulate, const std::type_identity_t<T>* bias = nullptr) {
  using namespace detail;
  const bool slices = m > gemm_few_rows && (transpose_a || (transpose_b ? n > 4 : m > gemm_copying_most));
  if (bias != nullptr && !slices) {
    begin_rows(bias, c, ldc, m, n);
    accumulate = true;
  }
  if (!transpose_a && transpose_b && n <= 4) {
    // Bound by reading A once, in dot products that do not know of other rows: no packing.
    const Index chunk_rows = std::max<Index>(8, gemm_min_work / 2 / (n * k));
    parallel_for(m, chunk_rows, [&](Index row, Index end) {
      multiply_few_columns(k, a + row * lda, lda, b, ldb, c + row * ldc, ldc, end - row, n, accumulate);
    });
    return;
  }
  if (m <= gemm_few_rows) return few_rows_gemm(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, c, ldc, accumulate);
  const Index depth = gemm_depth<T>(transpose_a, k);
  if (!transpose_a && !transpose_b && m <= gemm_copying_most)
    return copying_gemm(m, n, k, depth, a, lda, b, ldb, c, ldc, accumulate);
  const GemmOperand<T> left{a, lda, !transpose_a}, right{b, ldb, transpose_b};
  if (transpose_b && m < n && m <= gemm_transposed_most)
    sliced_gemm<true>(n, m, k, depth, right, left, c, ldc, accumulate, bias);
  else
    sliced_gemm<false>(m, n, k, depth, left, right, c, ldc, accumulate, bias);
}

#if defined(RBAR_COMPILED_KERNELS)
extern template void blocked_gemm(bool, bool, Index, Index, Index, const float*, Index, const float*, Index, float*,
                                  Index, bool, const float*);
extern template void blocked_gemm(bool, bool, Index, Index, Index, const double*, Index, const double*, Index, double*,
                                  Index, bool, const double*);
#endif

}  // namespace rbar::simd
