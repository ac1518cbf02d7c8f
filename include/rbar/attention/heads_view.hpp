// Queries, keys and values as the attention engine sees them: [batch, tokens, heads, dim] with any
// strides, dense or ragged, so that a projection's output, a KV cache or a gathered subset of rows is
// used where it lies.
#pragma once

#include "rbar/core/tensor.hpp"

#include <algorithm>
#include <type_traits>

namespace rbar {

// Element (b, t, h, d) lies at data + start(b) + t·token_stride + h·head_stride + d, strides in elements.
template <class T>
struct HeadsView {
  T* data = nullptr;
  Index batch = 0;
  Index heads = 0;
  Index tokens = 0;  // of every sequence; with row_offsets: of the longest at least
  Index dim = 0;
  Index token_stride = 0;
  Index head_stride = 0;
  // Ragged: sequence b is rows [row_offsets[b], row_offsets[b+1]), or the first row_counts[b] of them
  // where row_counts is given (a cache with spare room behind each sequence).
  const Index* row_offsets = nullptr;
  const Index* row_counts = nullptr;
  Index sequence_stride = 0;  // dense: from one sequence to the next; 0 stands for tokens·token_stride

  Index count(Index b) const {
    if (row_counts) return row_counts[b];
    return row_offsets ? row_offsets[b + 1] - row_offsets[b] : tokens;
  }
  // Number of the sequence's first row: what per-row arrays (positions, log_sum_exp) are indexed by.
  Index first_row(Index b) const { return row_offsets ? row_offsets[b] : b * tokens; }
  T* at(Index b, Index h, Index t) const {
    const Index sequence = sequence_stride != 0 ? sequence_stride : tokens * token_stride;
    return data + (row_offsets ? row_offsets[b] * token_stride : b * sequence) + t * token_stride + h * head_stride;
  }

  operator HeadsView<const T>() const requires(!std::is_const_v<T>) {
    return {data, batch, heads, tokens, dim, token_stride, head_stride, row_offsets, row_counts, sequence_stride};
  }
};

// [batch, tokens, heads, dim] in plain order; a larger token_stride picks columns out of wider rows.
template <class T>
HeadsView<T> heads_view(T* data, Index batch, Index tokens, Index heads, Index dim, Index token_stride = 0) {
  return {data, batch, heads, tokens, dim, token_stride > 0 ? token_stride : heads * dim, dim};
}

// [batch, tokens, heads·dim], the output of a projection.
template <class T>
HeadsView<T> heads_view(Tensor<T, 3>& x, Index heads) {
  require(heads > 0 && x.dimension(2) % heads == 0, "heads_view", "heads", "a divisor of the features", heads);
  return heads_view(x.data(), x.dimension(0), x.dimension(1), heads, x.dimension(2) / heads);
}
template <class T>
HeadsView<const T> heads_view(const Tensor<T, 3>& x, Index heads) {
  require(heads > 0 && x.dimension(2) % heads == 0, "heads_view", "heads", "a divisor of the features", heads);
  return heads_view(x.data(), x.dimension(0), x.dimension(1), heads, x.dimension(2) / heads);
}
template <class T>
HeadsView<const T> heads_view(const ConstTensorView<T, 3>& x, Index heads) {
  require(heads > 0 && x.dimension(2) % heads == 0, "heads_view", "heads", "a divisor of the features", heads);
  return heads_view(x.data(), x.dimension(0), x.dimension(1), heads, x.dimension(2) / heads);
}

// Rows [row_offsets[b], row_offsets[b+1]) of [rows, heads·dim] are sequence b.
template <class T>
HeadsView<T> ragged_heads_view(T* data, Index batch, const Index* row_offsets, Index heads, Index dim,
                               Index token_stride = 0) {
  HeadsView<T> view = heads_view(data, batch, 0, heads, dim, token_stride);
  view.row_offsets = row_offsets;
  for (Index b = 0; b < batch; ++b) view.tokens = std::max(view.tokens, view.count(b));
  return view;
}

}  // namespace rbar
