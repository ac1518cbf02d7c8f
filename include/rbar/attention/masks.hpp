// Mask policies: which keys a query may see. A policy is a plain struct with one function,
//
//   KeyRange keys(const SequencePair& pair, Index head, Index query) const;
//
// the keys [begin, end) that query `query` of this sequence may see. The engine skips tiles of keys that
// none of a tile of queries sees and trims those at an edge. A policy may add, to be sparser than one
// range a query:
//
//   Index query_block() const;      no tile of queries straddles a multiple of this
//   void visit_blocks(const SequencePair&, Index head, Index query_begin, Index query_end, auto&& visit) const;
//                                   calls visit(begin, end) for the stretches of keys that these queries (of
//                                   one query block) may see, ascending and disjoint
//   void keys_within(const SequencePair&, const QueryIndex* queries, Index count, KeyRange stretch,
//                    KeyRange* seen) const;
//                                   what these queries see of a stretch that was visited, or of a part of it
//   bool visible(const SequencePair&, Index head, Index query, Index key) const;   single entries
//   Index query_at(const SequencePair&, Index head, Index number) const;
//                                   queries are put into tiles in this order (a permutation), which should bring
//                                   those together that see the same; visit_blocks then gets numbers, not queries
//   static constexpr bool per_head = true;   the answer depends on `head`
#pragma once

#include "rbar/core/tensor.hpp"

#include <algorithm>

namespace rbar {

struct KeyRange {
  Index begin = 0, end = 0;
};

// One sequence of queries and the keys it meets. Rows number the tokens through the whole view.
struct SequencePair {
  Index batch = 0;
  Index queries = 0, keys = 0;       // tokens
  Index query_row = 0, key_row = 0;  // number of the first one's row
};

struct FullMask {
  KeyRange keys(const SequencePair& pair, Index /*head*/, Index /*query*/) const { return {0, pair.keys}; }
};

// Query i stands at position query_offset + i of the keys: with a KV cache the offset is the number of
// tokens cached before this call.
struct CausalMask {
  Index query_offset = 0;
  KeyRange keys(const SequencePair& pair, Index /*head*/, Index query) const {
    return {0, std::clamp<Index>(query_offset + query + 1, 0, pair.keys)};
  }
};

// Causal, and no further back than the last `window` positions (the query's own among them).
struct WindowMask {
  Index window = 1;
  Index query_offset = 0;
  KeyRange keys(const SequencePair& pair, Index /*head*/, Index query) const {
    const Index end = query_offset + query + 1;
    return {std::clamp<Index>(end - window, 0, pair.keys), std::clamp<Index>(end, 0, pair.keys)};
  }
};

// Causal by absolute positions, for subsets of tokens: a query sees the keys whose position is not after
// its own. Both arrays are indexed by row and ascend within a sequence; without key_positions key j
// stands at position j. window > 0 limits how far back.
struct PositionMask {
  const Index* query_positions = nullptr;
  const Index* key_positions = nullptr;
  Index window = 0;

  KeyRange keys(const SequencePair& pair, Index /*head*/, Index query) const {
    const Index position = query_positions[pair.query_row + query];
    return {window > 0 ? keys_before(pair, position - window + 1) : 0, keys_before(pair, position + 1)};
  }

 private:
  Index keys_before(const SequencePair& pair, Index position) const {
    if (!key_positions) return std::clamp<Index>(position, 0, pair.keys);
    const Index* first = key_positions + pair.key_row;
    return std::lower_bound(first, first + pair.keys, position) - first;
  }
};

// Whichever of these a layer's config and pass ask for, decided at run time: keys() is called once a query, and a layer
// compiles the engine once.
struct AttentionMask {
  bool causal = true;
  Index window = 0;        // > 0: a query sees the last `window` positions only
  Index query_offset = 0;  // position of the first query, where no positions are given
  const Index* query_positions = nullptr;
  const Index* key_positions = nullptr;

  KeyRange keys(const SequencePair& pair, Index head, Index query) const {
    if (!causal) return FullMask{}.keys(pair, head, query);
    if (query_positions) return PositionMask{query_positions, key_positions, window}.keys(pair, head, query);
    if (window > 0) return WindowMask{window, query_offset}.keys(pair, head, query);
    return CausalMask{query_offset}.keys(pair, head, query);
  }
};

}  // namespace rbar
