// The attention sub-layer of CoRT: each token is either attended or mixed, never both.
//   y_t = attention(h)_t  where score_t is low,   y_t = mixer(h)_t  elsewhere
// Router, attention and mixer read the same h (LN₁ of the residual stream). Only routed queries are
// computed and only the others are mixed: gather → GEMM → scatter. Source: the CoRT package 0.1.0, which
// computes both for every token and discards one.
#pragma once

#include "rbar/attention/multi_head_attention.hpp"
#include "rbar/core/bulk.hpp"
#include "rbar/routing/adaptive_router.hpp"
#include "rbar/routing/mixer.hpp"

#include <algorithm>

namespace rbar {

struct RoutedAttentionConfig {
  AdaptiveRouterConfig router;  // d_model and causality of all three parts
  Index n_heads = 8;
  KeyValues key_values = KeyValues::all;  // what a routed query may look at
  bool learnable_mixer = true;

  template <class Visit>
  void fields(Visit&& visit) {
    router.fields(visit);
    visit("n_heads", n_heads);
    visit("key_values", key_values);
    visit("learnable_mixer", learnable_mixer);
  }
  void validate() const {
    router.validate();
    attention().validate();
  }

  MultiHeadAttentionConfig attention() const {
    MultiHeadAttentionConfig config;
    config.d_model = router.router.d_model;
    config.n_heads = n_heads;
    return config;
  }
  MixerConfig mixer() const { return {router.router.d_model, learnable_mixer, router.router.causality}; }
};

// [B, T, D] -> [B, T, D]. Errors: another D, no tokens, a NaN or an infinity in the input.
template <class T>
struct RoutedAttention {
  using Scalar = T;

  RoutedAttentionConfig config;
  AdaptiveCoherentRouter<T> router;
  MultiHeadAttention<T> attention;
  CoherenceMixer<T> mixer;

  struct Cache {
    Tensor<T, 3> hidden;  // [B, T, D] copy of the input
    typename AdaptiveCoherentRouter<T>::Cache router;
    typename MultiHeadAttention<T>::Cache attention;
    typename CoherenceMixer<T>::Cache mixer;
    mutable Tensor<T, 2> packed;   // [B·T, D] attended or mixed rows, or their gradients
    mutable Tensor<T, 2> dscores;  // [B, T] scratch of backward

    void swap_scratch(const Cache& other) const {
      attention.swap_scratch(other.attention);
      mixer.swap_scratch(other.mixer);
      std::swap(packed, other.packed);
    }
  };
  struct State {
    typename AdaptiveCoherentRouter<T>::State router;  // decision and stats of the last call
    typename MultiHeadAttention<T>::State attention;
    typename CoherenceMixer<T>::State mixer;
    typename CoherenceMixer<T>::Cache mixer_cache;  // scratch
    Tensor<T, 2> packed;                            // scratch
  };

  RoutedAttention() = default;
  RoutedAttention(const RoutedAttentionConfig& config_, Rng& rng) : config(config_) {
    config.validate();
    router = AdaptiveCoherentRouter<T>(config.router, rng);
    attention = MultiHeadAttention<T>(config.attention(), rng);
    mixer = CoherenceMixer<T>(config.mixer(), rng);
  }

  void forward(ConstTensorView<T, 3> hidden, Tensor<T, 3>& y, Cache& cache) const {
    router.forward(hidden, cache.router);
    const Routing& routing = cache.router.routing;
    const RoutedRows attention_rows = routing.attention_rows(), mixing_rows = routing.mixing_rows();
    ensure_shape(cache.hidden, shape_of(hidden));
    bulk_copy(hidden.data(), hidden.size(), cache.hidden.data());
    ensure_shape(y, shape_of(hidden));
    ensure_shape(cache.packed, {rows(hidden).rows(), hidden.dimension(2)});

    const MatrixView<T> attended = top_rows(cache.packed, attention_rows.count());
    attention.forward_routed(hidden, attention_rows, config.key_values, attended, cache.attention);
    // Attended and mixed rows together are all rows, so nothing needs zeroing first.
    scatter_rows(as_const(attended), attention_rows, rows(y));
    const MatrixView<T> mixed = top_rows(cache.packed, mixing_rows.count());
    mixer.forward(hidden, routing.mixing, view(std::as_const(cache.router.scores)), mixed, cache.mixer);
    scatter_rows(as_const(mixed), mixing_rows, rows(y));
  }

  void backward(ConstTensorView<T, 3> dy, const Cache& cache, Tensor<T, 3>& dx, RoutedAttention& grad) const {
    const Tensor<T, 3>& hidden = cache.hidden;
    require_shape("RoutedAttention::backward", "dy", shape_of(dy), shape_of(hidden));
    const Routing& routing = cache.router.routing;
    const RoutedRows attention_rows = routing.attention_rows(), mixing_rows = routing.mixing_rows();
    ensure_shape(dx, shape_of(hidden));
    bulk_zero(dx.data(), dx.size());
    ensure_shape(cache.dscores, shape_of(cache.router.scores));
    cache.dscores.setZero();

    const MatrixView<T> dattended = top_rows(cache.packed, attention_rows.count());
    gather_rows<T>(rows(dy), attention_rows, dattended);
    attention.backward_routed(as_const(dattended), view(hidden), attention_rows, config.key_values, cache.attention, dx,
                              grad.attention);
    const MatrixView<T> dmixed = top_rows(cache.packed, mixing_rows.count());
    gather_rows<T>(rows(dy), mixing_rows, dmixed);
    mixer.backward(as_const(dmixed), view(hidden), routing.mixing, view(cache.router.scores), cache.mixer, dx,
                   cache.dscores, grad.mixer);
    // The score reaches the output as the mixer's c; the decision has no gradient.
    router.backward(view(std::as_const(cache.dscores)), view(hidden), cache.router, dx, grad.router);
  }

  // A stream's next tokens [B, new, D]: the decisions and numbers of `forward`. Causal only.
  void step(ConstTensorView<T, 3> hidden, Tensor<T, 3>& y, State& state) const {
    router.step(hidden, state.router);
    const Routing& routing = state.router.cache.routing;
    const RoutedRows attention_rows = routing.attention_rows(), mixing_rows = routing.mixing_rows();
    ensure_shape(y, shape_of(hidden));
    ensure_shape(state.packed, {rows(hidden).rows(), hidden.dimension(2)});

    const MatrixView<T> attended = top_rows(state.packed, attention_rows.count());
    attention.step_routed(hidden, attention_rows, config.key_values, attended, state.attention);
    scatter_rows(as_const(attended), attention_rows, rows(y));
    const MatrixView<T> mixed = top_rows(state.packed, mixing_rows.count());
    mixer.step(hidden, routing.mixing, view(std::as_const(state.router.cache.scores)), mixed, state.mixer,
               state.mixer_cache);
    scatter_rows(as_const(mixed), mixing_rows, rows(y));
  }

  // Between training steps: threshold and budget learn from the scores of the last forward pass.
  void adapt(const Cache& cache) { router.adapt(cache.router); }

  void parameters(auto&& visit) {
    visit_layer(visit, "router", router);
    visit_layer(visit, "attention", attention);
    visit_layer(visit, "mixer", mixer);
  }
  // What decides stays: the router.
  void linears(auto&& visit) {
    attention.linears(visit);
    mixer.linears(visit);
  }
  void buffers(auto&& visit) { visit_buffers(visit, "router", router); }
};

}  // namespace rbar
