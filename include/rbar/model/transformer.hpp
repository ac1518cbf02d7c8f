// The standard decoder-only transformer, GPT-2 or Llama style by config:
//   h₀ = dropout(E[token] + P[position])   (P only with learned positions)
//   h_{l+1} = layer_l(h_l),   logits = head · norm(h_L),   head = E where tied.
#pragma once

#include "rbar/model/model_ends.hpp"
#include "rbar/model/transformer_layer.hpp"

#include <string>
#include <utility>
#include <vector>

namespace rbar {

// tokens [batch, tokens] -> logits [batch, tokens, vocab_size]. Errors: a token outside the
// vocabulary, more than max_seq_len tokens, gradients of another shape than the last forward pass.
template <class T>
struct TransformerModel {
  using Scalar = T;
  using Config = TransformerConfig;
  using Ends = ModelEnds<T, AnyNorm<T>>;
  static constexpr const char* model_type = "standard";  // in config.json

  struct Cache {
    DropoutState dropout;
    bool recompute = false;  // keep less, and compute it again in backward (layer_caches.hpp); set by the caller
    Tensor<Token, 2> tokens;
    std::vector<Tensor<T, 3>> hidden;  // h₀ … h_L
    LayerCaches<typename TransformerLayer<T>::Cache> layers;
    typename Ends::Cache ends;
    // Scratch: the first is forward's and backward's, the second is backward's.
    mutable typename TransformerLayer<T>::Scratch scratch;
    mutable Tensor<T, 3> dhidden;
  };
  struct State {
    Index position = 0;  // tokens seen
    Tensor<T, 3> hidden;
    std::vector<typename TransformerLayer<T>::State> layers;
    typename Ends::Cache ends;
    typename TransformerLayer<T>::Scratch scratch;
  };

  Config config;
  Ends ends;
  std::vector<TransformerLayer<T>> layers;

  TransformerModel() = default;
  TransformerModel(const Config& config_, Rng& rng) : config(config_) {
    config.validate();
    const Index positions = config.positions == Positions::learned ? config.max_seq_len : 0;
    ends = Ends(config.vocab_size, config.d_model, positions, config.tie_embeddings, config.init, make_norm<T>(config),
                rng);
    for (Index l = 0; l < config.n_layers; ++l) layers.emplace_back(config, rng);
  }

  void forward(ConstTensorView<Token, 2> tokens, Tensor<T, 3>& logits, Cache& cache) const {
    require_length("TransformerModel::forward", tokens.dimension(1));
    ensure_shape(cache.tokens, shape_of(tokens));
    std::copy_n(tokens.data(), tokens.size(), cache.tokens.data());
    cache.layers.prepare(layers.size(), cache.recompute);
    cache.hidden.resize(layers.size() + 1);
    ends.embed(tokens, /*first_position=*/0, cache.hidden[0]);
    dropout<T>(config.dropout, cache.dropout, 0, rows(cache.hidden[0]));
    for (std::size_t l = 0; l < layers.size(); ++l)
      layers[l].forward(view(std::as_const(cache.hidden[l])), cache.dropout, stream_of(l), cache.hidden[l + 1],
                        cache.layers.fill(l), cache.scratch);
    ends.head(view(std::as_const(cache.hidden.back())), logits, cache.ends);
  }

  void backward(ConstTensorView<T, 3> dlogits, const Cache& cache, TransformerModel& grad) const {
    require(cache.hidden.size() == layers.size() + 1, "TransformerModel::backward", "layers in the cache",
            layers.size() + 1, cache.hidden.size());
    ends.head_backward(dlogits, view(cache.hidden.back()), cache.ends, cache.dhidden, grad.ends);
    for (std::size_t l = layers.size(); l-- > 0;) {
      const auto h = view(cache.hidden[l]);
      const auto& filled = cache.layers.filled(
          l, 0, [&](auto& again) { layers[l].fill(h, cache.dropout, stream_of(l), again, cache.scratch); });
      layers[l].backward(h, cache.dropout, stream_of(l), filled, cache.dhidden, cache.scratch, grad.layers[l]);
    }
    dropout<T>(config.dropout, cache.dropout, 0, rows(cache.dhidden));
    ends.embed_backward(view(std::as_const(cache.dhidden)), view(cache.tokens), grad.ends);
  }

  // The logits of the next tokens [batch, new], with the numbers of `forward` on all tokens so far.
  void step(ConstTensorView<Token, 2> tokens, Tensor<T, 3>& logits, State& state,
            StepLogits wanted = StepLogits::all) const {
    require_length("TransformerModel::step", state.position + tokens.dimension(1));
    if (state.layers.empty()) {
      state.layers.resize(layers.size());
      for (auto& layer : state.layers) layer.attention.keys.limit = config.max_seq_len;
    }
    ends.embed(tokens, state.position, state.hidden);
    for (std::size_t l = 0; l < layers.size(); ++l) layers[l].step(state.hidden, state.layers[l], state.scratch);
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

  // What pack_weights(model) and round_weights(model) freeze for inference: every matrix.
  void linears(auto&& visit) {
    ends.linears(visit);
    for (auto& layer : layers) layer.linears(visit);
  }

 private:
  // Stream 0 of dropout is the embedding's, each layer has two.
  static std::uint64_t stream_of(std::size_t layer) { return 1 + 2 * static_cast<std::uint64_t>(layer); }

  void require_length(std::string_view operation, Index length) const {
    if (length > config.max_seq_len) [[unlikely]]
      throw Error(operation, "tokens of a sequence", "at most max_seq_len " + std::to_string(config.max_seq_len),
                  std::to_string(length));
  }
};

}  // namespace rbar
