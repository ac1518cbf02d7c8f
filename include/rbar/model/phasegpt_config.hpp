// The configuration of PhaseGPT, with the experiments of its authors as presets, and what it costs.
#pragma once

#include "rbar/kuramoto/hybrid_attention.hpp"
#include "rbar/model/transformer_config.hpp"

#include <iterator>
#include <string>
#include <utility>
#include <vector>

namespace rbar {

struct PhaseGPTConfig {
  Index vocab_size = 50257;
  Index d_model = 768;
  Index n_layers = 12;
  Index n_heads = 12;  // of attention and of the oscillators
  Index d_ff = 0;      // 0: 4·d_model
  Index max_seq_len = 1024;
  double dropout = 0.1;
  // Layers (from 0) with oscillators, "7" or "4,7". auto: the one at 7/12 of the depth. Empty: none, which is GPT-2,
  // the baseline of the published experiments.
  std::string phase_layer_idx = "auto";
  double phase_share = 1;    // below 1: HybridAttention, with this share of phase attention
  Index n_oscillators = 32;  // of a head
  Index n_steps = 10;
  double dt = 0.1;
  double coupling_init = 1;  // K
  Coupling coupling = Coupling::attractive;
  Causality causality = Causality::causal;  // of the oscillators; attention is always causal
  Integrator integrator = Integrator::euler;
  PhaseReadout readout = PhaseReadout::circular;
  double phase_noise = 0;       // radians, while training
  double frequency_jitter = 0;  // relative, while training
  CoherenceTarget coherence_target = CoherenceTarget::none;
  double coherence_level = 0.45;      // R*
  double coherence_strength = 0.1;    // λ
  double coherence_half_width = 0.1;  // of a band
  bool tie_embeddings = true;
  double layer_norm_eps = 1e-5;

  // Phase A: oscillators in layer 7 of 12, d = 768. The published sweep (tiny Shakespeare; best K = 1 with 32
  // oscillators) was run with a layer that sees the future: see `published`. The context is not published; with 256
  // positions and the text's 65 characters a model has 83.5 M parameters, for a stated 83 M.
  static PhaseGPTConfig phase_a(Index vocab_size, Index n_oscillators = 32, double coupling = 1,
                                std::string layers = "7") {
    PhaseGPTConfig config;
    config.vocab_size = vocab_size;
    config.max_seq_len = 256;
    config.phase_layer_idx = std::move(layers);
    config.n_oscillators = n_oscillators;
    config.coupling_init = coupling;
    return config;
  }
  // Phase B, registered by the authors and never run: weaker coupling (.5, .75), and with `controlled` all that is
  // meant to keep the phases apart: noise, jitter and a ceiling on R.
  static PhaseGPTConfig phase_b(Index vocab_size, double coupling = 0.5, bool controlled = false) {
    PhaseGPTConfig config = phase_a(vocab_size, 32, coupling);
    if (controlled) {
      config.phase_noise = 0.03;
      config.frequency_jitter = 0.02;
      config.coherence_target = CoherenceTarget::ceiling;
    }
    return config;
  }
  // The same with oscillators as the package computes them: they meet the future's phases too, repel each other where
  // K > 0, and are read as raw angles. What such a model predicts it has partly seen: its perplexity is no result.
  PhaseGPTConfig published() const {
    PhaseGPTConfig config = *this;
    config.causality = Causality::reference;
    config.coupling = Coupling::reference;
    config.readout = PhaseReadout::raw;
    return config;
  }

  Index ff_width() const { return d_ff > 0 ? d_ff : 4 * d_model; }

  // Errors: what is no list of layers of the model, ascending.
  std::vector<Index> phase_layers() const {
    if (phase_layer_idx.empty()) return {};
    if (phase_layer_idx == "auto") return {7 * n_layers / 12};
    std::vector<Index> layers;
    Index value = -1;
    for (const char c : phase_layer_idx + ",") {
      if (c >= '0' && c <= '9' && value < n_layers) {
        value = 10 * std::max<Index>(0, value) + (c - '0');
      } else {
        const bool good = c == ',' && value >= 0 && value < n_layers && (layers.empty() || value > layers.back());
        require(good, "PhaseGPTConfig", "phase_layer_idx", "auto, or ascending layer numbers from 0, such as 4,7",
                phase_layer_idx);
        layers.push_back(value);
        value = -1;
      }
    }
    return layers;
  }

