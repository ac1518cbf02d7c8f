// The scores of sheaf attention: minus the energy of the edge between query i and key j, E_ij = ‖q_i − k_j‖², times the
// inverse temperature β_h > 0 of the head (ADR-015; a discrete sheaf diffusion in the sense of Hansen and Gebhart,
// "Sheaf Neural Networks", 2020):
//
//   SheafScore       −β E_ij  ≅  2β q_i·k_j − β‖k_j‖²     β‖q_i‖² is the same for a whole row, the softmax drops it
//   SheafEdgeScore   −β w_ij E_ij,  E_ij = ‖q_i‖² + ‖k_j‖² − 2 q_i·k_j      with weights nothing drops out
//
// Both expand the square, which is what lets them run on dot products. Where the energy itself matters (thresholds), or
// q and k lie far from 0 together, residual.hpp computes it without the cancellation.
#pragma once

#include "rbar/attention/heads_view.hpp"
#include "rbar/attention/scores.hpp"
#include "rbar/core/parallel.hpp"
#include "rbar/simd/batch.hpp"

#include <algorithm>

namespace rbar {

// Squared norms of tokens [first, count(b)) of sequence b, each head: norms[row·heads + head], row of the view.
template <class T>
void square_norms(const HeadsView<const T>& view, Index batch, Index first, T* norms) {
  const Index count = view.count(batch);
  const Index chunk = std::max<Index>(1, 32768 / std::max<Index>(1, view.heads * view.dim));
  parallel_for(count - first, chunk, [&](Index begin, Index end) {
    for (Index t = first + begin; t < first + end; ++t)
      for (Index head = 0; head < view.heads; ++head) {
        const T* x = view.at(batch, head, t);
        auto sum = simd::zero<T>();
        Index d = 0;
        for (; d + simd::lanes<T> <= view.dim; d += simd::lanes<T>)
          sum = simd::multiply_add(simd::load(x + d), simd::load(x + d), sum);
        if (d < view.dim) {
          const auto tail = simd::load_partial(x + d, view.dim - d);
          sum = simd::multiply_add(tail, tail, sum);
        }
        norms[(view.first_row(batch) + t) * view.heads + head] = simd::reduce_add(sum);
      }
  });
}
// Short sequences share a chunk; a long one alone is cut further (a call inside a chunk is not).
template <class T>
Index sequences_per_chunk(const HeadsView<T>& view) {
  return std::max<Index>(1, 32768 / std::max<Index>(1, view.tokens * view.heads * view.dim));
}

// Of every token.
template <class T>
void square_norms(const HeadsView<const T>& view, T* norms) {
  parallel_for(view.batch, sequences_per_chunk(view), [&](Index begin, Index end) {
    for (Index b = begin; b < end; ++b) square_norms(view, b, 0, norms);
  });
}

// dx += 2 x·dnorm, the gradient of the squared norms.
template <class T>
void square_norms_backward(const HeadsView<const T>& view, const T* dnorms, const HeadsView<T>& dx) {
  const Index chunk = std::max<Index>(1, 32768 / std::max<Index>(1, view.heads * view.dim));
  parallel_for(view.batch, sequences_per_chunk(view), [&](Index first, Index last) {
    for (Index b = first; b < last; ++b)
      parallel_for(view.count(b), chunk, [&](Index begin, Index end) {
        for (Index t = begin; t < end; ++t)
          for (Index head = 0; head < view.heads; ++head) {
            const T factor = 2 * dnorms[(view.first_row(b) + t) * view.heads + head];
            const T* RBAR_RESTRICT from = view.at(b, head, t);
            T* RBAR_RESTRICT to = dx.at(b, head, t);
            for (Index d = 0; d < view.dim; ++d) to[d] += factor * from[d];
          }
      });
  });
}

// logit_ij = β_h (2 q_i·k_j − ‖k_j‖²), of which 2β_h is folded into q: one multiply-add a pair.
template <class T>
struct SheafScore {
  static constexpr int query_values = 1, key_values = 1;  // −β and ‖k‖²

  const T* beta;             // [heads]
  const T* key_square_norm;  // [row of the keys][kv_heads]
  Index kv_heads;

  double query_scale(const QueryIndex& query) const { return 2 * static_cast<double>(beta[query.head]); }
  void load_query(const QueryIndex& query, T* values) const { values[0] = -beta[query.head]; }
  void load_key(const KeyIndex& key, T* values) const { values[0] = key_square_norm[key.row * kv_heads + key.head]; }

