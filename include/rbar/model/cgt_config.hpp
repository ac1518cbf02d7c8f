// The configuration of the Coherence-Gated Transformer and what it costs.
#pragma once

#include "rbar/model/transformer_config.hpp"
#include "rbar/nn/mixture_of_experts.hpp"
#include "rbar/routing/early_exit.hpp"
#include "rbar/routing/lane_router.hpp"
#include "rbar/sheaf/sheaf_attention.hpp"

#include <string_view>

namespace rbar {

// What a layer is, by its depth.
enum class LayerKind {
  reflex,    // window attention, no feed-forward, every token
  standard,  // sheaf attention (sparse where configured) and feed-forward, the tokens that went on
  deep,      // full sheaf attention and a mixture of experts, the tokens that went on again
};

struct CGTConfig {
  Index vocab_size = 50257;
  Index d_model = 512;
  Index n_heads = 8;
  Index n_kv_heads = 0;  // 0: n_heads
  Index n_layers = 12;
  Index reflex_layers = 0;    // layers every token takes; 0: a sixth of n_layers, at least 1
  Index standard_layers = 0;  // depth at which the standard lane ends; 0: half of n_layers
  Index reflex_window = 64;
  Index d_ff = 0;  // 0: 4·d_model
  Index n_experts = 4;
  Index top_k = 2;
  Index expert_ff = 0;  // 0: d_ff / top_k, so that a token costs what it costs in the standard lane
  Index max_seq_len = 1024;
  double dropout = 0.1;
  RestrictionMapKind map = RestrictionMapKind::dense;  // of queries, keys and values
  Index map_rank = 0;                                  // of a low_rank map
  Positions positions = Positions::learned;
  Rotary rotary = Rotary::interleaved;  // with Positions::rotary
  double rope_base = 10000;
  bool tie_embeddings = true;
  double norm_eps = 1e-5;
  Initialisation init = Initialisation::gpt2;
  bool gate = true;              // a segment's change is scaled by E/(E + θ): the task then trains the router
  double energy_weight = 0.001;  // of the mean final energy, in the loss
  double balance_weight = 0.01;  // of the experts' balance, in the loss
  SparsityConfig sparsity;       // of the standard layers
  EarlyExitConfig early_exit;
  LaneRouterConfig router;  // fields appear beside the ones above; d_model is this config's

  // The record's sizes with fewer keys than queries, as its promises need.
  static CGTConfig small() { return preset(512, 8, 12); }
  static CGTConfig medium() { return preset(768, 12, 12); }
  static CGTConfig large() { return preset(1024, 16, 24); }

  Index ff_width() const { return d_ff > 0 ? d_ff : 4 * d_model; }
  Index expert_width() const { return expert_ff > 0 ? expert_ff : std::max<Index>(1, ff_width() / top_k); }
  // Layers [0, reflex_end) are reflex, [reflex_end, standard_end) standard, the others deep.
  Index reflex_end() const { return reflex_layers > 0 ? reflex_layers : std::max<Index>(1, n_layers / 6); }
  Index standard_end() const {
    return standard_layers > 0 ? standard_layers : std::max<Index>(reflex_end(), n_layers / 2);
  }
  LayerKind kind_of(Index layer) const {
    return layer < reflex_end() ? LayerKind::reflex : layer < standard_end() ? LayerKind::standard : LayerKind::deep;
  }

  SheafAttentionConfig attention(LayerKind kind) const {
    SheafAttentionConfig config;
    config.d_model = d_model;
    config.n_heads = n_heads;
    config.n_kv_heads = n_kv_heads;
    config.map = map;
    config.map_rank = map_rank;
    config.window = kind == LayerKind::reflex ? reflex_window : 0;
    config.rotary = positions == Positions::rotary ? rotary : Rotary::none;
    config.rope_base = rope_base;
    if (kind == LayerKind::standard) config.sparsity = sparsity;
    return config;
  }
  MixtureOfExpertsConfig experts() const {
    MixtureOfExpertsConfig config;
    config.d_model = d_model;
    config.d_ff = expert_width();
    config.n_experts = n_experts;
    config.top_k = top_k;
    config.balance_weight = balance_weight;
    return config;
  }
  LaneRouterConfig lane_router() const {
    LaneRouterConfig config = router;
    config.d_model = d_model;
    return config;
  }