  MultiHeadAttentionConfig attention() const {
    MultiHeadAttentionConfig config;
    config.d_model = d_model;
    config.n_heads = n_heads;
    return config;
  }
  PhaseAttentionConfig phase_attention() const {
    PhaseAttentionConfig config;
    config.d_model = d_model;
    config.kuramoto = {n_heads, n_oscillators, n_steps, dt, coupling, causality, integrator};
    config.readout = readout;
    config.coupling = coupling_init;
    config.phase_noise = phase_noise;
    config.frequency_jitter = frequency_jitter;
    config.regularizer = {coherence_target, coherence_level, coherence_strength, coherence_half_width};
    return config;
  }
  HybridAttentionConfig hybrid_attention() const { return {attention(), phase_attention(), phase_share}; }

  template <class Visit>
  void fields(Visit&& visit) {
    visit("vocab_size", vocab_size);
    visit("d_model", d_model);
    visit("n_layers", n_layers);
    visit("n_heads", n_heads);
    visit("d_ff", d_ff);
    visit("max_seq_len", max_seq_len);
    visit("dropout", dropout);
    visit("phase_layer_idx", phase_layer_idx);
    visit("phase_share", phase_share);
    visit("n_oscillators", n_oscillators);
    visit("n_steps", n_steps);
    visit("dt", dt);
    visit("coupling_init", coupling_init);
    visit("coupling", coupling);
    visit("causality", causality);
    visit("integrator", integrator);
    visit("readout", readout);
    visit("phase_noise", phase_noise);
    visit("frequency_jitter", frequency_jitter);
    visit("coherence_target", coherence_target);
    visit("coherence_level", coherence_level);
    visit("coherence_strength", coherence_strength);
    visit("coherence_half_width", coherence_half_width);
    visit("tie_embeddings", tie_embeddings);
    visit("layer_norm_eps", layer_norm_eps);
  }

  void validate() const {
    constexpr const char* where = "PhaseGPTConfig";
    require(vocab_size >= 1, where, "vocab_size", "at least 1", vocab_size);
    require(n_layers >= 1, where, "n_layers", "at least 1", n_layers);
    require(d_ff >= 0, where, "d_ff", "at least 0 (0: 4·d_model)", d_ff);
    require(max_seq_len >= 1, where, "max_seq_len", "at least 1", max_seq_len);
    require(dropout >= 0 && dropout < 1, where, "dropout", "0 <= dropout < 1", dropout);
    require(layer_norm_eps > 0, where, "layer_norm_eps", "a positive number", layer_norm_eps);
    phase_layers();
    hybrid_attention().validate();
  }
};

// Numbers that a model of this configuration learns, without making it.
inline Index parameter_count(const PhaseGPTConfig& config) {
  const Index d = config.d_model, width = config.n_heads * config.n_oscillators, ff = config.ff_width();
  const Index oscillating = std::ssize(config.phase_layers());
  const Index read = config.readout == PhaseReadout::circular ? 2 * width : width;
  const Index attention = 4 * (d * d + d);
  const Index phase = (d + 1) * width + width + config.n_heads + (read + 1) * d;
  const Index attended = config.phase_share < 1 ? config.n_layers : config.n_layers - oscillating;
  const Index norms = (2 * config.n_layers + 1) * 2 * d;
  return attended * attention + oscillating * phase + config.n_layers * (2 * d * ff + ff + d) + norms +
         (config.tie_embeddings ? 1 : 2) * config.vocab_size * d + config.max_seq_len * d;
}

// Floating-point operations of a forward pass, per token, as for the standard transformer. A step of an oscillator
// counts 40: the phasor, two sums, the field and the wrap.
inline double flops(const PhaseGPTConfig& config, Index tokens) {
  const auto as_double = [](Index value) { return static_cast<double>(value); };
  const double d = as_double(config.d_model), width = as_double(config.n_heads * config.n_oscillators);
  const double layers = as_double(config.n_layers),
               phase_layers = as_double(static_cast<Index>(config.phase_layers().size()));
  const double attention = 8 * d * d + 4 * d * (as_double(tokens) + 1) / 2;
  const double read = config.readout == PhaseReadout::circular ? 2 : 1;
  const double stages = as_double(config.n_steps) * (config.integrator == Integrator::rk4 ? 4 : 1);
  const double phase = 2 * d * width * (1 + read) + 40 * stages * width;
  const double attended = config.phase_share < 1 ? layers : layers - phase_layers;
  return attended * attention + phase_layers * phase + layers * 4 * d * as_double(config.ff_width()) +
         2 * d * as_double(config.vocab_size);
}

}  // namespace rbar
