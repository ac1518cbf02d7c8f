// Coherence as a layer uses it: forward into a caller's tensor, what backward needs in a cache, backward.
// What the modes mean is in phase_coherence.hpp.
#pragma once

#include "rbar/coherence/cross.hpp"

#include <cmath>
#include <type_traits>
#include <vector>

namespace rbar {

namespace detail {

// R̄ from the sums over `count` phases; rounding must not lift it over 1. No phase at all has R̄ = 0.
inline double resultant_length(const simd::PhaseSums& sums, Index count) {
  if (count == 0) return 0.0;
  const double length = std::sqrt(sums.cosine * sums.cosine + sums.sine * sums.sine) / static_cast<double>(count);
  return length > 1.0 ? 1.0 : length;
}

// a = gradient·S/(N|Z|), b = gradient·C/(N|Z|): dφ_k = a·cos φ_k − b·sin φ_k.
struct ResultantGradient {
  double a = 0, b = 0;
  ResultantGradient(const simd::PhaseSums& sums, Index count, double gradient) {
    const double length = std::sqrt(sums.cosine * sums.cosine + sums.sine * sums.sine);
    if (length == 0.0) return;
    const double scale = gradient / (static_cast<double>(count) * length);
    a = scale * sums.sine;
    b = scale * sums.cosine;
  }
};

// Adds what the blocks of features know of one token: R̄ of the mode, and the token's sums over all features.
inline double gather_blocks(const BlockCoherence* parts, Index stride, Index blocks, Index features, bool with_token,
                            simd::PhaseSums& sums) {
  if (features == 0) return 0.0;
  double resultant = 0;
  for (Index block = 0; block < blocks; ++block) {
    resultant += parts[block * stride].resultant;
    sums.cosine += parts[block * stride].cosine;
    sums.sine += parts[block * stride].sine;
  }
  const double local = std::min(resultant / static_cast<double>(features), 1.0);
  return with_token ? 0.5 * (resultant_length(sums, features) + local) : local;
}

}  // namespace detail

// What backward needs, and the buffers of both passes: kept, so that the next call of the same shape allocates nothing.
// The mutable members are scratch of backward.
template <class T>
struct CoherenceCache {
  Tensor<double, 3> token_sums;               // [B,T,2] Σ cos, Σ sin over features (token, combined)
  std::vector<detail::BlockCoherence> parts;  // [B, blocks, T] (local, combined)
  Tensor<T, 3> ring;                          // [B, blocks, slots·2·block] phasors of the current windows
  Tensor<T, 4> phasors;                       // [B,T,2,D] cos | sin (cross)
  Tensor<double, 4> pair_sums;                // [B,T,n,2] M (cross)
  mutable Tensor<T, 3> phasor_ring, gradient_ring;
  mutable Tensor<T, 4> pair_weights;
};

// coherence [B,T] of hidden [B,T,D]. Throws Error if the config is not valid.
template <class T>
void coherence_forward(std::type_identity_t<ConstTensorView<T, 3>> hidden, const CoherenceConfig& config,
                       Tensor<T, 2>& coherence, CoherenceCache<T>& cache) {
  config.validate();
  const Index batch = hidden.dimension(0), tokens = hidden.dimension(1), features = hidden.dimension(2);
  ensure_shape(coherence, {batch, tokens});
  if (batch * tokens == 0) return;
  const Index chunk = detail::rows_per_chunk(features);

  if (config.mode == CoherenceMode::token) {
    ensure_shape(cache.token_sums, {batch, tokens, 2});
    parallel_for(batch * tokens, chunk, [&](Index begin, Index end) {
      for (Index row = begin; row < end; ++row) {
        const simd::PhaseSums sums = simd::sigmoid_phase_sums(hidden.data() + row * features, features);
        cache.token_sums.data()[2 * row] = sums.cosine;
        cache.token_sums.data()[2 * row + 1] = sums.sine;
        coherence.data()[row] = static_cast<T>(detail::resultant_length(sums, features));
      }
    });
    return;
  }

  if (config.mode == CoherenceMode::cross) {
    const detail::TokenPairs pairs(config, tokens);
    ensure_shape(cache.phasors, {batch, tokens, 2, features});
    ensure_shape(cache.pair_sums, {batch, tokens, config.offsets, 2});
    parallel_for(batch * tokens, chunk, [&](Index begin, Index end) {
      for (Index row = begin; row < end; ++row) {
        T* cosine = cache.phasors.data() + row * 2 * features;
        simd::write_phasors(hidden.data() + row * features, features, cosine, cosine + features);
      }
    });
    parallel_for(batch * tokens, chunk, [&](Index begin, Index end) {
      for (Index row = begin; row < end; ++row) {
        const T* sequence = cache.phasors.data() + row / tokens * tokens * 2 * features;
        coherence.data()[row] = static_cast<T>(detail::cross_token(
            pairs, row % tokens, features, [&](Index token) { return sequence + token * 2 * features; },
            cache.pair_sums.data() + row * config.offsets * 2));
      }
    });
    return;
  }

  const detail::TokenWindows windows(config, tokens);
  const Index blocks = detail::feature_blocks(features), ring_size = windows.slots() * 2 * simd::feature_block;
  ensure_shape(cache.ring, {batch, blocks, ring_size});
  ensure_shape(cache.token_sums, {batch, tokens, 2});
  cache.parts.resize(static_cast<std::size_t>(batch * blocks * tokens));
  detail::for_feature_blocks(batch, tokens, features, [&](Index b, Index block, Index first, Index size) {
    const T* x = hidden.data() + b * tokens * features + first;
    T* ring = cache.ring.data() + (b * blocks + block) * ring_size;
    detail::BlockCoherence* out = cache.parts.data() + (b * blocks + block) * tokens;
    if (windows.replicate) {
      detail::windowed_reference(x, features, size, windows, ring, out);
    } else {
      detail::MovingWindow<T> z;
      detail::windowed_step(x, features, size, 0, tokens, windows.window, windows.slots(), ring, z, out);
    }
  });
  for (Index row = 0; row < batch * tokens; ++row) {
    const Index b = row / tokens, t = row % tokens;
    simd::PhaseSums sums;
    coherence.data()[row] = static_cast<T>(detail::gather_blocks(cache.parts.data() + b * blocks * tokens + t, tokens,
                                                                 blocks, features, config.uses_token(), sums));
    cache.token_sums.data()[2 * row] = sums.cosine;
    cache.token_sums.data()[2 * row + 1] = sums.sine;
  }
}

namespace detail {

template <class T>
void token_backward(ConstTensorView<T, 2> dcoherence, ConstTensorView<T, 3> hidden, const CoherenceCache<T>& cache,
                    Tensor<T, 3>& dhidden) {
  const Index features = hidden.dimension(2);
  parallel_for(dcoherence.size(), rows_per_chunk(features), [&](Index begin, Index end) {
    for (Index row = begin; row < end; ++row) {
      const double* sums = cache.token_sums.data() + 2 * row;
      const ResultantGradient g({sums[0], sums[1]}, features, static_cast<double>(dcoherence.data()[row]));
      simd::sigmoid_phase_gradient(hidden.data() + row * features, features, static_cast<T>(g.a), static_cast<T>(g.b),
                                   dhidden.data() + row * features);
    }
  });
}

template <class T>
void cross_backward(ConstTensorView<T, 2> dcoherence, ConstTensorView<T, 3> hidden, const CoherenceConfig& config,
                    const CoherenceCache<T>& cache, Tensor<T, 3>& dhidden) {
  const Index batch = hidden.dimension(0), tokens = hidden.dimension(1), features = hidden.dimension(2);
  const TokenPairs pairs(config, tokens);
  ensure_shape(cache.pair_weights, {batch, tokens, config.offsets, 2});
  for (Index row = 0; row < batch * tokens; ++row) {
    const double scale =
        static_cast<double>(dcoherence.data()[row]) * pairs.share(row % tokens) / static_cast<double>(features);
    for (Index o = 0; o < config.offsets; ++o) {
      const double* m = cache.pair_sums.data() + (row * config.offsets + o) * 2;
      const double length = std::hypot(m[0], m[1]), unit = length == 0.0 ? 0.0 : scale / length;
      T* weight = cache.pair_weights.data() + (row * config.offsets + o) * 2;
      weight[0] = static_cast<T>(unit * m[0]);
      weight[1] = static_cast<T>(unit * m[1]);
    }
  }
  parallel_for(batch * tokens, rows_per_chunk(features), [&](Index begin, Index end) {
    for (Index row = begin; row < end; ++row) {
      const Index sequence = row / tokens * tokens;
      cross_token_backward(pairs, row % tokens, features, hidden.data() + row * features,
                           cache.phasors.data() + sequence * 2 * features,
                           cache.pair_weights.data() + sequence * config.offsets * 2, dhidden.data() + row * features);
    }
  });
}

template <class T>
void windowed_backward(ConstTensorView<T, 2> dcoherence, ConstTensorView<T, 3> hidden, const CoherenceConfig& config,
                       const CoherenceCache<T>& cache, Tensor<T, 3>& dhidden) {
  const Index batch = hidden.dimension(0), tokens = hidden.dimension(1), features = hidden.dimension(2);
  const TokenWindows windows(config, tokens);
  const Index blocks = feature_blocks(features), row_size = windows.slots() * simd::feature_block;
  ensure_shape(cache.phasor_ring, {batch, blocks, 3 * row_size});
  ensure_shape(cache.gradient_ring, {batch, blocks, 2 * row_size});
  const double share = config.uses_token() ? 0.5 : 1.0;
  for_feature_blocks(batch, tokens, features, [&](Index b, Index block, Index first, Index size) {
    const auto weight = [&](Index t) {
      return static_cast<T>(share * static_cast<double>(dcoherence(b, t)) /
                            static_cast<double>(features * windows.count(t)));
    };
    const auto token_gradient = [&](Index t) -> std::pair<T, T> {
      if (!config.uses_token()) return {};
      const simd::PhaseSums sums{cache.token_sums(b, t, 0), cache.token_sums(b, t, 1)};
      const ResultantGradient g(sums, features, share * static_cast<double>(dcoherence(b, t)));
      return {static_cast<T>(g.a), static_cast<T>(g.b)};
    };
    const Index offset = b * tokens * features + first, task = b * blocks + block;
    detail::windowed_backward(
        hidden.data() + offset, features, size, windows, cache.phasor_ring.data() + task * 3 * row_size,
        cache.gradient_ring.data() + task * 2 * row_size, weight, token_gradient, dhidden.data() + offset);
  });
}

}  // namespace detail

// dhidden [B,T,D] += gradient of Σ dcoherence ⊙ coherence, for the hidden and config of the forward that filled
// `cache`.
template <class T>
void coherence_backward(std::type_identity_t<ConstTensorView<T, 2>> dcoherence,
                        std::type_identity_t<ConstTensorView<T, 3>> hidden, const CoherenceConfig& config,
                        const CoherenceCache<T>& cache, Tensor<T, 3>& dhidden) {
  const Index batch = hidden.dimension(0), tokens = hidden.dimension(1);
  require_shape("coherence_backward", "dcoherence", dcoherence, {batch, tokens});
  require_shape("coherence_backward", "dhidden", dhidden, {batch, tokens, hidden.dimension(2)});
  if (hidden.size() == 0) return;
  if (config.mode == CoherenceMode::cross) {
    require_shape("coherence_backward", "cache.pair_sums", cache.pair_sums, {batch, tokens, config.offsets, 2});
    detail::cross_backward<T>(dcoherence, hidden, config, cache, dhidden);
    return;
  }
  require_shape("coherence_backward", "cache.token_sums", cache.token_sums, {batch, tokens, 2});
  if (config.mode == CoherenceMode::token)
    detail::token_backward<T>(dcoherence, hidden, cache, dhidden);
  else
    detail::windowed_backward<T>(dcoherence, hidden, config, cache, dhidden);
}

}  // namespace rbar