  template <class B>
  RBAR_INLINE B logit(const B& dot, const auto& query, const auto& key, const PairLanes&) const {
    return simd::multiply_add(query[0], key[0], dot);
  }
  // β ∂logit/∂β is the logit itself, so what the queries add up is β ∂L/∂β.
  template <class B>
  RBAR_INLINE B vjp(const B& dlogit, const B& dot, const auto& query, const auto& key, const PairLanes& pairs,
                    auto& dquery, auto& dkey, auto& /*gradient*/) const {
    dquery[0] = simd::multiply_add(dlogit, logit(dot, query, key, pairs), dquery[0]);
    dkey[0] = simd::multiply_add(dlogit, query[0], dkey[0]);
    return dlogit;
  }
};

// The sums are the caller's, and start at 0.
template <class T>
struct SheafScoreGradient {
  double* beta;        // β·∂L/∂β [batch][heads]: calls of different (batch, kv head) may be concurrent
  T* key_square_norm;  // [row of the keys][kv_heads]
  Index heads, kv_heads;

  void add_query(const QueryIndex& query, const T* values) {
    beta[query.batch * heads + query.head] += static_cast<double>(values[0]);
  }
  void add_key(const KeyIndex& key, const T* values) { key_square_norm[key.row * kv_heads + key.head] += values[0]; }
};

// w_ij ≥ 0 of every edge, one matrix for a sequence or for all of them. Weight 0 makes a pair agree whatever it holds;
// it does not part the two: that is a mask's to do.
template <class T>
struct EdgeWeights {
  const T* data = nullptr;
  Index tokens = 0;
  Index batch_stride = 0;  // 0: all sequences share [tokens, tokens]

  Index at(const QueryIndex& query, const KeyIndex& key) const {
    return query.batch * batch_stride + query.query * tokens + key.key;
  }
};

// logit_ij = −β_h w_ij (‖q_i‖² + ‖k_j‖² − 2 q_i·k_j), the energy no less than 0 in spite of rounding.
template <class T>
struct SheafEdgeScore {
  static constexpr int query_values = 2, key_values = 1;  // −β, ‖q‖² and ‖k‖²

  const T* beta;               // [heads]
  const T* query_square_norm;  // [row of the queries][heads]
  const T* key_square_norm;    // [row of the keys][kv_heads]
  Index heads, kv_heads;
  EdgeWeights<T> edges;

  double query_scale(const QueryIndex&) const { return 2; }
  void load_query(const QueryIndex& query, T* values) const {
    values[0] = -beta[query.head];
    values[1] = query_square_norm[query.row * heads + query.head];
  }
  void load_key(const KeyIndex& key, T* values) const { values[0] = key_square_norm[key.row * kv_heads + key.head]; }

  template <class B>
  RBAR_INLINE B logit(const B& dot, const auto& query, const auto& key, const PairLanes& pairs) const {
    return query[0] * weights(pairs) * energy(dot, query, key);
  }
  template <class B>
  RBAR_INLINE B vjp(const B& dlogit, const B& dot, const auto& query, const auto& key, const PairLanes& pairs,
                    auto& dquery, auto& dkey, auto& gradient) const {
    const B weight = weights(pairs), dfactor = dlogit * energy(dot, query, key);
    pairs.scatter<T>(query[0] * dfactor,
                     [&](const QueryIndex& q, const KeyIndex& k, T value) { gradient.add_edge(q, k, value); });
    const B denergy = dlogit * query[0] * weight;
    dquery[0] = simd::multiply_add(dfactor, query[0] * weight, dquery[0]);
    dquery[1] = dquery[1] + denergy;
    dkey[0] = dkey[0] + denergy;
    return -denergy;
  }

 private:
  simd::Batch<T> weights(const PairLanes& pairs) const {
    return pairs.gather<T>(
        [&](const QueryIndex& query, const KeyIndex& key) { return edges.data[edges.at(query, key)]; });
  }
  template <class B>
  RBAR_INLINE static B energy(const B& dot, const auto& query, const auto& key) {
    // x86 hands on the second operand when either is a NaN.
    return simd::max(simd::zero<T>(), query[1] + key[0] - dot);
  }
};

// The sums are the caller's, and start at 0.
template <class T>
struct SheafEdgeGradient {
  double* beta;          // β·∂L/∂β [batch][heads]
  T* query_square_norm;  // [row of the queries][heads]
  T* key_square_norm;    // [row of the keys][kv_heads]
  T* edges;              // [batch][kv_heads][tokens][tokens], as those calls may be concurrent
  Index heads, kv_heads, tokens;

  void add_query(const QueryIndex& query, const T* values) {
    beta[query.batch * heads + query.head] += static_cast<double>(values[0]);
    query_square_norm[query.row * heads + query.head] = values[1];
  }
  void add_key(const KeyIndex& key, const T* values) { key_square_norm[key.row * kv_heads + key.head] += values[0]; }
  void add_edge(const QueryIndex& query, const KeyIndex& key, T value) {
    edges[((key.batch * kv_heads + key.head) * tokens + query.query) * tokens + key.key] += value;
  }
};

}  // namespace rbar
