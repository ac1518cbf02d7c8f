// The shape of a sheaf attention.
#pragma once

#include "rbar/attention/multi_head_attention_config.hpp"
#include "rbar/sheaf/restriction_map.hpp"
#include "rbar/sheaf/sparsity.hpp"

#include <algorithm>
#include <cmath>

namespace rbar {

struct SheafAttentionConfig {
  static constexpr Index max_head_dim = 256;  // the engine's

  Index d_model = 512;
  Index n_heads = 8;
  Index n_kv_heads = 0;  // 0: n_heads. Fewer: every n_heads/n_kv_heads query heads share keys and values
  Index head_dim = 0;    // 0: d_model / n_heads
  RestrictionMapKind map = RestrictionMapKind::dense;
  Index map_rank = 0;  // of low_rank maps
  bool bias = true;
  bool causal = true;
  Index window = 0;  // > 0: a query sees the last `window` positions only, its own among them
  Rotary rotary = Rotary::none;
  double rope_base = 10000;
  bool learn_beta = true;
  double beta = 0;  // at the start, of every head; 0: 1/(2√head_dim), the scale of dot-product attention
  SparsityConfig sparsity;

  Index kv_heads() const { return heads().kv_heads(); }
  Index dim_per_head() const { return heads().dim_per_head(); }
  double initial_beta() const { return beta > 0 ? beta : 0.5 / std::sqrt(static_cast<double>(dim_per_head())); }

  void validate() const {
    constexpr const char* where = "SheafAttentionConfig";
    heads().validate(where);
    require(dim_per_head() <= max_head_dim, where, "head_dim", "at most 256", dim_per_head());
    const Index query_width = n_heads * dim_per_head(), key_width = kv_heads() * dim_per_head();
    const bool square = map == RestrictionMapKind::identity || map == RestrictionMapKind::diagonal;
    require(!square || (query_width == d_model && key_width == d_model), where, "map",
            "one whose output may have another width than d_model", name_of(map));
    require(map != RestrictionMapKind::projection || query_width <= d_model, where, "map",
            "one whose output may be wider than d_model", name_of(map));
    require(map != RestrictionMapKind::csr, where, "map", "a kind that needs no pattern", name_of(map));
    require(map != RestrictionMapKind::low_rank || (map_rank >= 1 && map_rank <= std::min(d_model, key_width)), where,
            "map_rank", "1 to the smaller side of the maps", map_rank);
    sparsity.validate();
    require(!sparsity.enabled || window == 0, where, "window", "0 where keys are skipped by their energy", window);
    require(beta >= 0 && std::isfinite(beta), where, "beta", "0 or a positive number", beta);
  }

  template <class Visit>
  void fields(Visit&& visit) {
    visit("d_model", d_model);
    visit("n_heads", n_heads);
    visit("n_kv_heads", n_kv_heads);
    visit("head_dim", head_dim);
    visit("map", map);
    visit("map_rank", map_rank);
    visit("bias", bias);
    visit("causal", causal);
    visit("window", window);
    visit("rotary", rotary);
    visit("rope_base", rope_base);
    visit("learn_beta", learn_beta);
    visit("beta", beta);
    visit("sparsity", sparsity);
  }

 private:
  // What it has in common with multi-head attention.
  MultiHeadAttentionConfig heads() const {
    MultiHeadAttentionConfig c;
    c.d_model = d_model, c.n_heads = n_heads, c.n_kv_heads = n_kv_heads, c.head_dim = head_dim;
    c.causal = causal, c.window = window, c.rotary = rotary, c.rope_base = rope_base;
    return c;
  }
};

}  // namespace rbar
