// Score functors: what turns the dot product s_ij = q_i·k_j into the logit that the softmax sees. The
// engine calls them for one key and a register of queries at a time; everything is inlined.
//
//   struct MyScore {
//     static constexpr int query_values = n;   numbers a (head, query) brings along: β of its head, τ, cos φ
//     static constexpr int key_values = m;     numbers a key brings along: ‖k‖², cos φ_pos
//     void load_query(const QueryIndex&, T* values) const;
//     void load_key(const KeyIndex&, T* values) const;
//     double query_scale(const QueryIndex&) const;   factor on q, folded in for free while q is packed
//
//     B logit(const B& dot, const auto& query, const auto& key, const PairLanes& at) const;
//     B vjp(const B& dlogit, const B& dot, const auto& query, const auto& key, const PairLanes& at,
//           auto& dquery, auto& dkey, auto& gradient) const;   returns ∂L/∂dot
//   };
//
// B is simd::Batch<T> with lanes = queries; query[i] are lanes, key[i] is the same in every lane. All but
// logit and vjp may be left out. `dot` arrives multiplied by query_scale. A logit of −∞ removes the pair.
// vjp adds to dquery[i] and dkey[i]; the engine sums them in a fixed order and hands them on to
//
//   struct MyGradient {
//     void add_query(const QueryIndex&, const T* values);   once a (head, query): the whole sum over its keys
//     void add_key(const KeyIndex&, const T* values);       several times a key: += here
//   };
//
// Calls for different (batch, kv head) may come at the same time, those for one come in a fixed order. So a
// parameter shared by a head gets one partial sum a (batch, head), which its layer adds up afterwards. Numbers that
// belong to single pairs (i, j) are read in logit and written in vjp through PairLanes; a pair is met once.
#pragma once

#include "rbar/simd/batch.hpp"

#include <array>
#include <type_traits>

namespace rbar {

using simd::Index;

struct QueryIndex {
  Index batch, head, query;
  Index row;  // of the query view
};
struct KeyIndex {
  Index batch, head, key;  // head: of the keys and values
  Index row;               // of the key view
};

// The pairs of one call: lane l is queries[l] (l < count) with `key`. Lanes from count on hold nothing.
struct PairLanes {
  const QueryIndex* queries;
  Index count;
  KeyIndex key;

  // Lanes from a function of (query, key), for numbers that belong to the pair.
  template <class T, class Function>
  simd::Batch<T> gather(Function&& function) const {
    alignas(64) T values[simd::lanes<T>] = {};
    for (Index lane = 0; lane < count; ++lane) values[lane] = function(queries[lane], key);
    return simd::Batch<T>::load_aligned(values);
  }
  template <class T, class Function>
  void scatter(const simd::Batch<T>& batch, Function&& function) const {
    alignas(64) T values[simd::lanes<T>];
    batch.store_aligned(values);
    for (Index lane = 0; lane < count; ++lane) function(queries[lane], key, values[lane]);
  }
};

// logit = scale·q·k, usually with scale = 1/√d (Vaswani et al., "Attention is all you need", 2017).
struct DotProductScore {
  double scale = 1;

  double query_scale(const QueryIndex&) const { return scale; }

  template <class B>
  RBAR_INLINE B logit(const B& dot, const auto& /*query*/, const auto& /*key*/, const PairLanes&) const {
    return dot;
  }
  template <class B>
  RBAR_INLINE B vjp(const B& dlogit, const B& /*dot*/, const auto& /*query*/, const auto& /*key*/, const PairLanes&,
                    auto& /*dquery*/, auto& /*dkey*/, auto& /*gradient*/) const {
    return dlogit;
  }
};

// For scores without gradients of their own.
struct NoScoreGradient {};

namespace detail {

// The optional parts of a score functor, with their defaults.
template <class Score>
consteval int query_values_of() {
  if constexpr (requires { Score::query_values; })
    return Score::query_values;
  else
    return 0;
}
template <class Score>
consteval int key_values_of() {
  if constexpr (requires { Score::key_values; })
    return Score::key_values;
  else
    return 0;
}
template <class T, class Score>
T query_scale(const Score& score, const QueryIndex& at) {
  if constexpr (requires { score.query_scale(at); })
    return static_cast<T>(score.query_scale(at));
  else
    return T(1);
}

}  // namespace detail
}  // namespace rbar
