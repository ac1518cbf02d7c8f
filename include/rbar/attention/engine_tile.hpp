// What the forward and the backward pass of the attention engine share: how queries are cut into tiles,
// which part of a tile of keys they see, and how a score functor gets its numbers.
//
// A tile's lanes are (query, head) pairs of one sequence and one K/V head, query-major: the heads of a group share the
// keys they read, and a decoding step with one query a head still fills as many lanes as the group has heads.
#pragma once

#include "rbar/attention/heads_view.hpp"
#include "rbar/attention/masks.hpp"
#include "rbar/attention/scores.hpp"
#include "rbar/simd/batch.hpp"
#include "rbar/simd/scratch.hpp"

#include <array>
#include <limits>
#include <type_traits>

namespace rbar::detail {

inline constexpr Index max_head_dim = 256;
inline constexpr Index max_tile_keys = 64;
inline constexpr Index max_tile_vectors = 4;  // registers of lanes side by side
inline constexpr Index trim_keys = 16;        // granularity of what is left out of a tile at the mask's edge

// Elements of a tile [dim][lanes]: 4 vectors up to dim 128, 2 above.
template <class T>
inline constexpr Index max_tile_elements = max_head_dim * 2 * simd::lanes<T>;

// 32 KiB of rows.
template <class T>
inline constexpr Index row_tile_elements = 32768 / static_cast<Index>(sizeof(T));

// Elements of a row rounded up to whole registers.
template <class T>
constexpr Index padded(Index dim) {
  return (dim + simd::lanes<T> - 1) / simd::lanes<T> * simd::lanes<T>;
}

inline Index tile_vectors_for(Index dim) { return dim <= max_head_dim / 2 ? max_tile_vectors : max_tile_vectors / 2; }

// Part of a key tile × the vectors of lanes that see something of it.
struct Strip {
  Index first, count;              // keys, relative to the tile
  Index vector_begin, vector_end;  // of the query tile
  bool masked;                     // some pair in it is invisible
};
inline constexpr int max_strips = static_cast<int>(max_tile_keys / trim_keys);

template <class Mask>
consteval bool is_per_head() {
  if constexpr (requires { Mask::per_head; })
    return Mask::per_head;
  else
    return false;
}
template <class Mask>
inline constexpr bool has_query_order = requires(const Mask mask, const SequencePair pair) {
  mask.query_at(pair, Index{0}, Index{0});
};
template <class Mask>
inline constexpr bool has_key_stretches = requires(const Mask mask, const SequencePair pair) {
  mask.keys_within(pair, static_cast<const QueryIndex*>(nullptr), Index{0}, KeyRange{},
                   static_cast<KeyRange*>(nullptr));
};
template <class Mask>
inline constexpr bool has_blocks = requires(const Mask mask, const SequencePair pair) {
  mask.visit_blocks(pair, Index{0}, Index{0}, Index{0}, [](Index, Index) {});
};
template <class Mask>
inline constexpr bool has_single_entries = requires(const Mask mask, const SequencePair pair) {
  mask.visible(pair, Index{0}, Index{0}, Index{0});
};

// How the (query, head) pairs of every sequence are cut into tiles.
struct Tiling {
  Index group;        // query heads that share a K/V head
  Index mixed_heads;  // of them in one tile
  Index queries;      // of each of those heads in one tile
  Index vectors;      // the tile's capacity in vectors of lanes
  Index tiles;        // of the longest sequence, for one set of mixed heads
};

template <class T, class Mask>
Tiling make_tiling(const HeadsView<const T>& query, const HeadsView<const T>& key, Index value_dim, const Mask& mask) {
  Tiling tiling;
  tiling.vectors = tile_vectors_for(std::max(query.dim, value_dim));
  const Index capacity = tiling.vectors * simd::lanes<T>;
  tiling.group = query.heads / key.heads;
  tiling.mixed_heads = 1;
  if (!is_per_head<Mask>())
    for (Index heads = 2; heads <= std::min(tiling.group, capacity); ++heads)
      if (tiling.group % heads == 0) tiling.mixed_heads = heads;
  tiling.queries = std::max<Index>(1, capacity / tiling.mixed_heads);
  if constexpr (requires { mask.query_block(); }) {
    const Index block = std::max<Index>(1, mask.query_block());
    // Tiles start at multiples of `queries`, which must divide the block or be divided by nothing but it.
    tiling.queries = std::min(tiling.queries, block);
    while (block % tiling.queries != 0) --tiling.queries;
  }
  Index longest = 0;
  for (Index b = 0; b < query.batch; ++b) longest = std::max(longest, query.count(b));
  tiling.tiles = (longest + tiling.queries - 1) / tiling.queries;
  return tiling;
}

// Rows with others between them have no neighbours that the processor would fetch by itself.
template <class T>
RBAR_INLINE void fetch_row(T* row, Index dim) {
  if constexpr (std::is_const_v<T>)
    simd::prefetch_row(row, dim);
  else
    for (Index d = 0; d < dim; d += 64 / static_cast<Index>(sizeof(T))) RBAR_PREFETCH_WRITE(row + d);
}

template <class T>
struct QueryTile {
  static constexpr Index lanes = simd::lanes<T>;
  static constexpr Index max_rows = max_tile_vectors * lanes;

