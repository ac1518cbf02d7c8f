// A language model on the torus: a token is d angles θ, and every layer turns them,
//   θ = E[token]                                           E ~ U(−π, π)
//   θ ← KuramotoAttention(θ)                               towards the circular mean of what the token attends to
//   θ ← θ + W_d(SiLU(W_g φ) ⊙ W_u φ),  φ = [cos θ; sin θ]  the mixing of angles
//   logits = W_o φ + b   or   γ Σ_j cos(θ_j − E_vj)        (`readout` linear or tied)
// There is no norm: ‖φ‖² = d always.
// Source: reimplementation from the abstract of "Kuramoto Attention: Synchronizing Self-Attention on the Torus", arXiv
// 2606.11585, and its published sizes; mixing and readout are this library's choice.
#pragma once

#include "rbar/core/bulk.hpp"
#include "rbar/model/kuramoto_lm_config.hpp"
#include "rbar/model/layer_caches.hpp"
#include "rbar/model/model_ends.hpp"
#include "rbar/nn/dropout.hpp"
#include "rbar/nn/embedding.hpp"
#include "rbar/nn/feed_forward.hpp"

#include <algorithm>
#include <numbers>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace rbar {

namespace detail {

// φ = [cos θ; sin θ] of every row: [N, d] -> [N, 2d].
template <class T>
void phasors_of(ConstMatrixView<T> angles, Tensor<T, 2>& phasors) {
  const Index d = angles.cols();
  ensure_shape(phasors, {angles.rows(), 2 * d});
  parallel_for(angles.rows(), std::max<Index>(1, 8192 / d), [&](Index begin, Index end) {
    for (Index n = begin; n < end; ++n)
      simd::torus_phasors(angles.data() + n * d, /*heads=*/1, d, phasors.data() + n * 2 * d);
  });
}
// dangles += ∂φ/∂θ · dphasors, or = where they are new.
template <class T>
void phasors_of_backward(const Tensor<T, 2>& phasors, const Tensor<T, 2>& dphasors, MatrixView<T> dangles,
                         bool accumulate) {
  const Index d = dangles.cols();
  parallel_for(dangles.rows(), std::max<Index>(1, 8192 / d), [&](Index begin, Index end) {
    if (!accumulate) std::fill(dangles.data() + begin * d, dangles.data() + end * d, T(0));
    for (Index n = begin; n < end; ++n)
      simd::torus_phasors_backward(phasors.data() + n * 2 * d, dphasors.data() + n * 2 * d, /*heads=*/1, d,
                                   dangles.data() + n * d);
  });
}

}  // namespace detail

// One layer: attention moves the angles [batch, tokens, d_model], then they mix. In place.
template <class T>
struct KuramotoLayer {
  using Scalar = T;

  struct Cache {
    typename KuramotoAttention<T>::Cache attention;
    Tensor<T, 2> phasors;  // [N, 2·d_model] of the angles that attention moved
    typename SwiGLU<T>::Cache mixing;

    void swap_scratch(const Cache& other) const {
      attention.swap_scratch(other.attention);
      mixing.swap_scratch(other.mixing);
    }
  };
  struct State {
    typename KuramotoAttention<T>::State attention;
  };
  // What the layers of a model use one after the other.
  struct Scratch {
    Tensor<T, 3> moved;                // by attention
    Tensor<T, 2> branch;               // [N, d_model], of the mixing
    Tensor<T, 2> phasors, dphasors;    // [N, 2·d_model]: of a stream; of backward
    typename SwiGLU<T>::Cache mixing;  // of a stream
  };

  KuramotoAttention<T> attention;
  SwiGLU<T> mixing;  // [2·d_model] -> [d_model]
  double dropout_rate = 0;

  KuramotoLayer() = default;
  KuramotoLayer(const KuramotoLMConfig& config, Rng& rng)
      : attention(config.attention(), rng),
        mixing(2 * config.d_model, config.hidden(), config.d_model, /*bias=*/false, rng),
        dropout_rate(config.dropout) {
    normal(mixing.down.weight, 0.02, rng);  // small: a first step of some hundredths of a radian
  }

  void forward(Tensor<T, 3>& angles, const DropoutState& dropout, std::uint64_t stream, Cache& cache,
               Scratch& scratch) const {
    attention.forward(view(std::as_const(angles)), scratch.moved, cache.attention);
    mix(scratch, dropout, stream, cache.phasors, cache.mixing, angles);
  }

