// PhaseGPT: a GPT-2 in which some layers let the tokens' phases synchronise instead of (or beside) attending,
//   h ← h + dropout(mix(LN₁h)),  mix = attention | phase attention | both;   h ← h + dropout(FFN(LN₂h))
// Source: the PhaseGPT package. Causal and attractive here by default; with Causality::reference, Coupling::reference
// and PhaseReadout::raw a phase layer computes what the package computes, which sees the future.
#pragma once

#include "rbar/core/bulk.hpp"
#include "rbar/model/layer_caches.hpp"
#include "rbar/model/model_ends.hpp"
#include "rbar/model/phasegpt_config.hpp"
#include "rbar/nn/dropout.hpp"
#include "rbar/nn/feed_forward.hpp"
#include "rbar/nn/init.hpp"
#include "rbar/nn/norm.hpp"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace rbar {

// [B, T, D] -> [B, T, D].
template <class T>
struct PhaseGPTLayer {
  using Scalar = T;
  template <template <class> class... Mixers>
  struct Kinds {
    using Layer = std::variant<Mixers<T>...>;
    using Cache = std::variant<typename Mixers<T>::Cache...>;
    using State = std::variant<typename Mixers<T>::State...>;
  };
  using Mixer = Kinds<MultiHeadAttention, PhaseAttention, HybridAttention>;

  struct Cache {
    Tensor<T, 3> input, normed, middle, normed_middle;
    typename LayerNorm<T>::Cache norm1, norm2;
    typename Mixer::Cache mixer;
    typename FeedForward<T>::Cache ffn;
    // Scratch: the output of either branch, and gradients.
    mutable Tensor<T, 3> branch, dbranch, dnormed;

    void swap_scratch(const Cache& other) const {
      rbar::swap_scratch(mixer, other.mixer);
      ffn.swap_scratch(other.ffn);
      std::swap(branch, other.branch);
      std::swap(dbranch, other.dbranch);
      std::swap(dnormed, other.dnormed);
    }
    double auxiliary_loss() const {
      return std::visit([](const auto& chosen) { return auxiliary_loss_of(chosen); }, mixer);
    }
  };
  struct State {
    typename Mixer::State mixer;
    Cache scratch;
  };

  double dropout_rate = 0;
  LayerNorm<T> norm1, norm2;
  typename Mixer::Layer mixer;
  FeedForward<T> ffn;

  PhaseGPTLayer() = default;
  PhaseGPTLayer(const PhaseGPTConfig& config, bool oscillates, Rng& rng)
      : dropout_rate(config.dropout),
        norm1(config.d_model, config.layer_norm_eps),
        norm2(config.d_model, config.layer_norm_eps) {
    if (!oscillates)
      mixer = MultiHeadAttention<T>(config.attention(), rng);
    else if (config.phase_share >= 1)
      mixer = PhaseAttention<T>(config.phase_attention(), rng);
    else
      mixer = HybridAttention<T>(config.hybrid_attention(), rng);
    ffn = FeedForward<T>(config.d_model, config.ff_width(), /*bias=*/true, rng);
  }

  // Dropout streams: `stream` and the three after it.
  void forward(ConstTensorView<T, 3> x, const DropoutState& dropout, std::uint64_t stream, Tensor<T, 3>& y,
               Cache& cache) const {
    mix(x, dropout, stream, cache);
    add_feed_forward(dropout, stream, y, cache);
  }

  // The cache that forward leaves, without its output.
  void fill(ConstTensorView<T, 3> x, const DropoutState& dropout, std::uint64_t stream, Cache& cache) const {
    mix(x, dropout, stream, cache);
    ffn.fill(rows(std::as_const(cache.normed_middle)), cache.ffn);
  }

