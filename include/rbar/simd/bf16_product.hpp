// C[m,n] (+)= op(A)·op(B) for training in mixed precision: A, B, C and every sum are fp32, and the elements of A and B
// are rounded to bf16, to the nearest with ties to even, on their way into the product. The dot product instruction of
// AVX-512 BF16 multiplies two steps of the inner dimension at once, twice the FMA peak; it takes subnormal numbers, and
// returns them, as 0. Without that instruction the rounded operands are multiplied as fp32: the same but for the
// rounding of sums and subnormal numbers.
//
// Blocked like simd/gemm.hpp, over words instead of elements: two neighbours of the inner dimension (one without the
// instruction). Rounding goes with packing, a piece at a time that stays in the caches, so that memory is read once as
// for fp32. An element of C is summed front to back within each slice of the inner dimension, slice after slice, and k
// alone says where slices end: the same bits for any number of threads, and for a row of C among any number of rows.
#pragma once

#include "rbar/core/bf16.hpp"
#include "rbar/simd/batch.hpp"
#include "rbar/simd/gemm_blocking.hpp"
#include "rbar/simd/gemm_kernel.hpp"
#include "rbar/simd/gemm_pack.hpp"
#include "rbar/simd/gemm_schedule.hpp"
#include "rbar/simd/scratch.hpp"

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstdint>

namespace rbar::simd {

namespace detail {

// What a packed operand consists of: rounded neighbours of the inner dimension, in the memory of a float, so that
// packing moves them like one.
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
struct RoundedWord {
  static constexpr Index inner = 2;  // inner indices in a word, the first of them in its lower half

  RBAR_INLINE static Batch<float> multiply_add(const Batch<float>& a, const Batch<float>& b, const Batch<float>& sum) {
    return Batch<float>(_mm512_dpbf16_ps(sum, std::bit_cast<__m512bh>(a.data), std::bit_cast<__m512bh>(b.data)));
  }

  // The elements from[0 ... count), then zeros, to ⌈count / inner⌉ words.
  static void round_row(const float* from, Index count, float* to) {
    const auto words = [](const Batch<float>& low, const Batch<float>& high) {
      return Batch<float>(std::bit_cast<__m512>(_mm512_cvtne2ps_pbh(high, low)));
    };
    Index i = 0;
    for (; i + 2 * lanes<float> <= count; i += 2 * lanes<float>)
      store(to + i / 2, words(load(from + i), load(from + i + lanes<float>)));
    if (i == count) return;
    const Index left = count - i, low = std::min(left, lanes<float>);
    const auto high = left > low ? load_partial(from + i + low, left - low) : zero<float>();
    store_partial(to + i / 2, words(load_partial(from + i, low), high), (left + 1) / 2);
  }

  // A word of each of `columns` columns of `rows` ≤ inner rows; zeros stand for a missing one.
  static void round_column_words(const float* from, Index stride, Index rows, Index columns, float* to) {
    alignas(64) static constexpr std::int16_t pick[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                          8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const auto words = [](const Batch<float>& first, const Batch<float>& second) {
      const auto halves = std::bit_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
      return Batch<float>(std::bit_cast<__m512>(_mm512_permutexvar_epi16(_mm512_load_si512(pick), halves)));
    };
    for (Index i = 0; i < columns; i += lanes<float>) {
      const Index count = std::min(lanes<float>, columns - i);
      if (rows == 2 && count == lanes<float>) {
        store(to + i, words(load(from + i), load(from + stride + i)));
      } else {
        const auto second = rows == 2 ? load_partial(from + stride + i, count) : zero<float>();
        store_partial(to + i, words(load_partial(from + i, count), second), count);
      }
    }
  }
};
#else
struct RoundedWord {
  static constexpr Index inner = 1;

  RBAR_INLINE static Batch<float> multiply_add(const Batch<float>& a, const Batch<float>& b, const Batch<float>& sum) {
    return simd::multiply_add(a, b, sum);
  }
  static void round_row(const float* RBAR_RESTRICT from, Index count, float* RBAR_RESTRICT to) {
    for (Index i = 0; i < count; ++i) to[i] = to_float(to_bf16(from[i]));
  }
  static void round_column_words(const float* from, Index, Index, Index columns, float* to) {
    round_row(from, columns, to);
  }
};
#endif
constexpr Index words_of(Index elements) { return divide_up(elements, RoundedWord::inner); }

// A slice of the inner dimension, in words.
inline constexpr Index max_word_depth = 512;

// An operand of rows × k: element (i, p) at data[i·stride + p], or at data[p·stride + i] unless `inner_contiguous`.
struct RoundedOperand {
  const float* data;
  Index stride;
  bool inner_contiguous;

