// The smallest layer and language model that keep the contract, with switches that break it.
#pragma once

#include "rbar/core/parameters.hpp"
#include "rbar/core/random.hpp"

#include <cmath>

namespace toy {

using rbar::ConstTensorView;
using rbar::Index;
using rbar::StepLogits;
using rbar::Tensor;
using rbar::Token;

// y_t = scale ∘ tanh(x_t)², per feature.
struct Square {
  using Scalar = double;
  struct Cache {
    Tensor<double, 3> x;
  };
  Tensor<double, 1> scale;
  double wrong_input_factor = 1, wrong_scale_factor = 1;  // other values falsify backward

  void forward(ConstTensorView<double, 3> x, Tensor<double, 3>& y, Cache& cache) const {
    cache.x = x;
    rbar::ensure_shape(y, rbar::shape_of(x));
    const Index dim = x.dimension(2);
    for (Index i = 0; i < x.size(); ++i) y.data()[i] = scale(i % dim) * std::pow(std::tanh(x.data()[i]), 2);
  }
  void backward(ConstTensorView<double, 3> dy, const Cache& cache, Tensor<double, 3>& dx, Square& grad) const {
    rbar::ensure_shape(dx, rbar::shape_of(dy));
    const Index dim = dy.dimension(2);
    for (Index i = 0; i < dy.size(); ++i) {
      const double t = std::tanh(cache.x.data()[i]);
      dx.data()[i] = wrong_input_factor * dy.data()[i] * scale(i % dim) * 2 * t * (1 - t * t);
      grad.scale(i % dim) += wrong_scale_factor * dy.data()[i] * t * t;
    }
  }
  void parameters(auto&& visit) { visit("scale", scale); }
};

// logits_t = table[token_t] + leak · table[token_{t+1}], [batch, tokens, vocabulary].
template <class T>
struct Bigram {
  using Scalar = T;
  struct Config {
    Index vocab_size = 0;
    void fields(auto&& visit) { visit("vocab_size", vocab_size); }
  };
  struct Cache {
    Tensor<Token, 2> tokens;
  };
  struct State {};

  Config config;
  Tensor<T, 2> table;  // [V, V]
  T leak = 0;          // weight of the next token, at the positions where it exists

  static constexpr const char* model_type = "bigram";
  Bigram(const Config& c, rbar::Rng& rng) : config(c), table(c.vocab_size, c.vocab_size) {
    for (T& value : rbar::elements(table)) value = static_cast<T>(rng.normal());
  }
  void forward(ConstTensorView<Token, 2> tokens, Tensor<T, 3>& logits, Cache& cache) const {
    cache.tokens = tokens;
    rbar::ensure_shape(logits, {tokens.dimension(0), tokens.dimension(1), config.vocab_size});
    for (Index b = 0; b < tokens.dimension(0); ++b)
      for (Index t = 0; t < tokens.dimension(1); ++t)
        for (Index v = 0; v < config.vocab_size; ++v) {
          logits(b, t, v) = table(tokens(b, t), v);
          if (t + 1 < tokens.dimension(1)) logits(b, t, v) += leak * table(tokens(b, t + 1), v);
        }
  }
  void backward(ConstTensorView<T, 3> dlogits, const Cache& cache, Bigram& grad) const {
    for (Index b = 0; b < dlogits.dimension(0); ++b)
      for (Index t = 0; t < dlogits.dimension(1); ++t)
        for (Index v = 0; v < config.vocab_size; ++v) {
          grad.table(cache.tokens(b, t), v) += dlogits(b, t, v);
          if (t + 1 < dlogits.dimension(1)) grad.table(cache.tokens(b, t + 1), v) += leak * dlogits(b, t, v);
        }
  }
  void step(ConstTensorView<Token, 2> tokens, Tensor<T, 3>& logits, State&, StepLogits = StepLogits::all) const {
    Cache cache;
    forward(tokens, logits, cache);
  }
  void parameters(auto&& visit) { visit("table", table); }
};

}  // namespace toy
