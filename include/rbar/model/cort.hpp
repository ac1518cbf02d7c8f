// CoRT, the coherence-routed transformer: a decoder in which a share of the tokens is attended and the
// others are mixed with a neighbour, by the coherence of their phases.
//   h₀ = dropout(E[token] + P[position]),   h_{l+1} = layer_l(h_l),   logits = head · LN(h_L)
// Source: the CoRT package 0.1.0. Causal here by default; Causality::reference computes what the package
// computes, which sees the future.
#pragma once

#include "rbar/model/cort_layer.hpp"
#include "rbar/model/model_ends.hpp"

#include <string>
#include <vector>

namespace rbar {

// tokens [B, T] -> logits [B, T, V]. Errors: a token outside the vocabulary, no tokens or more than
// max_seq_len, gradients of another shape than the last forward pass, weights that are not finite.
//   Rng rng(1);
//   CoRTModel<float> model(CoRTConfig::small(), rng);
//   Tensor<float, 3> logits = model(tokens);
template <class T>
struct CoRTModel {
  using Scalar = T;
  using Config = CoRTConfig;
  static constexpr const char* model_type = "cort";  // in config.json

  using Router = typename AdaptiveCoherentRouter<T>::Cache;

  struct Cache {
    DropoutState dropout;
    bool recompute = false;  // keep less, and compute it again in backward (layer_caches.hpp); set by the caller
    Tensor<Token, 2> tokens;
    LayerCaches<typename CoRTLayer<T>::Cache> layers;
    std::vector<Tensor<T, 3>> inputs;  // of the layers, and
    std::vector<Router> routers;       // scores and stats of each: what is kept to recompute
    Tensor<T, 3> input, hidden;        // [B, T, D] of a layer, and h_L
    typename ModelEnds<T>::Cache ends;
    mutable Tensor<T, 3> dhidden, dnext;  // scratch of backward

    // What each layer's router did in the last forward pass.
    std::vector<RoutingStats> routing_stats() const {
      std::vector<RoutingStats> stats;
      for (std::size_t l = 0; l < (recompute ? routers.size() : layers.size()); ++l) stats.push_back(router(l).stats);
      return stats;
    }
    const Router& router(std::size_t l) const { return recompute ? routers[l] : layers[l].routed.router; }
  };
  struct State {
    Index position = 0;  // tokens seen
    std::vector<typename CoRTLayer<T>::State> layers;
    Tensor<T, 3> hidden, next;
    typename ModelEnds<T>::Cache ends;
  };

  Config config;
  ModelEnds<T> ends;
  std::vector<CoRTLayer<T>> layers;

  CoRTModel() = default;
  CoRTModel(const Config& config_, Rng& rng) : config(config_) {
    config.validate();
    ends = ModelEnds<T>(config.vocab_size, config.d_model, config.max_seq_len, config.tie_embeddings, config.init,
                        LayerNorm<T>(config.d_model, config.layer_norm_eps), rng);
    for (Index l = 0; l < config.n_layers; ++l) layers.emplace_back(config, rng);
  }

  void forward(ConstTensorView<Token, 2> tokens, Tensor<T, 3>& logits, Cache& cache) const {
    ensure_shape(cache.tokens, shape_of(tokens));
    std::copy_n(tokens.data(), tokens.size(), cache.tokens.data());
    cache.layers.prepare(layers.size(), cache.recompute);
    cache.inputs.resize(cache.recompute ? layers.size() : 0);
    cache.routers.resize(cache.inputs.size());
    ends.embed(tokens, /*first_position=*/0, cache.hidden);
    dropout<T>(config.dropout, cache.dropout, /*stream=*/0, rows(cache.hidden));
    for (std::size_t l = 0; l < layers.size(); ++l) {
      auto& layer_cache = cache.layers.fill(l);
      set_dropout(l, cache, layer_cache);
      Tensor<T, 3>& input = cache.recompute ? cache.inputs[l] : cache.input;
      std::swap(cache.hidden, input);
      layers[l].forward(view(std::as_const(input)), cache.hidden, layer_cache);
      if (cache.recompute) {
        const Router& router = layer_cache.routed.router;
        ensure_shape(cache.routers[l].scores, shape_of(router.scores));
        std::copy_n(router.scores.data(), router.scores.size(), cache.routers[l].scores.data());
        cache.routers[l].stats = router.stats;
      }
    }
    ends.head(view(std::as_const(cache.hidden)), logits, cache.ends);
  }

