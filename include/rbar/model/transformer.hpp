// The standard decoder-only transformer, GPT-2 or Llama style by config:
//   h₀ = dropout(E[token] + P[position])   (P only with learned positions)
//   h_{l+1} = layer_l(h_l),   logits = head · norm(h_L),   head = E where tied.
#pragma once

#include "rbar/model/transformer_layer.hpp"
#include "rbar/nn/embedding.hpp"

#include <string>
#include <vector>

namespace rbar {

// tokens [batch, tokens] -> logits [batch, tokens, vocab_size]. Errors: a token outside the
// vocabulary, more than max_seq_len tokens, gradients of another shape than the last forward pass.
template <class T>
struct TransformerModel {
  using Scalar = T;
  using Config = TransformerConfig;
  static constexpr const char* model_type = "standard";  // in config.json

  struct Cache {
    DropoutState dropout;
    Tensor<Token, 2> tokens;
    std::vector<typename TransformerLayer<T>::Cache> layers;
    std::vector<Tensor<T, 3>> hidden;  // h₀ … h_L
    typename AnyNorm<T>::Cache final_norm;
    Tensor<T, 3> normed;  // norm(h_L)
    // Scratch; dhidden is backward's.
    mutable typename TransformerLayer<T>::Scratch scratch;
    mutable Tensor<T, 3> dhidden;
  };
  struct State {
    Index position = 0;  // tokens seen
    std::vector<typename TransformerLayer<T>::State> layers;
    Tensor<T, 3> hidden, normed;
    typename AnyNorm<T>::Cache final_norm;
    typename TransformerLayer<T>::Scratch scratch;
  };

  Config config;
  Embedding<T> token_embedding;
  Embedding<T> position_embedding;  // empty with rotary positions
  std::vector<TransformerLayer<T>> layers;
  AnyNorm<T> final_norm;
  Linear<T> lm_head;  // empty where tied

  TransformerModel() = default;
  TransformerModel(const Config& config_, Rng& rng) : config(config_) {
    config.validate();
    token_embedding = Embedding<T>(config.vocab_size, config.d_model, rng);
    if (config.positions == Positions::learned)
      position_embedding = Embedding<T>(config.max_seq_len, config.d_model, rng);
    for (Index l = 0; l < config.n_layers; ++l) layers.emplace_back(config, rng);
    final_norm = make_norm<T>(config);
    if (!config.tie_embeddings)
      lm_head = Linear<T>(config.d_model, config.vocab_size, /*has_bias=*/false, rng);
    else if (config.init == Initialisation::cort_package)
      xavier_uniform(token_embedding.weight, rng);
  }

  void forward(ConstTensorView<Token, 2> tokens, Tensor<T, 3>& logits, Cache& cache) const {
    const Index batch = tokens.dimension(0), length = tokens.dimension(1);
    require(length <= config.max_seq_len, "TransformerModel::forward", "tokens of a sequence",
            "at most max_seq_len " + std::to_string(config.max_seq_len), length);
    ensure_shape(cache.tokens, {batch, length});
    std::copy_n(tokens.data(), tokens.size(), cache.tokens.data());
    cache.layers.resize(layers.size());
    cache.hidden.resize(layers.size() + 1);
    embed(tokens, /*first_position=*/0, cache.hidden[0]);
    dropout<T>(config.dropout, cache.dropout, 0, rows(cache.hidden[0]));
    for (std::size_t l = 0; l < layers.size(); ++l)
      layers[l].forward(view(std::as_const(cache.hidden[l])), cache.dropout, stream_of(l), cache.hidden[l + 1],
                        cache.layers[l], cache.scratch);
    head(cache.hidden.back(), cache.normed, logits, cache.final_norm);
  }

