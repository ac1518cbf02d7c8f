// Keys and values of the tokens decoded so far.
#pragma once

#include "rbar/attention/heads_view.hpp"
#include "rbar/core/parallel.hpp"
#include "rbar/core/tensor.hpp"

#include <algorithm>
#include <utility>

namespace rbar {

// The sequences of a batch may hold different numbers of tokens (a router's keys); each has room for `capacity` behind
// one another. A head's keys lie side by side, as the one query that comes reads them: among other heads' every key is
// a jump, which neither caches nor prefetchers like. limit = 0 grows as needed; otherwise one token more is an Error.
template <class T>
struct KeyValueCache {
  Tensor<T, 4> keys, values;   // [batch, heads, capacity, head_dim]
  Tensor<Index, 2> positions;  // [batch, capacity], absolute
  Tensor<Index, 1> lengths;    // [batch]
  Index limit = 0;

  Index batch() const { return keys.dimension(0); }
  Index heads() const { return keys.dimension(1); }
  Index capacity() const { return keys.dimension(2); }
  Index head_dim() const { return keys.dimension(3); }

  // Room for `additional` tokens more in every sequence. The first call fixes batch, heads and head_dim.
  void reserve(Index batch_size, Index head_count, Index dim, Index additional) {
    if (keys.size() == 0) {
      ensure_shape(lengths, {batch_size});
      lengths.setZero();
    }
    require(keys.size() == 0 || batch_size == batch(), "KeyValueCache", "sequences", batch(), batch_size);
    Index needed = additional;
    for (const Index length : elements(lengths)) needed = std::max(needed, length + additional);
    if (limit > 0 && needed > limit) [[unlikely]]
      throw Error("KeyValueCache", "tokens", "at most " + std::to_string(limit), std::to_string(needed));
    if (needed <= capacity()) return;
    Index grown = std::max<Index>({needed, 2 * capacity(), 64});
    if (limit > 0) grown = std::min(grown, limit);
    regrow(keys, {batch_size, head_count, grown, dim});
    regrow(values, {batch_size, head_count, grown, dim});
    Tensor<Index, 2> old = positions;
    ensure_shape(positions, {batch_size, grown});
    for (Index b = 0; b < old.dimension(0); ++b) std::copy_n(&old(b, 0), lengths(b), &positions(b, 0));
  }

  // The same for sequence b alone, which may be shorter than others; `reserve` came first.
  void reserve_in(Index b, Index additional) {
    Index longest = 0;
    for (const Index length : elements(lengths)) longest = std::max(longest, length);
    reserve(batch(), heads(), head_dim(), std::max<Index>(0, lengths(b) + additional - longest));
  }

  // Adds tokens to sequence b, rows [count, heads·head_dim] at position_of(row); room was reserved.
  void append(Index b, ConstMatrixView<T> key_rows, ConstMatrixView<T> value_rows, auto&& position_of) {
    const Index first = lengths(b), dim = head_dim(), width = heads() * dim;
    parallel_for(key_rows.rows(), std::max<Index>(1, 32768 / std::max<Index>(1, width)), [&](Index begin, Index end) {
      for (Index row = begin; row < end; ++row) {
        positions(b, first + row) = position_of(row);
        for (Index h = 0; h < heads(); ++h) {
          std::copy_n(key_rows.data() + row * width + h * dim, dim, &keys(b, h, first + row, 0));
          std::copy_n(value_rows.data() + row * width + h * dim, dim, &values(b, h, first + row, 0));
        }
      }
    });
    lengths(b) += key_rows.rows();
  }

  HeadsView<const T> key_view() const { return view_of(keys); }
  HeadsView<const T> value_view() const { return view_of(values); }

 private:
  void regrow(Tensor<T, 4>& tensor, const Shape<4>& shape) const {
    Tensor<T, 4> larger;
    ensure_shape(larger, shape);
    for (Index b = 0; b < tensor.dimension(0); ++b)
      for (Index h = 0; h < tensor.dimension(1); ++h)
        std::copy_n(&tensor(b, h, 0, 0), lengths(b) * tensor.dimension(3), &larger(b, h, 0, 0));
    tensor = std::move(larger);
  }
  HeadsView<const T> view_of(const Tensor<T, 4>& tensor) const {
    HeadsView<const T> view = heads_view(tensor.data(), batch(), capacity(), heads(), head_dim(), head_dim());
    view.head_stride = capacity() * head_dim();
    view.sequence_stride = heads() * view.head_stride;
    view.row_counts = lengths.data();
    return view;
  }
};

}  // namespace rbar
