// Transposing copies between rows in memory and tiles whose lanes are rows.
#pragma once

#include "rbar/simd/batch.hpp"

#include <array>

namespace rbar::simd {

namespace detail {

// a0 b0 a1 b1 ... : the lower (upper) halves of a and b interleaved over the whole register. xsimd 8.1 does that within
// 128 bits only.
template <bool Upper, class T>
RBAR_INLINE Batch<T> zip_registers(const Batch<T>& a, const Batch<T>& b) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    const __m512i pick = _mm512_add_epi32(_mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0),
                                          _mm512_set1_epi32(Upper ? 8 : 0));
    return Batch<T>(_mm512_permutex2var_ps(a, pick, b));
  } else {
    const __m512i pick = _mm512_add_epi64(_mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0), _mm512_set1_epi64(Upper ? 4 : 0));
    return Batch<T>(_mm512_permutex2var_pd(a, pick, b));
  }
#elif defined(__AVX__)
  if constexpr (std::is_same_v<T, float>) {
    const __m256 low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
    return Batch<T>(_mm256_permute2f128_ps(low, high, Upper ? 0x31 : 0x20));
  } else {
    const __m256d low = _mm256_unpacklo_pd(a, b), high = _mm256_unpackhi_pd(a, b);
    return Batch<T>(_mm256_permute2f128_pd(low, high, Upper ? 0x31 : 0x20));
  }
#else
  if constexpr (Upper)
    return xsimd::zip_hi(a, b);
  else
    return xsimd::zip_lo(a, b);
#endif
}

// Transposes the square whose rows are v[0], v[1], ... One round of interleaving v[i] with v[i + lanes/2] rotates the
// address bits (row, lane) by one, so log2(lanes) rounds exchange the two.
template <class T>
RBAR_INLINE void transpose_square(Batch<T> (&v)[lanes<T>]) {
  constexpr Index size = lanes<T>;
  RBAR_UNROLL
  for (Index width = 1; width < size; width *= 2) {
    Batch<T> w[size];
    RBAR_UNROLL
    for (Index i = 0; i < size / 2; ++i) {
      w[2 * i] = zip_registers<false>(v[i], v[i + size / 2]);
      w[2 * i + 1] = zip_registers<true>(v[i], v[i + size / 2]);
    }
    RBAR_UNROLL
    for (Index i = 0; i < size; ++i) v[i] = w[i];
  }
}

}  // namespace detail

// One factor 1 a lane.
template <class T>
inline constexpr auto unscaled = [] {
  std::array<T, static_cast<std::size_t>(lanes<T>)> ones{};
  ones.fill(T(1));
  return ones;
}();

// to[c·to_stride + r] = row(r)[c]·scale[r], r < count ≤ lanes: rows of `columns` elements become lanes. The lanes from
// count on become 0.
template <class T, class Row>
void rows_to_lanes(Row&& row /*(r) -> const T* */, Index count, Index columns, const T* scale, T* to, Index to_stride) {
  constexpr Index width = lanes<T>;
  const auto factor = load(scale);
  for (Index c = 0; c < columns; c += width) {
    const Index length = columns - c < width ? columns - c : width;
    Batch<T> v[width];
    if (count == width && length == width) {
      RBAR_UNROLL
      for (Index r = 0; r < width; ++r) v[r] = load(row(r) + c);
      detail::transpose_square(v);
      RBAR_UNROLL
      for (Index i = 0; i < width; ++i) store(to + (c + i) * to_stride, v[i] * factor);
      continue;
    }
    RBAR_UNROLL
    for (Index r = 0; r < width; ++r) {
      v[r] = zero<T>();
      if (r < count) v[r] = length == width ? load(row(r) + c) : load_partial(row(r) + c, length);
    }
    detail::transpose_square(v);
    for (Index i = 0; i < length; ++i) store(to + (c + i) * to_stride, v[i] * factor);
  }
}

// The way back, times a factor for every row: row(r)[c] = from[c·from_stride + r]·scale[r].
template <class T, class Row>
void lanes_to_rows(const T* from, Index from_stride, const T* scale, Row&& row /*(r) -> T* */, Index count,
                   Index columns) {
  constexpr Index width = lanes<T>;
  const auto factor = load(scale);
  for (Index c = 0; c < columns; c += width) {
    const Index length = columns - c < width ? columns - c : width;
    Batch<T> v[width];
    RBAR_UNROLL
    for (Index i = 0; i < width; ++i) {
      v[i] = zero<T>();
      if (i < length) v[i] = load(from + (c + i) * from_stride) * factor;
    }
    detail::transpose_square(v);
    for (Index r = 0; r < count; ++r) {
      if (length == width)
        store(row(r) + c, v[r]);
      else
        store_partial(row(r) + c, v[r], length);
    }
  }
}

}  // namespace rbar::simd
