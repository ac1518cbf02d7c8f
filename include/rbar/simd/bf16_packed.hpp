// C[m,n] (+)= A[m,k] · B[n,k]ᵀ with B in bf16, A, C and every sum in fp32: a dense layer whose weights lie in half the
// bytes, packed once like those of simd/gemm_packed.hpp. A 32-bit word of a panel is two neighbours of k: its upper
// half is the odd element's float as it stands, and the lower half, shifted, the even one's.
//
// With Bf16Inputs::weights the rounding of B is the only one that fp32 does not have. With `both`, A is rounded too,
// and the dot product instruction of AVX-512 BF16 takes two steps of k at once: twice the FMA peak. It takes subnormal
// numbers for 0. Without that instruction the rounded A is multiplied as fp32.
//
// An element of C is summed front to back within each slice of k, slice after slice, and k alone says where slices end:
// the same bits for any number of threads, and for a row of C among any number of rows.
#pragma once

#include "rbar/core/bf16.hpp"
#include "rbar/core/parallel.hpp"
#include "rbar/simd/batch.hpp"
#include "rbar/simd/bf16_product.hpp"
#include "rbar/simd/gemm_packed.hpp"
#include "rbar/simd/scratch.hpp"

#include <algorithm>
#include <concepts>
#include <cstdint>