  void backward(ConstTensorView<T, 3> dy, const DropoutState& dropout_state, std::uint64_t stream, const Cache& cache,
                Tensor<T, 3>& dx, PhaseGPTLayer& grad) const {
    ensure_shape(dx, shape_of(dy));
    ensure_shape(cache.dbranch, shape_of(dy));
    ensure_shape(cache.dnormed, shape_of(dy));
    const auto branch_gradient = [&](const T* from, std::uint64_t branch_stream) {
      bulk_copy(from, dy.size(), cache.dbranch.data());
      dropout<T>(dropout_rate, dropout_state, branch_stream, rows(cache.dbranch));
    };
    bulk_copy(dy.data(), dy.size(), dx.data());
    branch_gradient(dy.data(), stream + 1);
    ffn.backward(rows(std::as_const(cache.dbranch)), rows(cache.normed_middle), cache.ffn, rows(cache.dnormed),
                 grad.ffn);
    norm2.backward(rows(std::as_const(cache.dnormed)), rows(cache.middle), cache.norm2, rows(dx), grad.norm2,
                   /*accumulate_dx=*/true);
    branch_gradient(dx.data(), stream);
    std::visit(
        [&]<class Chosen>(const Chosen& chosen) {
          chosen.backward(view(std::as_const(cache.dbranch)), std::get<typename Chosen::Cache>(cache.mixer),
                          cache.dnormed, std::get<Chosen>(grad.mixer));
        },
        mixer);
    norm1.backward(rows(std::as_const(cache.dnormed)), rows(cache.input), cache.norm1, rows(dx), grad.norm1,
                   /*accumulate_dx=*/true);
  }

  // The next tokens of a stream of at most `limit`.
  void step(ConstTensorView<T, 3> x, Index limit, Tensor<T, 3>& y, State& state) const {
    to_feed_forward(x, {}, 0, state.scratch, [&](ConstTensorView<T, 3> normed, Tensor<T, 3>& branch) {
      visit_mixer(state.mixer, [&](const auto& chosen, auto& mixer_state) {
        if constexpr (requires { mixer_state.keys; })
          mixer_state.keys.limit = limit;
        else if constexpr (requires { mixer_state.attention.keys; })
          mixer_state.attention.keys.limit = limit;
        chosen.step(normed, branch, mixer_state);
      });
    });
    add_feed_forward({}, 0, y, state.scratch);
  }

  void parameters(auto&& visit) {
    visit_layer(visit, "norm1", norm1);
    std::visit([&](auto& chosen) { visit_layer(visit, "mixer", chosen); }, mixer);
    visit_layer(visit, "norm2", norm2);
    visit_layer(visit, "ffn", ffn);
  }
  void linears(auto&& visit) {
    std::visit([&](auto& chosen) { chosen.linears(visit); }, mixer);
    ffn.linears(visit);
  }

 private:
  // Calls body(mixer, its part of the variant), which is made if the variant holds another kind's.
  template <class Part, class Body>
  void visit_mixer(Part& part, Body&& body) const {
    std::visit(
        [&]<class Chosen>(const Chosen& chosen) {
          using Own = std::conditional_t<std::is_same_v<Part, typename Mixer::Cache>, typename Chosen::Cache,
                                         typename Chosen::State>;
          if (!std::holds_alternative<Own>(part)) part.template emplace<Own>();
          body(chosen, std::get<Own>(part));
        },
        mixer);
  }

  // Keeps x.
  void mix(ConstTensorView<T, 3> x, const DropoutState& dropout, std::uint64_t stream, Cache& cache) const {
    ensure_shape(cache.input, shape_of(x));
    bulk_copy(x.data(), x.size(), cache.input.data());
    to_feed_forward(x, dropout, stream, cache, [&](ConstTensorView<T, 3> normed, Tensor<T, 3>& branch) {
      visit_mixer(cache.mixer, [&](const auto& chosen, auto& mixer_cache) {
        if constexpr (requires { mixer_cache.dropout; })
          mixer_cache.dropout = dropout, mixer_cache.dropout_stream = stream + 2;
        else if constexpr (requires { mixer_cache.phase; })
          mixer_cache.phase.dropout = dropout, mixer_cache.phase.dropout_stream = stream + 2;
        chosen.forward(normed, branch, mixer_cache);
      });
    });
  }

