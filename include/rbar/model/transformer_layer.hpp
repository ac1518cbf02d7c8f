// One pre-norm transformer block on the residual stream h (Xiong et al., arXiv:2002.04745):
//   m = h + dropout(attention(norm₁ h)),   h' = m + dropout(feed_forward(norm₂ m)).
#pragma once

#include "rbar/attention/multi_head_attention.hpp"
#include "rbar/core/bulk.hpp"
#include "rbar/model/layer_caches.hpp"
#include "rbar/model/transformer_config.hpp"
#include "rbar/nn/dropout.hpp"
#include "rbar/nn/feed_forward.hpp"
#include "rbar/nn/norm.hpp"
#include "rbar/nn/one_of.hpp"

#include <utility>

namespace rbar {

template <class T>
using AnyNorm = OneOf<LayerNorm<T>, RMSNorm<T>>;
template <class T>
using AnyFeedForward = OneOf<FeedForward<T>, SwiGLU<T>>;

template <class T>
AnyNorm<T> make_norm(const TransformerConfig& config) {
  if (config.norm == NormKind::rms_norm) return RMSNorm<T>(config.d_model, config.norm_eps);
  return LayerNorm<T>(config.d_model, config.norm_eps);
}

template <class T>
AnyFeedForward<T> make_feed_forward(const TransformerConfig& config, Rng& rng) {
  const auto plain = [&](Activation activation) {
    return FeedForward<T>(config.d_model, config.hidden(), config.bias, rng, activation);
  };
  switch (config.feed_forward) {
    case FeedForwardKind::gelu:
      return plain(Activation::gelu);
    case FeedForwardKind::gelu_tanh:
      return plain(Activation::gelu_tanh);
    case FeedForwardKind::relu:
      return plain(Activation::relu);
    case FeedForwardKind::swiglu:
      break;
  }
  return SwiGLU<T>(config.d_model, config.hidden(), config.bias, rng);
}

// [batch, tokens, d_model] -> the same.
template <class T>
struct TransformerLayer {
  using Scalar = T;

  struct Cache {
    typename AnyNorm<T>::Cache norm1, norm2;
    typename MultiHeadAttention<T>::Cache attention;  // keeps norm₁ h
    typename AnyFeedForward<T>::Cache feed_forward;
    Tensor<T, 3> middle, normed;  // m and norm₂ m

    void swap_scratch(const Cache& other) const {
      attention.swap_scratch(other.attention);
      rbar::swap_scratch(feed_forward, other.feed_forward);
    }
  };
  struct State {
    typename MultiHeadAttention<T>::State attention;
  };
  // What the layers of a model use one after the other: of a stream, everything but keys and values.
  struct Scratch {
    Tensor<T, 3> normed, branch;
    typename AnyNorm<T>::Cache norm;
    typename MultiHeadAttention<T>::Cache attention;
    typename AnyFeedForward<T>::Cache feed_forward;
  };

  AnyNorm<T> norm1, norm2;
  MultiHeadAttention<T> attention;
  AnyFeedForward<T> feed_forward;
  double dropout_rate = 0;

  TransformerLayer() = default;
  TransformerLayer(const TransformerConfig& config, Rng& rng)
      : norm1(make_norm<T>(config)),
        norm2(make_norm<T>(config)),
        attention(config.attention(), rng),
        feed_forward(make_feed_forward<T>(config, rng)),
        dropout_rate(config.dropout) {}

  // The two branches draw from the dropout streams `stream` and `stream + 1`.
  void forward(ConstTensorView<T, 3> h, const DropoutState& dropout, std::uint64_t stream, Tensor<T, 3>& out,
               Cache& cache, Scratch& scratch) const {
    ensure_shape(out, shape_of(h));
    to_feed_forward(h, dropout, stream, cache, scratch);
    feed_forward.forward(rows(std::as_const(cache.normed)), rows(scratch.branch), cache.feed_forward);
    add_with_dropout<T>(dropout_rate, dropout, stream + 1, rows(std::as_const(cache.middle)), branch_rows(scratch),
                        rows(out));
  }

