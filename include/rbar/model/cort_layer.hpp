// One layer of CoRT, pre-norm:
//   x ← x + dropout(merge(attention(LN₁x), mixer(LN₁x)))        routing/routed_attention.hpp
//   x ← x + dropout(FFN(LN₂x))                                   D → d_ff → D, exact GELU
#pragma once

#include "rbar/model/cort_config.hpp"
#include "rbar/nn/dropout.hpp"
#include "rbar/nn/feed_forward.hpp"
#include "rbar/nn/norm.hpp"

namespace rbar {

// [B, T, D] -> [B, T, D]. Errors: another D, no tokens, a NaN or an infinity in the input.
template <class T>
struct CoRTLayer {
  using Scalar = T;

  double dropout_probability = 0;
  LayerNorm<T> norm1, norm2;
  RoutedAttention<T> routed;
  FeedForward<T> ffn;

  struct Cache {
    DropoutState dropout;
    std::uint64_t dropout_stream = 0;  // this layer uses it and the next one

    Tensor<T, 3> input, normed, middle;  // x, LN₁x, x after the first branch
    Tensor<T, 3> branch;                 // output of either branch
    Tensor<T, 3> normed_middle;          // LN₂
    typename LayerNorm<T>::Cache norm1, norm2;
    typename RoutedAttention<T>::Cache routed;
    typename FeedForward<T>::Cache ffn;
    mutable Tensor<T, 3> dbranch, dnormed;  // scratch of backward
  };
  struct State {
    typename RoutedAttention<T>::State routed;
    Cache scratch;
  };

  CoRTLayer() = default;
  CoRTLayer(const CoRTConfig& config, Rng& rng)
      : dropout_probability(config.dropout),
        norm1(config.d_model, config.layer_norm_eps),
        norm2(config.d_model, config.layer_norm_eps),
        routed(config.routed_attention(), rng),
        ffn(config.d_model, config.ff_width(), /*bias=*/true, rng) {}

  void forward(ConstTensorView<T, 3> x, Tensor<T, 3>& y, Cache& cache) const {
    ensure_shape(cache.input, shape_of(x));
    std::copy_n(x.data(), x.size(), cache.input.data());
    apply(x, y, cache, [&](const Tensor<T, 3>& normed, Tensor<T, 3>& branch) {
      routed.forward(view(normed), branch, cache.routed);
    });
  }

  void backward(ConstTensorView<T, 3> dy, const Cache& cache, Tensor<T, 3>& dx, CoRTLayer& grad) const {
    require_shape("CoRTLayer::backward", "dy", shape_of(dy), shape_of(cache.input));
    ensure_shape(dx, shape_of(dy));
    ensure_shape(cache.dbranch, shape_of(dy));
    ensure_shape(cache.dnormed, shape_of(dy));
    const auto branch_gradient = [&](ConstTensorView<T, 3> from, std::uint64_t stream) {
      std::copy_n(from.data(), from.size(), cache.dbranch.data());
      dropout<T>(dropout_probability, cache.dropout, stream, rows(cache.dbranch));
    };
    // dx carries the residual stream's gradient; each branch adds its own.
    std::copy_n(dy.data(), dy.size(), dx.data());
    branch_gradient(dy, cache.dropout_stream + 1);
    ffn.backward(rows(std::as_const(cache.dbranch)), rows(cache.normed_middle), cache.ffn, rows(cache.dnormed),
                 grad.ffn);
    norm2.backward(rows(std::as_const(cache.dnormed)), rows(cache.middle), cache.norm2, rows(dx), grad.norm2,
                   /*accumulate_dx=*/true);
    branch_gradient(view(std::as_const(dx)), cache.dropout_stream);
    routed.backward(view(std::as_const(cache.dbranch)), cache.routed, cache.dnormed, grad.routed);
    norm1.backward(rows(std::as_const(cache.dnormed)), rows(cache.input), cache.norm1, rows(dx), grad.norm1,
                   /*accumulate_dx=*/true);
  }

  // A stream's next tokens [B, new, D]. Causal only.
  void step(ConstTensorView<T, 3> x, Tensor<T, 3>& y, State& state) const {
    apply(x, y, state.scratch,
          [&](const Tensor<T, 3>& normed, Tensor<T, 3>& branch) { routed.step(view(normed), branch, state.routed); });
  }

  void adapt(const Cache& cache) { routed.adapt(cache.routed); }

  // The package's names.
  void parameters(auto&& visit) {
    visit_layer(visit, "norm1", norm1);
    routed.parameters(visit);
    visit_layer(visit, "norm2", norm2);
    visit_layer(visit, "ffn.net.0", ffn.up);
    visit_layer(visit, "ffn.net.3", ffn.down);
  }
  void buffers(auto&& visit) { routed.buffers(visit); }

 private:
  template <class Branch>
  void apply(ConstTensorView<T, 3> x, Tensor<T, 3>& y, Cache& cache, Branch&& first_branch) const {
    for (Tensor<T, 3>* tensor : {&cache.normed, &cache.middle, &cache.branch, &cache.normed_middle, &y})
      ensure_shape(*tensor, shape_of(x));
    norm1.forward(rows(x), rows(cache.normed), cache.norm1);
    first_branch(std::as_const(cache.normed), cache.branch);
    add_with_dropout<T>(dropout_probability, cache.dropout, cache.dropout_stream, rows(x),
                        rows(std::as_const(cache.branch)), rows(cache.middle));
    norm2.forward(rows(std::as_const(cache.middle)), rows(cache.normed_middle), cache.norm2);
    ffn.forward(rows(std::as_const(cache.normed_middle)), rows(cache.branch), cache.ffn);
    add_with_dropout<T>(dropout_probability, cache.dropout, cache.dropout_stream + 1, rows(std::as_const(cache.middle)),
                        rows(std::as_const(cache.branch)), rows(y));
  }
};

}  // namespace rbar
