// Who sees what in block-sparse attention, as two masks for the engine: a row's open chunk in the keys' own order, and
// of the bundled keys (key_blocks.hpp) the blocks that were chosen for it.
#pragma once

#include "rbar/attention/masks.hpp"
#include "rbar/attention/scores.hpp"
#include "rbar/sheaf/key_blocks.hpp"

#include <algorithm>
#include <bit>
#include <cstdint>

namespace rbar {

// Keys that came since the last chunk before the row's own was closed: [closed, visible). A row's own key always is
// among them.
struct OpenChunkMask {
  AttentionMask all;
  Index chunk = 1;

  KeyRange keys(const SequencePair& pair, Index head, Index query) const {
    const Index end = all.keys(pair, head, query).end;
    return {closed(end), end};
  }
  // Keys in closed chunks, of `visible` ones.
  Index closed(Index visible) const {
    if (!all.causal) return visible;
    return visible > 0 ? (visible - 1) / chunk * chunk : 0;
  }
};

// Over keys by slot. Queries are tiled by what they see; a row sees of a block the slots that were filled when its open
// chunk began, which is a prefix.
template <class T>
struct BlockSparseMask {
  static constexpr bool per_head = true;
  static constexpr Index tile_queries = simd::lanes<T>;

  const KeyBlocks<T>* blocks = nullptr;  // [batch][kv_heads]
  const std::uint64_t* kept = nullptr;   // [row][heads][words]
  const Index* closed = nullptr;         // [row], keys before its open chunk
  const Index* order = nullptr;          // of sequence b at heads·first_row(b): [heads][queries]
  Index heads = 0, kv_heads = 0, words = 0;

  Index query_block() const { return tile_queries; }
  KeyRange keys(const SequencePair& pair, Index /*head*/, Index /*query*/) const { return {0, pair.keys}; }

  Index query_at(const SequencePair& pair, Index head, Index number) const {
    return order[heads * pair.query_row + head * pair.queries + number];
  }

  void visit_blocks(const SequencePair& pair, Index head, Index begin, Index end, auto&& visit) const {
    const KeyBlocks<T>& own = blocks_of(pair, head);
    Index latest = 0;
    for (Index number = begin; number < end; ++number)
      latest = std::max(latest, closed[pair.query_row + query_at(pair, head, number)]);
    if (latest == 0) return;
    for (Index w = 0; w < words; ++w) {
      std::uint64_t seen = 0;
      for (Index number = begin; number < end; ++number) seen |= kept_by(pair, head, query_at(pair, head, number))[w];
      for (; seen != 0; seen &= seen - 1) {
        const Index b = 64 * w + std::countr_zero(seen);
        visit(b * own.block, b * own.block + own.filled(b, latest));
      }
    }
  }

  void keys_within(const SequencePair& pair, const QueryIndex* queries, Index count, KeyRange stretch,
                   KeyRange* seen) const {
    const KeyBlocks<T>& own = blocks_of(pair, queries[0].head);
    const Index b = stretch.begin / own.block, first = b * own.block, length = own.fill.data()[b];
    const Index last_key = own.key_of_slot.data()[first + length - 1];
    for (Index i = 0; i < count; ++i) {
      const QueryIndex& at = queries[i];
      const bool kept_here = (kept[(at.row * heads + at.head) * words + b / 64] >> b % 64 & 1) != 0;
      const Index before = closed[at.row];
      seen[i] = kept_here ? KeyRange{first, first + (last_key < before ? length : own.filled(b, before))} : KeyRange{};
    }
  }

 private:
  const KeyBlocks<T>& blocks_of(const SequencePair& pair, Index head) const {
    return blocks[pair.batch * kv_heads + head / (heads / kv_heads)];
  }
  const std::uint64_t* kept_by(const SequencePair& pair, Index head, Index query) const {
    return kept + ((pair.query_row + query) * heads + head) * words;
  }
};

}  // namespace rbar
