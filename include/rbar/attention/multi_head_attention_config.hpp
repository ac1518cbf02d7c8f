// The shape of a multi-head attention.
#pragma once

#include "rbar/core/error.hpp"
#include "rbar/core/tensor.hpp"
#include "rbar/nn/rotary.hpp"

namespace rbar {

struct MultiHeadAttentionConfig {
  Index d_model = 512;
  Index n_heads = 8;
  Index n_kv_heads = 0;  // 0: n_heads. Fewer: every n_heads/n_kv_heads query heads share keys and values
  Index head_dim = 0;    // 0: d_model / n_heads
  bool bias = true;
  bool causal = true;
  Index window = 0;  // > 0: a query sees the last `window` positions only, its own among them
  Rotary rotary = Rotary::none;
  double rope_base = 10000;

  Index kv_heads() const { return n_kv_heads > 0 ? n_kv_heads : n_heads; }
  Index dim_per_head() const { return head_dim > 0 || n_heads == 0 ? head_dim : d_model / n_heads; }

  // `where`: the config of another attention that has all this in common.
  void validate(const char* where = "MultiHeadAttentionConfig") const {
    require(d_model > 0, where, "d_model", "at least 1", d_model);
    require(n_heads > 0, where, "n_heads", "at least 1", n_heads);
    require(head_dim >= 0, where, "head_dim", "at least 0", head_dim);
    require(head_dim > 0 || d_model % n_heads == 0, where, "d_model",
            "a multiple of n_heads " + std::to_string(n_heads), d_model);
    require(n_kv_heads >= 0 && n_heads % kv_heads() == 0, where, "n_kv_heads",
            "a divisor of n_heads " + std::to_string(n_heads), n_kv_heads);
    require(window >= 0, where, "window", "at least 0", window);
    require(causal || window == 0, where, "window", "0 where attention is not causal", window);
    require(rotary == Rotary::none || dim_per_head() % 2 == 0, where, "head_dim with rotary positions",
            "an even number", dim_per_head());
    require(rope_base > 0, where, "rope_base", "a positive number", rope_base);
  }

  template <class Visit>
  void fields(Visit&& visit) {
    visit("d_model", d_model);
    visit("n_heads", n_heads);
    visit("n_kv_heads", n_kv_heads);
    visit("head_dim", head_dim);
    visit("bias", bias);
    visit("causal", causal);
    visit("window", window);
    visit("rotary", rotary);
    visit("rope_base", rope_base);
  }
};

}  // namespace rbar
