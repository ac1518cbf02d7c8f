// Phase coherence of hidden states: how well the phases φ = 2πσ(x) agree, as the mean resultant length
//   R̄ = |mean e^{iφ}| = √(mean(cos φ)² + mean(sin φ)²) in [0, 1].
// 1: all phases equal; 0: they cancel. (Mardia & Jupp, "Directional Statistics", 2.3; the CoRT package's names.)
//
//   token      over the features of each token                        [B,T,D] -> [B,T]
//   sequence   over tokens and features                               [B,T,D] -> [B]
//   local      per feature over a window of tokens, mean of features  [B,T,D] -> [B,T]   windowed.hpp
//   cross      phase locking with the n neighbours                    [B,T,D] -> [B,T]   cross.hpp
//   combined   ½ token + ½ local, from the same sines and cosines
//
// For a first look: compute_phase_coherence(hidden) and its siblings. For layers: coherence_forward and
// coherence_backward (layer.hpp), coherence_step (streaming.hpp). Gradient: ∂R̄/∂φ_k = (cos φ_k·S − sin φ_k·C)/(N·|Z|)
// with Z = C + iS = Σ e^{iφ}, and 0 where Z = 0, where R̄ has no derivative. Hidden states need not be finite: a NaN
// makes the coherences that see it NaN.
#pragma once

#include "rbar/coherence/layer.hpp"
#include "rbar/coherence/streaming.hpp"