  SequencePair pair;
  Index kv_head = 0;
  Index rows = 0;                       // lanes in use
  Index vectors = 0;                    // rows rounded up
  Index first_number = 0, numbers = 0;  // of its queries, in the mask's order
  QueryIndex queries[max_rows];
  Index key_begin[max_rows], key_end[max_rows];                        // keys that a lane sees
  Index vector_begin[max_tile_vectors], vector_end[max_tile_vectors];  // that some lane of a vector sees
  Index common_begin[max_tile_vectors], common_end[max_tile_vectors];  // that all of them see
  Index begin = 0, end = 0;                                            // that some lane sees
  Index fetched = 0;                                                   // of the next tile's queries
  alignas(64) T lower[max_rows], upper[max_rows];                      // key_begin, key_end within the current key tile

  Index width() const { return vectors * lanes; }

  template <class Mask>
  void set(const Mask& mask, const HeadsView<const T>& query, const HeadsView<const T>& key, const Tiling& tiling,
           Index batch, Index kv_head_, Index head_set, Index tile) {
    kv_head = kv_head_;
    pair = {batch, query.count(batch), key.count(batch), query.first_row(batch), key.first_row(batch)};
    first_number = tile * tiling.queries;
    numbers = std::clamp<Index>(pair.queries - first_number, 0, tiling.queries);
    rows = numbers * tiling.mixed_heads;
    vectors = (rows + lanes - 1) / lanes;
    const Index first_head = kv_head * tiling.group + head_set * tiling.mixed_heads;
    for (Index number = first_number, row = 0; row < rows; ++number)
      for (Index head = first_head; head < first_head + tiling.mixed_heads; ++head, ++row) {
        Index i = number;
        if constexpr (has_query_order<Mask>) i = mask.query_at(pair, head, i);
        queries[row] = {batch, head, i, pair.query_row + i};
        set_keys(row, mask.keys(pair, head, i));
      }
    bound_vectors();
    fetched = 0;
    begin = pair.keys;
    end = 0;
    for (Index v = 0; v < vectors; ++v) {
      begin = std::min(begin, vector_begin[v]);
      end = std::max(end, vector_end[v]);
    }
  }

  // visit(first, count) over the tiles of keys `within`, whose own borders are tiles' borders, that this tile may see.
  // Their borders are multiples of tile_keys, not
  // counted from where the tile's own range begins: a query's sums are cut the same in whatever company it comes.
  template <class Mask, class Visit>
  void visit_keys(const Mask& mask, Index tile_keys, KeyRange within, Visit&& visit) {
    const auto clipped = [&](Index from, Index to) {
      from = std::max({from, begin, within.begin});
      to = std::min({to, end, within.end});
      for (Index next; from < to; from = next) {
        next = std::min(to, (from / tile_keys + 1) * tile_keys);
        if constexpr (has_key_stretches<Mask>) {
          KeyRange seen[max_rows];
          mask.keys_within(pair, queries, rows, {from, next}, seen);
          for (Index row = 0; row < rows; ++row) set_keys(row, seen[row]);
          bound_vectors();
        }
        visit(from, next - from);
      }
    };
    if constexpr (has_blocks<Mask>)
      mask.visit_blocks(pair, queries[0].head, first_number, first_number + numbers, clipped);
    else
      clipped(0, pair.keys);
  }

