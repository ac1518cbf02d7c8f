// K and V as the forward pass of the attention engine reads them.
#pragma once

#include "rbar/attention/engine_tile.hpp"

#include <algorithm>

namespace rbar::detail {

// K and V of one (batch, head): where they lie, or copied together, each tile of keys when it is first visited. Its
// rows were asked for while the tile before it was multiplied, which hides how far away they were.
template <class T>
struct KeyRows {
  RowBlock<const T> keys, values;

  void set(const HeadsView<const T>& key, const HeadsView<const T>& value, Index batch, Index head, Index tile_keys_) {
    keys = {key, batch, head};
    values = {value, batch, head};
    copied = nullptr;
    set_sizes(key, value, batch, tile_keys_);
  }
  // Copies go to `scratch`, `size` elements.
  void set_copies(const HeadsView<const T>& key, const HeadsView<const T>& value, Index batch, Index head,
                  Index tile_keys_, T* scratch) {
    source_keys = {key, batch, head};
    source_values = {value, batch, head};
    set_sizes(key, value, batch, tile_keys_);
    key_copies = {scratch, padded<T>(key.dim), 0};
    value_copies = {scratch + key.tokens * key_copies.stride, padded<T>(value.dim), 0};
    keys = {key_copies.data, key_copies.stride, 0};
    values = {value_copies.data, value_copies.stride, 0};
    const Index tiles = (count + tile_keys - 1) / tile_keys;
    copied = simd::thread_scratch<bool, RowCopies>(key.tokens / tile_keys + 2);
    std::fill_n(copied, tiles, false);
    copied[tiles] = true;  // there is none
  }
  static Index size(const HeadsView<const T>& key, const HeadsView<const T>& value) {
    return key.tokens * (padded<T>(key.dim) + padded<T>(value.dim));
  }

  // To be called before the tile of keys in which key `first` is gets read.
  void bring(Index first) {
    if (!copied || copied[first / tile_keys]) return;
    copied[first / tile_keys] = true;
    const Index begin = first / tile_keys * tile_keys, end = std::min(begin + tile_keys, count);
    for (Index j = begin; j < end; ++j) {
      std::copy_n(source_keys.at(j), key_dim, key_copies.at(j));
      std::copy_n(source_values.at(j), value_dim, value_copies.at(j));
    }
  }

  // Whether to ask for the tile after that of key `first`: it is still to be copied, or lies far away.
  bool fetches_next(Index first) const { return brings_next(first) || far; }
  // Asks for its rows that are one tile behind [begin, begin + rows). Not inlined: registers are short where it is
  // called.
  RBAR_NOINLINE void fetch_next(Index begin, Index rows) const {
    const bool brings = brings_next(begin);
    const RowBlock<const T>&from_keys = brings ? source_keys : keys, &from_values = brings ? source_values : values;
    for (Index j = begin + tile_keys; j < std::min(begin + tile_keys + rows, count); ++j) {
      fetch_row(from_keys.at(j), key_dim);
      fetch_row(from_values.at(j), value_dim);
    }
#if defined(__GNUC__)
    asm volatile("");  // GCC 12 leaves out the call of a function that does nothing but prefetch
#endif
  }

 private:
  bool brings_next(Index first) const { return copied && !copied[first / tile_keys + 1]; }
  void set_sizes(const HeadsView<const T>& key, const HeadsView<const T>& value, Index batch, Index tile_keys_) {
    key_dim = key.dim;
    value_dim = value.dim;
    tile_keys = tile_keys_;
    count = key.count(batch);
    far = count * (key_dim + value_dim) * static_cast<Index>(sizeof(T)) > far_bytes;
  }

  // What no second cache holds between two visits; the hardware looks ahead within a page only.
  static constexpr Index far_bytes = Index{2} << 20;

  RowBlock<const T> source_keys, source_values;
  RowBlock<T> key_copies, value_copies;
  Index key_dim, value_dim, tile_keys, count;
  bool far = false;
  bool* copied = nullptr;  // for every tile of keys
};

}  // namespace rbar::detail
