// One training step of a language model on random bytes, for the benchmarks and the peers: forward,
// cross-entropy, backward, AdamW, and what adapts between steps.
#pragma once

#include "rbar/core/random.hpp"
#include "rbar/model/transformer.hpp"
#include "rbar/train/adamw.hpp"
#include "rbar/train/loss.hpp"

#include <utility>

namespace rbar::bench {

// GPT-2 style: 6 layers, d = 512, 8 heads, feed-forward 2048, 256 bytes, no dropout.
inline TransformerConfig six_layers(Index max_seq_len) {
  TransformerConfig config = TransformerConfig::gpt2_style(256, 512, 6, 8, max_seq_len);
  config.dropout = 0;
  return config;
}

// Multiply-adds counted twice, causal attention at half; the backward pass is twice the forward one.
inline double training_flops(const TransformerConfig& config, Index batch, Index length) {
  const double dim = static_cast<double>(config.d_model), hidden = static_cast<double>(config.hidden());
  const double matrices = static_cast<double>(config.n_layers) * (4 * dim * dim + 2 * dim * hidden) +
                          static_cast<double>(config.vocab_size) * dim;
  const double attention = static_cast<double>(config.n_layers * length) * dim;  // q·k and p·v, the visible half
  return 3 * 2 * (matrices + attention) * static_cast<double>(batch * length);
}

template <class Model>
struct TrainingStep {
  Model model, gradient;
  FlatParameters<float> parameters, gradients;
  AdamW<float> optimizer{AdamWConfig{}};
  Tensor<Token, 2> tokens, targets;
  typename Model::Cache cache;
  Tensor<float, 3> logits;

  TrainingStep(const typename Model::Config& config, Index batch, Index length)
      : tokens(batch, length), targets(batch, length) {
    Rng rng(1);
    model = Model(config, rng);
    gradient = model;
    parameters = FlatParameters<float>(model);
    gradients = FlatParameters<float>(gradient);
    gradients.set_zero();
    for (auto* bytes : {&tokens, &targets})
      for (Token& token : elements(*bytes)) token = static_cast<Token>(rng.below(256));
  }
  TrainingStep(const TrainingStep&) = delete;  // the flat views point into this object

  double operator()() {
    model.forward(view(std::as_const(tokens)), logits, cache);
    const double loss = cross_entropy<float>(view(std::as_const(logits)), view(std::as_const(targets)), &logits);
    model.backward(view(std::as_const(logits)), cache, gradient);
    optimizer.step(parameters, gradients, 3e-4, 1, GradientAfterStep::zero);
    if constexpr (requires { model.adapt(cache); }) model.adapt(cache);
    return loss;
  }
};

}  // namespace rbar::bench
