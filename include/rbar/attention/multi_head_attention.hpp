// Multi-head attention (Vaswani et al., "Attention is all you need", 2017):
//   q = W_q x + b_q,  k = W_k x + b_k,  v = W_v x + b_v,   split into heads of d features, q and k turned by
//   rotary positions where configured;
//   o_i = Σ_j softmax_j(q_i·k_j / √d) v_j  over the keys j that i may see;   y = W_o o + b_o.
//
// Three ways to run it, with the same numbers: every token at once (`forward`), a routed subset of
// queries, packed (`forward_routed`: the other queries are never computed), and token by token with a
// cache of keys and values (`step`, `step_routed`).
#pragma once

#include "rbar/attention/multi_head_attention_config.hpp"
#include "rbar/attention/projected_attention.hpp"
#include "rbar/attention/scores.hpp"

#include <cmath>

namespace rbar {

// [batch, tokens, d_model] -> the same. Errors: other shapes, routed rows that are not ascending, `step`
// without causality or beyond the limit of the cache.
template <class T>
struct MultiHeadAttention {
  using Scalar = T;
  using Config = MultiHeadAttentionConfig;
  using Cache = AttentionCache<T>;
  using State = AttentionState<T>;

  Config config;
  Linear<T> q_proj, k_proj, v_proj, out_proj;

  MultiHeadAttention() = default;
  MultiHeadAttention(const Config& config_, Rng& rng) : config(config_) {
    config.validate();
    const Index query_width = config.n_heads * config.dim_per_head();
    const Index key_width = config.kv_heads() * config.dim_per_head();
    q_proj = Linear<T>(config.d_model, query_width, config.bias, rng);
    k_proj = Linear<T>(config.d_model, key_width, config.bias, rng);
    v_proj = Linear<T>(config.d_model, key_width, config.bias, rng);
    out_proj = Linear<T>(query_width, config.d_model, config.bias, rng);
  }

  void parameters(auto&& visit) {
    visit_layer(visit, "q_proj", q_proj);
    visit_layer(visit, "k_proj", k_proj);
    visit_layer(visit, "v_proj", v_proj);
    visit_layer(visit, "out_proj", out_proj);
  }
  void linears(auto&& visit) {
    for (Linear<T>* map : {&q_proj, &k_proj, &v_proj, &out_proj}) visit(*map);
  }

  // Every token.
  void forward(ConstTensorView<T, 3> x, Tensor<T, 3>& y, Cache& cache) const {
    passes().forward("MultiHeadAttention::forward", x, y, cache);
  }
  void backward(ConstTensorView<T, 3> dy, const Cache& cache, Tensor<T, 3>& dx, MultiHeadAttention& grad) const {
    passes().backward("MultiHeadAttention::backward", dy, cache, dx, grad.maps());
  }
  Tensor<T, 3> operator()(ConstTensorView<T, 3> x) const {
    Tensor<T, 3> y;
    Cache cache;
    forward(x, y, cache);
    return y;
  }

  // Routed queries, y_selected [S, d_model]. dx accumulates: the tokens that were not routed have gradients from
  // elsewhere.
  void forward_routed(ConstTensorView<T, 3> x, const RoutedRows& routed, KeyValues key_values, MatrixView<T> y_selected,
                      Cache& cache) const {
    passes().forward_routed("MultiHeadAttention::forward_routed", x, routed, key_values, y_selected, cache);
  }
  void backward_routed(ConstMatrixView<T> dy_selected, ConstTensorView<T, 3> x, const RoutedRows& routed,
                       KeyValues key_values, const Cache& cache, Tensor<T, 3>& dx, MultiHeadAttention& grad) const {
    passes().backward_routed("MultiHeadAttention::backward_routed", dy_selected, x, routed, key_values, cache, dx,
                             grad.maps());
  }

  // The next tokens [batch, new, d_model] of every sequence; with step_routed only the routed ones ask. One state must
  // keep to one kind of KeyValues.
  void step(ConstTensorView<T, 3> x, Tensor<T, 3>& y, State& state) const {
    passes().step("MultiHeadAttention::step", x, y, state);
  }
  void step_routed(ConstTensorView<T, 3> x, const RoutedRows& routed, KeyValues key_values, MatrixView<T> y_selected,
                   State& state) const {
    passes().step_routed("MultiHeadAttention::step_routed", x, routed, key_values, y_selected, state);
  }

 private:
  struct Kernel {
    DotProductScore score;

    void attend(const AttentionMask& mask, const ForwardViews<T>& views, NoBuffers&) const {
      rbar::attend<T>(views.query, views.key, views.value, score, mask, views.output, views.log_sum_exp);
    }
    void attend_backward(const AttentionMask& mask, const detail::BackwardViews<T>& views, const NoBuffers&) const {
      rbar::attend_backward<T>(views.query, views.key, views.value, views.output, views.doutput, views.log_sum_exp,
                               score, mask, views.dquery, views.dkey, views.dvalue);
    }
  };

  AttentionPasses<T, Config, Linear<T>, Kernel> passes() const {
    return {
        config, {q_proj, k_proj, v_proj, out_proj}, {{1.0 / std::sqrt(static_cast<double>(config.dim_per_head()))}}};
  }
  AttentionMaps<Linear<T>, Linear<T>> maps() { return {q_proj, k_proj, v_proj, out_proj}; }
};

}  // namespace rbar
