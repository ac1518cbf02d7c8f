// Small phase-modulated models of every kind.
#pragma once

#include "rbar/model/pma_lm.hpp"
#include "support/catch.hpp"
#include "support/differences.hpp"

#include <string>
#include <vector>

namespace pma_test {

using namespace rbar;

inline PMAConfig tiny_config() {
  PMAConfig config = PMAConfig::tiny(13);
  config.d_model = 10;
  config.n_heads = 2;
  config.ssm_blocks = config.pma_blocks = 2;
  config.d_ff = 12;
  config.max_seq_len = 20;
  config.d_state = 3;
  config.d_conv = 3;
  return config;
}

// Both mixers with and without what may be left out, each mixer alone, and everything that ablations switch.
inline std::vector<PMAConfig> configs() {
  const PMAConfig full = tiny_config();
  PMAConfig bare = full, state_space = full, attention = full, plain = full, calm = full;
  bare.ssm_mlp = false;
  bare.tie_embeddings = false;
  bare.n_heads = 1;
  state_space.pma_blocks = 0;
  attention.ssm_blocks = 0;
  attention.rotary = Rotary::interleaved;
  attention.d_model = 12;
  attention.n_heads = 3;
  plain.phase_gate = plain.adaptive_temperature = false;
  calm.learn_coupling = calm.position_phases = false;
  return {full, bare, state_space, attention, plain, calm};
}

inline std::string describe(const PMAConfig& c) {
  return std::to_string(c.ssm_blocks) + " state spaces, " + std::to_string(c.pma_blocks) + " attentions of " +
         std::to_string(c.n_heads) + " heads, gate " + std::to_string(c.phase_gate) + ", temperature " +
         std::to_string(c.adaptive_temperature) + ", coupling " + std::to_string(c.learn_coupling) + ", mlp " +
         std::to_string(c.ssm_mlp);
}

// Phases, gates and embeddings large enough to matter.
template <class T>
PhaseModulatedAttentionLM<T> random_model(const PMAConfig& config, std::uint64_t seed) {
  Rng rng(seed);
  PhaseModulatedAttentionLM<T> model(config, rng);
  for (const auto& parameter : parameters_of(model))
    for (T& value : parameter.values()) value += static_cast<T>(rng.normal(0, 0.2));
  return model;
}

inline Tensor<Token, 2> random_tokens(Index batch, Index length, Index vocabulary, std::uint64_t seed) {
  Rng rng(seed);
  Tensor<Token, 2> tokens(batch, length);
  for (Token& token : elements(tokens)) token = static_cast<Token>(rng.below(static_cast<std::uint64_t>(vocabulary)));
  return tokens;
}

using ::test::largest_difference;

}  // namespace pma_test
