// The configuration of the phase-modulated language model, its presets and what it costs.
#pragma once

#include "rbar/kuramoto/phase_modulated_attention_config.hpp"
#include "rbar/model/transformer_config.hpp"
#include "rbar/nn/ssm.hpp"

namespace rbar {

// ssm_blocks of selective state space, then pma_blocks of phase-modulated attention. Without the former, attention
// takes its coupling from the embedding.
struct PMAConfig {
  Index vocab_size = 50257;
  Index d_model = 256;
  Index n_heads = 8;     // of attention: the oscillators of a token
  Index ssm_blocks = 4;  // N
  Index pma_blocks = 2;  // M
  Index d_ff = 0;        // hidden width of SwiGLU; 0: 2·d_model
  bool ssm_mlp = true;   // SwiGLU after the state space too; always after attention
  Index max_seq_len = 1024;
  double dropout = 0;  // of the embeddings and of every residual branch
  // The state space, as nn/ssm.hpp has it.
  Index expand = 2;
  Index d_state = 16;
  Index d_conv = 4;
  // The oscillators, as kuramoto/phase_modulated_attention.hpp has them.
  Index n_steps = 5;
  double dt = 0.1;
  double gate = 0.1;       // λ at first
  double temperature = 1;  // τ_base
  double alpha = 0.1;      // of 1 − R in τ, at first
  double beta = 0.1;       // of the variance in τ, at first
  Rotary rotary = Rotary::none;
  double rope_base = 10000;
  // What ablations change (pma_ablations.hpp).
  bool phase_gate = true;            // off: λ = 0
  bool adaptive_temperature = true;  // off: α = β = 0
  bool learn_coupling = true;        // off: K = coupling
  double coupling = 1;
  bool frozen_phases = false;   // φ = ω for every token
  bool position_phases = true;  // off: φ_pos = 0
  bool tie_embeddings = true;
  double norm_eps = 1e-5;
  Initialisation init = Initialisation::gpt2;

  // 129.9 M parameters with GPT-2's vocabulary.
  static PMAConfig create_130m_config() { return preset(50257, 768, 12, 12, 4, 992, 1024); }
  // 5.0 M and 1.0 M with a vocabulary of 205, as the torus models are compared; `tiny` is for a first look.
  static PMAConfig small_5m(Index vocab_size) { return preset(vocab_size, 256, 8, 4, 2, 576, 512); }
  static PMAConfig small_1m(Index vocab_size) { return preset(vocab_size, 128, 4, 3, 2, 256, 512); }
  static PMAConfig tiny(Index vocab_size) { return preset(vocab_size, 32, 4, 2, 1, 64, 128); }

  Index hidden() const { return d_ff > 0 ? d_ff : 2 * d_model; }

  SelectiveSSMConfig ssm() const {
    SelectiveSSMConfig config;
    config.d_model = d_model;
    config.expand = expand;
    config.d_state = d_state;
    config.d_conv = d_conv;
    return config;
  }
  PhaseModulatedAttentionConfig attention() const {
    PhaseModulatedAttentionConfig config;
    config.d_model = d_model;
    config.n_heads = n_heads;
    config.d_coupling = d_model;
    config.max_seq_len = max_seq_len;
    config.n_steps = n_steps;
    config.dt = dt;
    config.gate = gate;
    config.temperature = temperature;
    config.alpha = alpha;
    config.beta = beta;
    config.rotary = rotary;
    config.rope_base = rope_base;
    config.phase_gate = phase_gate;
    config.adaptive_temperature = adaptive_temperature;
    config.learn_coupling = learn_coupling;
    config.coupling = coupling;
    config.frozen_phases = frozen_phases;
    config.position_phases = position_phases;
    return config;
  }