  // The cache that forward leaves, without its output.
  void fill(ConstTensorView<T, 3> h, const DropoutState& dropout, std::uint64_t stream, Cache& cache,
            Scratch& scratch) const {
    to_feed_forward(h, dropout, stream, cache, scratch);
    feed_forward.fill(rows(std::as_const(cache.normed)), cache.feed_forward);
  }

  // dh: on entry the gradient of the output, on return that of h. The identity path needs no work.
  void backward(ConstTensorView<T, 3> h, const DropoutState& dropout, std::uint64_t stream, const Cache& cache,
                Tensor<T, 3>& dh, Scratch& scratch, TransformerLayer& grad) const {
    ensure_shape(scratch.normed, shape_of(h));
    ensure_shape(scratch.branch, shape_of(h));
    feed_forward.backward(rows(branch_gradient(dropout, stream + 1, dh, scratch)), rows(cache.normed),
                          cache.feed_forward, rows(scratch.normed), grad.feed_forward);
    norm2.backward(rows(std::as_const(scratch.normed)), rows(cache.middle), cache.norm2, rows(dh), grad.norm2,
                   /*accumulate_dx=*/true);
    attention.backward(branch_gradient(dropout, stream, dh, scratch), cache.attention, scratch.normed, grad.attention);
    norm1.backward(rows(std::as_const(scratch.normed)), rows(h), cache.norm1, rows(dh), grad.norm1,
                   /*accumulate_dx=*/true);
  }

  // The next tokens, in place.
  void step(Tensor<T, 3>& h, State& state, Scratch& scratch) const {
    ensure_shape(scratch.normed, shape_of(h));
    norm1.forward(rows(std::as_const(h)), rows(scratch.normed), scratch.norm);
    std::swap(state.attention.scratch, scratch.attention);
    attention.step(view(std::as_const(scratch.normed)), scratch.branch, state.attention);
    std::swap(state.attention.scratch, scratch.attention);
    add_with_dropout<T>(0, {}, 0, rows(std::as_const(h)), branch_rows(scratch), rows(h));
    norm2.forward(rows(std::as_const(h)), rows(scratch.normed), scratch.norm);
    feed_forward.forward(rows(std::as_const(scratch.normed)), rows(scratch.branch), scratch.feed_forward);
    add_with_dropout<T>(0, {}, 0, rows(std::as_const(h)), branch_rows(scratch), rows(h));
  }

  void parameters(auto&& visit) {
    visit_layer(visit, "norm1", norm1);
    visit_layer(visit, "attention", attention);
    visit_layer(visit, "norm2", norm2);
    visit_layer(visit, "feed_forward", feed_forward);
  }
  void linears(auto&& visit) {
    attention.linears(visit);
    feed_forward.linears(visit);
  }

 private:
  void to_feed_forward(ConstTensorView<T, 3> h, const DropoutState& dropout, std::uint64_t stream, Cache& cache,
                       Scratch& scratch) const {
    ensure_shape(scratch.normed, shape_of(h));
    ensure_shape(scratch.branch, shape_of(h));
    ensure_shape(cache.middle, shape_of(h));
    ensure_shape(cache.normed, shape_of(h));
    norm1.forward(rows(h), rows(scratch.normed), cache.norm1);
    attention.forward(view(std::as_const(scratch.normed)), scratch.branch, cache.attention);
    add_with_dropout<T>(dropout_rate, dropout, stream, rows(h), branch_rows(scratch), rows(cache.middle));
    norm2.forward(rows(std::as_const(cache.middle)), rows(cache.normed), cache.norm2);
  }

  static ConstMatrixView<T> branch_rows(const Scratch& scratch) { return rows(scratch.branch); }

  // dh through the branch's mask; dh itself where nothing was dropped.
  ConstTensorView<T, 3> branch_gradient(const DropoutState& dropout_state, std::uint64_t stream, const Tensor<T, 3>& dh,
                                        Scratch& scratch) const {
    if (!dropout_state.active || dropout_rate == 0) return view(dh);
    bulk_copy(dh.data(), dh.size(), scratch.branch.data());
    dropout<T>(dropout_rate, dropout_state, stream, rows(scratch.branch));
    return view(std::as_const(scratch.branch));
  }
};

}  // namespace rbar
