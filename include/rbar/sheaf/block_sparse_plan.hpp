// The bundled keys of a batch and the blocks that every row and head of it is to see.
#pragma once

#include "rbar/attention/heads_view.hpp"
#include "rbar/core/parallel.hpp"
#include "rbar/sheaf/block_bound.hpp"
#include "rbar/sheaf/block_sparse_mask.hpp"
#include "rbar/sheaf/sheaf_score.hpp"
#include "rbar/simd/transpose.hpp"

#include <algorithm>
#include <utility>
#include <vector>

namespace rbar {

// What a pass left out, over all rows and heads.
struct SparsitySummary {
  Index visible_blocks = 0, skipped_blocks = 0;
  double largest_share_bound = 0;  // the largest Δ: no row is further than 2Δ·max‖v‖ from the dense output

  double kept_share() const {
    return visible_blocks == 0
               ? 1.0
               : static_cast<double>(visible_blocks - skipped_blocks) / static_cast<double>(visible_blocks);
  }
};

// A stream keeps one plan for its keys: what is bundled stays so, and only new keys are read. Other keys need clear()
// first. Buffers are kept; rows are those of the view of queries.
template <class T>
struct BlockSparsePlan {
  std::vector<KeyBlocks<T>> blocks;  // [batch][kv_heads]
  Index batch = 0, heads = 0, kv_heads = 0, slots = 0, words = 0;
  Index block = 0, chunk = 1, clusters = 0;  // of the config that the keys were bundled with
  Tensor<T, 2> key, value;                   // by slot [batch·kv_heads·slots, dim]
  Tensor<T, 2> key_square_norm;              // [batch·slots, kv_heads]
  std::vector<Index> slot_counts;            // [batch], slots in use
  std::vector<Index> closed;                 // [row]
  std::vector<std::uint64_t> kept;           // [row][heads][words]
  std::vector<Index> order;                  // BlockSparseMask::order
  std::vector<RowOutcome> outcomes;          // [row][heads]
  Index rows = 0, closed_rows = 0;           // of the last pass; closed_rows: that have blocks to see
  Tensor<T, 2> far_output,
      log_sum_exp;  // of the blocks [rows, heads·dim]; of everything, then of the blocks [2·rows, heads]
  mutable Tensor<T, 2> dquery, dkey, dvalue, dkey_square_norm;

  void clear() {
    for (auto& own : blocks) own.clear();
    slots = rows = closed_rows = 0;
  }

  BlockSparseMask<T> mask() const {
    return {blocks.data(), kept.data(), closed.data(), order.data(), heads, kv_heads, words};
  }
  HeadsView<const T> key_view() const { return by_slot(std::as_const(key)); }
  HeadsView<const T> value_view() const { return by_slot(std::as_const(value)); }
  // Buffers [batch][kv_heads][slots][dim] as the engine sees keys.
  auto by_slot(auto& buffer) const {
    using Element = std::remove_pointer_t<decltype(buffer.data())>;
    const Index dim = buffer.dimension(1);
    HeadsView<Element> view{buffer.data(), batch, kv_heads, slots, dim, dim, slots * dim};
    view.row_counts = slot_counts.data();
    view.sequence_stride = kv_heads * slots * dim;
    return view;
  }

  SparsitySummary summary() const {
    SparsitySummary sum;
    for (Index i = 0; i < rows * heads; ++i) {
      const RowOutcome& outcome = outcomes.data()[i];
      sum.visible_blocks += outcome.visible;
      sum.skipped_blocks += outcome.skipped;
      sum.largest_share_bound = std::max(sum.largest_share_bound, static_cast<double>(outcome.share_bound));
    }
    return sum;
  }

  // visit(batch, kv_head, key, slot) for every bundled key, in parallel over heads.
  template <class Visit>
  void for_each_bundled(Visit&& visit) const {
    parallel_for(batch * kv_heads, 1, [&](Index begin, Index end) {
      for (Index job = begin; job < end; ++job) {
        const KeyBlocks<T>& own = blocks.data()[job];
        for (Index b = 0; b < own.count; ++b)
          for (Index slot = b * own.block; slot < b * own.block + own.fill.data()[b]; ++slot)
            visit(job / kv_heads, job % kv_heads, own.key_of_slot.data()[slot], slot);
      }
    });
  }

  // visit(key) for every bundled key that a row sees, block by block. The keys of its open chunk come on top.
  template <class Visit>
  void for_each_far_key(Index b, Index head, Index row, Visit&& visit) const {
    const KeyBlocks<T>& own = blocks.data()[b * kv_heads + head / (heads / kv_heads)];
    const std::uint64_t* seen = kept.data() + (row * heads + head) * words;
    for (Index number = 0; number < own.count; ++number) {
      if ((seen[number / 64] >> number % 64 & 1) == 0) continue;
      const Index* keys = own.key_of_slot.data() + number * own.block;
      for (Index i = 0; i < own.filled(number, closed.data()[row]); ++i) visit(keys[i]);
    }
  }

