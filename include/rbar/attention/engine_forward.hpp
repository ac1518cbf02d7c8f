// Forward pass of the attention engine: for every tile of queries, one sweep over the keys it sees with the streaming
// softmax of Milakov and Gimelshein ("Online normalizer calculation for softmax", 2018) as tiled by Dao et al.
// ("FlashAttention", 2022):
//
//   m ← max(m, max_j s_ij)     l ← l·e^{m_old − m} + Σ_j e^{s_ij − m}     o ← o·e^{m_old − m} + Σ_j e^{s_ij − m} v_j
//
// Tiles are transposed, Sᵀ[key][query]: maxima, sums and rescaling then run along the keys, lane by lane.
#pragma once

#include "rbar/attention/engine_rows.hpp"
#include "rbar/simd/math.hpp"
#include "rbar/simd/tile_product.hpp"
#include "rbar/simd/transpose.hpp"

#include <numbers>

namespace rbar::detail {

template <class T, class Score, class Mask>
struct ForwardTile {
  static constexpr Index lanes = simd::lanes<T>;
  static constexpr T infinity = std::numeric_limits<T>::infinity();
  static constexpr T largest_exponent = 4;  // of a weight 2^(S·log2 e − reference) before the sums are rescaled

  const HeadsView<const T>& query;
  const HeadsView<const T>& key;
  const HeadsView<const T>& value;
  const Score& score;
  const Mask& mask;

  QueryTile<T> tile;
  ScoreValues<T, Score> values;
  KeyRows<T> rows;
  bool few;                                         // so few lanes that products are cheaper along keys and features
  alignas(64) T row_max[QueryTile<T>::max_rows];    // m
  alignas(64) T reference[QueryTile<T>::max_rows];  // m·log2 e, what the exponents are relative to
  alignas(64) T row_sum[QueryTile<T>::max_rows];    // l
  alignas(64) T scale[QueryTile<T>::max_rows];
  alignas(64) T queries[max_tile_elements<T>];                   // [dim][lane], or [lane][dim] when few
  alignas(64) T outputs[max_tile_elements<T>];                   // [value dim][lane], or [lane][value dim] when few
  alignas(64) T scores[max_tile_keys * QueryTile<T>::max_rows];  // [key][lane]
  alignas(64) T transposed_keys[row_tile_elements<T>];           // [dim][key] when few

  ForwardTile(const HeadsView<const T>& query_, const HeadsView<const T>& key_, const HeadsView<const T>& value_,
              const Score& score_, const Mask& mask_)
      : query(query_), key(key_), value(value_), score(score_), mask(mask_) {}

  // Tiles [tile_begin, tile_end), the last one first: under a causal mask it is the longest.
  void run(const Tiling& tiling, Index batch, Index kv_head, Index head_set, Index tile_begin, Index tile_end,
           const HeadsView<T>& output, T* log_sum_exp) {
    const Index queries_end = std::min(query.count(batch), tile_end * tiling.queries);
    const Index job_rows = (queries_end - tile_begin * tiling.queries) * tiling.mixed_heads;
    if (job_rows <= 0) return;
    const Index tile_keys = tile_keys_for<T>(std::max(key.dim, value.dim));
    if (job_rows > lanes / 2 && (lies_apart(key) || lies_apart(value)))
      rows.set_copies(key, value, batch, kv_head, tile_keys, simd::thread_scratch<T, RowCopies>(rows.size(key, value)));
    else
      rows.set(key, value, batch, kv_head, tile_keys);
    for (Index number = tile_end; number-- > tile_begin;) {
      tile.set(mask, query, key, tiling, batch, kv_head, head_set, number);
      if (tile.rows == 0) continue;
      few = tile.rows <= lanes / 2;
      load_queries();
      tile.visit_keys(mask, tile_keys, {0, tile.pair.keys}, [&](Index first, Index count) {
        tile.fetch_ahead(mask, tiling, number - 1, tile_keys, query, output);
        rows.bring(first);
        add_keys(first, count);
      });
      finish(output, log_sum_exp);
    }
  }

 private:
  void load_queries() {
    for (Index row = 0; row < tile.width(); ++row) {
      row_max[row] = reference[row] = -infinity;
      row_sum[row] = 0;
      scale[row] = query_scale<T>(score, tile.queries[row]);
    }
    const auto query_row = [&](Index row) {
      const QueryIndex& at = tile.queries[row];
      return query.at(at.batch, at.head, at.query);
    };
    if (few) {
      for (Index row = 0; row < tile.rows; ++row)
        for (Index d = 0; d < query.dim; ++d) queries[row * query.dim + d] = query_row(row)[d] * scale[row];
      std::fill_n(outputs, tile.rows * value.dim, T(0));
    } else {
      for (Index v = 0; v < tile.vectors; ++v)
        simd::rows_to_lanes([&](Index r) { return query_row(v * lanes + r); }, std::min(lanes, tile.rows - v * lanes),
                            query.dim, scale + v * lanes, queries + v * lanes, tile.width());
      std::fill_n(outputs, value.dim * tile.width(), T(0));
    }
    values.load_queries(score, tile);
  }