  // Asks for the rows that some queries of the tile that is next have in `views`: at every visit of keys a few, as all
  // of them at once would hold up the visit's own loads. (GCC 12 drops a call whose only effect is a prefetch: no
  // functor.)
  template <class Mask, class... Views>
  void fetch_ahead(const Mask& mask, const Tiling& tiling, Index tile, Index tile_keys, const Views&... views) {
    const Index visits = (end - begin) / tile_keys + 1;
    const Index stop = std::min(fetched + (tiling.queries + visits - 1) / visits, tiling.queries);
    for (; fetched < stop; ++fetched) {
      const Index number = tile * tiling.queries + fetched;
      if (number < 0 || number >= pair.queries) return;
      for (Index row = 0; row < tiling.mixed_heads; ++row) {
        const Index head = queries[row].head;
        Index i = number;
        if constexpr (has_query_order<Mask>) i = mask.query_at(pair, head, i);
        (fetch_row(views.at(pair.batch, head, i), views.dim), ...);
      }
    }
  }

  // Cuts the keys [first, first + count) into strips of equal treatment; returns how many there are.
  template <class Mask>
  int cut(Index first, Index count, Strip (&strips)[max_strips]) {
    int used = 0;
    for (Index from = 0; from < count; from += trim_keys) {
      const Index to = std::min(from + trim_keys, count);
      Strip strip{from, to - from, vectors, 0, has_single_entries<Mask>};
      for (Index v = 0; v < vectors; ++v) {
        if (vector_begin[v] >= first + to || vector_end[v] <= first + from) continue;
        strip.vector_begin = std::min(strip.vector_begin, v);
        strip.vector_end = v + 1;
      }
      if (strip.vector_begin >= strip.vector_end) continue;
      for (Index v = strip.vector_begin; v < strip.vector_end; ++v)
        strip.masked |= common_begin[v] > first + from || common_end[v] < first + to;
      if (used > 0) {
        Strip& last = strips[used - 1];
        if (last.first + last.count == from && last.vector_begin == strip.vector_begin &&
            last.vector_end == strip.vector_end && last.masked == strip.masked) {
          last.count += strip.count;
          continue;
        }
      }
      strips[used++] = strip;
    }
    bool masked = false;
    for (int s = 0; s < used; ++s) masked |= strips[s].masked;
    if (masked)
      for (Index row = 0; row < width(); ++row) {
        lower[row] = static_cast<T>(std::clamp<Index>(key_begin[row] - first, 0, count));
        upper[row] = static_cast<T>(std::clamp<Index>(key_end[row] - first, 0, count));
      }
    return used;
  }

  // Lanes of vector v that see key `offset` of the tile starting at key `first`.
  template <class Mask>
  RBAR_INLINE auto visible(const Mask& mask, Index v, Index first, Index offset) const {
    const auto position = simd::broadcast(static_cast<T>(offset));
    auto seen = (position >= simd::load(lower + v * lanes)) & (position < simd::load(upper + v * lanes));
    if constexpr (has_single_entries<Mask>) {
      alignas(64) T entry[lanes];
      for (Index lane = 0; lane < lanes; ++lane) {
        const QueryIndex& at = queries[v * lanes + lane];
        entry[lane] = mask.visible(pair, at.head, at.query, first + offset) ? T(1) : T(0);
      }
      seen = seen & (simd::load(entry) > simd::zero<T>());
    }
    return seen;
  }

  PairLanes lanes_at(Index v, const HeadsView<const T>& key, Index j) const {
    return {queries + v * lanes,
            std::min(lanes, rows - v * lanes),
            {pair.batch, kv_head, j, key.first_row(pair.batch) + j}};
  }

 private:
  void set_keys(Index row, KeyRange range) {
    if (range.begin >= range.end) range = {0, 0};
    key_begin[row] = range.begin;
    key_end[row] = range.end;
  }