  // Bundles the keys of all chunks that are closed for some row.
  void bundle(const HeadsView<const T>& query, const HeadsView<const T>& keys, const HeadsView<const T>& values,
              const SheafScore<T>& score, const OpenChunkMask& mask, const SparsityConfig& config) {
    heads = query.heads;
    set_keys(keys.batch, keys.heads, keys.dim, values.dim, config);
    rows = 0;
    for (Index b = 0; b < batch; ++b) rows = std::max(rows, query.first_row(b) + query.count(b));
    closed.resize(static_cast<std::size_t>(rows));
    closed_rows = 0;
    Index needed = slots;
    for (Index b = 0; b < batch; ++b) {
      Index latest = 0;
      const SequencePair pair{b, query.count(b), keys.count(b), query.first_row(b), keys.first_row(b)};
      for (Index i = 0; i < pair.queries; ++i) {
        const Index own = mask.closed(mask.all.keys(pair, 0, i).end);
        closed.data()[pair.query_row + i] = own;
        latest = std::max(latest, own);
        closed_rows += own > 0;
      }
      slot_counts.data()[b] = latest;  // for now: keys to bundle
      needed = std::max(needed, KeyBlocks<T>::max_blocks(config, latest) * config.block);
    }
    grow(needed, keys.dim, values.dim);
    constexpr Index ahead = KeyBlocks<T>::ahead;
    parallel_for(batch * kv_heads, 1, [&](Index begin, Index end) {
      for (Index job = begin; job < end; ++job) {
        const Index b = job / kv_heads, head = job % kv_heads;
        const Index latest = slot_counts.data()[b];
        KeyBlocks<T>& own = blocks.data()[job];
        require(own.bundled <= keys.count(b), "BlockSparsePlan", "keys", own.bundled, keys.count(b));
        if (latest <= own.bundled) continue;
        own.reserve(config, keys.dim, latest);
        own.bundle(
            config, latest, [&](Index j) { return keys.at(b, head, j); },
            [&](Index first, Index count, const Index* own_slots) {
              for (Index i = 0; i < count; ++i) {
                const Index j = first + i, row = job * slots + own_slots[i];
                if (i + ahead < count) {
                  const Index next = job * slots + own_slots[i + ahead];
                  simd::prefetch_row(values.at(b, head, j + ahead), values.dim);
                  simd::prefetch_row(key.data() + next * keys.dim, keys.dim);
                  simd::prefetch_row(value.data() + next * values.dim, values.dim);
                }
                std::copy_n(keys.at(b, head, j), keys.dim, key.data() + row * keys.dim);
                std::copy_n(values.at(b, head, j), values.dim, value.data() + row * values.dim);
                key_square_norm(b * slots + own_slots[i], head) =
                    score.key_square_norm[(keys.first_row(b) + j) * kv_heads + head];
              }
            });
      }
    });
    Index most = 0;
    for (Index b = 0; b < batch; ++b) {
      Index count = 0;
      for (Index head = 0; head < kv_heads; ++head) count = std::max(count, blocks.data()[b * kv_heads + head].count);
      slot_counts.data()[b] = count * config.block;
      most = std::max(most, count);
    }
    words = (most + 63) / 64;
  }

  // Chooses the blocks of every row, and the order in which rows go into tiles. log_sum_exp: of the rows' open chunks
  // [row][heads], or null where there are none.
  void choose(const HeadsView<const T>& query, const SheafScore<T>& score, const SparsityConfig& config,
              const T* open_log_sum_exp) {
    const auto pairs = static_cast<std::size_t>(rows * heads);
    kept.assign(pairs * static_cast<std::size_t>(words), 0);
    order.resize(pairs);
    outcomes.assign(pairs, RowOutcome{});
    parallel_for(batch * kv_heads, 1, [&](Index begin, Index end) {
      for (Index job = begin; job < end; ++job) choose_head(query, score, config, open_log_sum_exp, job);
    });
  }

 private:
  struct QueryLanes {};
  struct GroupCounts {};

  void set_keys(Index batch_size, Index n_kv_heads, Index key_dim, Index value_dim, const SparsityConfig& config) {
    const bool same = batch == batch_size && kv_heads == n_kv_heads && key.dimension(1) == key_dim &&
                      value.dimension(1) == value_dim && block == config.block && chunk == config.chunk &&
                      clusters == config.clusters;
    require(same || slots == 0, "BlockSparsePlan", "keys", "those of the pass before, continued, or clear()",
            "other shapes or blocks");
    batch = batch_size;
    kv_heads = n_kv_heads;
    block = config.block, chunk = config.chunk, clusters = config.clusters;
    blocks.resize(static_cast<std::size_t>(batch * kv_heads));
    slot_counts.resize(static_cast<std::size_t>(batch));
  }

  // Room for `needed` slots a head. A stream's grow twofold and move.
  void grow(Index needed, Index key_dim, Index value_dim) {
    if (needed <= slots) return;
    const Index old = slots, jobs = batch * kv_heads;
    if (old > 0) needed = std::max(needed, 2 * old);
    const auto move = [&](Tensor<T, 2>& buffer, Index parts, Index part_rows, Index old_rows, Index width) {
      if (old == 0) return ensure_rows(buffer, parts * part_rows, width);
      Tensor<T, 2> larger(parts * part_rows, width);
      for (Index p = 0; p < parts; ++p)
        std::copy_n(buffer.data() + p * old_rows * width, old_rows * width, larger.data() + p * part_rows * width);
      buffer = std::move(larger);
    };
    move(key, jobs, needed, old, key_dim);
    move(value, jobs, needed, old, value_dim);
    move(key_square_norm, batch, needed, old, kv_heads);
    slots = needed;
  }