  // All of the following: rows i ... i + count − 1, inner indices p ... p + elements − 1.

  // Row after row, `step` words apart; only where the inner dimension is contiguous.
  void round_rows(Index i, Index p, Index count, Index elements, Index step, float* words) const {
    for (Index r = 0; r < count; ++r) RoundedWord::round_row(data + (i + r) * stride + p, elements, words + r * step);
  }
  // The panels of pack_panels, of Width rows each; a register of rows at a time, which stay in the first cache until
  // they are transposed. Only where the inner dimension is contiguous.
  template <Index Width>
  void pack_rows(Index i, Index p, Index count, Index elements, float* packed) const {
    static_assert(Width % lanes<float> == 0);
    const Index depth = words_of(elements);
    alignas(64) float words[lanes<float> * max_word_depth];
    for (Index row = 0; row < count; row += lanes<float>) {
      const Index rows = std::min(lanes<float>, count - row);
      round_rows(i + row, p, rows, elements, depth, words);
      pack_panels<Width>(true, words, depth, rows, depth, packed + row / Width * Width * depth + row % Width);
    }
  }
  // The same where the rows are contiguous. They lie far apart, and the hardware does not see the next one coming.
  template <Index Width>
  void pack_columns(Index i, Index p, Index count, Index elements, float* packed) const {
    constexpr Index ahead = 24, line = 64 / static_cast<Index>(sizeof(float));
    const Index depth = words_of(elements);
    for (Index word = 0; word < depth; ++word) {
      const Index first = word * RoundedWord::inner, rows = std::min(RoundedWord::inner, elements - first);
      const float* const from = data + (p + first) * stride + i;
      for (Index r = 0; r < rows; ++r)
        for (Index j = 0; j < count; j += line) RBAR_PREFETCH_FAR(from + (ahead + r) * stride + j);
      for (Index panel = 0; panel < count; panel += Width)
        RoundedWord::round_column_words(from + panel, stride, rows, std::min(Width, count - panel),
                                        packed + panel * depth + word * Width);
    }
  }
};

struct RoundedSlices {};  // of B, packed: up to four, kept by the calling thread

// How one problem is cut, in words: a slice of B is depth × columns, a chunk of C rows × columns.
struct RoundedBlocking {
  static constexpr Index max_slice = (Index{576} << 10) / static_cast<Index>(sizeof(float)), max_rows = 128;

  Index depth, columns, rows;

