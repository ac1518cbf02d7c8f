// What each part of the phase-modulated model is worth: the model without it, and a standard transformer, all of the
// same size.
#pragma once

#include "rbar/model/pma_lm.hpp"
#include "rbar/model/transformer.hpp"

#include <string>
#include <vector>

namespace rbar {

struct PMAAblation {
  std::string name, description;
  PMAConfig config;
};

namespace detail {

// The hidden width at which something that has `fixed` parameters without its feed-forward blocks and `per_unit` for
// every unit of their width comes closest to `target`. Error: what is fixed leaves not even one unit.
inline Index width_for(const char* where, Index target, Index fixed, Index per_unit) {
  const Index width = (target - fixed + per_unit / 2) / per_unit;
  require(width >= 1, where, "parameters to match", "at least " + std::to_string(fixed + per_unit - per_unit / 2),
          target);
  return width;
}

}  // namespace detail

// Parameters of a model of this config. One block of each kind is made and counted.
inline Index parameter_count(const PMAConfig& config) {
  config.validate();
  Rng rng;
  const Index d = config.d_model, feed_forward = 3 * d * config.hidden() + d;
  Index count = (config.tie_embeddings ? 1 : 2) * config.vocab_size * d + d;
  if (config.ssm_blocks > 0)
    count += config.ssm_blocks *
             (count_parameters(SelectiveSSM<float>(config.ssm(), rng)) + d + (config.ssm_mlp ? feed_forward : 0));
  if (config.pma_blocks > 0)
    count += config.pma_blocks *
             (count_parameters(PhaseModulatedAttention<float>(config.attention(), rng)) + d + feed_forward);
  return count;
}

// `config` with the feed-forward width that brings its parameters closest to `target`. Errors: no feed-forward block; a
// target that the rest of the model exceeds.
inline PMAConfig with_parameters(PMAConfig config, Index target) {
  const Index blocks = config.pma_blocks + (config.ssm_mlp ? config.ssm_blocks : 0);
  require(blocks > 0, "with_parameters", "config", "feed-forward blocks that can be widened", "none");
  const Index per_unit = 3 * config.d_model * blocks;
  config.d_ff =
      detail::width_for("with_parameters", target, parameter_count(config) - config.hidden() * per_unit, per_unit);
  return config;
}

// The model itself first. Where blocks are taken out, those that stay have wider feed-forward parts, so that all have
// the same number of parameters to within half a unit of that width; the other ablations have a few less, as nothing
// reads them. The scan also tells attention where a token is; without it rotary positions do, as in the standard
// transformer. Errors: heads of an odd width have no rotary positions.
inline std::vector<PMAAblation> pma_ablations(const PMAConfig& config) {
  config.validate();
  require(config.pma_blocks > 0, "pma_ablations", "pma_blocks", "at least 1", config.pma_blocks);
  const Index target = parameter_count(config);
  std::vector<PMAAblation> list{{"full", "everything", config}};
  const auto without = [&](const char* name, const char* description, auto&& change) {
    PMAConfig ablated = config;
    change(ablated);
    list.push_back({name, description, ablated});
  };
  without("no_gate", "λ = 0: the scores know no phases, τ does", [](PMAConfig& c) { c.phase_gate = false; });
  without("fixed_temperature", "α = β = 0: τ = τ_base, the scores know the phases",
          [](PMAConfig& c) { c.adaptive_temperature = false; });
  without("no_phases", "λ = α = β = 0: standard attention", [](PMAConfig& c) {
    c.phase_gate = false;
    c.adaptive_temperature = false;
  });
  without("constant_coupling", "K = 1 for every token", [](PMAConfig& c) {
    c.learn_coupling = false;
    c.coupling = 1;
  });
  without("no_coupling", "K = 0: oscillators that do not hear each other", [](PMAConfig& c) {
    c.learn_coupling = false;
    c.coupling = 0;
  });
  without("frozen_phases", "φ = ω for every token", [](PMAConfig& c) { c.frozen_phases = true; });
  without("no_position_phases", "φ_pos = 0", [](PMAConfig& c) { c.position_phases = false; });
  if (config.ssm_blocks > 0) {
    without("ssm_only", "no attention", [&](PMAConfig& c) {
      c.pma_blocks = 0;
      c.ssm_mlp = true;
      c = with_parameters(c, target);
    });
    without("attention_only", "no state space: the embedding sets K, rotary positions", [&](PMAConfig& c) {
      c.ssm_blocks = 0;
      if (c.rotary == Rotary::none) c.rotary = TransformerConfig{}.rotary;
      c = with_parameters(c, target);
    });
  }
  return list;
}

// A standard transformer of as many parameters and blocks: RMSNorm, rotary positions, SwiGLU.
inline TransformerConfig matched_transformer(const PMAConfig& config) {
  const Index layers = config.ssm_blocks + config.pma_blocks, d = config.d_model;
  TransformerConfig matched =
      TransformerConfig::llama_style(config.vocab_size, d, layers, config.n_heads, 0, 1, config.max_seq_len);
  matched.tie_embeddings = config.tie_embeddings;
  matched.dropout = config.dropout;
  matched.norm_eps = config.norm_eps;
  matched.init = config.init;
  const Index ends = (config.tie_embeddings ? 1 : 2) * config.vocab_size * d + d;
  matched.d_ff = detail::width_for("matched_transformer", parameter_count(config), ends + layers * (4 * d * d + 2 * d),
                                   layers * 3 * d);
  return matched;
}

}  // namespace rbar