  void add_keys(Index first, Index count) {
    Strip strips[max_strips];
    const int used = tile.template cut<Mask>(first, count, strips);
    if (used == 0) return;
    const Index width = tile.width();
    values.load_keys(score, tile, first, count);

    // Sᵀ = K·Qᵀ
    const bool fetches_next = rows.fetches_next(first);
    for (int s = 0; s < used; ++s) {
      const auto [from, length, v, v_end, masked] = strips[s];
      if (few) {
        multiply_few(first + from, length, scores + from * width);
      } else if (!masked && (v_end - v) % simd::tile_vectors == 0) {
        simd::tile_product_into<simd::Lies::by_rows>(
            length, (v_end - v) * lanes, key.dim, rows.keys.at(first + from), rows.keys.stride, queries + v * lanes,
            width, [&, key_begin = from, lane_begin = v * lanes](Index row, Index column, const auto& dots) {
              if (fetches_next && column == 0) rows.fetch_next(first + key_begin + row, std::ssize(dots));
              take_logits(dots, key_begin + row, (lane_begin + column) / lanes, first);
            });
        continue;
      } else {
        simd::tile_product<false, simd::Lies::by_rows>(length, (v_end - v) * lanes, key.dim, rows.keys.at(first + from),
                                                       rows.keys.stride, queries + v * lanes, width,
                                                       scores + from * width + v * lanes, width);
      }
      take_logits(strips[s], first);
    }
    Index v_begin = tile.vectors, v_end = 0;
    for (int s = 0; s < used; ++s) {
      v_begin = std::min(v_begin, strips[s].vector_begin);
      v_end = std::max(v_end, strips[s].vector_end);
    }
    for (Index v = v_begin; v < v_end; ++v) rescale(v);
    for (int s = 0; s < used; ++s) exponentiate(strips[s]);

    // Oᵀ += Vᵀ·Pᵀ
    for (int s = 0; s < used; ++s) {
      const auto [from, length, v, last, masked] = strips[s];
      const T* values_at = rows.values.at(first + from);
      if (few)
        simd::tile_product<true, simd::Lies::by_columns>(tile.rows, value.dim, length, scores + from * width, width,
                                                         values_at, rows.values.stride, outputs, value.dim);
      else
        simd::tile_product<true, simd::Lies::by_columns>(value.dim, (last - v) * lanes, length, values_at,
                                                         rows.values.stride, scores + from * width + v * lanes, width,
                                                         outputs + v * lanes, width);
    }
  }

  // The same scores with K transposed instead of Q: lanes are keys, so one query fills them. Every sum runs over the
  // same products in the same order, so that a query's bits do not depend on how many others there are.
  void multiply_few(Index first, Index count, T* to) {
    alignas(64) T products[lanes / 2 * max_tile_keys];  // [query][key]
    const Index padded_count = padded<T>(count);
    const T* ones = simd::unscaled<T>.data();
    for (Index j = 0; j < count; j += lanes)
      simd::rows_to_lanes([&](Index r) { return rows.keys.at(first + j + r); }, std::min(lanes, count - j), key.dim,
                          ones, transposed_keys + j, padded_count);
    simd::tile_product<false, simd::Lies::by_rows>(tile.rows, padded_count, key.dim, queries, key.dim, transposed_keys,
                                                   padded_count, products, padded_count);
    for (Index j = 0; j < count; j += lanes)
      simd::rows_to_lanes([&](Index r) { return products + r * padded_count + j; }, tile.rows,
                          std::min(lanes, count - j), ones, to + j * lanes, lanes);
  }

  // Dot products become logits; the row maxima follow. Of a register block that is seen whole, key j and vector v
  // first:
  template <std::size_t Rows, std::size_t Vectors>
  RBAR_INLINE void take_logits(const simd::Batch<T> (&dots)[Rows][Vectors], Index j, Index v, Index first) {
    RBAR_UNROLL
    for (std::size_t c = 0; c < Vectors; ++c, ++v) {
      const auto query_lanes = values.query_lanes(v);
      auto largest = simd::load(row_max + v * lanes);
      RBAR_UNROLL
      for (std::size_t r = 0; r < Rows; ++r) {
        const Index at = j + static_cast<Index>(r);
        const auto logit =
            score.logit(dots[r][c], query_lanes, values.key_lanes(at), tile.lanes_at(v, key, first + at));
        simd::store(scores + at * tile.width() + v * lanes, logit);
        largest = simd::max(largest, logit);
      }
      simd::store(row_max + v * lanes, largest);
    }
  }