namespace rbar {

// --- given angles -------------------------------------------------------------------------------

// R̄ over the last axis of `phases` (radians, any size): [..., N] -> [...].
//   Tensor<float, 2> r = r_bar_from_phases(phases);   // phases [B,T,N]
template <class Phases>
auto r_bar_from_phases(const Phases& phases) {
  using T = typename Phases::Scalar;
  constexpr int rank = Phases::NumDimensions;
  static_assert(rank >= 2, "r_bar_from_phases: give a vector of phases to circular_statistics instead");
  Shape<rank - 1> shape;
  for (std::size_t i = 0; i < shape.size(); ++i) shape[i] = phases.dimensions()[i];
  const Index count = phases.dimension(rank - 1);
  Tensor<T, rank - 1> r_bar;
  ensure_shape(r_bar, shape);
  parallel_for(r_bar.size(), detail::rows_per_chunk(count), [&](Index begin, Index end) {
    for (Index row = begin; row < end; ++row)
      r_bar.data()[row] =
          static_cast<T>(detail::resultant_length(simd::angle_sums(phases.data() + row * count, count), count));
  });
  return r_bar;
}

// dphases += gradient of Σ dr_bar ⊙ r_bar_from_phases(phases).
template <class T, int Rank>
void r_bar_from_phases_backward(std::type_identity_t<ConstTensorView<T, Rank - 1>> dr_bar,
                                std::type_identity_t<ConstTensorView<T, Rank>> phases, Tensor<T, Rank>& dphases) {
  const Index count = phases.dimension(Rank - 1);
  require_shape("r_bar_from_phases_backward", "dphases", shape_of(dphases), shape_of(phases));
  for (std::size_t i = 0; i + 1 < static_cast<std::size_t>(Rank); ++i)
    require(dr_bar.dimensions()[i] == phases.dimensions()[i], "r_bar_from_phases_backward", "size of dr_bar",
            phases.dimensions()[i], dr_bar.dimensions()[i]);
  parallel_for(dr_bar.size(), detail::rows_per_chunk(count), [&](Index begin, Index end) {
    for (Index row = begin; row < end; ++row) {
      const T* angles = phases.data() + row * count;
      const detail::ResultantGradient g(simd::angle_sums(angles, count), count,
                                        static_cast<double>(dr_bar.data()[row]));
      simd::angle_gradient(angles, count, static_cast<T>(g.a), static_cast<T>(g.b), dphases.data() + row * count);
    }
  });
}

// --- hidden states, for a first look ------------------------------------------------------------

// Any coherence of hidden [B,T,D] as a new tensor [B,T].
template <class Hidden>
auto compute_coherence(const Hidden& hidden, const CoherenceConfig& config) {
  using T = typename Hidden::Scalar;
  static_assert(Hidden::NumDimensions == 3, "hidden is [batch, tokens, features]");
  Tensor<T, 2> coherence;
  CoherenceCache<T> cache;
  coherence_forward<T>(ConstTensorView<T, 3>(hidden.data(), hidden.dimensions()), config, coherence, cache);
  return coherence;
}

// Token coherence [B,T]: over the features of each token.
template <class Hidden>
auto compute_phase_coherence(const Hidden& hidden) {
  return compute_coherence(hidden, {.mode = CoherenceMode::token});
}

// Local coherence [B,T]: per feature over `window` tokens, mean over features.
template <class Hidden>
auto compute_local_coherence(const Hidden& hidden, Index window = 8, Causality causality = Causality::causal) {
  return compute_coherence(hidden, {.mode = CoherenceMode::local, .window = window, .causality = causality});
}

// Cross-token coherence [B,T]: phase locking with `offsets` neighbours.
template <class Hidden>
auto compute_cross_coherence(const Hidden& hidden, Index offsets = 4, Causality causality = Causality::causal) {
  return compute_coherence(hidden, {.mode = CoherenceMode::cross, .offsets = offsets, .causality = causality});
}

// --- the whole sequence -------------------------------------------------------------------------

namespace detail {
// Sums over all T·D phases of sequence b, in double beyond a row.
template <class T>
simd::PhaseSums sequence_sums(const ConstTensorView<T, 3>& hidden, Index b) {
  simd::PhaseSums total;
  for (Index t = 0; t < hidden.dimension(1); ++t) {
    const simd::PhaseSums row = simd::sigmoid_phase_sums(
        hidden.data() + (b * hidden.dimension(1) + t) * hidden.dimension(2), hidden.dimension(2));
    total.cosine += row.cosine;
    total.sine += row.sine;
  }
  return total;
}
}  // namespace detail

// R̄ over all tokens and features of each sequence: [B,T,D] -> [B]. Sees every token: a statistic, not for a layer.
template <class Hidden>
auto compute_sequence_coherence(const Hidden& hidden) {
  using T = typename Hidden::Scalar;
  const ConstTensorView<T, 3> x(hidden.data(), hidden.dimensions());
  Tensor<T, 1> coherence;
  ensure_shape(coherence, {x.dimension(0)});
  parallel_for(x.dimension(0), 1, [&](Index b, Index) {
    coherence(b) =
        static_cast<T>(detail::resultant_length(detail::sequence_sums(x, b), x.dimension(1) * x.dimension(2)));
  });
  return coherence;
}

// dhidden += gradient of Σ dcoherence ⊙ compute_sequence_coherence(hidden).
template <class T>
void sequence_coherence_backward(std::type_identity_t<ConstTensorView<T, 1>> dcoherence,
                                 std::type_identity_t<ConstTensorView<T, 3>> hidden, Tensor<T, 3>& dhidden) {
  require_shape("sequence_coherence_backward", "dcoherence", dcoherence, {hidden.dimension(0)});
  require_shape("sequence_coherence_backward", "dhidden", shape_of(dhidden), shape_of(hidden));
  const Index count = hidden.dimension(1) * hidden.dimension(2);
  parallel_for(hidden.dimension(0), 1, [&](Index b, Index) {
    const detail::ResultantGradient g(detail::sequence_sums<T>(hidden, b), count, static_cast<double>(dcoherence(b)));
    simd::sigmoid_phase_gradient(hidden.data() + b * count, count, static_cast<T>(g.a), static_cast<T>(g.b),
                                 dhidden.data() + b * count);
  });
}

}  // namespace rbar