  template <class Branch>
  void to_feed_forward(ConstTensorView<T, 3> x, const DropoutState& dropout, std::uint64_t stream, Cache& cache,
                       Branch&& first_branch) const {
    for (Tensor<T, 3>* tensor : {&cache.normed, &cache.middle, &cache.branch, &cache.normed_middle})
      ensure_shape(*tensor, shape_of(x));
    norm1.forward(rows(x), rows(cache.normed), cache.norm1);
    first_branch(view(std::as_const(cache.normed)), cache.branch);
    add_with_dropout<T>(dropout_rate, dropout, stream, rows(x), rows(std::as_const(cache.branch)), rows(cache.middle));
    norm2.forward(rows(std::as_const(cache.middle)), rows(cache.normed_middle), cache.norm2);
  }
  void add_feed_forward(const DropoutState& dropout, std::uint64_t stream, Tensor<T, 3>& y, Cache& cache) const {
    ensure_shape(y, shape_of(cache.middle));
    ffn.forward(rows(std::as_const(cache.normed_middle)), rows(cache.branch), cache.ffn);
    add_with_dropout<T>(dropout_rate, dropout, stream + 1, rows(std::as_const(cache.middle)),
                        rows(std::as_const(cache.branch)), rows(y));
  }
};

// tokens [B, T] -> logits [B, T, V]. Errors: a token outside the vocabulary, more than max_seq_len tokens, `step` with
// Causality::reference.
template <class T>
struct PhaseGPT {
  using Scalar = T;
  using Config = PhaseGPTConfig;
  static constexpr const char* model_type = "phasegpt";  // in config.json

  struct Cache {
    DropoutState dropout;
    bool recompute = false;     // keep less, and compute it again in backward (layer_caches.hpp); set by the caller
    double auxiliary_loss = 0;  // the regularisers', weighted
    Tensor<Token, 2> tokens;
    LayerCaches<typename PhaseGPTLayer<T>::Cache> layers;
    std::vector<Tensor<T, 3>> inputs;  // of the layers, kept to recompute
    Tensor<T, 3> input, hidden;        // [B, T, D] of a layer, and h_L
    typename ModelEnds<T>::Cache ends;
    mutable Tensor<T, 3> dhidden, dnext;  // scratch of backward

    // Angles [B, T, heads·oscillators] of a phase layer after its last step; null where layer `l` has none. Errors: no
    // such layer in the last forward pass, or `recompute`, which keeps none.
    const Tensor<T, 3>* angles(std::size_t l) const {
      require(!recompute && l < layers.size(), "PhaseGPT::Cache::angles", "layer",
              recompute ? "a forward pass that keeps them" : "one of the last forward pass", l);
      if (const auto* phase = std::get_if<typename PhaseAttention<T>::Cache>(&layers[l].mixer)) return &phase->angles;
      if (const auto* hybrid = std::get_if<typename HybridAttention<T>::Cache>(&layers[l].mixer))
        return &hybrid->phase.angles;
      return nullptr;
    }
  };
  struct State {
    Index position = 0;  // tokens seen
    std::vector<typename PhaseGPTLayer<T>::State> layers;
    Tensor<T, 3> hidden, next;
    typename ModelEnds<T>::Cache ends;
  };

  Config config;
  ModelEnds<T> ends;
  std::vector<PhaseGPTLayer<T>> layers;

  PhaseGPT() = default;
  PhaseGPT(const Config& config_, Rng& rng) : config(config_) {
    config.validate();
    ends = ModelEnds<T>(config.vocab_size, config.d_model, config.max_seq_len, config.tie_embeddings,
                        Initialisation::gpt2, LayerNorm<T>(config.d_model, config.layer_norm_eps), rng);
    const std::vector<Index> oscillating = config.phase_layers();
    for (Index l = 0; l < config.n_layers; ++l)
      layers.emplace_back(config, std::binary_search(oscillating.begin(), oscillating.end(), l), rng);
    // GPT-2's: every matrix N(0, .02²), in layers of either kind. Biases are 0, ω and K as the oscillators have them.
    parameters([&](const std::string& name, auto& tensor) {
      if (decays(name, shape_of(tensor).size())) normal(tensor, 0.02, rng);
    });
  }