  // What the vectors see, from what their lanes see. Lanes without a query repeat the last one: their results go
  // nowhere, and nothing is masked for them.
  void bound_vectors() {
    for (Index row = rows; row < width(); ++row) {
      queries[row] = queries[rows - 1];
      key_begin[row] = key_begin[rows - 1];
      key_end[row] = key_end[rows - 1];
    }
    for (Index v = 0; v < vectors; ++v) {
      vector_begin[v] = pair.keys;
      vector_end[v] = common_begin[v] = 0;
      common_end[v] = pair.keys;
      for (Index row = v * lanes; row < (v + 1) * lanes; ++row) {
        common_begin[v] = std::max(common_begin[v], key_begin[row]);
        common_end[v] = std::min(common_end[v], key_end[row]);
        if (key_begin[row] == key_end[row]) continue;
        vector_begin[v] = std::min(vector_begin[v], key_begin[row]);
        vector_end[v] = std::max(vector_end[v], key_end[row]);
      }
    }
  }
};

// The numbers that a score functor attaches to the lanes of a query tile and to the keys of a key tile.
template <class T, class Score>
struct ScoreValues {
  static constexpr std::size_t query_count = static_cast<std::size_t>(query_values_of<Score>());
  static constexpr std::size_t key_count = static_cast<std::size_t>(key_values_of<Score>());
  using QueryLanes = std::array<simd::Batch<T>, query_count>;
  using KeyLanes = std::array<simd::Batch<T>, key_count>;
  template <std::size_t Count, Index Size>
  using Table = std::array<std::array<T, static_cast<std::size_t>(Size)>, Count>;

  alignas(64) Table<query_count, QueryTile<T>::max_rows> query;
  alignas(64) Table<key_count, max_tile_keys> key;

  void load_queries(const Score& score, const QueryTile<T>& tile) {
    if constexpr (query_count > 0)
      for (Index row = 0; row < tile.width(); ++row) {
        T values[query_count];
        score.load_query(tile.queries[row], values);
        RBAR_UNROLL
        for (std::size_t i = 0; i < query_count; ++i) query[i][static_cast<std::size_t>(row)] = values[i];
      }
  }
  void load_keys(const Score& score, const QueryTile<T>& tile, Index first, Index count) {
    if constexpr (key_count > 0)
      for (Index j = 0; j < count; ++j) {
        T values[key_count];
        score.load_key(KeyIndex{tile.pair.batch, tile.kv_head, first + j, tile.pair.key_row + first + j}, values);
        RBAR_UNROLL
        for (std::size_t i = 0; i < key_count; ++i) key[i][static_cast<std::size_t>(j)] = values[i];
      }
  }
  RBAR_INLINE QueryLanes query_lanes(Index v) const {
    QueryLanes lanes;
    RBAR_UNROLL
    for (std::size_t i = 0; i < query_count; ++i) lanes[i] = simd::load(query[i].data() + v * simd::lanes<T>);
    return lanes;
  }
  RBAR_INLINE KeyLanes key_lanes(Index j) const {
    KeyLanes lanes;
    RBAR_UNROLL
    for (std::size_t i = 0; i < key_count; ++i) lanes[i] = simd::broadcast(key[i][static_cast<std::size_t>(j)]);
    return lanes;
  }
};

// Keys of one tile, such that their rows fit 32 KiB.
template <class T>
Index tile_keys_for(Index dim) {
  return std::clamp<Index>(row_tile_elements<T> / padded<T>(dim) / trim_keys * trim_keys, trim_keys, max_tile_keys);
}

// Rows of K, V or their gradients as the products read them: row j lies at data + (j − first)·stride.
template <class T>
struct RowBlock {
  T* data;
  Index stride;
  Index first;

  RowBlock() = default;
  RowBlock(const HeadsView<T>& view, Index batch, Index head)
      : data(view.at(batch, head, 0)), stride(view.token_stride), first(0) {}
  RowBlock(T* data_, Index stride_, Index first_) : data(data_), stride(stride_), first(first_) {}
  T* at(Index j) const { return data + (j - first) * stride; }
};

// Every tile of queries reads all of K and V. With the rows of other heads between theirs, usually a power of two
// apart, they fight for the same few sets of L1 and L2; rows that lie so are copied together first, once a job.
template <class T>
bool lies_apart(const HeadsView<T>& view) {
  return view.token_stride > padded<std::remove_const_t<T>>(view.dim);
}
template <class T>
RowBlock<const T> gather_rows(const HeadsView<const T>& view, Index batch, Index head, Index begin, Index end, T* to) {
  const Index stride = padded<T>(view.dim);
  const T* source = view.at(batch, head, begin);
  for (Index j = 0; j < end - begin; ++j) {
    const T* row = source + j * view.token_stride;
    fetch_row(row + std::min<Index>(8, end - begin - 1 - j) * view.token_stride, view.dim);
    std::copy_n(row, view.dim, to + j * stride);
  }
  return {to, stride, begin};
}

// Room for such copies, kept by every thread.
struct RowCopies {};

// Jobs of about this many multiply-adds are worth handing to a thread.
inline constexpr Index min_job_work = Index{1} << 17;

}  // namespace rbar::detail