  void backward(ConstTensorView<T, 3> dlogits, const Cache& cache, CoRTModel& grad) const {
    require_cache("CoRTModel::backward", cache);
    ends.head_backward(dlogits, view(cache.hidden), cache.ends, cache.dhidden, grad.ends);
    for (std::size_t l = layers.size(); l-- > 0;) {
      const auto& filled = cache.layers.filled(l, 0, [&](auto& again) {
        set_dropout(l, cache, again);
        layers[l].fill(view(cache.inputs[l]), again);
      });
      layers[l].backward(view(std::as_const(cache.dhidden)), filled, cache.dnext, grad.layers[l]);
      std::swap(cache.dhidden, cache.dnext);
    }
    dropout<T>(config.dropout, cache.dropout, /*stream=*/0, rows(cache.dhidden));
    ends.embed_backward(view(std::as_const(cache.dhidden)), view(cache.tokens), grad.ends);
  }

  // The logits of the next tokens [B, new] of a stream: the numbers of `forward` on all tokens so far.
  void step(ConstTensorView<Token, 2> tokens, Tensor<T, 3>& logits, State& state,
            StepLogits wanted = StepLogits::all) const {
    state.layers.resize(layers.size());
    ends.embed(tokens, state.position, state.hidden);
    for (std::size_t l = 0; l < layers.size(); ++l) {
      layers[l].step(view(std::as_const(state.hidden)), state.next, state.layers[l]);
      std::swap(state.hidden, state.next);
    }
    ends.head(wanted, state.hidden, logits, state.ends);
    state.position += tokens.dimension(1);
  }

  // Between training steps: thresholds and budgets of all routers learn from the last forward pass.
  void adapt(const Cache& cache) {
    require_cache("CoRTModel::adapt", cache);
    for (std::size_t l = 0; l < layers.size(); ++l) layers[l].routed.router.adapt(cache.router(l));
  }

  Tensor<T, 3> operator()(ConstTensorView<Token, 2> tokens) const {
    Tensor<T, 3> logits;
    Cache cache;
    forward(tokens, logits, cache);
    return logits;
  }

  Index num_parameters() const { return count_parameters(*this); }

  void parameters(auto&& visit) {
    ends.parameters(visit);
    for (std::size_t l = 0; l < layers.size(); ++l) visit_layer(visit, "layers." + std::to_string(l), layers[l]);
  }
  void buffers(auto&& visit) {
    for (std::size_t l = 0; l < layers.size(); ++l) visit_buffers(visit, "layers." + std::to_string(l), layers[l]);
  }

  // What inference may freeze: every matrix but those that decide who is attended.
  void linears(auto&& visit) {
    ends.linears(visit);
    for (auto& layer : layers) layer.linears(visit);
  }

 private:
  // Stream 0 of dropout is the embedding's, each layer has two.
  static void set_dropout(std::size_t layer, const Cache& cache, typename CoRTLayer<T>::Cache& layer_cache) {
    layer_cache.dropout = cache.dropout;
    layer_cache.dropout_stream = 1 + 2 * static_cast<std::uint64_t>(layer);
  }
  void require_cache(std::string_view operation, const Cache& cache) const {
    const std::size_t there = cache.recompute ? cache.inputs.size() : cache.layers.size();
    require(there == layers.size(), operation, "layers of the cache", layers.size(), there);
  }
};

}  // namespace rbar
