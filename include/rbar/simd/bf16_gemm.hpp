// C[m,n] (+)= A[m,k] · B[n,k]ᵀ with B in bf16, A, C and every sum in fp32: a dense layer whose weights lie in half the
// bytes. B is read where it lies, once for every 64 rows of A: nothing of it is packed, so that a few rows (decoding)
// run at the speed of memory. A register of B holds pairs of neighbours; as 32-bit words, their upper halves are the
// odd elements' floats as they stand, and the lower halves, shifted, the even ones'. A is dealt into even and odd
// beforehand.
//
// The rounding of B is the only one that fp32 does not have. The dot product instructions of AVX-512 BF16 would round A
// as well, and gain nothing where memory is the limit.
//
// An element of C is summed front to back, lane by lane, then over the lanes: the same bits for any number of threads,
// and for a row of C among any number of rows.
#pragma once

#include "rbar/core/bf16.hpp"
#include "rbar/core/parallel.hpp"
#include "rbar/simd/batch.hpp"
#include "rbar/simd/scratch.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace rbar::simd {

namespace detail {

static_assert(std::endian::native == std::endian::little, "the lower half of a pair comes first");

struct DealtRows {};  // A, kept by the calling thread

// Elements of k that one register of B holds.
inline constexpr Index bf16_lanes = 2 * lanes<float>;
// Register block of C: 4 × 4 of 32 registers, 2 × 4 of 16.
inline constexpr Index bf16_rows = register_count / 8, bf16_columns = 4;

struct EvenOdd {
  Batch<float> even, odd;
};
RBAR_INLINE EvenOdd widen(const BFloat16* data) {
  auto pairs = Batch<std::int32_t>::load_unaligned(reinterpret_cast<const std::int32_t*>(data));
  hold(pairs);
  return {from_bits(pairs << 16), from_bits(pairs & Batch<std::int32_t>(static_cast<std::int32_t>(0xffff0000u)))};
}
// The first `count` elements; zeros beyond.
RBAR_INLINE EvenOdd widen_partial(const BFloat16* data, Index count) {
  BFloat16 padded[bf16_lanes] = {};
  std::memcpy(padded, data, sizeof(BFloat16) * static_cast<std::size_t>(count));
  return widen(padded);
}

// dealt[block][even | odd][lane] of one row, the last block filled up with zeros.
inline void deal_row(const float* row, Index depth, float* dealt) {
  for (Index p = 0; p < depth; p += bf16_lanes, dealt += bf16_lanes) {
    const Index pairs = std::min(bf16_lanes, depth - p) / 2;
    if (pairs < lanes<float>) std::fill_n(dealt, bf16_lanes, 0.0f);
    for (Index i = 0; i < pairs; ++i) {
      dealt[i] = row[p + 2 * i];
      dealt[lanes<float> + i] = row[p + 2 * i + 1];
    }
    if (pairs < lanes<float> && (depth - p) % 2 != 0) dealt[pairs] = row[p + 2 * pairs];
  }
}

// C[Rows, Columns] (+)= dealt rows of A times rows of B.
template <Index Rows, Index Columns>
void bf16_block(Index depth, const float* RBAR_RESTRICT a, Index lda, const BFloat16* RBAR_RESTRICT b, Index ldb,
                float* RBAR_RESTRICT c, Index ldc, bool accumulate) {
  Batch<float> sum[Rows][Columns];
  for (Index r = 0; r < Rows; ++r)
    for (Index j = 0; j < Columns; ++j) sum[r][j] = zero<float>();
  const auto multiply = [&](Index p, auto&& load_b) {
    Batch<float> even[Rows], odd[Rows];
    for (Index r = 0; r < Rows; ++r) {
      even[r] = load(a + r * lda + p);
      odd[r] = load(a + r * lda + p + lanes<float>);
      hold(even[r]);
      hold(odd[r]);
    }
    for (Index j = 0; j < Columns; ++j) {
      RBAR_PREFETCH_FAR(b + (Columns + j) * ldb + p);
      const EvenOdd right = load_b(b + j * ldb + p);
      for (Index r = 0; r < Rows; ++r) sum[r][j] = multiply_add(even[r], right.even, sum[r][j]);
      for (Index r = 0; r < Rows; ++r) sum[r][j] = multiply_add(odd[r], right.odd, sum[r][j]);
    }
  };
  Index p = 0;
  for (; p + bf16_lanes <= depth; p += bf16_lanes) multiply(p, [](const BFloat16* data) { return widen(data); });
  if (p < depth) multiply(p, [=](const BFloat16* data) { return widen_partial(data, depth - p); });
  for (Index r = 0; r < Rows; ++r)
    for (Index j = 0; j < Columns; ++j) {
      const float value = reduce_add(sum[r][j]);
      c[r * ldc + j] = accumulate ? c[r * ldc + j] + value : value;
    }
}

template <Index Rows>
void bf16_row_block(Index depth, const float* a, Index lda, const BFloat16* b, Index ldb, float* c, Index ldc,
                    Index rows, Index columns, bool accumulate) {
  for (; rows >= Rows; rows -= Rows, a += Rows * lda, c += Rows * ldc) {
    if (columns == bf16_columns)
      bf16_block<Rows, bf16_columns>(depth, a, lda, b, ldb, c, ldc, accumulate);
    else
      for (Index j = 0; j < columns; ++j) bf16_block<Rows, 1>(depth, a, lda, b + j * ldb, ldb, c + j, ldc, accumulate);
  }
  if constexpr (Rows > 1)
    if (rows > 0) bf16_row_block<Rows / 2>(depth, a, lda, b, ldb, c, ldc, rows, columns, accumulate);
}

}  // namespace detail

// All matrices row-major, ld*: elements from one row to the next. C overlaps neither. NaN and infinity propagate.
inline void bf16_gemm(Index m, Index n, Index k, const float* a, Index lda, const BFloat16* b, Index ldb, float* c,
                      Index ldc, bool accumulate) {
  using namespace detail;
  if (m <= 0 || n <= 0) return;
  if (k <= 0) {
    if (!accumulate)
      for (Index i = 0; i < m; ++i) std::fill_n(c + i * ldc, n, 0.0f);
    return;
  }
  constexpr Index row_block = 64;             // rows of A that stay in the second cache beside a slice of B
  constexpr Index min_work = Index{1} << 18;  // multiply-adds that pay for a hand-over to another thread
  const Index width = (k + bf16_lanes - 1) / bf16_lanes * bf16_lanes;
  float* const dealt = thread_scratch<float, DealtRows>(m * width);
  parallel_for(m, std::max<Index>(1, 65536 / width), [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) deal_row(a + i * lda, k, dealt + i * width);
  });
  const Index slice = std::max<Index>(1, min_work / (std::min(m, row_block) * k) / bf16_columns) * bf16_columns;
  const Index slices = (n + slice - 1) / slice, blocks = (m + row_block - 1) / row_block;
  parallel_for(blocks * slices, 1, [&](Index task, Index) {
    const Index first = task / slices * row_block, rows = std::min(row_block, m - first);
    const Index begin = task % slices * slice, end = std::min(n, begin + slice);
    for (Index j = begin; j < end; j += bf16_columns)
      bf16_row_block<bf16_rows>(k, dealt + first * width, width, b + j * ldb, ldb, c + first * ldc + j, ldc, rows,
                                std::min(bf16_columns, end - j), accumulate);
  });
}

}  // namespace rbar::simd
