// Small torus models of every kind, and the definition of one written with plain loops.
#pragma once

#include "model/transformer_support.hpp"
#include "rbar/model/kuramoto_lm.hpp"

namespace kuramoto_lm_test {

using namespace rbar;
using transformer_test::largest_difference;
using transformer_test::random_tokens;

inline KuramotoLMConfig config_of(TorusGate gate, bool strict, TorusReadout readout) {
  KuramotoLMConfig config;
  config.vocab_size = 13;
  config.d_model = 15;
  config.n_layers = 2;
  config.n_heads = 3;
  config.d_ff = 11;
  config.max_seq_len = 20;
  config.gate = gate;
  config.strict = strict;
  config.readout = readout;
  return config;
}
inline std::vector<KuramotoLMConfig> configs() {
  std::vector<KuramotoLMConfig> list;
  for (const TorusGate gate : all_torus_gates)
    for (const bool strict : {false, true})
      for (const TorusReadout readout : {TorusReadout::linear, TorusReadout::tied})
        list.push_back(config_of(gate, strict, readout));
  list.back().drift = false;
  return list;
}

inline std::string describe(const KuramotoLMConfig& c) {
  return std::string("gate ") + name_of(c.gate) + (c.strict ? ", strict" : ", inclusive") + ", " + name_of(c.readout) +
         (c.drift ? "" : ", no drift");
}

// Parameters off their initial values, or half of the formula would not show.
template <class T>
KuramotoLM<T> random_model(const KuramotoLMConfig& config, std::uint64_t seed) {
  Rng rng(seed);
  KuramotoLM<T> model(config, rng);
  for (const auto& parameter : parameters_of(model))
    for (T& value : parameter.values()) value += static_cast<T>(rng.normal(0, 0.2));
  return model;
}

// Attention is the layer's, which has tests of its own.
inline Tensor<double, 3> textbook_logits(const KuramotoLM<double>& model, const Tensor<Token, 2>& tokens) {
  using transformer_test::Row;
  using transformer_test::textbook_linear;
  const Index batch = tokens.dimension(0), length = tokens.dimension(1), d = model.config.d_model;
  const auto phasors = [d](const double* angles) {
    Row phi;
    for (Index j = 0; j < d; ++j) phi.push_back(std::cos(angles[j]));
    for (Index j = 0; j < d; ++j) phi.push_back(std::sin(angles[j]));
    return phi;
  };
  const auto& embedding = model.token_embedding.weight;
  Tensor<double, 3> angles(batch, length, d), logits(batch, length, model.config.vocab_size);
  for (Index n = 0; n < batch * length; ++n)
    for (Index j = 0; j < d; ++j) angles.data()[n * d + j] = embedding(tokens.data()[n], j);
  for (const auto& layer : model.layers) {
    angles = layer.attention(angles);
    for (Index n = 0; n < batch * length; ++n) {
      const Row phi = phasors(angles.data() + n * d);
      Row hidden = textbook_linear(layer.mixing.gate, phi);
      const Row up = textbook_linear(layer.mixing.up, phi);
      for (std::size_t f = 0; f < hidden.size(); ++f) hidden[f] = hidden[f] / (1 + std::exp(-hidden[f])) * up[f];
      const Row turned = textbook_linear(layer.mixing.down, hidden);
      for (Index j = 0; j < d; ++j) angles.data()[n * d + j] += turned[static_cast<std::size_t>(j)];
    }
  }
  for (Index n = 0; n < batch * length; ++n) {
    const double* theta = angles.data() + n * d;
    const bool linear = model.config.readout == TorusReadout::linear;
    const Row row = linear ? textbook_linear(model.lm_head, phasors(theta)) : Row{};
    for (Index v = 0; v < model.config.vocab_size; ++v) {
      double sum = 0;
      for (Index j = 0; !linear && j < d; ++j) sum += std::cos(theta[j] - embedding(v, j));
      logits.data()[n * model.config.vocab_size + v] =
          linear ? row[static_cast<std::size_t>(v)] : model.readout_scale(0) * sum;
    }
  }
  return logits;
}

}  // namespace kuramoto_lm_test
