// The score of phase-modulated attention: the dot product times a coherence of phases,
//   logit_ij = q_i·k_j / (√d τ_i) · (λ P_ij + 1 − λ),   P_ij = cos(φ_i − φ_pos,j)
//            = q_i·k_j / (√d τ_i) · (λ cos φ_i · cos φ_pos,j + λ sin φ_i · sin φ_pos,j + 1 − λ),
// a product of rank 2 beside one of rank d: two multiply-adds and a multiplication a pair. The mask comes after it: −∞
// times a negative coherence would be +∞.
#pragma once

#include "rbar/attention/scores.hpp"
#include "rbar/simd/batch.hpp"

namespace rbar {

template <class T>
struct PhaseScore {
  static constexpr int query_values = 3, key_values = 2;  // λ cos φ, λ sin φ, 1 − λ and cos φ_pos, sin φ_pos

  const T *cosine, *sine;    // of φ [row of the queries][heads]
  const T* temperature;      // τ [row of the queries][heads]
  const T* position_phasor;  // [key][2]
  Index heads;
  T gate;        // λ
  double scale;  // 1/√d

  double query_scale(const QueryIndex& query) const {
    return scale / static_cast<double>(temperature[query.row * heads + query.head]);
  }
  void load_query(const QueryIndex& query, T* values) const {
    const Index at = query.row * heads + query.head;
    values[0] = gate * cosine[at];
    values[1] = gate * sine[at];
    values[2] = T(1) - gate;
  }
  void load_key(const KeyIndex& key, T* values) const {
    values[0] = position_phasor[2 * key.key];
    values[1] = position_phasor[2 * key.key + 1];
  }

  template <class B>
  RBAR_INLINE B logit(const B& dot, const auto& query, const auto& key, const PairLanes&) const {
    return dot * modulation<B>(query, key);
  }
  template <class B>
  RBAR_INLINE B vjp(const B& dlogit, const B& dot, const auto& query, const auto& key, const PairLanes&, auto& dquery,
                    auto& dkey, auto& /*gradient*/) const {
    const B dmodulation = dlogit * dot;
    dquery[0] = simd::multiply_add(dmodulation, key[0], dquery[0]);
    dquery[1] = simd::multiply_add(dmodulation, key[1], dquery[1]);
    dquery[2] = dquery[2] + dmodulation;
    dkey[0] = simd::multiply_add(dmodulation, query[0], dkey[0]);
    dkey[1] = simd::multiply_add(dmodulation, query[1], dkey[1]);
    return dlogit * modulation<B>(query, key);
  }

 private:
  template <class B>
  RBAR_INLINE static B modulation(const auto& query, const auto& key) {
    return simd::multiply_add(query[0], key[0], simd::multiply_add(query[1], key[1], query[2]));
  }
};

// What a row sums up over its keys, in the order of the score's query values. ∂logit/∂τ needs no sum of its own, as
// Σ_j dlogit_ij·logit_ij is a combination of these three.
template <class T>
RBAR_INLINE T sum_of_logits(T gate, T cosine, T sine, const T* sums) {
  return gate * (cosine * sums[0] + sine * sums[1]) + (T(1) - gate) * sums[2];
}

// The key sums are the caller's, and start at 0.
template <class T>
struct PhaseScoreGradient {
  T* rows;       // [row of the queries][heads][3]
  T* positions;  // ∂L/∂cos φ_pos, ∂L/∂sin φ_pos [batch][heads][tokens][2]
  Index heads, tokens;

  void add_query(const QueryIndex& query, const T* values) {
    for (Index i = 0; i < 3; ++i) rows[(query.row * heads + query.head) * 3 + i] = values[i];
  }
  void add_key(const KeyIndex& key, const T* values) {
    T* at = positions + ((key.batch * heads + key.head) * tokens + key.key) * 2;
    at[0] += values[0];
    at[1] += values[1];
  }
};

}  // namespace rbar
