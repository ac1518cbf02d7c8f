// One config for the decoder-only transformers in use: GPT-2's and Llama's are two settings of it.
#pragma once

#include "rbar/attention/multi_head_attention_config.hpp"
#include "rbar/core/error.hpp"
#include "rbar/core/tensor.hpp"
#include "rbar/nn/rotary.hpp"

#include <algorithm>
#include <string_view>

namespace rbar {

enum class NormKind { layer_norm, rms_norm };
enum class Positions { learned, rotary };
enum class FeedForwardKind { gelu, gelu_tanh, relu, swiglu };
enum class Initialisation {
  gpt2,          // embeddings N(0, 0.02²), Xavier-uniform matrices, zero biases
  cort_package,  // the same, but a tied token embedding is Xavier-uniform: there the head's initialisation overwrites
                 // it
};

inline constexpr NormKind all_norm_kinds[] = {NormKind::layer_norm, NormKind::rms_norm};
inline constexpr Positions all_positions[] = {Positions::learned, Positions::rotary};
inline constexpr FeedForwardKind all_feed_forward_kinds[] = {FeedForwardKind::gelu, FeedForwardKind::gelu_tanh,
                                                             FeedForwardKind::relu, FeedForwardKind::swiglu};
inline constexpr Initialisation all_initialisations[] = {Initialisation::gpt2, Initialisation::cort_package};

constexpr const char* name_of(NormKind norm) { return norm == NormKind::layer_norm ? "layer_norm" : "rms_norm"; }
constexpr const char* name_of(Positions positions) { return positions == Positions::learned ? "learned" : "rotary"; }
constexpr const char* name_of(FeedForwardKind kind) {
  switch (kind) {
    case FeedForwardKind::gelu:
      return "gelu";
    case FeedForwardKind::gelu_tanh:
      return "gelu_tanh";
    case FeedForwardKind::relu:
      return "relu";
    case FeedForwardKind::swiglu:
      return "swiglu";
  }
  return "?";
}
constexpr const char* name_of(Initialisation init) { return init == Initialisation::gpt2 ? "gpt2" : "cort_package"; }

namespace detail {
template <class Enum, std::size_t N>
constexpr bool parse_name(std::string_view text, const Enum (&all)[N], Enum& value) {
  for (const Enum candidate : all)
    if (text == name_of(candidate)) return value = candidate, true;
  return false;
}
}  // namespace detail

constexpr bool parse(std::string_view text, NormKind& norm) { return detail::parse_name(text, all_norm_kinds, norm); }
constexpr bool parse(std::string_view text, Positions& positions) {
  return detail::parse_name(text, all_positions, positions);
}
constexpr bool parse(std::string_view text, FeedForwardKind& kind) {
  return detail::parse_name(text, all_feed_forward_kinds, kind);
}
constexpr bool parse(std::string_view text, Initialisation& init) {
  return detail::parse_name(text, all_initialisations, init);
}

struct TransformerConfig {
  Index vocab_size = 50257;
  Index d_model = 512;
  Index n_layers = 6;
  Index n_heads = 8;
  Index n_kv_heads = 0;  // 0: n_heads
  Index d_ff = 0;        // 0: 4·d_model
  Index max_seq_len = 1024;
  NormKind norm = NormKind::layer_norm;
  Positions positions = Positions::learned;
  Rotary rotary = Rotary::interleaved;  // with Positions::rotary
  double rope_base = 10000;
  FeedForwardKind feed_forward = FeedForwardKind::gelu;
  bool bias = true;
  bool tie_embeddings = true;  // the head is the token embedding, transposed
  double dropout = 0.1;        // of the embeddings and of every residual branch
  double norm_eps = 1e-5;
  Index window = 0;  // > 0: attention over the last `window` positions only
  Initialisation init = Initialisation::gpt2;