  template <class Visit>
  void fields(Visit&& visit) {
    visit("vocab_size", vocab_size);
    visit("d_model", d_model);
    visit("n_heads", n_heads);
    visit("n_kv_heads", n_kv_heads);
    visit("n_layers", n_layers);
    visit("reflex_layers", reflex_layers);
    visit("standard_layers", standard_layers);
    visit("reflex_window", reflex_window);
    visit("d_ff", d_ff);
    visit("n_experts", n_experts);
    visit("top_k", top_k);
    visit("expert_ff", expert_ff);
    visit("max_seq_len", max_seq_len);
    visit("dropout", dropout);
    visit("map", map);
    visit("map_rank", map_rank);
    visit("positions", positions);
    visit("rotary", rotary);
    visit("rope_base", rope_base);
    visit("tie_embeddings", tie_embeddings);
    visit("norm_eps", norm_eps);
    visit("init", init);
    visit("gate", gate);
    visit("energy_weight", energy_weight);
    visit("balance_weight", balance_weight);
    visit("sparsity", sparsity);
    visit("early_exit", early_exit);
    router.fields([&](const char* name, auto& member) {
      if (std::string_view(name) != "d_model") visit(name, member);
    });
  }

  void validate() const {
    constexpr const char* where = "CGTConfig";
    require(vocab_size >= 1, where, "vocab_size", "at least 1", vocab_size);
    require(top_k >= 1, where, "top_k", "at least 1", top_k);  // the experts' width is divided by it
    require(n_layers >= 1, where, "n_layers", "at least 1", n_layers);
    require(reflex_layers >= 0 && reflex_end() <= n_layers, where, "reflex_layers", "at most n_layers", reflex_layers);
    require(standard_layers >= 0 && standard_end() >= reflex_end() && standard_end() <= n_layers, where,
            "standard_layers", "from reflex_layers to n_layers", standard_layers);
    require(reflex_window >= 1, where, "reflex_window", "at least 1", reflex_window);
    require(d_ff >= 0, where, "d_ff", "at least 0 (0: 4·d_model)", d_ff);
    require(expert_ff >= 0, where, "expert_ff", "at least 0 (0: d_ff / top_k)", expert_ff);
    require(max_seq_len >= 1, where, "max_seq_len", "at least 1", max_seq_len);
    require(dropout >= 0 && dropout < 1, where, "dropout", "0 <= dropout < 1", dropout);
    require(norm_eps > 0, where, "norm_eps", "a positive number", norm_eps);
    require(energy_weight >= 0 && energy_weight <= 1e6, where, "energy_weight", "0 to 1e6", energy_weight);
    require(positions == Positions::learned || rotary != Rotary::none, where, "rotary",
            "a layout, since positions are rotary", name_of(rotary));
    for (const LayerKind kind : {LayerKind::reflex, LayerKind::standard, LayerKind::deep}) attention(kind).validate();
    experts().validate();
    early_exit.validate();
    lane_router().validate();
  }

 private:
  static CGTConfig preset(Index d_model, Index n_heads, Index n_layers) {
    CGTConfig config;
    config.d_model = d_model;
    config.n_heads = n_heads;
    config.n_kv_heads = n_heads / 4;
    config.n_layers = n_layers;
    return config;
  }
};

// Floating-point operations of a forward pass, per token, all layers together; a multiplication and an addition
// count as two. Training costs three times as much.
struct CGTFlops {
  double routing = 0, propagation = 0 /* keys and values */, attention = 0, feed_forward = 0, head = 0;
  double total() const { return routing + propagation + attention + feed_forward + head; }
};

// For sequences of `tokens` that take the lanes in these shares; dense maps.
inline CGTFlops flops(const CGTConfig& config, Index tokens, const LaneShares& shares) {
  const auto as_double = [](Index value) { return static_cast<double>(value); };
  const double d = as_double(config.d_model), all = as_double(tokens);
  const double kv = config.n_kv_heads > 0 ? as_double(config.n_kv_heads) / as_double(config.n_heads) : 1.0;
  const double window = std::min(all, as_double(config.reflex_window));
  const double in_window = (window * (window + 1) / 2 + (all - window) * window) / all;  // mean over positions
  CGTFlops flops;
  for (Index layer = 0; layer < config.n_layers; ++layer) {
    const LayerKind kind = config.kind_of(layer);
    const double share = kind == LayerKind::reflex     ? 1
                         : kind == LayerKind::standard ? 1 - shares.reflex
                                                       : 1 - shares.reflex - shares.standard;
    const double seen = kind == LayerKind::reflex ? in_window : (all + 1) / 2;
    flops.propagation += 4 * d * d * kv;                    // ρ_k, ρ_v of every token
    flops.attention += share * (4 * d * d + 4 * d * seen);  // ρ_q, output; scores and sums
    if (kind == LayerKind::standard) flops.feed_forward += share * 4 * d * as_double(config.ff_width());
    if (kind == LayerKind::deep)
      flops.feed_forward +=
          share * (4 * d * as_double(config.top_k * config.expert_width()) + 2 * d * as_double(config.n_experts));
  }
  flops.routing = 3 * 4 * d * as_double(config.router.energy_dim);  // the router's two maps, at three points
  flops.head = 2 * d * as_double(config.vocab_size);
  return flops;
}

// At the shares the router aims at.
inline double flops(const CGTConfig& config, Index tokens) {
  return flops(config, tokens, config.router.shares()).total();
}

}  // namespace rbar