  RoundedBlocking(Index m, Index n, Index k) : depth(even_part(words_of(k), max_word_depth, lanes<float>)) {
    constexpr Index width = gemm_columns<float>;
    columns = even_part(n, std::clamp(max_slice / depth / width, Index{1}, 528 / width) * width, width);
    rows = even_part(m, max_rows, gemm_rows);
    while (rows > 2 * gemm_rows && divide_up(m, rows) < tasks_for_threads() &&
           rows * columns * depth >= 2 * gemm_min_work)
      rows = even_part(rows, divide_up(rows, 2), gemm_rows);
  }
};

// C[m,n] (+)= A·Bᵀ of two operands; with TransposedC, C(i, j) is c[j·ldc + i].
template <bool TransposedC>
void rounded_product(Index m, Index n, Index k, const RoundedOperand& a, const RoundedOperand& b, float* c, Index ldc,
                     bool accumulate) {
  constexpr Index width_a = gemm_rows, width_b = gemm_columns<float>;
  constexpr Index height = gemm_block_height<TransposedC>;
  const RoundedBlocking block(m, n, k);
  const Index slice_size = block.depth * block.columns, depth_slices = divide_up(words_of(k), block.depth);
  const Index slices = divide_up(n, block.columns) * depth_slices;
  const GemmSchedule schedule(slices, divide_up(std::min(block.columns, n), width_b), divide_up(m, block.rows), m,
                              m * n * k);
  float* const packed = thread_scratch<float, RoundedSlices>(schedule.places() * slice_size);

  struct Slice {
    Index column, columns, inner, elements, depth;
  };
  const auto slice_at = [&](Index number) {
    const Index column = number / depth_slices * block.columns;
    const Index inner = number % depth_slices * block.depth * RoundedWord::inner;
    const Index elements = std::min(block.depth * RoundedWord::inner, k - inner);
    return Slice{column, std::min(block.columns, n - column), inner, elements, words_of(elements)};
  };
  const auto pack_b = [&](Index number, Index panel) {
    const Slice slice = slice_at(number);
    const Index j = panel * width_b;
    if (j >= slice.columns) return;  // the last slice may be narrower
    float* const to = packed + number % schedule.places() * slice_size + j * slice.depth;
    const Index columns = std::min(width_b, slice.columns - j);
    if (b.inner_contiguous)
      b.pack_rows<width_b>(slice.column + j, slice.inner, columns, slice.elements, to);
    else
      b.pack_columns<width_b>(slice.column + j, slice.inner, columns, slice.elements, to);
  };
  const auto multiply = [&](Index number, Index row) {
    const Slice slice = slice_at(number);
    const Index rows = std::min(block.rows, m - row);
    const float* const packed_b = packed + number % schedule.places() * slice_size;
    const bool add = accumulate || slice.inner > 0;
    alignas(64) float words[RoundedBlocking::max_rows * (max_word_depth + lanes<float>)];
    // Rows as they come, which then share no set of a cache, or panels.
    const Index row_step = slice.depth + lanes<float>;
    const bool in_rows = a.inner_contiguous;
    if (in_rows)
      a.round_rows(row, slice.inner, rows, slice.elements, row_step, words);
    else
      a.pack_columns<width_a>(row, slice.inner, rows, slice.elements, words);
    const auto panel_of_a = [&](Index r) {
      return in_rows ? PanelOfA<float>{words + r * row_step, row_step, 1}
                     : PanelOfA<float>{words + r * slice.depth, 1, width_a};
    };
    for (Index i = 0; i < rows; i += height)
      for (Index j = 0; j < slice.columns; j += width_b) {
        const Index column = slice.column + j, columns = std::min(width_b, slice.columns - j);
        const Index block_rows = std::min(height, rows - i);
        float* const to = TransposedC ? c + column * ldc + row + i : c + (row + i) * ldc + column;
        write_block<TransposedC>(block_rows, columns, to, ldc, add, [&](Index r, float* at, Index stride, bool add_to) {
          multiply_panels<RoundedWord>(slice.depth, panel_of_a(i + r), packed_b + j * slice.depth, width_b, at, stride,
                                       std::min(width_a, block_rows - r), columns, add_to);
        });
      }
  };

  schedule.run(pack_b, [&](Index group, Index chunk) { multiply(group, chunk * block.rows); });
}

}  // namespace detail

// C[m,n] (+)= op(A)·op(B) with both rounded to bf16; A is stored [m,k], or [k,m] if transpose_a; B [k,n], or [n,k] if
// transpose_b. All row-major, ld*: elements from one row to the next. C overlaps neither. NaN and infinity propagate,
// and a number beyond bf16's largest is infinite.
template <std::same_as<float> T>
void rounded_gemm(bool transpose_a, bool transpose_b, Index m, Index n, Index k, const T* a, Index lda, const T* b,
                  Index ldb, T* c, Index ldc, bool accumulate) {
  if (m <= 0 || n <= 0) return;
  if (k <= 0) {
    if (!accumulate)
      for (Index i = 0; i < m; ++i) std::fill_n(c + i * ldc, n, 0.0f);
    return;
  }
  const detail::RoundedOperand left{a, lda, !transpose_a}, right{b, ldb, transpose_b};
  // y = x Wᵀ with fewer rows of x than of W: yᵀ = W xᵀ packs x instead of W.
  if (transpose_b && m < n && m <= detail::gemm_transposed_most)
    detail::rounded_product<true>(n, m, k, right, left, c, ldc, accumulate);
  else
    detail::rounded_product<false>(m, n, k, left, right, c, ldc, accumulate);
}

#if defined(RBAR_COMPILED_KERNELS)
extern template void rounded_gemm(bool, bool, Index, Index, Index, const float*, Index, const float*, Index, float*,
                                  Index, bool);
#endif

}  // namespace rbar::simd