  // LayerNorm, learned positions, GELU, biases (Radford et al., 2019).
  static TransformerConfig gpt2_style(Index vocab_size, Index d_model, Index n_layers, Index n_heads,
                                      Index max_seq_len) {
    TransformerConfig config;
    config.vocab_size = vocab_size;
    config.d_model = d_model;
    config.n_layers = n_layers;
    config.n_heads = n_heads;
    config.max_seq_len = max_seq_len;
    return config;
  }
  // RMSNorm, rotary positions, SwiGLU, grouped keys and values, no biases (Touvron et al., arXiv:2302.13971).
  static TransformerConfig llama_style(Index vocab_size, Index d_model, Index n_layers, Index n_heads, Index n_kv_heads,
                                       Index d_ff, Index max_seq_len) {
    TransformerConfig config = gpt2_style(vocab_size, d_model, n_layers, n_heads, max_seq_len);
    config.n_kv_heads = n_kv_heads;
    config.d_ff = d_ff;
    config.norm = NormKind::rms_norm;
    config.positions = Positions::rotary;
    config.feed_forward = FeedForwardKind::swiglu;
    config.bias = false;
    config.dropout = 0;
    return config;
  }
  // The baselines that KuramotoLMConfig's one_million and five_million are measured against: Llama's parts, an untied
  // head. 997,760 and 4,998,912 parameters for a vocabulary of 205.
  static TransformerConfig matched_1m(Index vocab_size, Index max_seq_len = 256) {
    TransformerConfig config = llama_style(vocab_size, 128, 4, 4, 0, 444, max_seq_len);
    config.tie_embeddings = false;
    return config;
  }
  static TransformerConfig matched_5m(Index vocab_size, Index max_seq_len = 256) {
    TransformerConfig config = llama_style(vocab_size, 256, 6, 8, 0, 720, max_seq_len);
    config.tie_embeddings = false;
    return config;
  }

  Index hidden() const { return d_ff > 0 ? d_ff : 4 * d_model; }

  MultiHeadAttentionConfig attention() const {
    MultiHeadAttentionConfig config;
    config.d_model = d_model;
    config.n_heads = n_heads;
    config.n_kv_heads = n_kv_heads;
    config.bias = bias;
    config.window = window;
    config.rotary = positions == Positions::rotary ? rotary : Rotary::none;
    config.rope_base = rope_base;
    return config;
  }

  void validate() const {
    constexpr const char* where = "TransformerConfig";
    require(vocab_size > 0, where, "vocab_size", "at least 1", vocab_size);
    require(n_layers > 0, where, "n_layers", "at least 1", n_layers);
    require(d_ff >= 0, where, "d_ff", "at least 0", d_ff);
    require(max_seq_len > 0, where, "max_seq_len", "at least 1", max_seq_len);
    require(dropout >= 0 && dropout < 1, where, "dropout", "0 <= p < 1", dropout);
    require(norm_eps > 0, where, "norm_eps", "a positive number", norm_eps);
    require(positions == Positions::learned || rotary != Rotary::none, where, "rotary",
            "a layout, since positions are rotary", name_of(rotary));
    attention().validate();
  }

  template <class Visit>
  void fields(Visit&& visit) {
    visit("vocab_size", vocab_size);
    visit("d_model", d_model);
    visit("n_layers", n_layers);
    visit("n_heads", n_heads);
    visit("n_kv_heads", n_kv_heads);
    visit("d_ff", d_ff);
    visit("max_seq_len", max_seq_len);
    visit("norm", norm);
    visit("positions", positions);
    visit("rotary", rotary);
    visit("rope_base", rope_base);
    visit("feed_forward", feed_forward);
    visit("bias", bias);
    visit("tie_embeddings", tie_embeddings);
    visit("dropout", dropout);
    visit("norm_eps", norm_eps);
    visit("window", window);
    visit("init", init);
  }
};

// Floating-point operations of a forward pass over a sequence of `tokens`, per token; a multiplication and an
// addition count as two. Only what is visible to a causal attention counts. Training costs three times as much.
inline double flops(const TransformerConfig& config, Index tokens) {
  const auto as_double = [](Index value) { return static_cast<double>(value); };
  const double d = as_double(config.d_model), heads = as_double(config.n_heads);
  const double kv_heads = config.n_kv_heads > 0 ? as_double(config.n_kv_heads) : heads;
  const double all = as_double(tokens), window = config.window > 0 ? std::min(as_double(config.window), all) : all;
  const double keys_seen = (window * (window + 1) / 2 + (all - window) * window) / all;  // mean over positions
  const double projections = 4 * d * d + 4 * d * d * kv_heads / heads;                   // W_q, W_o; W_k, W_v
  const double feed_forward = (config.feed_forward == FeedForwardKind::swiglu ? 6 : 4) * d * as_double(config.hidden());
  return as_double(config.n_layers) * (projections + 4 * d * keys_seen + feed_forward) +
         2 * d * as_double(config.vocab_size);
}

}  // namespace rbar
