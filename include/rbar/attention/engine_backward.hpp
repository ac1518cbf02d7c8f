// Backward pass of the attention engine: probabilities are computed again from log_sum_exp, tile by tile
// (Dao et al., "FlashAttention", 2022), five products in all:
//
//   P = e^{S − lse}     dV += Pᵀ·dO     dP = dO·Vᵀ     dlogit = P ∘ (dP − δ),  δ_i = dO_i·O_i
//   dS = vjp of the score     dQ += dS·K     dK += dSᵀ·Q
#pragma once

#include "rbar/attention/engine_tile.hpp"
#include "rbar/simd/math.hpp"
#include "rbar/simd/tile_product.hpp"
#include "rbar/simd/transpose.hpp"

#include <cmath>
#include <numbers>

namespace rbar::detail {

template <class T>
struct BackwardViews {
  HeadsView<const T> query, key, value, output, doutput;
  const T* log_sum_exp;
  HeadsView<T> dquery, dkey, dvalue;
};

template <class T, class Score, class Mask, class Gradient>
struct BackwardTile {
  static constexpr Index lanes = simd::lanes<T>;
  static constexpr T infinity = std::numeric_limits<T>::infinity();
  using Values = ScoreValues<T, Score>;

  const BackwardViews<T>& views;
  const Score& score;
  const Mask& mask;
  Gradient& gradient;

  QueryTile<T> tile;
  Values values;
  RowBlock<const T> keys, value_rows;
  RowBlock<T> dkeys, dvalue_rows;
  bool gathered;    // these four in scratch
  T* kept;          // dQ and the sums of dquery_values of tiles whose keys come in several blocks,
  Index kept_size;  // so much for each
  alignas(64) typename Values::template Table<Values::query_count, QueryTile<T>::max_rows> dquery_values;
  alignas(64) typename Values::template Table<Values::key_count, max_tile_keys> dkey_values;
  alignas(64) typename Values::template Table<Values::key_count, max_tile_keys * lanes> dkey_sums;  // of every lane
  alignas(64) T scale[QueryTile<T>::max_rows];
  alignas(64) T shift[QueryTile<T>::max_rows];                          // −lse·log2 e
  alignas(64) T delta[QueryTile<T>::max_rows];                          // δ
  alignas(64) T query_rows[max_tile_elements<T>];                       // [lane][dim], scaled
  alignas(64) T query_lanes[max_tile_elements<T>];                      // [dim][lane]
  alignas(64) T doutput_rows[max_tile_elements<T>];                     // [lane][value dim]
  alignas(64) T doutput_lanes[max_tile_elements<T>];                    // [value dim][lane]
  alignas(64) T dquery_lanes[max_tile_elements<T>];                     // [dim][lane]
  alignas(64) T probabilities[max_tile_keys * QueryTile<T>::max_rows];  // [key][lane]
  alignas(64) T dscores[max_tile_keys * QueryTile<T>::max_rows];        // [key][lane]

  // No aggregate: that would set all of the above to 0 first.
  BackwardTile(const BackwardViews<T>& views_, const Score& score_, const Mask& mask_, Gradient& gradient_)
      : views(views_), score(score_), mask(mask_), gradient(gradient_) {}

  // Everything of one (batch, K/V head).
  void run(const Tiling& tiling, Index batch, Index kv_head) {
    const Index tokens = views.key.count(batch);
    load_keys(batch, kv_head, tokens);
    for (Index j = 0; j < tokens; ++j) {
      std::fill_n(dkeys.at(j), views.key.dim, T(0));
      std::fill_n(dvalue_rows.at(j), views.value.dim, T(0));
    }
    const Index head_sets = tiling.group / tiling.mixed_heads, block = keys_in_cache(tokens);
    kept_size = (views.query.dim + static_cast<Index>(Values::query_count)) * tiling.vectors * lanes;
    if (block < tokens) kept = simd::thread_scratch<T, KeptTiles>(head_sets * tiling.tiles * kept_size);
    for (Index first = 0; first == 0 || first < tokens; first += block)
      for (Index head_set = 0; head_set < head_sets; ++head_set)
        for (Index number = 0; number < tiling.tiles; ++number)
          run_tile(tiling, batch, kv_head, head_set, number, {first, std::min(first + block, tokens)});
    if (!gathered) return;
    for (Index j = 0; j < tokens; ++j) {
      std::copy_n(dkeys.at(j), views.key.dim, views.dkey.at(batch, kv_head, j));
      std::copy_n(dvalue_rows.at(j), views.value.dim, views.dvalue.at(batch, kv_head, j));
    }
  }