  void forward(ConstTensorView<Token, 2> tokens, Tensor<T, 3>& logits, Cache& cache) const {
    ensure_shape(cache.tokens, shape_of(tokens));
    std::copy_n(tokens.data(), tokens.size(), cache.tokens.data());
    cache.layers.prepare(layers.size(), cache.recompute, std::variant_size_v<typename PhaseGPTLayer<T>::Mixer::Layer>);
    cache.inputs.resize(cache.recompute ? layers.size() : 0);
    cache.auxiliary_loss = 0;
    ends.embed(tokens, /*first_position=*/0, cache.hidden);
    dropout<T>(config.dropout, cache.dropout, /*stream=*/0, rows(cache.hidden));
    for (std::size_t l = 0; l < layers.size(); ++l) {
      auto& layer_cache = cache.layers.fill(l, layers[l].mixer.index());
      Tensor<T, 3>& input = cache.recompute ? cache.inputs[l] : cache.input;
      std::swap(cache.hidden, input);
      layers[l].forward(view(std::as_const(input)), cache.dropout, stream_of(l), cache.hidden, layer_cache);
      cache.auxiliary_loss += layer_cache.auxiliary_loss();
    }
    ends.head(view(std::as_const(cache.hidden)), logits, cache.ends);
  }

  void backward(ConstTensorView<T, 3> dlogits, const Cache& cache, PhaseGPT& grad) const {
    const std::size_t there = cache.recompute ? cache.inputs.size() : cache.layers.size();
    require(there == layers.size(), "PhaseGPT::backward", "layers of the cache", layers.size(), there);
    ends.head_backward(dlogits, view(cache.hidden), cache.ends, cache.dhidden, grad.ends);
    for (std::size_t l = layers.size(); l-- > 0;) {
      const auto& filled = cache.layers.filled(l, layers[l].mixer.index(), [&](auto& again) {
        layers[l].fill(view(cache.inputs[l]), cache.dropout, stream_of(l), again);
      });
      layers[l].backward(view(std::as_const(cache.dhidden)), cache.dropout, stream_of(l), filled, cache.dnext,
                         grad.layers[l]);
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
      layers[l].step(view(std::as_const(state.hidden)), config.max_seq_len, state.next, state.layers[l]);
      std::swap(state.hidden, state.next);
    }
    ends.head(wanted, state.hidden, logits, state.ends);
    state.position += tokens.dimension(1);
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

  // What inference may freeze: every large matrix.
  void linears(auto&& visit) {
    ends.linears(visit);
    for (auto& layer : layers) layer.linears(visit);
  }

  // Weight decay shrinks matrices: no natural frequency [heads, oscillators], and not K.
  static bool decays(std::string_view name, std::size_t rank) { return rank >= 2 && !name.ends_with(".natural_freq"); }

 private:
  // Stream 0 of dropout is the embedding's; a layer has two, and two for noise and jitter.
  static std::uint64_t stream_of(std::size_t layer) { return 1 + 4 * static_cast<std::uint64_t>(layer); }
};

// How far the oscillators of a phase layer agreed in a forward pass.
struct LayerCoherence {
  std::size_t layer = 0;
  double order = 0;  // R̄: the token order parameter, mean over tokens and heads
};

// Of every phase layer of the last forward pass, in order; no tokens, no coherence.
template <class T>
std::vector<LayerCoherence> coherence(const PhaseGPT<T>& model, const typename PhaseGPT<T>::Cache& cache) {
  std::vector<LayerCoherence> list;
  for (std::size_t l = 0; l < cache.layers.size(); ++l) {
    const Tensor<T, 3>* angles = cache.angles(l);
    if (!angles || angles->size() == 0) continue;
    const Tensor<T, 3> order = token_order_parameter<T>(*angles, model.config.n_heads);
    double sum = 0;
    for (const T r : elements(order)) sum += static_cast<double>(r);
    list.push_back({l, sum / static_cast<double>(order.size())});
  }
  return list;
}

}  // namespace rbar