  // The cache that forward leaves, without its output.
  void fill(ConstTensorView<T, 3> angles, Cache& cache, Scratch& scratch) const {
    attention.forward(angles, scratch.moved, cache.attention);
    detail::phasors_of<T>(rows(std::as_const(scratch.moved)), cache.phasors);
    mixing.fill(rows(std::as_const(cache.phasors)), cache.mixing);
  }

  // `dangles` is the gradient of the angles after the layer and becomes that of those before it.
  void backward(Tensor<T, 3>& dangles, const DropoutState& dropout_state, std::uint64_t stream, const Cache& cache,
                Scratch& scratch, KuramotoLayer& grad) const {
    const Index count = cache.phasors.dimension(0), d = attention.config.d_model;
    ensure_shape(scratch.dphasors, shape_of(cache.phasors));
    const T* dbranch = dangles.data();
    if (detail::dropout_applies(dropout_rate, dropout_state)) {
      ensure_shape(scratch.branch, {count, d});
      bulk_copy(dangles.data(), dangles.size(), scratch.branch.data());
      dropout<T>(dropout_rate, dropout_state, stream, rows(scratch.branch));
      dbranch = scratch.branch.data();
    }
    mixing.backward(ConstMatrixView<T>(dbranch, count, d), rows(cache.phasors), cache.mixing, rows(scratch.dphasors),
                    grad.mixing);
    detail::phasors_of_backward<T>(cache.phasors, scratch.dphasors, rows(dangles), /*accumulate=*/true);
    attention.backward(view(std::as_const(dangles)), cache.attention, scratch.moved, grad.attention);
    std::swap(dangles, scratch.moved);
  }

  // The next tokens of a stream.
  void step(Tensor<T, 3>& angles, State& state, Scratch& scratch) const {
    attention.step(view(std::as_const(angles)), scratch.moved, state.attention);
    mix(scratch, {}, 0, scratch.phasors, scratch.mixing, angles);
  }

  void parameters(auto&& visit) {
    visit_layer(visit, "attention", attention);
    visit_layer(visit, "mixing", mixing);
  }
  void linears(auto&& visit) {
    attention.linears(visit);
    mixing.linears(visit);
  }

 private:
  void mix(Scratch& scratch, const DropoutState& dropout, std::uint64_t stream, Tensor<T, 2>& phasors,
           typename SwiGLU<T>::Cache& cache, Tensor<T, 3>& angles) const {
    const ConstMatrixView<T> moved = rows(std::as_const(scratch.moved));
    detail::phasors_of<T>(moved, phasors);
    ensure_shape(scratch.branch, {moved.rows(), moved.cols()});
    mixing.forward(rows(std::as_const(phasors)), rows(scratch.branch), cache);
    add_with_dropout<T>(dropout_rate, dropout, stream, moved, rows(std::as_const(scratch.branch)), rows(angles));
  }
};

// tokens [batch, tokens] -> logits [batch, tokens, vocab_size]. Errors: a token outside the vocabulary, more than
// max_seq_len tokens, gradients of another shape than the last forward pass.
template <class T>
struct KuramotoLM {
  using Scalar = T;
  using Config = KuramotoLMConfig;
  static constexpr const char* model_type = "kuramoto";  // in config.json

  // The last angles' readout.
  struct ReadoutCache {
    Tensor<T, 2> phasors, scaled;                   // [N, 2·d_model] φ(θ), and γφ(θ) where tied
    Tensor<T, 2> token_phasors;                     // [V, 2·d_model] φ(E), where tied
    mutable Tensor<T, 2> dphasors, dtoken_phasors;  // scratch of backward
  };
  struct Cache {
    DropoutState dropout;
    bool recompute = false;  // keep less, and compute it again in backward (layer_caches.hpp); set by the caller
    Tensor<Token, 2> tokens;
    Tensor<T, 3> angles;  // [B, T, d_model] after the last layer
    LayerCaches<typename KuramotoLayer<T>::Cache> layers;
    std::vector<Tensor<T, 3>> inputs;  // of the layers, kept to recompute
    ReadoutCache readout;
    mutable typename KuramotoLayer<T>::Scratch scratch;
    mutable Tensor<T, 3> dangles;  // scratch of backward
  };
  struct State {
    Index position = 0;  // tokens seen
    Tensor<T, 3> angles, last;
    std::vector<typename KuramotoLayer<T>::State> layers;
    ReadoutCache readout;
    typename KuramotoLayer<T>::Scratch scratch;
  };

