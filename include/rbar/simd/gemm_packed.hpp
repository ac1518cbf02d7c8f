// Products with a matrix that was packed once: C = A·Bᵀ whose B has its columns in panels, as the inner loop reads
// them. Nothing is packed or transposed at the time of the product, and a pass over B is one stream.
// The bits are those of blocked_gemm: an element of C is summed in the same slices of the inner dimension.
#pragma once

#include "rbar/core/parallel.hpp"
#include "rbar/simd/gemm_blocking.hpp"
#include "rbar/simd/gemm_few_rows.hpp"
#include "rbar/simd/gemm_kernel.hpp"
#include "rbar/simd/gemm_pack.hpp"

#include <algorithm>
#include <type_traits>

namespace rbar::simd {

// Up to this many columns, blocked_gemm computes dot products, in another order: nothing to pack.
inline constexpr Index gemm_few_columns = 4;

// Columns that a panel of `columns` has memory for: whole registers.
template <class T>
constexpr Index panel_width(Index columns) {
  return detail::divide_up(columns, lanes<T>) * lanes<T>;
}
// Elements that B [n, k] takes: panels of gemm_columns, of which the last may be narrower, each over all of k.
template <class T>
constexpr Index packed_size(Index n, Index k) {
  return panel_width<T>(n) * k;
}

// B [n, k], row j at b + j·ldb, to `packed` [packed_size]: panel[p·panel_width + j], zero beyond n.
template <class T>
void pack_matrix(Index n, Index k, const T* b, Index ldb, T* packed) {
  constexpr Index width = gemm_columns<T>;
  parallel_for(detail::divide_up(n, width), 1, [&](Index panel, Index end) {
    for (; panel < end; ++panel) {
      const Index j = panel * width, columns = std::min(width, n - j);
      const T* const from = b + j * ldb;
      T* const to = packed + j * k;
      if (columns < width) std::fill_n(to, panel_width<T>(columns) * k, T(0));
      if (columns <= lanes<T>)
        pack_panels<lanes<T>>(true, from, ldb, columns, k, to);
      else if (columns <= 2 * lanes<T>)
        pack_panels<2 * lanes<T>>(true, from, ldb, columns, k, to);
      else
        pack_panels<width>(true, from, ldb, columns, k, to);
    }
  });
}

namespace detail {

// C[Rows, columns] (+)= Rows rows of A, `lda` apart, times a panel of B that comes from memory. With all rows the
// loop is too slow for the hardware to run ahead of it, and it asks for what comes some pages later.
template <Index Rows, Index Vectors, class T>
RBAR_NOINLINE void multiply_streamed(Index depth, const T* RBAR_RESTRICT a, Index lda, const T* RBAR_RESTRICT b,
                                     T* RBAR_RESTRICT c, Index ldc, Index columns, bool accumulate) {
  constexpr Index width = Vectors * lanes<T>, ahead = 64 * width;
  Batch<T> sum[Rows][Vectors];
  for (auto& row : sum)
    for (auto& part : row) part = zero<T>();
  for (Index p = 0; p < depth; ++p, b += width) {
    Batch<T> right[Vectors];
    RBAR_UNROLL
    for (Index v = 0; v < Vectors; ++v) {
      right[v] = load(b + v * lanes<T>);
      hold(right[v]);
    }
    if constexpr (Rows == gemm_rows) prefetch_row(b + ahead, width);
    RBAR_UNROLL
    for (Index r = 0; r < Rows; ++r) {
      const Batch<T> left = broadcast(a[r * lda + p]);
      RBAR_UNROLL
      for (Index v = 0; v < Vectors; ++v) sum[r][v] = multiply_add(left, right[v], sum[r][v]);
    }
  }
  RBAR_UNROLL
  for (Index r = 0; r < Rows; ++r) {
    RBAR_UNROLL
    for (Index v = 0; v < Vectors; ++v) {
      T* const to = c + r * ldc + v * lanes<T>;
      if (const Index count = columns - v * lanes<T>; count >= lanes<T>)
        store(to, accumulate ? load(to) + sum[r][v] : sum[r][v]);
      else
        store_partial(to, accumulate ? load_partial(to, count) + sum[r][v] : sum[r][v], count);
    }
  }
}
template <Index Rows, Index Vectors, class T>
void multiply_streamed_rows(Index depth, const T* a, Index lda, const T* b, T* c, Index ldc, Index rows, Index columns,
                            bool accumulate) {
  for (; rows >= Rows; rows -= Rows, a += Rows * lda, c += Rows * ldc)
    multiply_streamed<Rows, Vectors>(depth, a, lda, b, c, ldc, columns, accumulate);
  if constexpr (Rows > 1)
    if (rows > 0) multiply_streamed_rows<Rows / 2, Vectors>(depth, a, lda, b, c, ldc, rows, columns, accumulate);
}

// body<Vectors>() for a panel of so many registers.
template <class T, class Body>
RBAR_INLINE void with_vectors(Index columns, Body&& body) {
  static_assert(gemm_vectors == 3);
  if (columns <= lanes<T>)
    body.template operator()<1>();
  else if (columns <= 2 * lanes<T>)
    body.template operator()<2>();
  else
    body.template operator()<3>();
}

// A block of C, of one panel of B: rows × columns, over `depth` inner indices from `inner`. `streamed`: all rows of A,
// few, and the panel comes from memory. Otherwise the panel is the `slot`-th of those that a thread multiplies next,
// with all of its rows one after the other; `first` are the first of them.
struct PackedBlock {
  Index row, rows, column, columns, inner, depth;
  bool streamed;
  Index slot = 0;
  bool first = true;
};
inline constexpr Index most_slots = 11;

// multiply(block) for all of C[m,n] = A·Bᵀ, B in panels over k inner indices of sizeof(T); of one place in C the slices
// of at most depth_step, front to back.
template <class T, class Multiply>
void for_packed_blocks(Index m, Index n, Index k, Index depth_step, Multiply&& multiply) {
  constexpr Index width = gemm_columns<T>;
  const Index panels = divide_up(n, width);
  const auto for_slices = [&](auto&& body) {
    for (Index inner = 0; inner < k; inner += depth_step) body(inner, std::min(depth_step, k - inner));
  };
  if (m <= gemm_few_rows) {
    constexpr Index work = Index{1} << 15;  // elements of B that pay for a hand-over to another thread
    parallel_for(panels, divide_up(work, width * k), [&](Index begin, Index end) {
      for (Index j = begin * width; j < std::min(end * width, n); j += width)
        for_slices([&](Index inner, Index depth) {
          multiply(PackedBlock{0, m, j, std::min(width, n - j), inner, depth, true});
        });
    });
    return;
  }
  // A task is a block of C: rows that stay in the second cache with as many panels of a slice of B.
  constexpr Index slice = (Index{576} << 10) / static_cast<Index>(sizeof(T)), most_rows = 128;
  Index rows_step = even_part(m, most_rows, gemm_rows);
  Index block = even_part(panels, std::clamp<Index>(slice / (depth_step * width), 1, most_slots), 1);
  while (divide_up(m, rows_step) * divide_up(panels, block) < 2 * tasks_for_threads() &&
         rows_step * block * width * k >= 2 * gemm_min_work && (block > 1 || rows_step > 2 * gemm_rows)) {
    if (block > 1)
      block = even_part(panels, divide_up(block, 2), 1);
    else
      rows_step = even_part(m, divide_up(rows_step, 2), gemm_rows);
  }
  const Index row_blocks = divide_up(m, rows_step);
  const Index chunk = divide_up(gemm_min_work, rows_step * block * width * k);
  parallel_for(row_blocks * divide_up(panels, block), chunk, [&](Index begin, Index end) {
    for (Index task = begin; task < end; ++task) {
      const Index row = task % row_blocks * rows_step, row_end = std::min(row + rows_step, m);
      const Index column = task / row_blocks * block * width, column_end = std::min(column + block * width, n);
      for_slices([&](Index inner, Index depth) {
        for (Index i = row; i < row_end; i += gemm_rows)
          for (Index j = column; j < column_end; j += width)
            multiply(PackedBlock{i, std::min(gemm_rows, row_end - i), j, std::min(width, n - j), inner, depth, false,
                                 (j - column) / width, i == row});
      });
    }
  });
}

}  // namespace detail

// C[m,n] (+)= A[m,k]·Bᵀ, B from pack_matrix, or with a bias [n] C = bias + A·Bᵀ. Needs k > 0.
template <class T>
void packed_gemm(Index m, Index n, Index k, const T* a, Index lda, const T* packed, T* c, Index ldc, bool accumulate,
                 const std::type_identity_t<T>* bias = nullptr) {
  using namespace detail;
  for_packed_blocks<T>(m, n, k, gemm_depth<T>(false, k), [&](const PackedBlock& at) {
    const Index width = panel_width<T>(at.columns);
    const T* const left = a + at.row * lda + at.inner;
    const T* const panel = packed + at.column * k + at.inner * width;
    T* const to = c + at.row * ldc + at.column;
    const bool add = accumulate || bias != nullptr || at.inner > 0;
    if (bias != nullptr && at.inner == 0) begin_rows(bias + at.column, to, ldc, at.rows, at.columns);
    if (at.streamed || at.first)  // the panel comes from afar: it is asked for ahead
      with_vectors<T>(at.columns, [&]<Index Vectors>() {
        multiply_streamed_rows<gemm_rows, Vectors>(at.depth, left, lda, panel, to, ldc, at.rows, at.columns, add);
      });
    else
      multiply_panels(at.depth, PanelOfA<T>{left, lda, 1}, panel, width, to, ldc, at.rows, at.columns, add);
  });
}

#if defined(RBAR_COMPILED_KERNELS)
extern template void pack_matrix(Index, Index, const float*, Index, float*);
extern template void pack_matrix(Index, Index, const double*, Index, double*);
extern template void packed_gemm(Index, Index, Index, const float*, Index, const float*, float*, Index, bool,
                                 const float*);
extern template void packed_gemm(Index, Index, Index, const double*, Index, const double*, double*, Index, bool,
                                 const double*);
#endif

}  // namespace rbar::simd
