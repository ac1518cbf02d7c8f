// The blocked matrix product after Goto and van de Geijn, "Anatomy of high-performance matrix
// multiplication", ACM TOMS 34 (2008), and Van Zee and van de Geijn, "BLIS", ACM TOMS 41 (2015), with
// one change: both operands are packed whole (up to a few MiB at a time) by all threads into one arena,
// and fixed two-dimensional chunks of C are then computed independently. K is split by the problem
// alone, so every element of C is summed in the same order for any number of threads.
#pragma once

#include "rbar/core/parallel.hpp"
#include "rbar/simd/gemm_kernel.hpp"
#include "rbar/simd/gemm_pack.hpp"

#include <algorithm>
#include <memory>
#include <new>

namespace rbar::simd {

namespace detail {

constexpr Index divide_up(Index a, Index b) { return (a + b - 1) / b; }

// Packed panels of the calling thread. Grows to the largest product seen and stays: at most 2 × 8 MiB.
template <class T>
T* gemm_arena(Index size) {
  struct Free {
    void operator()(T* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
  };
  static thread_local std::unique_ptr<T, Free> memory;
  static thread_local Index capacity = 0;
  if (size > capacity) {
    memory.reset();
    memory.reset(static_cast<T*>(::operator new[](sizeof(T) * static_cast<std::size_t>(size), std::align_val_t{64})));
    capacity = size;
  }
  return memory.get();
}

// One operand as the packer sees it: `count` rows of A or columns of B, stored with the inner index
// contiguous (`transposing`) or across.
template <class T>
struct GemmOperand {
  const T* data;
  Index stride;
  bool transposing;

  const T* at(Index row, Index inner) const {
    return transposing ? data + row * stride + inner : data + inner * stride + row;
  }
};

// Panels [first, last) of `Width` rows each, over inner indices [inner, inner + depth).
template <Index Width, class T>
void pack_panels(const GemmOperand<T>& source, Index row, Index count, Index inner, Index depth, Index first,
                 Index last, T* packed) {
  for (Index panel = first; panel < last; ++panel)
    pack_panel<Width>(source.transposing, source.at(row + panel * Width, inner), source.stride,
                      std::min(Width, count - panel * Width), depth, packed + panel * Width * depth);
}

// Sizes of the blocks for one problem. Inner blocks of at most 1.5 KiB a row: a panel of A then stays in
// L1 while four panels of B, in L2, pass by.
template <class T>
struct GemmBlocking {
  static constexpr Index max_depth = 1536 / static_cast<Index>(sizeof(T));
  static constexpr Index max_inner = 8 * max_depth;                                      // packed at a time
  static constexpr Index max_packed = (Index{8} << 20) / static_cast<Index>(sizeof(T));  // elements of one operand
  static constexpr Index min_work = Index{1} << 20;  // multiply-adds that pay for a hand-over
  static constexpr Index column_chunk = 4 * gemm_columns<T>;

  Index inner, depth, rows, columns, row_chunk;

  GemmBlocking(Index m, Index n, Index k) {
    const auto even = [](Index size, Index most, Index multiple) {
      return divide_up(divide_up(size, divide_up(size, most)), multiple) * multiple;
    };
    inner = even(k, max_inner, 1);
    depth = even(inner, max_depth, 1);
    rows = even(m, std::max(gemm_rows, max_packed / inner / gemm_rows * gemm_rows), gemm_rows);
    columns = even(n, std::max(column_chunk, max_packed / inner / column_chunk * column_chunk), gemm_columns<T>);
    row_chunk = 16 * gemm_rows;
    while (row_chunk > 2 * gemm_rows && divide_up(m, row_chunk) * divide_up(n, column_chunk) < 32 &&
           row_chunk / 2 * column_chunk * inner >= min_work)
      row_chunk /= 2;
  }
};

}  // namespace detail

// C[m,n] (+)= op(A)·op(B); A is stored [m,k], or [k,m] if transpose_a; B [k,n], or [n,k] if transpose_b.
template <class T>
void blocked_gemm(bool transpose_a, bool transpose_b, Index m, Index n, Index k, const T* a, Index lda, const T* b,
                  Index ldb, T* c, Index ldc, bool accumulate) {
  using namespace detail;
  constexpr Index few = 8;
  if (!transpose_a && transpose_b && (m <= few || n <= 4)) {
    // Bound by reading the larger operand once: no packing.
    const Index chunk_columns = std::max<Index>(16, divide_up(GemmBlocking<T>::min_work / 4, m * k) / 16 * 16);
    const Index chunk_rows = m <= few ? m : std::max<Index>(few, GemmBlocking<T>::min_work / 4 / (n * k));
    const Index across = divide_up(n, chunk_columns);
    parallel_for(divide_up(m, chunk_rows) * across, 1, [&](Index chunk, Index) {
      const Index row = chunk / across * chunk_rows, column = chunk % across * chunk_columns;
      multiply_few_rows(k, a + row * lda, lda, b + column * ldb, ldb, c + row * ldc + column, ldc,
                        std::min(chunk_rows, m - row), std::min(chunk_columns, n - column), accumulate);
    });
    return;
  }

  constexpr Index width_a = gemm_rows, width_b = gemm_columns<T>;
  const GemmOperand<T> left{a, lda, !transpose_a}, right{b, ldb, transpose_b};
  const GemmBlocking<T> block(m, n, k);
  const Index size_a = block.rows * block.inner, size_b = block.columns * block.inner;
  T* const packed_a = gemm_arena<T>(size_a + size_b);
  T* const packed_b = packed_a + size_a;

  for (Index column = 0; column < n; column += block.columns)
    for (Index inner = 0; inner < k; inner += block.inner)
      for (Index row = 0; row < m; row += block.rows) {
        const Index rows = std::min(block.rows, m - row), columns = std::min(block.columns, n - column);
        const Index length = std::min(block.inner, k - inner);
        const bool pack_b = row == 0;  // the next rows find it packed

        const Index panels_a = divide_up(rows, width_a), panels_b = pack_b ? divide_up(columns, width_b) : 0;
        const Index group_a = std::max<Index>(1, (Index{1} << 15) / (width_a * length));
        const Index tasks_a = divide_up(panels_a, group_a);
        const bool small = (rows + columns) * length < (Index{1} << 15);
        parallel_for(tasks_a + panels_b, small ? tasks_a + panels_b : 1, [&](Index begin, Index end) {
          for (Index task = begin; task < end; ++task)
            if (task < tasks_a)
              pack_panels<width_a>(left, row, rows, inner, length, task * group_a,
                                   std::min(panels_a, (task + 1) * group_a), packed_a);
            else
              pack_panels<width_b>(right, column, columns, inner, length, task - tasks_a, task - tasks_a + 1, packed_b);
        });

        const Index chunks_down = divide_up(rows, block.row_chunk);
        const Index chunks = chunks_down * divide_up(columns, block.column_chunk);
        const bool alone = rows * columns * length < GemmBlocking<T>::min_work;
        parallel_for(chunks, alone ? chunks : 1, [&](Index begin, Index end) {
          for (Index chunk = begin; chunk < end; ++chunk) {
            // Neighbouring chunks share columns, so that one thread finds its part of B in L2 again.
            const Index i0 = chunk % chunks_down * block.row_chunk, i1 = std::min(rows, i0 + block.row_chunk);
            const Index j0 = chunk / chunks_down * block.column_chunk, j1 = std::min(columns, j0 + block.column_chunk);
            for (Index p = 0; p < length; p += block.depth) {
              const Index depth = std::min(block.depth, length - p);
              const bool add = accumulate || inner > 0 || p > 0;
              for (Index i = i0; i < i1; i += width_a)
                for (Index j = j0; j < j1; j += width_b)
                  multiply_panels(depth, packed_a + i * length + p * width_a, packed_b + j * length + p * width_b,
                                  width_b, c + (row + i) * ldc + column + j, ldc, std::min(width_a, i1 - i),
                                  std::min(width_b, j1 - j), add);
            }
          }
        });
      }
}

}  // namespace rbar::simd