  Config config;
  Embedding<T> token_embedding;  // E [V, d_model], radians
  std::vector<KuramotoLayer<T>> layers;
  Linear<T> lm_head;           // [V, 2·d_model] with bias, where linear; without, φ(E), where tied and rounded
  Tensor<T, 1> readout_scale;  // γ [1], where tied

  KuramotoLM() = default;
  KuramotoLM(const Config& config_, Rng& rng) : config(config_) {
    config.validate();
    token_embedding = Embedding<T>(config.vocab_size, config.d_model, rng);
    for (T& angle : elements(token_embedding.weight))
      angle = static_cast<T>(rng.uniform(-std::numbers::pi, std::numbers::pi));
    for (Index l = 0; l < config.n_layers; ++l) layers.emplace_back(config, rng);
    if (config.readout == TorusReadout::linear) {
      lm_head = Linear<T>(2 * config.d_model, config.vocab_size, /*has_bias=*/true, rng);
      normal(lm_head.weight, 0.02, rng);
    } else {
      ensure_shape(readout_scale, {1});
      // Or a token, whose angles have hardly moved at first, would predict itself.
      readout_scale(0) = T(1) / static_cast<T>(config.d_model);
    }
  }

  void forward(ConstTensorView<Token, 2> tokens, Tensor<T, 3>& logits, Cache& cache) const {
    require_length("KuramotoLM::forward", tokens.dimension(1));
    ensure_shape(cache.tokens, shape_of(tokens));
    std::copy_n(tokens.data(), tokens.size(), cache.tokens.data());
    cache.layers.prepare(layers.size(), cache.recompute);
    cache.inputs.resize(cache.recompute ? layers.size() : 0);
    embed(tokens, cache.angles);
    for (std::size_t l = 0; l < layers.size(); ++l) {
      if (cache.recompute) {
        ensure_shape(cache.inputs[l], shape_of(cache.angles));
        bulk_copy(cache.angles.data(), cache.angles.size(), cache.inputs[l].data());
      }
      layers[l].forward(cache.angles, cache.dropout, /*stream=*/l, cache.layers.fill(l), cache.scratch);
    }
    read_out(view(std::as_const(cache.angles)), /*first=*/true, logits, cache.readout);
  }

  void backward(ConstTensorView<T, 3> dlogits, const Cache& cache, KuramotoLM& grad) const {
    constexpr const char* operation = "KuramotoLM::backward";
    const std::size_t there = cache.recompute ? cache.inputs.size() : cache.layers.size();
    require(there == layers.size(), operation, "layers of the cache", layers.size(), there);
    require_shape(operation, "dlogits", dlogits,
                  {cache.tokens.dimension(0), cache.tokens.dimension(1), config.vocab_size});
    ensure_shape(cache.dangles, shape_of(cache.angles));
    read_out_backward(rows(dlogits), cache.readout, rows(cache.dangles), grad);
    for (std::size_t l = layers.size(); l-- > 0;) {
      const auto& filled =
          cache.layers.filled(l, 0, [&](auto& again) { layers[l].fill(view(cache.inputs[l]), again, cache.scratch); });
      layers[l].backward(cache.dangles, cache.dropout, /*stream=*/l, filled, cache.scratch, grad.layers[l]);
    }
    token_embedding.backward(elements(cache.tokens), rows(std::as_const(cache.dangles)), grad.token_embedding);
  }

  // The logits of the next tokens [batch, new], with the numbers of `forward` on all tokens so far.
  void step(ConstTensorView<Token, 2> tokens, Tensor<T, 3>& logits, State& state,
            StepLogits wanted = StepLogits::all) const {
    require_length("KuramotoLM::step", state.position + tokens.dimension(1));
    if (state.layers.empty()) {
      state.layers.resize(layers.size());
      for (auto& layer : state.layers) layer.attention.keys.limit = config.max_seq_len;
    }
    embed(tokens, state.angles);
    for (std::size_t l = 0; l < layers.size(); ++l) layers[l].step(state.angles, state.layers[l], state.scratch);
    read_out(wanted_tokens(wanted, state.angles, state.last), /*first=*/state.position == 0, logits, state.readout);
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
    visit_layer(visit, "token_embedding", token_embedding);
    for (std::size_t l = 0; l < layers.size(); ++l) visit_layer(visit, "layers." + std::to_string(l), layers[l]);
    if (config.readout == TorusReadout::linear)
      visit_layer(visit, "lm_head", lm_head);
    else
      visit("readout_scale", readout_scale);
  }

