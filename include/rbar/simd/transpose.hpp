// Transposing copies between rows in memory and tiles whose lanes are rows.
#pragma once

#include "rbar/simd/gemm_pack.hpp"

namespace rbar::simd {

// to[c·to_stride + r] = row(r)[c]·scale[r], r < count ≤ lanes: rows of `columns` elements become lanes. The lanes from
// count on become 0.
template <class T, class Row>
void rows_to_lanes(Row&& row /*(r) -> const T* */, Index count, Index columns, const T* scale, T* to, Index to_stride) {
  constexpr Index width = lanes<T>;
  const auto factor = load(scale);
  for (Index c = 0; c < columns; c += width) {
    const Index length = columns - c < width ? columns - c : width;
    Batch<T> v[width];
    for (Index r = 0; r < width; ++r) {
      v[r] = zero<T>();
      if (r < count) v[r] = length == width ? load(row(r) + c) : load_partial(row(r) + c, length);
    }
    detail::transpose(v);
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
    for (Index i = 0; i < width; ++i) {
      v[i] = zero<T>();
      if (i < length) v[i] = load(from + (c + i) * from_stride) * factor;
    }
    detail::transpose(v);
    for (Index r = 0; r < count; ++r) {
      if (length == width)
        store(row(r) + c, v[r]);
      else
        store_partial(row(r) + c, v[r], length);
    }
  }
}

}  // namespace rbar::simd
