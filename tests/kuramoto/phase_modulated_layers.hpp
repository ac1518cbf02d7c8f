// Layers and inputs for the tests of phase-modulated attention.
#pragma once

#include "rbar/core/random.hpp"
#include "rbar/kuramoto/phase_modulated_attention.hpp"

namespace test {

inline rbar::PhaseModulatedAttentionConfig phase_config(rbar::Index heads, rbar::Index dim) {
  rbar::PhaseModulatedAttentionConfig config;
  config.d_model = heads * dim;
  config.n_heads = heads;
  config.d_coupling = 5;
  config.max_seq_len = 40;
  return config;
}

// Off its initial values, or half of the formula would not show: α, β and λ of a size that matters.
template <class T>
rbar::PhaseModulatedAttention<T> random_phase_layer(const rbar::PhaseModulatedAttentionConfig& config, rbar::Rng& rng) {
  rbar::PhaseModulatedAttention<T> layer(config, rng);
  for (const auto& parameter : parameters_of(layer))
    for (rbar::Index i = 0; i < parameter.size; ++i) parameter.data[i] += static_cast<T>(rng.normal(0, 0.3));
  if (config.phase_gate) layer.gate_logit(0) = static_cast<T>(0.4);
  if (config.adaptive_temperature) layer.alpha(0) = static_cast<T>(0.8), layer.beta(0) = static_cast<T>(1.3);
  return layer;
}

template <class T>
rbar::Tensor<T, 3> random_tokens(rbar::Index batch, rbar::Index tokens, rbar::Index dim, rbar::Rng& rng) {
  rbar::Tensor<T, 3> x(batch, tokens, dim);
  for (T& value : rbar::elements(x)) value = static_cast<T>(rng.normal());
  return x;
}

}  // namespace test
