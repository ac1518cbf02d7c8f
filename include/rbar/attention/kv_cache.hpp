// Keys and values of the tokens decoded so far.
#pragma once

#include "rbar/attention/heads_view.hpp"
#include "rbar/core/tensor.hpp"

#include <algorithm>
#include <utility>

namespace rbar {

// The sequences of a batch may hold different numbers of tokens (a router's keys); each has room for
// `capacity` behind one another. limit = 0 grows as needed; otherwise one token more is an Error.
template <class T>
struct KeyValueCache {
  Tensor<T, 3> keys, values;   // [batch, capacity, heads·head_dim]
  Tensor<Index, 2> positions;  // [batch, capacity], absolute
  Tensor<Index, 1> lengths;    // [batch]
  Index limit = 0;

  Index batch() const { return keys.dimension(0); }
  Index capacity() const { return keys.dimension(1); }

  // Room for `additional` tokens more in every sequence. The first call fixes batch and width.
  void reserve(Index batch_size, Index width, Index additional) {
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
    regrow(keys, batch_size, grown, width);
    regrow(values, batch_size, grown, width);
    Tensor<Index, 2> old = positions;
    ensure_shape(positions, {batch_size, grown});
    for (Index b = 0; b < old.dimension(0); ++b) std::copy_n(&old(b, 0), lengths(b), &positions(b, 0));
  }

  // The same for sequence b alone, which may be shorter than others; `reserve` came first.
  void reserve_in(Index b, Index additional) {
    Index longest = 0;
    for (const Index length : elements(lengths)) longest = std::max(longest, length);
    reserve(batch(), keys.dimension(2), std::max<Index>(0, lengths(b) + additional - longest));
  }

  // Adds one token to sequence b; room was reserved.
  void append(Index b, const T* key, const T* value, Index position) {
    const Index length = lengths(b)++;
    std::copy_n(key, keys.dimension(2), &keys(b, length, 0));
    std::copy_n(value, values.dimension(2), &values(b, length, 0));
    positions(b, length) = position;
  }

  HeadsView<const T> key_view(Index heads) const { return view_of(keys, heads); }
  HeadsView<const T> value_view(Index heads) const { return view_of(values, heads); }

 private:
  void regrow(Tensor<T, 3>& tensor, Index batch_size, Index grown, Index width) const {
    Tensor<T, 3> larger(batch_size, grown, width);
    for (Index b = 0; b < tensor.dimension(0); ++b) std::copy_n(&tensor(b, 0, 0), lengths(b) * width, &larger(b, 0, 0));
    tensor = std::move(larger);
  }
  HeadsView<const T> view_of(const Tensor<T, 3>& tensor, Index heads) const {
    HeadsView<const T> view = heads_view(tensor, heads);
    view.row_counts = lengths.data();
    return view;
  }
};

}  // namespace rbar
