// The configuration of KuramotoLM, the published sizes as presets, and what it costs.
#pragma once

#include "rbar/kuramoto/torus_attention.hpp"

#include <string_view>

namespace rbar {

// How angles become logits: W_o [cos θ; sin θ] + b, or γ Σ_j cos(θ_j − E_vj) with the angles E_v of the tokens.
enum class TorusReadout { linear, tied };

constexpr const char* name_of(TorusReadout readout) { return readout == TorusReadout::linear ? "linear" : "tied"; }
constexpr bool parse(std::string_view text, TorusReadout& readout) {
  for (const TorusReadout candidate : {TorusReadout::linear, TorusReadout::tied})
    if (text == name_of(candidate)) return readout = candidate, true;
  return false;
}

struct KuramotoLMConfig {
  Index vocab_size = 50257;
  Index d_model = 128;  // angles of a token
  Index n_layers = 4;
  Index n_heads = 4;
  Index d_ff = 0;  // of the mixing; 0: 2·d_model
  Index max_seq_len = 256;
  double dropout = 0;  // of the mixing; attention moves no angle by chance
  TorusGate gate = TorusGate::query;
  bool strict = false;        // a token does not attend to itself
  bool drift = true;          // positions turn the angles in the score
  double drift_base = 10000;  // of the drift's frequencies
  TorusReadout readout = TorusReadout::linear;

  // The published sizes: 999,517 parameters for a vocabulary of 205 (997,981 with query_key), and 5,002,237.
  static KuramotoLMConfig one_million(Index vocab_size, TorusGate gate = TorusGate::query) {
    KuramotoLMConfig config;
    config.vocab_size = vocab_size;
    config.gate = gate;
    config.d_ff = gate == TorusGate::query_key ? 256 : 308;
    return config;
  }
  static KuramotoLMConfig five_million(Index vocab_size) {
    KuramotoLMConfig config;
    config.vocab_size = vocab_size;
    config.d_model = 256;
    config.n_layers = 6;
    config.n_heads = 8;
    config.d_ff = 528;
    return config;
  }

  Index hidden() const { return d_ff > 0 ? d_ff : 2 * d_model; }

  KuramotoAttentionConfig attention() const {
    KuramotoAttentionConfig config;
    config.d_model = d_model;
    config.n_heads = n_heads;
    config.gate = gate;
    config.strict = strict;
    config.drift = drift;
    config.drift_base = drift_base;
    return config;
  }

  template <class Visit>
  void fields(Visit&& visit) {
    visit("vocab_size", vocab_size);
    visit("d_model", d_model);
    visit("n_layers", n_layers);
    visit("n_heads", n_heads);
    visit("d_ff", d_ff);
    visit("max_seq_len", max_seq_len);
    visit("dropout", dropout);
    visit("gate", gate);
    visit("strict", strict);
    visit("drift", drift);
    visit("drift_base", drift_base);
    visit("readout", readout);
  }

  void validate() const {
    constexpr const char* where = "KuramotoLMConfig";
    require(vocab_size >= 1, where, "vocab_size", "at least 1", vocab_size);
    require(n_layers >= 1, where, "n_layers", "at least 1", n_layers);
    require(d_ff >= 0, where, "d_ff", "at least 0 (0: 2·d_model)", d_ff);
    require(max_seq_len >= 1, where, "max_seq_len", "at least 1", max_seq_len);
    require(dropout >= 0 && dropout < 1, where, "dropout", "0 <= dropout < 1", dropout);
    attention().validate();
  }
};

// Floating-point operations of a forward pass, per token, as for the standard transformer: matrices and attention,
// whose heads are twice as wide as their number of angles.
inline double flops(const KuramotoLMConfig& config, Index tokens) {
  const auto as_double = [](Index value) { return static_cast<double>(value); };
  const double d = as_double(config.d_model), gates = as_double(static_cast<int>(config.gate != TorusGate::fixed) +
                                                                static_cast<int>(config.gate == TorusGate::query_key));
  const double keys_seen = (as_double(tokens) + (config.strict ? -1 : 1)) / 2;  // mean over positions
  const double layer = 4 * d * d * gates + 8 * d * keys_seen + 10 * d * as_double(config.hidden());
  return as_double(config.n_layers) * layer + 4 * d * as_double(config.vocab_size);
}

}  // namespace rbar