namespace rbar::simd {

using Bf16Pair = std::int32_t;

// Words that B [n, k] takes, in panels as those of packed_gemm.
constexpr Index packed_bf16_size(Index n, Index k) { return packed_size<float>(n, detail::divide_up(k, 2)); }

// B [n, k] to `packed` [packed_bf16_size], rounded; what lies beyond n and k is 0.
template <std::same_as<float> T>
void pack_bf16(Index n, Index k, const T* b, Index ldb, Bf16Pair* packed) {
  constexpr Index width = gemm_columns<float>;
  const Index words = detail::divide_up(k, 2);
  parallel_for(detail::divide_up(n, width), 1, [&](Index panel, Index end) {
    for (; panel < end; ++panel) {
      const Index step = panel_width<float>(std::min(width, n - panel * width));
      for (Index j = 0; j < step; ++j) {
        const Index row = panel * width + j;
        Bf16Pair* to = packed + panel * width * words + j;
        const auto element = [&](Index p) -> std::uint32_t {
          return row < n && p < k ? to_bf16(b[row * ldb + p]).bits : 0u;
        };
        for (Index p = 0; p < k; p += 2, to += step) *to = static_cast<Bf16Pair>(element(p) | element(p + 1) << 16);
      }
    }
  });
}

namespace detail {

struct RoundedRows {};  // A, kept by the calling thread

// Whether a rounded A lies in words as well.
inline constexpr bool rounds_to_pairs = RoundedWord::inner == 2;

// Rows of a register block: with B's even and odd elements apart, registers are for half as many.
template <bool Pairs>
inline constexpr Index bf16_rows = Pairs ? gemm_rows : gemm_rows / 2;

// C[Rows, columns] (+)= Rows rows of A, `lda` apart, times a panel of B over `elements` of k. A is in fp32, or with
// `Pairs` in words.
template <bool Pairs, Index Rows, Index Vectors>
RBAR_NOINLINE void multiply_bf16(Index elements, const float* RBAR_RESTRICT a, Index lda,
                                 const Bf16Pair* RBAR_RESTRICT b, float* RBAR_RESTRICT c, Index ldc, Index columns,
                                 bool accumulate) {
  constexpr Index width = Vectors * lanes<float>, ahead = 64 * width;
  Batch<float> sum[Rows][Vectors];
  RBAR_UNROLL
  for (auto& row : sum) {
    RBAR_UNROLL
    for (auto& part : row) part = zero<float>();
  }
  const auto multiply = [&](Index column_of_a, const Batch<float>(&right)[Vectors]) RBAR_INLINE_LAMBDA {
    RBAR_UNROLL
    for (Index r = 0; r < Rows; ++r) {
      const Batch<float> left = broadcast(a[r * lda + column_of_a]);
      RBAR_UNROLL
      for (Index v = 0; v < Vectors; ++v)
        sum[r][v] =
            Pairs ? RoundedWord::multiply_add(left, right[v], sum[r][v]) : multiply_add(left, right[v], sum[r][v]);
    }
  };
  Batch<float> right[Vectors];
  const Index whole = Pairs ? divide_up(elements, 2) : elements / 2;
  for (Index p = 0; p < whole; ++p, b += width) {
    Batch<Bf16Pair> pairs[Vectors];
    RBAR_UNROLL
    for (Index v = 0; v < Vectors; ++v) {
      pairs[v] = Batch<Bf16Pair>::load_unaligned(b + v * lanes<float>);
      hold(pairs[v]);
    }
    if constexpr (Rows == bf16_rows<Pairs>) prefetch_row(b + ahead, width);
    if constexpr (Pairs) {
      RBAR_UNROLL
      for (Index v = 0; v < Vectors; ++v) right[v] = from_bits(pairs[v]);
      multiply(p, right);
    } else {
      RBAR_UNROLL
      for (Index v = 0; v < Vectors; ++v) right[v] = from_bits(pairs[v] << 16);
      multiply(2 * p, right);
      const Batch<Bf16Pair> upper(static_cast<Bf16Pair>(0xffff0000u));
      RBAR_UNROLL
      for (Index v = 0; v < Vectors; ++v) right[v] = from_bits(pairs[v] & upper);
      multiply(2 * p + 1, right);
    }
  }
  if (!Pairs && elements % 2 != 0) {
    RBAR_UNROLL
    for (Index v = 0; v < Vectors; ++v)
      right[v] = from_bits(Batch<Bf16Pair>::load_unaligned(b + v * lanes<float>) << 16);
    multiply(elements - 1, right);
  }
  RBAR_UNROLL
  for (Index r = 0; r < Rows; ++r) {
    RBAR_UNROLL
    for (Index v = 0; v < Vectors; ++v) {
      float* const to = c + r * ldc + v * lanes<float>;
      if (const Index count = columns - v * lanes<float>; count >= lanes<float>)
        store(to, accumulate ? load(to) + sum[r][v] : sum[r][v]);
      else
        store_partial(to, accumulate ? load_partial(to, count) + sum[r][v] : sum[r][v], count);
    }
  }
}
template <bool Pairs, Index Rows, Index Vectors>
void multiply_bf16_rows(Index elements, const float* a, Index lda, const Bf16Pair* b, float* c, Index ldc, Index rows,
                        Index columns, bool accumulate) {
  for (; rows >= Rows; rows -= Rows, a += Rows * lda, c += Rows * ldc)
    multiply_bf16<Pairs, Rows, Vectors>(elements, a, lda, b, c, ldc, columns, accumulate);
  if constexpr (Rows > 1)
    if (rows > 0) multiply_bf16_rows<Pairs, Rows / 2, Vectors>(elements, a, lda, b, c, ldc, rows, columns, accumulate);
}

// C += A·Bᵀ with A in words.
inline void multiply_pairs(Index m, Index n, Index k, const float* a, Index lda, const Bf16Pair* packed, float* c,
                           Index ldc, bool accumulate) {
  const Index words = divide_up(k, 2);
  for_packed_blocks<float>(m, n, words, gemm_depth<float>(false, words), [&](const PackedBlock& at) {
    const Bf16Pair* const panel = packed + at.column * words + at.inner * panel_width<float>(at.columns);
    with_vectors<float>(at.columns, [&]<Index Vectors>() {
      multiply_bf16_rows</*Pairs=*/true, gemm_rows, Vectors>(2 * at.depth, a + at.row * lda + at.inner, lda, panel,
                                                             c + at.row * ldc + at.column, ldc, at.rows, at.columns,
                                                             accumulate || at.inner > 0);
    });
  });
}

struct WidenedPanels {};  // of B, kept by every thread

// panel[p·width + j] of B's elements as they are in fp32.
inline void widen_panel(const Bf16Pair* packed, Index elements, Index width, float* panel) {
  for (Index p = 0; p < elements; p += 2, packed += width)
    for (Index j = 0; j < width; j += lanes<float>) {
      const auto pairs = Batch<Bf16Pair>::load_unaligned(packed + j);
      store(panel + p * width + j, from_bits(pairs << 16));
      if (p + 1 < elements)
        store(panel + (p + 1) * width + j, from_bits(pairs & Batch<Bf16Pair>(static_cast<Bf16Pair>(0xffff0000u))));
    }
}

// C += A·Bᵀ with A in fp32. Few rows widen B in registers, more of them once for all.
inline void multiply_widened(Index m, Index n, Index k, const float* a, Index lda, const Bf16Pair* packed, float* c,
                             Index ldc, bool accumulate) {
  const Index words = divide_up(k, 2), depth_step = gemm_depth<float>(false, k);
  static_assert(lanes<float> % 2 == 0);  // slices begin with whole words
  for_packed_blocks<float>(m, n, k, depth_step, [&](const PackedBlock& at) {
    const Index width = panel_width<float>(at.columns);
    const float* const left = a + at.row * lda + at.inner;
    const Bf16Pair* const panel = packed + at.column * words + at.inner / 2 * width;
    float* const to = c + at.row * ldc + at.column;
    const bool add = accumulate || at.inner > 0;
    if (at.streamed)
      return with_vectors<float>(at.columns, [&]<Index Vectors>() {
        multiply_bf16_rows</*Pairs=*/false, bf16_rows</*Pairs=*/false>, Vectors>(at.depth, left, lda, panel, to, ldc,
                                                                                 at.rows, at.columns, add);
      });
    const Index slot_size = depth_step * gemm_columns<float>;
    float* const widened = thread_scratch<float, WidenedPanels>(most_slots * slot_size) + at.slot * slot_size;
    if (at.first) widen_panel(panel, at.depth, width, widened);
    multiply_panels(at.depth, PanelOfA<float>{left, lda, 1}, widened, width, to, ldc, at.rows, at.columns, add);
  });
}

}  // namespace detail

// B from pack_bf16. All matrices row-major, ld*: elements from one row to the next; C overlaps A nowhere. NaN and
// infinity propagate.
template <std::same_as<float> T>
void packed_bf16_gemm(Index m, Index n, Index k, const T* a, Index lda, const Bf16Pair* packed, T* c, Index ldc,
                      bool accumulate, Bf16Inputs inputs = Bf16Inputs::weights) {
  using namespace detail;
  if (m <= 0 || n <= 0) return;
  if (k <= 0) {
    if (!accumulate)
      for (Index i = 0; i < m; ++i) std::fill_n(c + i * ldc, n, 0.0f);
    return;
  }
  if (inputs == Bf16Inputs::weights) return multiply_widened(m, n, k, a, lda, packed, c, ldc, accumulate);
  const Index row = words_of(k) + lanes<float>;  // rows then share no set of a cache
  float* const rounded = thread_scratch<float, RoundedRows>(m * row);
  parallel_for(m, std::max<Index>(1, 65536 / k), [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) RoundedWord::round_row(a + i * lda, k, rounded + i * row);
  });
  if constexpr (rounds_to_pairs)
    multiply_pairs(m, n, k, rounded, row, packed, c, ldc, accumulate);
  else
    multiply_widened(m, n, k, rounded, row, packed, c, ldc, accumulate);
}

#if defined(RBAR_COMPILED_KERNELS)
extern template void pack_bf16(Index, Index, const float*, Index, Bf16Pair*);
extern template void packed_bf16_gemm(Index, Index, Index, const float*, Index, const Bf16Pair*, float*, Index, bool,
                                      Bf16Inputs);
#endif

}  // namespace rbar::simd