  void backward(ConstTensorView<T, 3> dlogits, const Cache& cache, TransformerModel& grad) const {
    const Index batch = cache.tokens.dimension(0), length = cache.tokens.dimension(1);
    require_shape("TransformerModel::backward", "dlogits", dlogits, {batch, length, config.vocab_size});
    const Index count = batch * length, dim = config.d_model;
    Tensor<T, 3>& dhidden = cache.dhidden;
    Tensor<T, 3>& dnormed = cache.scratch.normed;
    ensure_shape(dhidden, {batch, length, dim});
    ensure_shape(dnormed, {batch, length, dim});
    Tensor<T, 2>& dhead = config.tie_embeddings ? grad.token_embedding.weight : grad.lm_head.weight;
    gemm(Transpose::yes, Transpose::no, config.vocab_size, dim, count, dlogits.data(), config.vocab_size,
         cache.normed.data(), dim, dhead.data(), dim, /*accumulate=*/true);
    gemm(Transpose::no, Transpose::no, count, dim, config.vocab_size, dlogits.data(), config.vocab_size,
         head_weight().data(), dim, dnormed.data(), dim);
    final_norm.backward(rows(std::as_const(dnormed)), rows(cache.hidden.back()), cache.final_norm, rows(dhidden),
                        grad.final_norm);
    for (std::size_t l = layers.size(); l-- > 0;)
      layers[l].backward(view(cache.hidden[l]), cache.dropout, stream_of(l), cache.layers[l], dhidden, cache.scratch,
                         grad.layers[l]);
    dropout<T>(config.dropout, cache.dropout, 0, rows(dhidden));
    embed_backward(dhidden, cache, grad);
  }

  // The logits of the next tokens [batch, new], with the numbers of `forward` on all tokens so far.
  void step(ConstTensorView<Token, 2> tokens, Tensor<T, 3>& logits, State& state) const {
    const Index length = tokens.dimension(1);
    require(state.position + length <= config.max_seq_len, "TransformerModel::step", "tokens of a sequence",
            "at most max_seq_len " + std::to_string(config.max_seq_len), state.position + length);
    if (state.layers.empty()) {
      state.layers.resize(layers.size());
      for (auto& layer : state.layers) layer.attention.keys.limit = config.max_seq_len;
    }
    embed(tokens, state.position, state.hidden);
    for (std::size_t l = 0; l < layers.size(); ++l) layers[l].step(state.hidden, state.layers[l], state.scratch);
    head(state.hidden, state.normed, logits, state.final_norm);
    state.position += length;
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
    if (config.positions == Positions::learned) visit_layer(visit, "position_embedding", position_embedding);
    for (std::size_t l = 0; l < layers.size(); ++l) visit_layer(visit, "layers." + std::to_string(l), layers[l]);
    visit_layer(visit, "final_norm", final_norm);
    if (!config.tie_embeddings) visit_layer(visit, "lm_head", lm_head);
  }

 private:
  // Stream 0 of dropout is the embedding's, each layer has two.
  static std::uint64_t stream_of(std::size_t layer) { return 1 + 2 * static_cast<std::uint64_t>(layer); }

  const Tensor<T, 2>& head_weight() const { return config.tie_embeddings ? token_embedding.weight : lm_head.weight; }

  void embed(ConstTensorView<Token, 2> tokens, Index first_position, Tensor<T, 3>& hidden) const {
    const Index batch = tokens.dimension(0), length = tokens.dimension(1), dim = config.d_model;
    ensure_shape(hidden, {batch, length, dim});
    token_embedding.forward(elements(tokens), rows(hidden));
    if (config.positions != Positions::learned) return;
    const T* position = position_embedding.weight.data() + first_position * dim;
    for (Index b = 0; b < batch; ++b) {
      T* RBAR_RESTRICT to = hidden.data() + b * length * dim;
      for (Index i = 0; i < length * dim; ++i) to[i] += position[i];
    }
  }

  void embed_backward(const Tensor<T, 3>& dhidden, const Cache& cache, TransformerModel& grad) const {
    token_embedding.backward(elements(cache.tokens), rows(dhidden), grad.token_embedding);
    if (config.positions != Positions::learned) return;
    const Index batch = dhidden.dimension(0), per_sequence = dhidden.dimension(1) * config.d_model;
    T* RBAR_RESTRICT to = grad.position_embedding.weight.data();
    for (Index b = 0; b < batch; ++b) {
      const T* from = dhidden.data() + b * per_sequence;
      for (Index i = 0; i < per_sequence; ++i) to[i] += from[i];
    }
  }

  void head(const Tensor<T, 3>& hidden, Tensor<T, 3>& normed, Tensor<T, 3>& logits,
            typename AnyNorm<T>::Cache& norm_cache) const {
    const Index count = hidden.dimension(0) * hidden.dimension(1), dim = config.d_model;
    ensure_shape(normed, shape_of(hidden));
    ensure_shape(logits, {hidden.dimension(0), hidden.dimension(1), config.vocab_size});
    final_norm.forward(rows(hidden), rows(normed), norm_cache);
    gemm(Transpose::no, Transpose::yes, count, config.vocab_size, dim, normed.data(), dim, head_weight().data(), dim,
         logits.data(), config.vocab_size);
  }
};

}  // namespace rbar