 private:
  struct KeptTiles {};
  // So many keys at a time meet all tiles of queries: what is read and written of more would not stay in the second
  // cache from one tile to the next. Where a tile sees few of the keys, loading it again and again would cost more.
  Index keys_in_cache(Index tokens) const {
    if constexpr (has_key_stretches<Mask> || has_blocks<Mask>) return std::max<Index>(tokens, 1);
    constexpr Index cache = Index{512} << 10;
    const Index bytes = 2 * (views.key.dim + views.value.dim) * static_cast<Index>(sizeof(T));
    if (tokens * bytes <= 4 * cache) return std::max<Index>(tokens, 1);
    const Index tile_keys = tile_keys_for<T>(std::max(views.query.dim, views.value.dim));
    return std::max<Index>(cache / bytes / tile_keys, 1) * tile_keys;
  }

  // K, V and the sums of their gradients, together where other heads lie between their rows.
  void load_keys(Index batch, Index kv_head, Index tokens) {
    const auto& [query, key, value, output, doutput, log_sum_exp, dquery, dkey, dvalue] = views;
    keys = {key, batch, kv_head};
    value_rows = {value, batch, kv_head};
    dkeys = {dkey, batch, kv_head};
    dvalue_rows = {dvalue, batch, kv_head};
    gathered = lies_apart(key) || lies_apart(value) || lies_apart(dkey) || lies_apart(dvalue);
    if (!gathered) return;
    const Index key_size = key.tokens * padded<T>(key.dim), value_size = key.tokens * padded<T>(value.dim);
    T* scratch = simd::thread_scratch<T, RowCopies>(2 * (key_size + value_size));
    keys = gather_rows(key, batch, kv_head, 0, tokens, scratch);
    value_rows = gather_rows(value, batch, kv_head, 0, tokens, scratch + key_size);
    dkeys = {scratch + key_size + value_size, padded<T>(key.dim), 0};
    dvalue_rows = {dkeys.data + key_size, padded<T>(value.dim), 0};
  }

  // The part of a tile that sees the keys of `block`; dQ is kept from one to the next.
  void run_tile(const Tiling& tiling, Index batch, Index kv_head, Index head_set, Index number, KeyRange block) {
    const auto& query = views.query;
    tile.set(mask, query, views.key, tiling, batch, kv_head, head_set, number);
    const bool sees_nothing = tile.begin >= tile.end;
    if (tile.rows == 0) return;
    if (sees_nothing ? block.begin > 0 : tile.end <= block.begin || tile.begin >= block.end) return;
    const bool starts = block.begin <= tile.begin, ends = tile.end <= block.end;
    T* const kept_here = starts && ends ? nullptr : kept + (head_set * tiling.tiles + number) * kept_size;
    load_queries(starts ? nullptr : kept_here);
    const Index tile_keys = tile_keys_for<T>(std::max(query.dim, views.value.dim));
    tile.visit_keys(mask, tile_keys, block, [&](Index first, Index count) {
      tile.fetch_ahead(mask, tiling, number + 1, tile_keys, query, views.output, views.doutput, views.dquery);
      add_keys(first, count);
    });
    if (!ends) {
      std::copy_n(dquery_lanes, query.dim * tile.width(), kept_here);
      RBAR_UNROLL
      for (std::size_t i = 0; i < Values::query_count; ++i)
        std::copy_n(dquery_values[i].begin(), tile.width(), kept_values(kept_here, i));
      return;
    }
    for (Index v = 0; v < tile.vectors; ++v)
      simd::lanes_to_rows(
          dquery_lanes + v * lanes, tile.width(), scale + v * lanes,
          [&](Index r) {
            const QueryIndex& at = tile.queries[v * lanes + r];
            return views.dquery.at(at.batch, at.head, at.query);
          },
          std::min(lanes, tile.rows - v * lanes), query.dim);
    if constexpr (Values::query_count > 0)
      for (Index row = 0; row < tile.rows; ++row) {
        T sums[Values::query_count];
        RBAR_UNROLL
        for (std::size_t i = 0; i < Values::query_count; ++i) sums[i] = dquery_values[i][static_cast<std::size_t>(row)];
        gradient.add_query(tile.queries[row], sums);
      }
  }

