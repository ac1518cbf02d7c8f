// One layer of CoRT, pre-norm:
//   x ← x + dropout(merge(attention(LN₁x), mixer(LN₁x)))        routing/routed_attention.hpp
//   x ← x + dropout(FFN(LN₂x))                                   D → d_ff → D, exact GELU
#pragma once

#include "rbar/core/bulk.hpp"
#include "rbar/model/cort_config.hpp"
#include "rbar/model/layer_caches.hpp"
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
    Tensor<T, 3> normed_middle;          // LN₂
    typename LayerNorm<T>::Cache norm1, norm2;
    typename RoutedAttention<T>::Cache routed;
    typename FeedForward<T>::Cache ffn;
    // Scratch: the output of either branch, and gradients.
    mutable Tensor<T, 3> branch, dbranch, dnormed;

    void swap_scratch(const Cache& other) const {
      rbar::swap_scratch(routed, other.routed);
      ffn.swap_scratch(other.ffn);
      std::swap(branch, other.branch);
      std::swap(dbranch, other.dbranch);
      std::swap(dnormed, other.dnormed);
    }
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
    to_feed_forward(x, cache, routed_attention(x, cache));
    add_feed_forward(y, cache);
  }

  // The cache that forward leaves, without its output.
  void fill(ConstTensorView<T, 3> x, Cache& cache) const {
    to_feed_forward(x, cache, routed_attention(x, cache));
    ffn.fill(rows(std::as_const(cache.normed_middle)), cache.ffn);
  }

  void backward(ConstTensorView<T, 3> dy, const Cache& cache, Tensor<T, 3>& dx, CoRTLayer& grad) const {
    require_shape("CoRTLayer::backward", "dy", shape_of(dy), shape_of(cache.input));
    ensure_shape(dx, shape_of(dy));
    ensure_shape(cache.dbranch, shape_of(dy));
    ensure_shape(cache.dnormed, shape_of(dy));
    const auto branch_gradient = [&](ConstTensorView<T, 3> from, std::uint64_t stream) {
      bulk_copy(from.data(), from.size(), cache.dbranch.data());
      dropout<T>(dropout_probability, cache.dropout, stream, rows(cache.dbranch));
    };
    // dx carries the residual stream's gradient; each branch adds its own.
    bulk_copy(dy.data(), dy.size(), dx.data());
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
    to_feed_forward(x, state.scratch, [&](const Tensor<T, 3>& normed, Tensor<T, 3>& branch) {
      routed.step(view(normed), branch, state.routed);
    });
    add_feed_forward(y, state.scratch);
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
  void linears(auto&& visit) {
    routed.linears(visit);
    ffn.linears(visit);
  }

 private:
  // Keeps x.
  auto routed_attention(ConstTensorView<T, 3> x, Cache& cache) const {
    ensure_shape(cache.input, shape_of(x));
    bulk_copy(x.data(), x.size(), cache.input.data());
    return
        [&](const Tensor<T, 3>& normed, Tensor<T, 3>& branch) { routed.forward(view(normed), branch, cache.routed); };
  }

  template <class Branch>
  void to_feed_forward(ConstTensorView<T, 3> x, Cache& cache, Branch&& first_branch) const {
    for (Tensor<T, 3>* tensor : {&cache.normed, &cache.middle, &cache.branch, &cache.normed_middle})
      ensure_shape(*tensor, shape_of(x));
    norm1.forward(rows(x), rows(cache.normed), cache.norm1);
    first_branch(std::as_const(cache.normed), cache.branch);
    add_with_dropout<T>(dropout_probability, cache.dropout, cache.dropout_stream, rows(x),
                        rows(std::as_const(cache.branch)), rows(cache.middle));
    norm2.forward(rows(std::as_const(cache.middle)), rows(cache.normed_middle), cache.norm2);
  }
  void add_feed_forward(Tensor<T, 3>& y, Cache& cache) const {
    ensure_shape(y, shape_of(cache.middle));
    ffn.forward(rows(std::as_const(cache.normed_middle)), rows(cache.branch), cache.ffn);
    add_with_dropout<T>(dropout_probability, cache.dropout, cache.dropout_stream + 1, rows(std::as_const(cache.middle)),
                        rows(std::as_const(cache.branch)), rows(y));
  }
};

}  // namespace rbar
