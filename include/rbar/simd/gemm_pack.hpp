// Packing for the blocked matrix product: a panel holds `Width` rows (of A) or columns (of Bᵀ) for a
// range of the inner dimension, inner index outermost: panel[p·Width + i]. The micro-kernel then
// reads both operands front to back.
#pragma once

#include "rbar/simd/batch.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace rbar::simd {

namespace detail {

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

// The lower and the upper half of a register to two places.
template <class T>
RBAR_INLINE void store_halves(T* low, T* high, const Batch<T>& value) {
#if defined(__AVX512F__)
  store_partial(low, value, lanes<T> / 2);
  if constexpr (std::is_same_v<T, float>)
    _mm512_mask_storeu_ps(high - lanes<T> / 2, 0xff00, value);
  else
    _mm512_mask_storeu_pd(high - lanes<T> / 2, 0xf0, value);
#else
  alignas(64) T buffer[lanes<T>];
  value.store_aligned(buffer);
  std::memcpy(low, buffer, sizeof(buffer) / 2);
  std::memcpy(high, buffer + lanes<T> / 2, sizeof(buffer) / 2);
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

// panel[p·Width + i] = source[i·stride + p] for i < Group, p < depth; the last of `count` rows stands in for
// missing ones. One register holds Group rows, for one inner index or for two that are block_lanes apart.
template <Index Group, Index Width, class T>
void pack_group_transposed(const T* source, Index stride, Index count, Index depth, T* panel) {
  constexpr Index side = block_lanes<T>, halves = lanes<T> / Group, down = blocks<T> / halves;
  static_assert(Group * halves == lanes<T> && (halves == 1 || halves == 2));
  Index p = 0;
  const auto pack = [&](auto offset) {
    for (; p + side * halves <= depth; p += side * halves) {
      // Short pieces of many rows: the hardware does not see the next group of rows coming.
      const Index ahead = Group + p / (side * halves) % (Group / side) * side;
      Batch<T> v[side];
      RBAR_UNROLL
      for (Index t = 0; t < side; ++t) {
        RBAR_PREFETCH_FAR(source + (ahead + t) * stride + p);
        v[t] = load_blocks<T>([&](Index i) { return source + offset(t + i % down * side) + p + i / down * side; });
      }
      transpose_blocks(v);
      RBAR_UNROLL
      for (Index t = 0; t < side; ++t)
        if constexpr (halves == 1)
          store(panel + (p + t) * Width, v[t]);
        else
          store_halves(panel + (p + t) * Width, panel + (p + t + side) * Width, v[t]);
    }
  };
  const auto clamped = [=](Index i) { return (i < count ? i : count - 1) * stride; };
  if (count >= Group)
    pack([=](Index i) { return i * stride; });
  else
    pack(clamped);
  for (; p < depth; ++p)
    for (Index i = 0; i < Group; ++i) panel[p * Width + i] = source[clamped(i) + p];
}

// Writes whole registers where that many elements are there to be read.
template <class T>
RBAR_INLINE void copy_some(T* to, const T* from, Index count) {
  if (count == lanes<T>)
    store(to, load(from));
  else
    store_partial(to, load_partial(from, count), count);
}

}  // namespace detail

// Packs `count` rows (of A, or columns of B) over `depth` inner indices into consecutive panels of
// Width·depth elements; what stands there beyond `count` reaches no result. The source is stored with the inner index
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
  // A few inner indices at a time: whole cache lines of the source, and longer runs for each panel. Rows lie far apart,
  // and the hardware does not see the next one coming.
  constexpr Index block = 8, ahead = 24, line = 64 / static_cast<Index>(sizeof(T));
  for (Index p = 0; p < depth; p += block) {
    const Index end = p + block < depth ? p + block : depth;
    for (Index q = p; q < end; ++q)
      for (Index i = 0; i < count; i += line) RBAR_PREFETCH_FAR(source + (q + ahead) * stride + i);
    for (Index panel = 0; panel < count; panel += Width) {
      const T* from = source + panel;
      T* to = packed + panel * depth;
      const Index columns = std::min(Width, count - panel);
      for (Index q = p; q < end; ++q)
        if (columns == Width)
          std::memcpy(to + q * Width, from + q * stride, sizeof(T) * static_cast<std::size_t>(Width));
        else
          for (Index i = 0; i < columns; i += lanes<T>)
            detail::copy_some(to + q * Width + i, from + q * stride + i, std::min(lanes<T>, columns - i));
    }
  }
}

}  // namespace rbar::simd