  T* kept_values(T* kept_here, std::size_t i) const {
    return kept_here + (views.query.dim + static_cast<Index>(i)) * tile.width();
  }

  // With dQ as it was kept, or 0.
  void load_queries(T* kept_here) {
    const auto& [query, key, value, output, doutput, log_sum_exp, dquery, dkey, dvalue] = views;
    for (Index row = 0; row < tile.width(); ++row) {
      const QueryIndex& at = tile.queries[row];
      T* q = query_rows + row * query.dim;
      T* g = doutput_rows + row * value.dim;
      scale[row] = query_scale<T>(score, at);
      delta[row] = 0;
      shift[row] = -infinity;  // no key seen, or no query in this lane: every probability is 0
      if (row >= tile.rows) {
        std::fill_n(q, query.dim, T(0));
        std::fill_n(g, value.dim, T(0));
        continue;
      }
      const T* source = query.at(at.batch, at.head, at.query);
      for (Index d = 0; d < query.dim; ++d) q[d] = source[d] * scale[row];
      const T* incoming = doutput.at(at.batch, at.head, at.query);
      const T* out = output.at(at.batch, at.head, at.query);
      std::copy_n(incoming, value.dim, g);
      auto sum = simd::zero<T>();
      Index d = 0;
      for (; d + lanes <= value.dim; d += lanes)
        sum = simd::multiply_add(simd::load(incoming + d), simd::load(out + d), sum);
      if (d < value.dim)
        sum = simd::multiply_add(simd::load_partial(incoming + d, value.dim - d),
                                 simd::load_partial(out + d, value.dim - d), sum);
      delta[row] = simd::reduce_add(sum);
      const T lse = log_sum_exp[at.row * query.heads + at.head];
      if (lse != -infinity) shift[row] = -lse * std::numbers::log2e_v<T>;
    }
    alignas(64) T one[lanes];
    std::fill_n(one, lanes, T(1));
    for (Index v = 0; v < tile.vectors; ++v) {
      simd::rows_to_lanes([&](Index r) { return query_rows + (v * lanes + r) * views.query.dim; }, lanes, query.dim,
                          one, query_lanes + v * lanes, tile.width());
      simd::rows_to_lanes([&](Index r) { return doutput_rows + (v * lanes + r) * views.value.dim; }, lanes, value.dim,
                          one, doutput_lanes + v * lanes, tile.width());
    }
    if (kept_here)
      std::copy_n(kept_here, query.dim * tile.width(), dquery_lanes);
    else
      std::fill_n(dquery_lanes, query.dim * tile.width(), T(0));
    RBAR_UNROLL
    for (std::size_t i = 0; i < Values::query_count; ++i)
      if (kept_here)
        std::copy_n(kept_values(kept_here, i), tile.width(), dquery_values[i].begin());
      else
        dquery_values[i].fill(T(0));
    values.load_queries(score, tile);
  }