  // and of a strip of dot products in memory.
  void take_logits(const Strip& strip, Index first) {
    for (Index v = strip.vector_begin; v < strip.vector_end; ++v) {
      const auto query_lanes = values.query_lanes(v);
      auto largest = simd::load(row_max + v * lanes);
      for (Index j = strip.first; j < strip.first + strip.count; ++j) {
        T* at = scores + j * tile.width() + v * lanes;
        auto logit = score.logit(simd::load(at), query_lanes, values.key_lanes(j), tile.lanes_at(v, key, first + j));
        if (strip.masked) logit = xsimd::select(tile.visible(mask, v, first, j), logit, simd::broadcast(-infinity));
        simd::store(at, logit);
        largest = simd::max(largest, logit);
      }
      simd::store(row_max + v * lanes, largest);
    }
  }

  // Makes the sums of vector v relative to a new maximum, where it has left the old one far enough behind. Until then
  // weights above 1 do no harm, and hardly ever a tile of keys but the first has to touch the outputs.
  void rescale(Index v) {
    const auto old_reference = simd::load(reference + v * lanes);
    const auto maximum = simd::load(row_max + v * lanes) * simd::broadcast(std::numbers::log2e_v<T>);
    const auto grown = maximum > old_reference + simd::broadcast(largest_exponent);
    if (!xsimd::any(grown)) return;
    const auto factor = xsimd::select(grown, simd::exp2(old_reference - maximum), simd::broadcast(T(1)));
    simd::store(reference + v * lanes, xsimd::select(grown, maximum, old_reference));
    simd::store(row_sum + v * lanes, simd::load(row_sum + v * lanes) * factor);
    if (few) {
      simd::store(scale, factor);
      for (Index row = 0; row < tile.rows; ++row)
        for (Index d = 0; d < value.dim; ++d) outputs[row * value.dim + d] *= scale[row];
    } else {
      for (Index d = 0; d < value.dim; ++d) {
        T* at = outputs + d * tile.width() + v * lanes;
        simd::store(at, simd::load(at) * factor);
      }
    }
  }

  // P = 2^(S·log2 e − reference), whose exponents are at most largest_exponent. Keys go in step, as one exponential
  // takes longer than a core looks ahead.
  void exponentiate(const Strip& strip) {
    constexpr Index together = simd::register_count / 8;
    for (Index v = strip.vector_begin; v < strip.vector_end; ++v) {
      const auto raw = simd::load(reference + v * lanes);
      const auto shift = xsimd::select(raw == simd::broadcast(-infinity), simd::zero<T>(), -raw);
      auto sum = simd::load(row_sum + v * lanes);
      const auto exponentiate_keys = [&]<Index Keys>(Index first) RBAR_INLINE_LAMBDA {
        T* const at = scores + first * tile.width() + v * lanes;
        simd::Batch<T> p[Keys];
        RBAR_UNROLL
        for (Index j = 0; j < Keys; ++j)
          p[j] =
              simd::multiply_add(simd::load(at + j * tile.width()), simd::broadcast(std::numbers::log2e_v<T>), shift);
        simd::decay_together(p);
        RBAR_UNROLL
        for (Index j = 0; j < Keys; ++j) {
          simd::store(at + j * tile.width(), p[j]);
          sum = sum + p[j];
        }
      };
      Index j = strip.first;
      const Index end = j + strip.count;
      for (; j + together <= end; j += together) exponentiate_keys.template operator()<together>(j);
      for (; j < end; ++j) exponentiate_keys.template operator()<1>(j);
      simd::store(row_sum + v * lanes, sum);
    }
  }

  void finish(const HeadsView<T>& output, T* log_sum_exp) {
    alignas(64) T log_sum[QueryTile<T>::max_rows];
    for (Index v = 0; v < tile.width(); v += lanes) {
      const auto sum = simd::load(row_sum + v);
      const auto empty = sum == simd::zero<T>();
      simd::store(scale + v, xsimd::select(empty, simd::zero<T>(), simd::broadcast(T(1)) / sum));
      if (!log_sum_exp) continue;
      const auto log =
          simd::multiply_add(simd::load(reference + v), simd::broadcast(std::numbers::ln2_v<T>), xsimd::log(sum));
      simd::store(log_sum + v, xsimd::select(empty, simd::broadcast(-infinity), log));
    }
    const auto output_row = [&](Index row) {
      const QueryIndex& at = tile.queries[row];
      return output.at(at.batch, at.head, at.query);
    };
    if (few)
      for (Index row = 0; row < tile.rows; ++row)
        for (Index d = 0; d < value.dim; ++d) output_row(row)[d] = outputs[row * value.dim + d] * scale[row];
    else
      for (Index v = 0; v < tile.vectors; ++v) {
        simd::lanes_to_rows(
            outputs + v * lanes, tile.width(), scale + v * lanes, [&](Index r) { return output_row(v * lanes + r); },
            std::min(lanes, tile.rows - v * lanes), value.dim);
      }
    if (!log_sum_exp) return;
    for (Index row = 0; row < tile.rows; ++row) {
      const QueryIndex& at = tile.queries[row];
      log_sum_exp[at.row * query.heads + at.head] = log_sum[row];
    }
  }
};

}  // namespace rbar::detail