  // What inference may freeze: every large matrix. A tied readout is a head whose weight is φ(E).
  void linears(auto&& visit) {
    for (auto& layer : layers) layer.linears(visit);
    if (config.readout == TorusReadout::linear || lm_head.is_frozen()) return visit(lm_head);
    Tensor<T, 2> phasors;
    detail::phasors_of<T>(rows(std::as_const(token_embedding.weight)), phasors);
    visit(lm_head, std::as_const(phasors));
  }

  // Weight decay shrinks matrices: never the tokens' angles (0 is no smaller than another angle) and never what scales
  // and turns (gates' constants and biases, β, η, γ).
  static bool decays(std::string_view name, std::size_t rank) {
    return rank >= 2 && !name.starts_with("token_embedding.") && !name.ends_with(".fixed_gate");
  }

 private:
  void embed(ConstTensorView<Token, 2> tokens, Tensor<T, 3>& angles) const {
    ensure_shape(angles, {tokens.dimension(0), tokens.dimension(1), config.d_model});
    token_embedding.forward(elements(tokens), rows(angles));
  }

  // `first` makes the tokens' phasors, which later passes of the same parameters keep.
  void read_out(ConstTensorView<T, 3> angles, bool first, Tensor<T, 3>& logits, ReadoutCache& cache) const {
    ensure_shape(logits, {angles.dimension(0), angles.dimension(1), config.vocab_size});
    detail::phasors_of<T>(rows(angles), cache.phasors);
    if (config.readout == TorusReadout::linear)
      return lm_head.forward(rows(std::as_const(cache.phasors)), rows(logits));
    // Σ_j cos(θ_j − E_vj) = φ(θ)·φ(E_v).
    const Index count = cache.phasors.dimension(0), width = 2 * config.d_model;
    ensure_shape(cache.scaled, {count, width});
    for (Index i = 0; i < count * width; ++i) cache.scaled.data()[i] = readout_scale(0) * cache.phasors.data()[i];
    if (lm_head.is_frozen()) return lm_head.forward(rows(std::as_const(cache.scaled)), rows(logits));
    if (first) detail::phasors_of<T>(rows(token_embedding.weight), cache.token_phasors);
    gemm(lm_head.products, Transpose::no, Transpose::yes, count, config.vocab_size, width, cache.scaled.data(), width,
         cache.token_phasors.data(), width, logits.data(), config.vocab_size);
  }

  void read_out_backward(ConstMatrixView<T> dlogits, const ReadoutCache& cache, MatrixView<T> dangles,
                         KuramotoLM& grad) const {
    lm_head.require_trainable("KuramotoLM::backward");
    ensure_shape(cache.dphasors, shape_of(cache.phasors));
    if (config.readout == TorusReadout::linear) {
      lm_head.backward(dlogits, rows(cache.phasors), rows(cache.dphasors), grad.lm_head);
      return detail::phasors_of_backward<T>(cache.phasors, cache.dphasors, dangles, /*accumulate=*/false);
    }
    const Index count = cache.phasors.dimension(0), width = 2 * config.d_model, vocabulary = config.vocab_size;
    ensure_shape(cache.dtoken_phasors, shape_of(cache.token_phasors));
    gemm(lm_head.products, Transpose::yes, Transpose::no, vocabulary, width, count, dlogits.data(), vocabulary,
         cache.scaled.data(), width, cache.dtoken_phasors.data(), width);
    gemm(lm_head.products, Transpose::no, Transpose::no, count, width, vocabulary, dlogits.data(), vocabulary,
         cache.token_phasors.data(), width, cache.dphasors.data(), width);
    detail::phasors_of_backward<T>(cache.token_phasors, cache.dtoken_phasors, rows(grad.token_embedding.weight),
                                   /*accumulate=*/true);
    // dphasors lacks the factor γ: with φ it is γ's gradient, with γφ that of the angles.
    grad.readout_scale(0) += static_cast<T>(parallel_sum(count * width, 16384, [&](Index begin, Index end) {
      double sum = 0;
      for (Index i = begin; i < end; ++i)
        sum += static_cast<double>(cache.dphasors.data()[i]) * static_cast<double>(cache.phasors.data()[i]);
      return sum;
    }));
    detail::phasors_of_backward<T>(cache.scaled, cache.dphasors, dangles, /*accumulate=*/false);
  }

  void require_length(std::string_view operation, Index length) const {
    if (length > config.max_seq_len) [[unlikely]]
      throw Error(operation, "tokens of a sequence", "at most max_seq_len " + std::to_string(config.max_seq_len),
                  std::to_string(length));
  }
};

}  // namespace rbar
