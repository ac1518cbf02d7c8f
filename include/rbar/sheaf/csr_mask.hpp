// Attention along a pattern that the caller gives: for every query the list of keys that it sees (compressed sparse
// rows), for windows with landmarks, graphs, retrieved passages. A query with an empty list gives zeros.
#pragma once

#include "rbar/attention/masks.hpp"
#include "rbar/core/error.hpp"

#include <algorithm>

namespace rbar {

// Query i sees columns[offsets[i]], …, columns[offsets[i + 1] − 1], ascending. One pattern for all sequences and heads,
// or several in a row: that of (batch, head) starts at query (batch·batch_stride + head·head_stride)·queries.
struct CsrMask {
  static constexpr bool per_head = true;
  static constexpr Index tile = 64;  // keys that are visited together, on a fixed grid

  const Index* offsets = nullptr;  // [patterns·queries + 1]
  const Index* columns = nullptr;  // [offsets.back()]
  Index queries = 0;               // of a pattern
  Index batch_stride = 0, head_stride = 0;

  KeyRange keys(const SequencePair& pair, Index head, Index query) const {
    const auto [first, last] = row(pair, head, query);
    return first == last ? KeyRange{} : KeyRange{*first, last[-1] + 1};
  }
  bool visible(const SequencePair& pair, Index head, Index query, Index key) const {
    const auto [first, last] = row(pair, head, query);
    return std::binary_search(first, last, key);
  }
  void visit_blocks(const SequencePair& pair, Index head, Index begin, Index end, auto&& visit) const {
    for (Index from = 0; from < pair.keys;) {
      Index next = pair.keys;  // the first key from here on that one of them sees
      for (Index query = begin; query < end; ++query) {
        const auto [first, last] = row(pair, head, query);
        const Index* at = std::lower_bound(first, last, from);
        if (at != last) next = std::min(next, *at);
      }
      if (next == pair.keys) return;
      from = (next / tile + 1) * tile;
      visit(next / tile * tile, std::min(from, pair.keys));
    }
  }

 private:
  struct Row {
    const Index *first, *last;
  };
  Row row(const SequencePair& pair, Index head, Index query) const {
    const Index at = (pair.batch * batch_stride + head * head_stride) * queries + query;
    return {columns + offsets[at], columns + offsets[at + 1]};
  }
};

// `attend` believes its masks: check a pattern that comes from outside once, before its first use. Errors: offsets that
// do not ascend from 0, rows that are not ascending keys below `keys`.
inline void require_csr(const CsrMask& mask, Index patterns, Index keys) {
  require(mask.offsets != nullptr && mask.offsets[0] == 0, "CsrMask", "offsets", "0 in front", "something else");
  for (Index i = 0; i < patterns * mask.queries; ++i) {
    require(mask.offsets[i] <= mask.offsets[i + 1], "CsrMask", "offsets", "ascending numbers", mask.offsets[i + 1]);
    for (Index at = mask.offsets[i]; at < mask.offsets[i + 1]; ++at) {
      const Index before = at > mask.offsets[i] ? mask.columns[at - 1] : -1;
      require(mask.columns[at] > before && mask.columns[at] < keys, "CsrMask", "columns",
              "ascending keys of each query", mask.columns[at]);
    }
  }
}

}  // namespace rbar
