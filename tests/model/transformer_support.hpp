// Small transformers of every kind, and the definition of one written with plain loops.
#pragma once

#include "attention/naive_multi_head.hpp"
#include "rbar/model/transformer.hpp"
#include "support/catch.hpp"
#include "support/differences.hpp"

#include <numbers>

namespace transformer_test {

using namespace rbar;

inline std::vector<TransformerConfig> configs() {
  auto gpt2 = TransformerConfig::gpt2_style(13, 12, 2, 3, 16);
  gpt2.dropout = 0;
  auto untied = gpt2;
  untied.tie_embeddings = false;
  untied.feed_forward = FeedForwardKind::gelu_tanh;
  untied.bias = false;
  auto llama = TransformerConfig::llama_style(13, 16, 2, 4, 2, 20, 16);
  auto half_split = TransformerConfig::llama_style(13, 12, 1, 2, 1, 0, 16);
  half_split.rotary = Rotary::half_split;
  half_split.tie_embeddings = false;
  half_split.window = 5;
  return {gpt2, llama, untied, half_split};
}

inline std::string describe(const TransformerConfig& c) {
  return std::string(name_of(c.norm)) + ", " + name_of(c.positions) + " " + name_of(c.rotary) + ", " +
         name_of(c.feed_forward) + (c.tie_embeddings ? ", tied" : ", untied") + ", window " + std::to_string(c.window);
}

// Embeddings and biases large enough to matter.
template <class T>
TransformerModel<T> random_model(const TransformerConfig& config, std::uint64_t seed) {
  Rng rng(seed);
  TransformerModel<T> model(config, rng);
  for (const auto& parameter : parameters_of(model))
    for (T& value : parameter.values()) value += static_cast<T>(rng.normal(0, 0.2));
  return model;
}

inline Tensor<Token, 2> random_tokens(Index batch, Index length, Index vocabulary, std::uint64_t seed) {
  Rng rng(seed);
  Tensor<Token, 2> tokens(batch, length);
  for (Token& token : elements(tokens)) token = static_cast<Token>(rng.below(static_cast<std::uint64_t>(vocabulary)));
  return tokens;
}

using ::test::largest_difference;

// --- the definition, in double -----------------------------------------------------------------------

using Row = std::vector<double>;

inline Row textbook_norm(const AnyNorm<double>& any, const double* x, std::size_t dim) {
  const auto* layer_norm = std::get_if<LayerNorm<double>>(&any.layer);
  double mean = 0, square = 0;
  for (std::size_t d = 0; layer_norm && d < dim; ++d) mean += x[d] / static_cast<double>(dim);
  for (std::size_t d = 0; d < dim; ++d) square += (x[d] - mean) * (x[d] - mean) / static_cast<double>(dim);
  Row y(dim);
  for (std::size_t d = 0; d < dim; ++d) {
    const auto i = static_cast<Index>(d);
    const double normalised = (x[d] - mean) / std::sqrt(square + 1e-5);
    y[d] = layer_norm ? normalised * layer_norm->weight(i) + layer_norm->bias(i)
                      : normalised * std::get<RMSNorm<double>>(any.layer).weight(i);
  }
  return y;
}

inline Row textbook_linear(const Linear<double>& layer, const Row& x) {
  Row y(static_cast<std::size_t>(layer.out()));
  for (Index o = 0; o < layer.out(); ++o) {
    double sum = layer.bias.size() > 0 ? layer.bias(o) : 0;
    for (Index i = 0; i < layer.in(); ++i) sum += layer.weight(o, i) * x[static_cast<std::size_t>(i)];
    y[static_cast<std::size_t>(o)] = sum;
  }
  return y;
}

inline Row textbook_feed_forward(const AnyFeedForward<double>& any, const Row& x) {
  if (const auto* gated = std::get_if<SwiGLU<double>>(&any.layer)) {
    Row hidden = textbook_linear(gated->gate, x);
    const Row up = textbook_linear(gated->up, x);
    for (std::size_t f = 0; f < hidden.size(); ++f) hidden[f] = hidden[f] / (1 + std::exp(-hidden[f])) * up[f];
    return textbook_linear(gated->down, hidden);
  }
  const auto& plain = std::get<FeedForward<double>>(any.layer);
  Row hidden = textbook_linear(plain.up, x);
  for (double& h : hidden) {
    if (plain.activation == Activation::gelu)
      h *= 0.5 * std::erfc(-h / std::numbers::sqrt2);
    else
      h *= 0.5 * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (h + 0.044715 * h * h * h)));
  }
  return textbook_linear(plain.down, hidden);
}

inline Tensor<double, 3> textbook_logits(const TransformerModel<double>& model, const Tensor<Token, 2>& tokens) {
  const Index batch = tokens.dimension(0), length = tokens.dimension(1), dim = model.config.d_model;
  const auto size = static_cast<std::size_t>(dim);
  Tensor<double, 3> h(batch, length, dim), normed(batch, length, dim);
  for (Index b = 0; b < batch; ++b)
    for (Index t = 0; t < length; ++t)
      for (Index d = 0; d < dim; ++d) {
        h(b, t, d) = model.ends.token_embedding.weight(tokens(b, t), d);
        if (model.config.positions == Positions::learned) h(b, t, d) += model.ends.position_embedding.weight(t, d);
      }
  const Index count = batch * length;
  for (const auto& layer : model.layers) {
    for (Index n = 0; n < count; ++n)
      std::ranges::copy(textbook_norm(layer.norm1, h.data() + n * dim, size), normed.data() + n * dim);
    const auto attended = naive::multi_head_attention(layer.attention, normed, [](Index) { return true; });
    for (Index i = 0; i < h.size(); ++i) h.data()[i] += attended.data()[i];
    for (Index n = 0; n < count; ++n) {
      const Row y = textbook_feed_forward(layer.feed_forward, textbook_norm(layer.norm2, h.data() + n * dim, size));
      for (std::size_t d = 0; d < size; ++d) h.data()[n * dim + static_cast<Index>(d)] += y[d];
    }
  }
  Tensor<double, 3> logits(batch, length, model.config.vocab_size);
  const auto& head = model.config.tie_embeddings ? model.ends.token_embedding.weight : model.ends.lm_head.weight;
  for (Index n = 0; n < count; ++n) {
    const Row y = textbook_norm(model.ends.final_norm, h.data() + n * dim, size);
    for (Index v = 0; v < model.config.vocab_size; ++v) {
      double sum = 0;
      for (std::size_t d = 0; d < size; ++d) sum += head(v, static_cast<Index>(d)) * y[d];
      logits.data()[n * model.config.vocab_size + v] = sum;
    }
  }
  return logits;
}

}  // namespace transformer_test
