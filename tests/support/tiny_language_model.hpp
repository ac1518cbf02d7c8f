// The smallest language model with everything a trainer must handle: matrices and vectors, dropout, a
// buffer that adapts. A two-layer network on the current token:
//   h = keep ⊙ tanh(W·e[token] + b),  logits = (1 + gain)·(U·h)
// `gain` is a buffer that adapt() moves towards the mean |h|: a resumed run that lost it goes astray.
#pragma once

#include "rbar/core/parameters.hpp"
#include "rbar/core/random.hpp"

#include <cmath>

namespace test {

using namespace rbar;

struct TinyConfig {
  Index vocab_size = 11;
  Index dim = 6;
  Index hidden = 9;
  double dropout = 0.0;

  template <class V>
  void fields(V&& v) {
    v("vocab_size", vocab_size);
    v("dim", dim);
    v("hidden", hidden);
    v("dropout", dropout);
  }
  void validate() const {}
};

template <class T>
struct TinyLanguageModel {
  using Scalar = T;
  using Config = TinyConfig;
  struct Dropout {
    bool active = false;
    std::uint64_t seed = 0, step = 0;
  };
  struct Cache {
    Dropout dropout;
    Tensor<Token, 2> tokens;
    Tensor<T, 2> embedded, hidden, keep, kept;  // kept = keep ⊙ hidden
    mutable Tensor<T, 2> dhidden, dembedded;
  };
  struct State {};

  Config config;
  Tensor<T, 2> embedding, weight, head;
  Tensor<T, 1> bias, gain;

  TinyLanguageModel() = default;
  TinyLanguageModel(const Config& c, Rng& rng) : config(c) {
    ensure_shape(embedding, {c.vocab_size, c.dim});
    ensure_shape(weight, {c.hidden, c.dim});
    ensure_shape(head, {c.vocab_size, c.hidden});
    bias = zeros<T, 1>({c.hidden});
    gain = zeros<T, 1>({1});
    for (auto* tensor : {&embedding, &weight, &head})
      for (T& value : elements(*tensor)) value = static_cast<T>(rng.normal(0, 0.5));
  }

  void parameters(auto&& visit) {
    visit("embedding.weight", embedding);
    visit("up.weight", weight);
    visit("up.bias", bias);
    visit("head.weight", head);
  }
  void buffers(auto&& visit) { visit("gain", gain); }

  void forward(ConstTensorView<Token, 2> tokens, Tensor<T, 3>& logits, Cache& cache) const {
    const Index count = tokens.size();
    ensure_shape(cache.tokens, shape_of(tokens));
    std::copy_n(tokens.data(), count, cache.tokens.data());
    ensure_shape(cache.embedded, {count, config.dim});
    ensure_shape(cache.hidden, {count, config.hidden});
    ensure_shape(cache.keep, {count, config.hidden});
    ensure_shape(cache.kept, {count, config.hidden});
    ensure_shape(logits, {tokens.dimension(0), tokens.dimension(1), config.vocab_size});
    for (Index i = 0; i < count; ++i)
      rows(cache.embedded).row(i) = rows(embedding).row(static_cast<Index>(tokens.data()[i]));
    rows(cache.hidden).noalias() = rows(cache.embedded).lazyProduct(rows(weight).transpose());
    Rng rng(cache.dropout.seed, cache.dropout.step);
    for (Index i = 0; i < count; ++i)
      for (Index j = 0; j < config.hidden; ++j) {
        const bool stays = !cache.dropout.active || rng.uniform() >= config.dropout;
        cache.keep(i, j) = stays ? T(1) / (cache.dropout.active ? T(1 - config.dropout) : T(1)) : T(0);
        cache.hidden(i, j) = std::tanh(cache.hidden(i, j) + bias(j));
        cache.kept(i, j) = cache.keep(i, j) * cache.hidden(i, j);
      }
    rows(logits).noalias() = rows(cache.kept).lazyProduct(rows(head).transpose());
    rows(logits) *= T(1) + gain(0);
  }

  void backward(ConstTensorView<T, 3> dlogits, const Cache& cache, TinyLanguageModel& grad) const {
    const T scale = T(1) + gain(0);
    ensure_shape(cache.dhidden, shape_of(cache.hidden));
    ensure_shape(cache.dembedded, shape_of(cache.embedded));
    auto dhidden = rows(cache.dhidden);
    rows(grad.head) += scale * rows(dlogits).transpose().lazyProduct(rows(cache.kept));
    dhidden.noalias() = rows(dlogits).lazyProduct(rows(head));
    for (Index i = 0; i < cache.dhidden.size(); ++i) {
      const T h = cache.hidden.data()[i];
      cache.dhidden.data()[i] *= scale * cache.keep.data()[i] * (T(1) - h * h);
    }
    for (Index i = 0; i < dhidden.rows(); ++i)
      for (Index j = 0; j < config.hidden; ++j) grad.bias(j) += dhidden(i, j);
    rows(grad.weight) += dhidden.transpose().lazyProduct(rows(cache.embedded));
    rows(cache.dembedded).noalias() = dhidden.lazyProduct(rows(weight));
    for (Index i = 0; i < cache.tokens.size(); ++i)
      rows(grad.embedding).row(static_cast<Index>(cache.tokens.data()[i])) += rows(cache.dembedded).row(i);
  }

  void step(ConstTensorView<Token, 2> tokens, Tensor<T, 3>& logits, State&, StepLogits = StepLogits::all) const {
    Cache cache;
    forward(tokens, logits, cache);
  }

  void adapt(const Cache& cache) {
    T sum = 0;
    for (const T h : elements(cache.hidden)) sum += std::abs(h);
    gain(0) += T(0.1) * (sum / static_cast<T>(cache.hidden.size()) - gain(0));
  }
};

}  // namespace test
