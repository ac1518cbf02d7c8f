// Bundles of similar keys of one sequence and one K/V head, in the order in which the keys come.
//
// A key joins the nearest of a few groups; one that lies further from all of them than keys usually lie from their
// nearest neighbour founds a group of its own (the leader algorithm: Hartigan, "Clustering Algorithms", 1975). A group
// fills blocks of `block` slots one after another, so that the blocks hold similar keys although neighbours in the
// sequence may differ. Nothing is ever moved: what was known when n keys had come is a prefix of every block, and
// seek(n) measures exactly that,
//
//   c = mean k_j     r = max ‖k_j − c‖     s = mean ‖k_j − c‖²     over the keys j < n of the block,
//
// from the same slots in the same order whichever keys came after. All positions are relative to `origin`, the mean of
// the first keys: a common offset would cost the distances their digits.
#pragma once

#include "rbar/sheaf/sparsity.hpp"
#include "rbar/simd/batch.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace rbar {

// What the bounds need of `count` blocks. Block b holds 2^log2_keys[b] keys.
template <class T>
struct BlockBalls {
  Index count = 0, dim = 0;
  Index capacity = 0;                     // keys in a block at most
  const T* center = nullptr;              // c, relative to the origin [count][dim]
  const T* center_square_norm = nullptr;  // ‖c‖²
  const T* radius = nullptr;              // r
  const T* spread = nullptr;              // s
  const T* log2_keys = nullptr;
};

namespace detail {

// Σ_d (a_d − b_d − c_d)²
template <class T>
RBAR_INLINE T square_distance(const T* a, const T* b, const T* c, Index dim) {
  constexpr Index L = simd::lanes<T>;
  auto even = simd::zero<T>(), odd = simd::zero<T>();
  Index d = 0;
  for (; d + 2 * L <= dim; d += 2 * L) {
    const auto x = simd::load(a + d) - simd::load(b + d) - simd::load(c + d);
    const auto y = simd::load(a + d + L) - simd::load(b + d + L) - simd::load(c + d + L);
    even = simd::multiply_add(x, x, even);
    odd = simd::multiply_add(y, y, odd);
  }
  for (; d < dim; d += L) {
    const Index n = std::min(L, dim - d);
    const auto x = simd::load_partial(a + d, n) - simd::load_partial(b + d, n) - simd::load_partial(c + d, n);
    even = simd::multiply_add(x, x, even);
  }
  return simd::reduce_add(even + odd);
}

}  // namespace detail

template <class T>
struct KeyBlocks {
  // Groups: at most this many once n keys have come. Early on there are few, so that few blocks stay nearly empty.
  static Index max_groups(const SparsityConfig& config, Index keys) {
    return std::min(config.clusters, 16 + keys / 16);
  }
  // Blocks: full ones and one in the making for every group.
  static Index max_blocks(const SparsityConfig& config, Index keys) {
    return keys == 0 ? 0 : keys / config.block + max_groups(config, keys);
  }

  Index dim = 0, block = 0;
  Index bundled = 0;  // keys [0, bundled) have their slots
  Index count = 0;    // blocks
  Index groups = 0;
  std::vector<T> origin;           // [dim]
  std::vector<Index> key_of_slot;  // [blocks·block], ascending within a block
  std::vector<Index> fill;         // [blocks], slots in use
  std::vector<Index> group_of;     // [blocks]

  void clear() { bundled = count = groups = balls_.count = 0; }

  void reserve(const SparsityConfig& config, Index width, Index keys) {
    dim = width;
    block = config.block;
    const auto blocks = static_cast<std::size_t>(max_blocks(config, keys)), d = static_cast<std::size_t>(dim);
    if (bundled == 0) group_stride_ = (config.clusters + simd::lanes<T> - 1) / simd::lanes<T> * simd::lanes<T>;
    origin.resize(d);
    leaders_.resize(d * static_cast<std::size_t>(group_stride_));
    distances_.resize(static_cast<std::size_t>(std::max(group_stride_, max_sample)));
    open_block_.resize(static_cast<std::size_t>(config.clusters));
    key_of_slot.resize(blocks * static_cast<std::size_t>(block));
    for (auto* numbers : {&fill, &group_of, &measured_}) numbers->resize(blocks);
    for (auto* values : {&sum_, &center_}) values->resize(blocks * d);
    for (auto* values : {&center_square_norm_, &radius_, &spread_, &log2_keys_}) values->resize(blocks);
  }

  // Gives keys [bundled, end) their slots, for which there must be room. store(first, count, slots) puts keys first,
  // first + 1, … there, a few at a time.
  template <class KeyRow, class Store>
  void bundle(const SparsityConfig& config, Index end, KeyRow&& key_row /*(j) -> const T* */, Store&& store) {
    if (bundled == 0 && end > 0) settle(std::min({end, config.chunk, max_sample}), key_row);
    Index slots[64];
    while (bundled < end) {
      const Index first = bundled, last = std::min(end, bundled + 64);
      for (; bundled < last; ++bundled) {
        const T* key = key_row(bundled);
        if (bundled + ahead < end) simd::prefetch_row(key_row(bundled + ahead), dim);
        const Index slot = slot_in(group_for(config, key));
        key_of_slot.data()[slot] = bundled;
        slots[bundled - first] = slot;
      }
      store(first, last - first, slots);
    }
  }

  static constexpr Index ahead = 8;  // rows that are asked for before their turn

