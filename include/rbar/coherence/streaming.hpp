// Coherence of a stream: new tokens in, their coherence out, with the bits of one pass over the whole sequence.
#pragma once

#include "rbar/coherence/layer.hpp"

namespace rbar {

// What a stream remembers: the phasors of the last `window` (local, combined) or `offsets` (cross) tokens and the
// window's sums. A copy is a branch of the stream; a default-constructed state is its beginning.
template <class T>
struct CoherenceState {
  Index seen = 0;                                // tokens so far
  Tensor<T, 3> ring;                             // [B, blocks, slots·2·block] or, for cross, [B, n+1, 2D]
  std::vector<detail::MovingWindow<T>> windows;  // [B, blocks]
  std::vector<detail::BlockCoherence> parts;     // scratch [B, blocks, new]

  void reset() { seen = 0; }
};

// coherence [B,new] of the next tokens hidden [B,new,D] of every sequence. Causal configs only: a window that looks
// ahead cannot be streamed (Error). Batch, features and config must stay the same until reset().
template <class T>
void coherence_step(std::type_identity_t<ConstTensorView<T, 3>> hidden, const CoherenceConfig& config,
                    Tensor<T, 2>& coherence, CoherenceState<T>& state) {
  config.validate();
  require(config.causality == Causality::causal, "coherence_step", "config.causality", "causal", "reference");
  const Index batch = hidden.dimension(0), count = hidden.dimension(1), features = hidden.dimension(2);
  ensure_shape(coherence, {batch, count});
  if (batch * count == 0) return;

  if (config.mode == CoherenceMode::token) {
    for (Index row = 0; row < batch * count; ++row)
      coherence.data()[row] = static_cast<T>(
          detail::resultant_length(simd::sigmoid_phase_sums(hidden.data() + row * features, features), features));
    state.seen += count;
    return;
  }

  const bool cross = config.mode == CoherenceMode::cross;
  const Index blocks = detail::feature_blocks(features),
              slots = cross ? config.offsets + 1 : config.window + simd::window_group;
  const Shape<3> ring_shape =
      cross ? Shape<3>{batch, slots, 2 * features} : Shape<3>{batch, blocks, slots * 2 * simd::feature_block};
  if (state.seen == 0) {
    ensure_shape(state.ring, ring_shape);
    state.windows.assign(cross ? 0 : static_cast<std::size_t>(batch * blocks), {});
  }
  require_shape("coherence_step", "state.ring (of the first step)", shape_of(state.ring), ring_shape);

  if (cross) {
    const detail::TokenPairs pairs(config, state.seen + count);
    for (Index b = 0; b < batch; ++b) {
      T* ring = state.ring.data() + b * slots * 2 * features;
      const auto phasors = [&](Index token) { return ring + token % slots * 2 * features; };
      for (Index i = 0; i < count; ++i) {
        T* row = phasors(state.seen + i);
        simd::write_phasors(hidden.data() + (b * count + i) * features, features, row, row + features);
        coherence(b, i) = static_cast<T>(detail::cross_token(pairs, state.seen + i, features, phasors, nullptr));
      }
    }
  } else {
    state.parts.resize(static_cast<std::size_t>(batch * blocks * count));
    detail::for_feature_blocks(batch, count, features, [&](Index b, Index block, Index first, Index size) {
      const Index task = b * blocks + block;
      detail::windowed_step(hidden.data() + b * count * features + first, features, size, state.seen, count,
                            config.window, slots, state.ring.data() + task * slots * 2 * simd::feature_block,
                            state.windows[static_cast<std::size_t>(task)], state.parts.data() + task * count);
    });
    for (Index b = 0; b < batch; ++b)
      for (Index i = 0; i < count; ++i) {
        simd::PhaseSums sums;
        coherence(b, i) = static_cast<T>(detail::gather_blocks(state.parts.data() + b * blocks * count + i, count,
                                                               blocks, features, config.uses_token(), sums));
      }
  }
  state.seen += count;
}

}  // namespace rbar