  void choose_head(const HeadsView<const T>& query, const SheafScore<T>& score, const SparsityConfig& config,
                   const T* open_log_sum_exp, Index job) {
    constexpr Index L = simd::lanes<T>;
    const Index b = job / kv_heads, kv_head = job % kv_heads, group = heads / kv_heads, dim = query.dim;
    const Index count = query.count(b), first_row = query.first_row(b);
    KeyBlocks<T>& own = blocks.data()[job];
    T* lanes = simd::thread_scratch<T, QueryLanes>(dim * L);
    for (Index first = 0, last; first < count; first = last) {
      const Index before = closed.data()[first_row + first];
      for (last = first + 1; last < count && closed.data()[first_row + last] == before;) ++last;
      if (before == 0) continue;
      const BlockBalls<T>& balls = own.seek(before, key.data() + job * slots * dim);
      // Lanes are (query, head) pairs of the run.
      for (Index pair = 0; pair < (last - first) * group; pair += L) {
        BoundRows<T> rows_of;
        rows_of.count = std::min(L, (last - first) * group - pair);
        rows_of.query = lanes;
        const auto head_of = [&](Index lane) { return kv_head * group + (pair + lane) % group; };
        const auto query_of = [&](Index lane) { return first + (pair + lane) / group; };
        simd::rows_to_lanes([&](Index lane) { return query.at(b, head_of(lane), query_of(lane)); }, rows_of.count, dim,
                            simd::unscaled<T>.data(), lanes, L);
        alignas(64) T from_zero[L];
        center(own.origin.data(), dim, lanes, from_zero, rows_of.square_norm);
        RowOutcome found[L];
        for (Index lane = 0; lane < L; ++lane) {
          const Index used = std::min(lane, rows_of.count - 1);
          const Index at = (first_row + query_of(used)) * heads + head_of(used);
          rows_of.beta[lane] = score.beta[head_of(used)];
          rows_of.log2_open[lane] =
              log2_open_weight(open_log_sum_exp ? open_log_sum_exp[at] : -std::numeric_limits<T>::infinity(),
                               rows_of.beta[lane] * from_zero[lane], dim);
          rows_of.kept[lane] = kept.data() + at * words;
        }
        choose_blocks(balls, rows_of, config, found);
        for (Index lane = 0; lane < rows_of.count; ++lane)
          outcomes.data()[(first_row + query_of(lane)) * heads + head_of(lane)] = found[lane];
      }
    }
    for (Index head = kv_head * group; head < (kv_head + 1) * group; ++head) sort_rows(own, head, first_row, count);
  }

  // Lanes become relative to the origin; their squared norms before and after.
  static void center(const T* origin, Index dim, T* lanes, T* before, T* after) {
    constexpr Index L = simd::lanes<T>;
    auto far = simd::zero<T>(), near = simd::zero<T>();
    for (Index d = 0; d < dim; ++d) {
      const auto x = simd::load(lanes + d * L), y = x - simd::broadcast(origin[d]);
      far = simd::multiply_add(x, x, far);
      near = simd::multiply_add(y, y, near);
      simd::store(lanes + d * L, y);
    }
    simd::store(before, far);
    simd::store(after, near);
  }

  // The engine's logits are −βE + β‖q‖²; what rounding may have added to their log-sum-exp is taken off.
  static T log2_open_weight(T open_log_sum_exp, T beta_norm, Index dim) {
    if (open_log_sum_exp == -std::numeric_limits<T>::infinity()) return open_log_sum_exp;
    const T log_weight = open_log_sum_exp - beta_norm;
    const T error = 6 * detail::distance_error<T>(dim) * (beta_norm + std::abs(log_weight));
    return (log_weight - error) * std::numbers::log2e_v<T>;
  }

  // By the group of the nearest block, then as they come: neighbours in a tile mostly see the same blocks. Rows without
  // blocks come last.
  void sort_rows(const KeyBlocks<T>& own, Index head, Index first_row, Index count) {
    Index* places = simd::thread_scratch<Index, GroupCounts>(own.groups + 2);
    std::fill_n(places, own.groups + 2, Index{0});
    const auto group_of = [&](Index i) {
      const std::int32_t nearest = outcomes.data()[(first_row + i) * heads + head].nearest;
      return nearest < 0 ? own.groups : own.group_of.data()[nearest];
    };
    for (Index i = 0; i < count; ++i) ++places[group_of(i) + 1];
    std::partial_sum(places, places + own.groups + 2, places);
    Index* sorted = order.data() + heads * first_row + head * count;
    for (Index i = 0; i < count; ++i) sorted[places[group_of(i)]++] = i;
  }
};

}  // namespace rbar