  // Slots of block b whose keys come before `keys`: the first so many.
  Index filled(Index b, Index keys) const {
    const Index* first = key_of_slot.data() + b * block;
    const Index length = fill.data()[b];
    if (first[length - 1] < keys) return length;
    Index before = 0;
    for (Index i = 0; i < length; ++i) before += first[i] < keys;
    return before;
  }

  // Measures the blocks as they were when `keys` keys had come. keys_by_slot: [blocks·block][dim].
  const BlockBalls<T>& seek(Index keys, const T* keys_by_slot) {
    Index visible = 0;
    while (visible < count && key_of_slot.data()[visible * block] < keys) {
      const Index length = filled(visible, keys);
      if (length != measured_.data()[visible]) measure(visible, length, keys_by_slot);
      ++visible;
    }
    balls_ = {visible,          dim, block, center_.data(), center_square_norm_.data(), radius_.data(), spread_.data(),
              log2_keys_.data()};
    return balls_;
  }

 private:
  static constexpr Index max_sample = 256;

  Index group_stride_ = 0;
  T founding_ = 0;                 // squared distance from all leaders at which a key founds a group
  std::vector<T> leaders_;         // [dim][group_stride], the keys that founded the groups
  std::vector<T> distances_;       // scratch
  std::vector<Index> open_block_;  // [groups], the one being filled
  std::vector<Index> measured_;    // [blocks], slots that the following describe
  std::vector<T> sum_, center_;    // [blocks][dim]
  std::vector<T> center_square_norm_, radius_, spread_, log2_keys_;
  BlockBalls<T> balls_;

  // The origin, and how far apart keys of one group may be: a little more than the median distance between nearest
  // neighbours among the first keys.
  template <class KeyRow>
  void settle(Index sample, KeyRow&& key_row) {
    std::fill(origin.begin(), origin.end(), T(0));
    for (Index j = 0; j < sample; ++j)
      for (Index d = 0; d < dim; ++d) origin.data()[d] += key_row(j)[d] / static_cast<T>(sample);
    T* nearest = distances_.data();
    std::fill_n(nearest, sample, std::numeric_limits<T>::infinity());
    std::fill_n(leaders_.data(), dim, T(0));
    for (Index i = 0; i < sample; ++i)
      for (Index j = 0; j < i; ++j) {
        const T distance = detail::square_distance(key_row(i), key_row(j), leaders_.data(), dim);
        nearest[i] = std::min(nearest[i], distance);
        nearest[j] = std::min(nearest[j], distance);
      }
    std::nth_element(nearest, nearest + sample / 2, nearest + sample);
    founding_ = sample > 1 ? T(2.5) * nearest[sample / 2] : T(0);
  }

  // The group that a key joins, perhaps its own.
  Index group_for(const SparsityConfig& config, const T* key) {
    constexpr Index L = simd::lanes<T>;
    for (Index g = 0; g < groups; g += L) {
      auto even = simd::zero<T>(), odd = simd::zero<T>();
      const T* leader = leaders_.data() + g;
      Index d = 0;
      for (; d + 2 <= dim; d += 2) {
        const auto x = simd::broadcast(key[d]) - simd::load(leader + d * group_stride_);
        const auto y = simd::broadcast(key[d + 1]) - simd::load(leader + (d + 1) * group_stride_);
        even = simd::multiply_add(x, x, even);
        odd = simd::multiply_add(y, y, odd);
      }
      if (d < dim) {
        const auto x = simd::broadcast(key[d]) - simd::load(leader + d * group_stride_);
        even = simd::multiply_add(x, x, even);
      }
      simd::store(distances_.data() + g, even + odd);
    }
    const T* nearest = std::min_element(distances_.data(), distances_.data() + groups);
    if (groups > 0 && (*nearest <= founding_ || groups == max_groups(config, bundled)))
      return nearest - distances_.data();
    for (Index d = 0; d < dim; ++d) leaders_.data()[d * group_stride_ + groups] = key[d];
    open_block_.data()[groups] = open(groups);
    return groups++;
  }

  Index open(Index group) {
    fill.data()[count] = measured_.data()[count] = 0;
    group_of.data()[count] = group;
    return count++;
  }
  Index slot_in(Index group) {
    Index& b = open_block_.data()[group];
    if (fill.data()[b] == block) b = open(group);
    return b * block + fill.data()[b]++;
  }

  void measure(Index b, Index length, const T* keys_by_slot) {
    const T* rows = keys_by_slot + b * block * dim;
    T* sum = sum_.data() + b * dim;
    T* center = center_.data() + b * dim;
    Index known = measured_.data()[b];
    if (length < known || known == 0) {
      std::fill_n(sum, dim, T(0));
      known = 0;
    }
    for (Index i = known; i < length; ++i)
      for (Index d = 0; d < dim; ++d) sum[d] += rows[i * dim + d] - origin.data()[d];
    T square_norm = 0, largest = 0, total = 0;
    for (Index d = 0; d < dim; ++d) {
      center[d] = sum[d] / static_cast<T>(length);
      square_norm += center[d] * center[d];
    }
    for (Index i = 0; i < length; ++i) {
      const T distance = detail::square_distance(rows + i * dim, origin.data(), center, dim);
      largest = std::max(largest, distance);
      total += distance;
    }
    measured_.data()[b] = length;
    center_square_norm_.data()[b] = square_norm;
    radius_.data()[b] = std::sqrt(largest);
    spread_.data()[b] = total / static_cast<T>(length);
    log2_keys_.data()[b] = static_cast<T>(std::log2(static_cast<double>(length)));
  }
};

}  // namespace rbar
