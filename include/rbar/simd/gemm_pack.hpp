// Packing for the blocked matrix product: a panel holds `Width` rows (of A) or columns (of Bᵀ) for a
// range of the inner dimension, inner index outermost: panel[p·Width + i]. The micro-kernel then
// reads both operands front to back.
#pragma once

#include "rbar/simd/batch.hpp"
#include "rbar/simd/transpose.hpp"

#include <algorithm>
#include <cstring>

namespace rbar::simd {

namespace detail {

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
