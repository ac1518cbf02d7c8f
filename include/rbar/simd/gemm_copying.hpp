// Products whose second operand lies with its rows along those of C (dx = dy W) and whose first has not many: a panel
// of B is packed by the register blocks that need it first, between their multiply-adds, and then used by all others. A
// pass of its own would wait for memory: it took 7-12% of the time for 128 rows. Each thread does this for its own
// panels, one at a time, so that they stay in the second cache, and no thread waits for another.
#pragma once

#include "rbar/core/parallel.hpp"
#include "rbar/simd/gemm_blocking.hpp"
#include "rbar/simd/gemm_kernel.hpp"
#include "rbar/simd/gemm_pack.hpp"
#include "rbar/simd/scratch.hpp"

#include <algorithm>

namespace rbar::simd::detail {

struct CopiedPanel {};

// Up to this many rows of A: it is read again for each panel of B, and has to come from a near cache.
inline constexpr Index gemm_copying_most = 512;

// C[m,n] (+)= A[m,k]·B[k,n], `depth` inner indices at a time.
template <class T>
void copying_gemm(Index m, Index n, Index k, Index depth, const T* a, Index lda, const T* b, Index ldb, T* c, Index ldc,
                  bool accumulate) {
  constexpr Index width = gemm_columns<T>, most_rows = 256;
  const Index panels = divide_up(n, width);
  Index rows = even_part(m, most_rows, gemm_rows);
  while (rows > 4 * gemm_rows && panels * divide_up(m, rows) < tasks_for_threads() &&
         rows * width * k >= 2 * gemm_min_work)
    rows = even_part(rows, divide_up(rows, 2), gemm_rows);
  const Index blocks = divide_up(m, rows);
  // Rows [row, row_end) of C, columns of one panel.
  const auto multiply = [&](Index row, Index row_end, Index column, T* packed) {
    const Index columns = std::min(width, n - column);
    for (Index inner = 0; inner < k; inner += depth) {
      const Index count = std::min(depth, k - inner);
      const T* const panel = b + inner * ldb + column;
      const bool add = accumulate || inner > 0, copy = columns == width && row_end - row >= gemm_rows;
      if (!copy) pack_panels<width>(false, panel, ldb, columns, count, packed);
      for (Index i = row; i < row_end; i += gemm_rows) {
        const PanelOfA<T> left{a + i * lda + inner, lda, 1};
        T* const to = c + i * ldc + column;
        if (copy && i == row)
          multiply_block<FusedProduct, gemm_vectors, Beside::packs_b>(BlockSums<gemm_rows, gemm_vectors>(), count, left,
                                                                      panel, ldb, to, ldc, width, add, packed);
        else
          multiply_panels(count, left, packed, width, to, ldc, std::min(gemm_rows, row_end - i), columns, add);
      }
    }
  };
  parallel_for(panels * blocks, divide_up(gemm_min_work, rows * width * k), [&](Index begin, Index end) {
    T* const packed = thread_scratch<T, CopiedPanel>(width * depth);
    for (Index task = begin; task < end; ++task) {
      const Index row = task % blocks * rows;
      multiply(row, std::min(row + rows, m), task / blocks * width, packed);
    }
  });
}

}  // namespace rbar::simd::detail