  template <class Visit>
  void fields(Visit&& visit) {
    visit("vocab_size", vocab_size);
    visit("d_model", d_model);
    visit("n_heads", n_heads);
    visit("ssm_blocks", ssm_blocks);
    visit("pma_blocks", pma_blocks);
    visit("d_ff", d_ff);
    visit("ssm_mlp", ssm_mlp);
    visit("max_seq_len", max_seq_len);
    visit("dropout", dropout);
    visit("expand", expand);
    visit("d_state", d_state);
    visit("d_conv", d_conv);
    visit("n_steps", n_steps);
    visit("dt", dt);
    visit("gate", gate);
    visit("temperature", temperature);
    visit("alpha", alpha);
    visit("beta", beta);
    visit("rotary", rotary);
    visit("rope_base", rope_base);
    visit("phase_gate", phase_gate);
    visit("adaptive_temperature", adaptive_temperature);
    visit("learn_coupling", learn_coupling);
    visit("coupling", coupling);
    visit("frozen_phases", frozen_phases);
    visit("position_phases", position_phases);
    visit("tie_embeddings", tie_embeddings);
    visit("norm_eps", norm_eps);
    visit("init", init);
  }

  void validate() const {
    constexpr const char* where = "PMAConfig";
    require(vocab_size >= 1, where, "vocab_size", "at least 1", vocab_size);
    require(d_model >= 1, where, "d_model", "at least 1", d_model);
    require(ssm_blocks >= 0, where, "ssm_blocks", "at least 0", ssm_blocks);
    require(pma_blocks >= 0, where, "pma_blocks", "at least 0", pma_blocks);
    require(ssm_blocks + pma_blocks >= 1, where, "ssm_blocks + pma_blocks", "at least 1", ssm_blocks + pma_blocks);
    require(d_ff >= 0, where, "d_ff", "at least 0 (0: 2·d_model)", d_ff);
    require(max_seq_len >= 1, where, "max_seq_len", "at least 1", max_seq_len);
    require(dropout >= 0 && dropout < 1, where, "dropout", "0 <= dropout < 1", dropout);
    require(norm_eps > 0, where, "norm_eps", "a positive number", norm_eps);
    if (ssm_blocks > 0) ssm().validate();
    if (pma_blocks > 0) attention().validate();
  }

 private:
  static PMAConfig preset(Index vocab_size, Index d_model, Index n_heads, Index ssm_blocks, Index pma_blocks,
                          Index d_ff, Index max_seq_len) {
    PMAConfig config;
    config.vocab_size = vocab_size;
    config.d_model = d_model;
    config.n_heads = n_heads;
    config.ssm_blocks = ssm_blocks;
    config.pma_blocks = pma_blocks;
    config.d_ff = d_ff;
    config.max_seq_len = max_seq_len;
    return config;
  }
};

// Floating-point operations of a forward pass, per token, as for the standard transformer. An element of the state
// space's scan counts 8 (decay, input, state, output), a step of an oscillator 40, the cosine of a pair 6.
inline double flops(const PMAConfig& config, Index tokens) {
  const auto as_double = [](Index value) { return static_cast<double>(value); };
  const double d = as_double(config.d_model), heads = as_double(config.n_heads);
  const double inner = as_double(config.expand) * d, states = as_double(config.d_state);
  const double rank = as_double((config.d_model + 15) / 16), keys_seen = (as_double(tokens) + 1) / 2;
  const double ssm =
      2 * (3 * inner * d + inner * as_double(config.d_conv) + inner * (2 * rank + 2 * states)) + 8 * inner * states;
  const double phases = 2 * d * (heads + 1) + 40 * as_double(config.n_steps) * heads;
  const double pma = 8 * d * d + (4 * d + 6 * heads) * keys_seen + phases;
  const double feed_forward = 6 * d * as_double(config.hidden());
  return as_double(config.ssm_blocks) * (ssm + (config.ssm_mlp ? feed_forward : 0)) +
         as_double(config.pma_blocks) * (pma + feed_forward) + 2 * d * as_double(config.vocab_size);
}

}  // namespace rbar
