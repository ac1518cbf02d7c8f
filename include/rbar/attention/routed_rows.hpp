// A subset of the tokens of a batch, as a router chooses it, and the moves between "all rows" and
// "these rows, packed".
#pragma once

#include "rbar/core/parallel.hpp"
#include "rbar/core/tensor.hpp"

#include <algorithm>
#include <string_view>

namespace rbar {

// Which tokens a routed query attends to (earlier ones only, if causal).
enum class KeyValues {
  all,     // every token is a key: the routed share saves the queries' work
  routed,  // only routed tokens are keys: the cost falls with the square of the share
};

inline constexpr KeyValues all_key_values[] = {KeyValues::all, KeyValues::routed};
constexpr const char* name_of(KeyValues key_values) { return key_values == KeyValues::all ? "all" : "routed"; }
constexpr bool parse(std::string_view text, KeyValues& key_values) {
  for (const KeyValues candidate : all_key_values)
    if (text == name_of(candidate)) return key_values = candidate, true;
  return false;
}

// Row numbers of [batch·tokens, features], ascending; those of sequence b are
// rows[offsets[b]], …, rows[offsets[b + 1] − 1]. The memory is the caller's.
struct RoutedRows {
  const Index* rows = nullptr;     // [offsets[batch]]
  const Index* offsets = nullptr;  // [batch + 1]
  Index batch = 0;

  Index count() const { return batch == 0 ? 0 : offsets[batch]; }
};

// Errors: rows that are not ascending inside their sequence of `tokens` tokens.
inline void require_routed(std::string_view operation, const RoutedRows& routed, Index batch, Index tokens) {
  require(routed.batch == batch, operation, "routed sequences", batch, routed.batch);
  require(batch == 0 || routed.offsets[0] == 0, operation, "first routed offset", 0,
          batch == 0 ? 0 : routed.offsets[0]);
  for (Index b = 0; b < batch; ++b) {
    Index first_allowed = b * tokens;
    for (Index i = routed.offsets[b]; i < routed.offsets[b + 1]; ++i) {
      if (routed.rows[i] < first_allowed || routed.rows[i] >= (b + 1) * tokens) [[unlikely]]
        throw Error(operation, "routed row", "ascending rows of sequence " + std::to_string(b),
                    std::to_string(routed.rows[i]));
      first_allowed = routed.rows[i] + 1;
    }
  }
}

// packed[i] = x[rows[i]].
template <class T>
void gather_rows(ConstMatrixView<T> x, const RoutedRows& routed, MatrixView<T> packed) {
  const Index dim = x.cols();
  require_shape("gather_rows", "packed", packed, {routed.count(), dim});
  parallel_for(routed.count(), std::max<Index>(1, 32768 / std::max<Index>(1, dim)), [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) std::copy_n(x.data() + routed.rows[i] * dim, dim, packed.data() + i * dim);
  });
}

// x[rows[i]] = packed[i].
template <class T>
void scatter_rows(ConstMatrixView<T> packed, const RoutedRows& routed, MatrixView<T> x) {
  const Index dim = x.cols();
  require_shape("scatter_rows", "packed", packed, {routed.count(), dim});
  parallel_for(routed.count(), std::max<Index>(1, 32768 / std::max<Index>(1, dim)), [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) std::copy_n(packed.data() + i * dim, dim, x.data() + routed.rows[i] * dim);
  });
}

// x[rows[i]] += packed[i]. No row occurs twice, so threads cannot meet.
template <class T>
void scatter_add_rows(ConstMatrixView<T> packed, const RoutedRows& routed, MatrixView<T> x) {
  const Index dim = x.cols();
  require_shape("scatter_add_rows", "packed", packed, {routed.count(), dim});
  parallel_for(routed.count(), std::max<Index>(1, 32768 / std::max<Index>(1, dim)), [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      const T* RBAR_RESTRICT from = packed.data() + i * dim;
      T* RBAR_RESTRICT to = x.data() + routed.rows[i] * dim;
      for (Index d = 0; d < dim; ++d) to[d] += from[d];
    }
  });
}

}  // namespace rbar
