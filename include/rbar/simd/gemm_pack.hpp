// Packing for the blocked matrix product: a panel holds `Width` rows (of A) or columns (of Bᵀ) for a
// range of the inner dimension, inner index outermost: panel[p·Width + i]. The micro-kernel then
// reads both operands front to back.
#pragma once

#include "rbar/simd/batch.hpp"

#include <bit>
#include <cstring>

namespace rbar::simd {

namespace detail {

// a0 b0 a1 b1 ... : the lower (upper) halves of a and b interleaved over the whole register.
// xsimd 8.1 interleaves AVX and AVX-512 registers only within 128 bits.
template <bool Upper, class T>
RBAR_INLINE Batch<T> interleave(const Batch<T>& a, const Batch<T>& b) {
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

// Turns `Count` vectors holding rows of a [Count, lanes] matrix into the memory image of its
// transpose [lanes, Count]. One round of interleaving v[i] with v[i + Count/2] rotates the address
// bits (row, lane) by one, so log2(Count) rounds move the row bits behind the lane bits.
template <Index Count, class T>
RBAR_INLINE void transpose(Batch<T> (&v)[Count]) {
  static_assert(std::has_single_bit(static_cast<std::size_t>(Count)));
  for (Index width = 1; width < Count; width *= 2) {
    Batch<T> w[Count];
    for (Index i = 0; i < Count / 2; ++i) {
      w[2 * i] = interleave<false>(v[i], v[i + Count / 2]);
      w[2 * i + 1] = interleave<true>(v[i], v[i + Count / 2]);
    }
    for (Index i = 0; i < Count; ++i) v[i] = w[i];
  }
}

// panel[p·Width + i] = source[i·stride + p] for i < Group, p < depth; rows at and after `count` are zero.
template <Index Group, Index Width, class T>
void pack_group_transposed(const T* source, Index stride, Index count, Index depth, T* panel) {
  constexpr Index per_vector = Group < lanes<T> ? lanes<T> / Group : 1;  // inner indices in one output vector
  static_assert(Group <= lanes<T> && (per_vector == 1 || Group == Width));
  for (Index p = 0; p < depth; p += lanes<T>) {
    const Index length = depth - p < lanes<T> ? depth - p : lanes<T>;
    Batch<T> v[Group];
    for (Index i = 0; i < Group; ++i) {
      v[i] = zero<T>();
      if (i < count)
        v[i] = length == lanes<T> ? load(source + i * stride + p) : load_partial(source + i * stride + p, length);
    }
    transpose(v);
    for (Index i = 0; i < Group; ++i) {
      const Index left = length - i * per_vector;
      if (left >= per_vector)
        store(panel + (p + i * per_vector) * Width, v[i]);
      else if (left > 0)
        store_partial(panel + (p + i * per_vector) * Width, v[i], left * Group);
    }
  }
}

}  // namespace detail

// Packs `count` rows (of A, or columns of B) over `depth` inner indices into consecutive panels of
// Width·depth elements, the last one filled up with zeros. The source is stored with the inner index
// contiguous (`transposing`: source[i·stride + p]) or the rows (source[p·stride + i]).
template <Index Width, class T>
void pack_panels(bool transposing, const T* source, Index stride, Index count, Index depth, T* packed) {
  if (transposing) {
    constexpr Index group = Width < lanes<T> ? Width : lanes<T>;
    static_assert(Width % group == 0);
    for (Index panel = 0; panel < count; panel += Width, packed += Width * depth)
      for (Index i = 0; i < Width && panel + i < count; i += group)  // the kernel never reads a group without rows
        detail::pack_group_transposed<group, Width>(source + (panel + i) * stride, stride, count - panel - i, depth,
                                                    packed + i);
    return;
  }
  // A few inner indices at a time: whole cache lines of the source, and longer runs for each panel.
  constexpr Index block = 8;
  for (Index p = 0; p < depth; p += block) {
    const Index end = p + block < depth ? p + block : depth;
    for (Index panel = 0; panel < count; panel += Width) {
      const T* from = source + panel;
      T* to = packed + panel * depth;
      if (count - panel >= Width)
        for (Index q = p; q < end; ++q)
          std::memcpy(to + q * Width, from + q * stride, sizeof(T) * static_cast<std::size_t>(Width));
      else
        for (Index q = p; q < end; ++q)
          for (Index i = 0; i < Width; ++i) to[q * Width + i] = panel + i < count ? from[q * stride + i] : T(0);
    }
  }
}

}  // namespace rbar::simd