  void add_keys(Index first, Index count) {
    const auto& [query, key, value, output, doutput, log_sum_exp, dquery, dkey, dvalue] = views;
    Strip strips[max_strips];
    const int used = tile.template cut<Mask>(first, count, strips);
    if (used == 0) return;
    const Index width = tile.width();
    values.load_keys(score, tile, first, count);
    for (auto& sums : dkey_values) sums.fill(T(0));

    for (int s = 0; s < used; ++s) {
      const auto [from, length, v, v_end, masked] = strips[s];
      const Index n = (v_end - v) * lanes, j = first + from;
      T* p = probabilities + from * width + v * lanes;
      T* ds = dscores + from * width + v * lanes;
      simd::tile_product<false, simd::Lies::by_rows>(length, n, value.dim, value_rows.at(j), value_rows.stride,
                                                     doutput_lanes + v * lanes, width, ds, width);
      simd::tile_product<false, simd::Lies::by_rows>(length, n, key.dim, keys.at(j), keys.stride,
                                                     query_lanes + v * lanes, width, p, width);
      differentiate(strips[s], first);
      simd::tile_product<true, simd::Lies::by_rows>(length, value.dim, n, p, width,
                                                    doutput_rows + v * lanes * value.dim, value.dim, dvalue_rows.at(j),
                                                    dvalue_rows.stride);
      simd::tile_product<true, simd::Lies::by_rows>(length, key.dim, n, ds, width, query_rows + v * lanes * key.dim,
                                                    key.dim, dkeys.at(j), dkeys.stride);
      simd::tile_product<true, simd::Lies::by_columns>(key.dim, n, length, keys.at(j), keys.stride, ds, width,
                                                       dquery_lanes + v * lanes, width);
    }
    if constexpr (Values::key_count > 0)
      for (Index j = 0; j < count; ++j) {
        T sums[Values::key_count];
        RBAR_UNROLL
        for (std::size_t i = 0; i < Values::key_count; ++i) sums[i] = dkey_values[i][static_cast<std::size_t>(j)];
        gradient.add_key(KeyIndex{tile.pair.batch, tile.kv_head, first + j, tile.pair.key_row + first + j}, sums);
      }
  }

  // In place: dot products become P, dP becomes dS.
  void differentiate(const Strip& strip, Index first) {
    for (Index v = strip.vector_begin; v < strip.vector_end; ++v) {
      const auto lane_values = values.query_lanes(v);
      const auto row_shift = simd::load(shift + v * lanes), row_delta = simd::load(delta + v * lanes);
      typename Values::QueryLanes dlane_values;
      RBAR_UNROLL
      for (std::size_t i = 0; i < Values::query_count; ++i)
        dlane_values[i] = simd::load(dquery_values[i].data() + v * lanes);
      for (Index j = strip.first; j < strip.first + strip.count; ++j) {
        const auto key_lanes = values.key_lanes(j);
        typename Values::KeyLanes dkey_lanes;  // over the vectors so far
        RBAR_UNROLL
        for (std::size_t i = 0; i < Values::key_count; ++i)
          dkey_lanes[i] = v > strip.vector_begin ? simd::load(dkey_sums[i].data() + j * lanes) : simd::zero<T>();
        const auto at = tile.lanes_at(v, views.key, first + j);
        T* p_at = probabilities + j * tile.width() + v * lanes;
        T* ds_at = dscores + j * tile.width() + v * lanes;
        const auto dot = simd::load(p_at);
        const auto logit = score.logit(dot, lane_values, key_lanes, at);
        auto p = simd::decay(simd::multiply_add(logit, simd::broadcast(std::numbers::log2e_v<T>), row_shift));
        if (strip.masked) p = xsimd::select(tile.visible(mask, v, first, j), p, simd::zero<T>());
        const auto dlogit = p * (simd::load(ds_at) - row_delta);
        simd::store(p_at, p);
        simd::store(ds_at, score.vjp(dlogit, dot, lane_values, key_lanes, at, dlane_values, dkey_lanes, gradient));
        RBAR_UNROLL
        for (std::size_t i = 0; i < Values::key_count; ++i) simd::store(dkey_sums[i].data() + j * lanes, dkey_lanes[i]);
      }
      RBAR_UNROLL
      for (std::size_t i = 0; i < Values::query_count; ++i)
        simd::store(dquery_values[i].data() + v * lanes, dlane_values[i]);
    }
    RBAR_UNROLL
    for (std::size_t i = 0; i < Values::key_count; ++i)
      for (Index j = strip.first; j < strip.first + strip.count; ++j)
        dkey_values[i][static_cast<std::size_t>(j)] += simd::reduce_add(simd::load(dkey_sums[i].data() + j * lanes));
  }
};

}  // namespace rbar::detail
