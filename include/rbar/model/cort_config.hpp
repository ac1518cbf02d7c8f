// The configuration of CoRT and what it costs. Names and presets are the CoRT package's.
#pragma once

#include "rbar/model/transformer_config.hpp"
#include "rbar/routing/routed_attention.hpp"

namespace rbar {

struct CoRTConfig {
  Index vocab_size = 50257;
  Index d_model = 768;
  Index n_heads = 12;
  Index n_layers = 12;
  Index d_ff = 0;  // 0: 4·d_model
  Index max_seq_len = 1024;
  double dropout = 0.1;
  double route_frac = 0.15;       // share of tokens that goes to attention
  bool adaptive_routing = false;  // the share follows the coherence of the text (adaptive_router.hpp) ...
  double r_bar_threshold = 0.5;   // ... around this mean coherence
  CoherenceMode coherence_mode = CoherenceMode::combined;
  Index coherence_window = 8;
  bool tie_embeddings = true;
  double layer_norm_eps = 1e-5;
  // Not in the package:
  Causality causality = Causality::causal;
  KeyValues key_values = KeyValues::all;
  bool learnable_mixer = true;
  Initialisation init = Initialisation::gpt2;

  static CoRTConfig small() { return preset(512, 8, 6); }
  static CoRTConfig medium() { return preset(768, 12, 12); }
  static CoRTConfig large() { return preset(1024, 16, 24); }

  Index ff_width() const { return d_ff > 0 ? d_ff : 4 * d_model; }

  RoutedAttentionConfig routed_attention() const {
    RoutedAttentionConfig config;
    config.router.router.d_model = d_model;
    config.router.router.route_frac = route_frac;
    config.router.router.coherence_mode = coherence_mode;
    config.router.router.coherence_window = coherence_window;
    config.router.router.causality = causality;
    config.router.adaptive = adaptive_routing;
    config.router.target_coherence = r_bar_threshold;
    config.router.pid.anti_windup = causality == Causality::causal;
    config.n_heads = n_heads;
    config.key_values = key_values;
    config.learnable_mixer = learnable_mixer;
    return config;
  }

  template <class Visit>
  void fields(Visit&& visit) {
    visit("vocab_size", vocab_size);
    visit("d_model", d_model);
    visit("n_heads", n_heads);
    visit("n_layers", n_layers);
    visit("d_ff", d_ff);
    visit("max_seq_len", max_seq_len);
    visit("dropout", dropout);
    visit("route_frac", route_frac);
    visit("adaptive_routing", adaptive_routing);
    visit("r_bar_threshold", r_bar_threshold);
    visit("coherence_mode", coherence_mode);
    visit("coherence_window", coherence_window);
    visit("tie_embeddings", tie_embeddings);
    visit("layer_norm_eps", layer_norm_eps);
    visit("causality", causality);
    visit("key_values", key_values);
    visit("learnable_mixer", learnable_mixer);
    visit("init", init);
  }

  void validate() const {
    constexpr const char* where = "CoRTConfig";
    require(vocab_size >= 1, where, "vocab_size", "at least 1", vocab_size);
    require(n_layers >= 1, where, "n_layers", "at least 1", n_layers);
    require(d_ff >= 0, where, "d_ff", "at least 0 (0: 4·d_model)", d_ff);
    require(max_seq_len >= 1, where, "max_seq_len", "at least 1", max_seq_len);
    require(dropout >= 0 && dropout < 1, where, "dropout", "0 <= dropout < 1", dropout);
    require(layer_norm_eps > 0, where, "layer_norm_eps", "a positive number", layer_norm_eps);
    routed_attention().validate();
  }

 private:
  static CoRTConfig preset(Index d_model, Index n_heads, Index n_layers) {
    CoRTConfig config;
    config.d_model = d_model;
    config.n_heads = n_heads;
    config.n_layers = n_layers;
    return config;
  }
};

// Floating-point operations of a forward pass, per token, all layers together; a multiplication and an
// addition count as two. Training costs three times as much.
struct CoRTFlops {
  double router = 0, attention = 0, mixer = 0, feed_forward = 0, head = 0;
  double total() const { return router + attention + mixer + feed_forward + head; }
};

// For sequences of `tokens` of which `attention_share` is attended, spread evenly. What is really
// computed: a discarded attention costs nothing. Share 1 is a standard transformer plus its router.
inline CoRTFlops flops(const CoRTConfig& config, Index tokens, double attention_share) {
  const double d = static_cast<double>(config.d_model), layers = static_cast<double>(config.n_layers);
  const double keys_seen = (static_cast<double>(tokens) + 1) / 2;  // causal mean
  const double routed = attention_share, mixed = 1 - attention_share;
  const double key_share = config.key_values == KeyValues::all ? 1.0 : routed;
  // Sine and cosine of a feature's phase: two polynomials, an exponential and a division.
  constexpr double phase = 40;
  CoRTFlops flops;
  flops.router = layers * d * (phase + 4 /* variance */ + 2 /* projection */);
  flops.attention = layers * (4 * d * d * routed                          // W_q, W_o
                              + 4 * d * d * key_share                     // W_k, W_v
                              + 4 * d * keys_seen * key_share * routed);  // q·k, weights·v
  const double matrices = config.learnable_mixer ? 3 : 1;                 // W₁, W₂, W_o
  flops.mixer = layers * mixed * (2 * d * d * matrices + 4 * d);
  flops.feed_forward = layers * 4 * d * static_cast<double>(config.ff_width());
  flops.head = 2 * d * static_cast<double>(config.vocab_size);
  return flops;
}

}  // namespace rbar
