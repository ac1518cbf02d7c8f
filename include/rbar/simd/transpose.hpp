// Transposing copies between rows in memory and tiles whose lanes are rows.
#pragma once

#include "rbar/simd/batch.hpp"

#include <algorithm>
#include <array>
#include <type_traits>

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

// Elements of T in a block of 128 bits. Registers are filled block by block, straight from memory, so
// that a transpose needs no shuffle across blocks: those are the slow ones.
template <class T>
inline constexpr Index block_lanes = 16 / static_cast<Index>(sizeof(T));
template <class T>
inline constexpr Index blocks = lanes<T> / block_lanes<T>;

// Block i of the result is read from address(i).
template <class T, class Address>
RBAR_INLINE Batch<T> load_blocks(const Address& address) {
#if defined(__AVX512F__)
  const auto block = [&](Index i) { return _mm_loadu_ps(reinterpret_cast<const float*>(address(i))); };
  __m512 value = _mm512_castps128_ps512(block(0));
  value = _mm512_insertf32x4(value, block(1), 1);
  value = _mm512_insertf32x4(value, block(2), 2);
  value = _mm512_insertf32x4(value, block(3), 3);
  if constexpr (std::is_same_v<T, float>)
    return Batch<T>(value);
  else
    return Batch<T>(_mm512_castps_pd(value));
#elif defined(__AVX__)
  if constexpr (std::is_same_v<T, float>)
    return Batch<T>(
        _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(address(0))), _mm_loadu_ps(address(1)), 1));
  else
    return Batch<T>(
        _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(address(0))), _mm_loadu_pd(address(1)), 1));
#else
  return load(address(0));
#endif
}

// In each block: a0 b0 a1 b1 ... of the lower (upper) halves of a's and b's block. xsimd's zip means this
// on registers of one block; on longer ones its versions differ.
template <bool Upper, class T>
RBAR_INLINE Batch<T> interleave(const Batch<T>& a, const Batch<T>& b) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>)
    return Batch<T>(Upper ? _mm512_unpackhi_ps(a, b) : _mm512_unpacklo_ps(a, b));
  else
    return Batch<T>(Upper ? _mm512_unpackhi_pd(a, b) : _mm512_unpacklo_pd(a, b));
#elif defined(__AVX__)
  if constexpr (std::is_same_v<T, float>)
    return Batch<T>(Upper ? _mm256_unpackhi_ps(a, b) : _mm256_unpacklo_ps(a, b));
  else
    return Batch<T>(Upper ? _mm256_unpackhi_pd(a, b) : _mm256_unpacklo_pd(a, b));
#else
  if constexpr (Upper)
    return xsimd::zip_hi(a, b);
  else
    return xsimd::zip_lo(a, b);
#endif
}

// Transposes in each block the square matrix whose rows are v[0], v[1], ... One round of interleaving v[i]
// with v[i + Count/2] rotates the address bits (row, lane) by one, so log2(Count) rounds exchange them.
template <Index Count, class T>
RBAR_INLINE void transpose_blocks(Batch<T> (&v)[Count]) {
  static_assert(Count == block_lanes<T>);
  RBAR_UNROLL
  for (Index width = 1; width < Count; width *= 2) {
    Batch<T> w[Count];
    RBAR_UNROLL
    for (Index i = 0; i < Count / 2; ++i) {
      w[2 * i] = interleave<false>(v[i], v[i + Count / 2]);
      w[2 * i + 1] = interleave<true>(v[i], v[i + Count / 2]);
    }
    RBAR_UNROLL
    for (Index i = 0; i < Count; ++i) v[i] = w[i];
  }
}

// The square of lanes × lanes elements whose row j begins at row(j): take(i, column i), a register.
template <class T, class Row, class Take>
RBAR_INLINE void transpose_square(const Row& row, const Take& take) {
  constexpr Index side = block_lanes<T>;
  RBAR_UNROLL
  for (Index i = 0; i < lanes<T>; i += side) {
    Batch<T> v[side];
    RBAR_UNROLL
    for (Index t = 0; t < side; ++t) v[t] = load_blocks<T>([&](Index block) { return row(t + block * side) + i; });
    transpose_blocks(v);
    RBAR_UNROLL
    for (Index t = 0; t < side; ++t) take(i + t, v[t]);
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
  const T* rows[width];  // where a row lies may take longer to find than to read
  for (Index r = 0; r < count; ++r) rows[r] = row(r);
  alignas(64) T square[width * width];
  if (count < width) std::fill(square + count * width, square + width * width, T(0));
  for (Index c = 0; c < columns; c += width) {
    const Index length = std::min(columns - c, width);
    const auto write = [&](Index i, const Batch<T>& v) {
      if (i < length) store(to + (c + i) * to_stride, v * factor);
    };
    if (count == width && length == width) {
      detail::transpose_square<T>([&](Index r) { return rows[r] + c; }, write);
      continue;
    }
    for (Index r = 0; r < count; ++r)
      store(square + r * width, length == width ? load(rows[r] + c) : load_partial(rows[r] + c, length));
    detail::transpose_square<T>([&](Index r) { return square + r * width; }, write);
  }
}

// The way back, times a factor for every row: row(r)[c] = from[c·from_stride + r]·scale[r].
template <class T, class Row>
void lanes_to_rows(const T* from, Index from_stride, const T* scale, Row&& row /*(r) -> T* */, Index count,
                   Index columns) {
  constexpr Index width = lanes<T>;
  T* rows[width];
  for (Index r = 0; r < count; ++r) rows[r] = row(r);
  for (Index c = 0; c < columns; c += width) {
    const Index length = std::min(columns - c, width);
    const auto write = [&](Index r, const Batch<T>& v) {
      if (r >= count) return;
      if (length == width)
        store(rows[r] + c, v * broadcast(scale[r]));
      else
        store_partial(rows[r] + c, v * broadcast(scale[r]), length);
    };
    // The last column stands in for missing ones.
    detail::transpose_square<T>([&](Index i) { return from + (c + std::min(i, length - 1)) * from_stride; }, write);
  }
}

}  // namespace rbar::simd
