// Attention among the selected tokens only, in the order of their positions: what a router's sparse path
// is when even keys and values are computed for routed tokens alone.
#pragma once

#include "rbar/attention/multi_head_attention.hpp"

namespace rbar {

// x [batch, tokens, d_model], y_selected [routed.count(), d_model]. Errors: those of MultiHeadAttention.
template <class T>
struct SparseAttention {
  using Scalar = T;
  using Config = MultiHeadAttentionConfig;
  using Cache = typename MultiHeadAttention<T>::Cache;
  using State = typename MultiHeadAttention<T>::State;

  MultiHeadAttention<T> attention;

  SparseAttention() = default;
  SparseAttention(const Config& config, Rng& rng) : attention(config, rng) {}

  void forward(ConstTensorView<T, 3> x, const RoutedRows& routed, MatrixView<T> y_selected, Cache& cache) const {
    attention.forward_routed(x, routed, KeyValues::routed, y_selected, cache);
  }
  void backward(ConstMatrixView<T> dy_selected, ConstTensorView<T, 3> x, const RoutedRows& routed, const Cache& cache,
                Tensor<T, 3>& dx /*accumulates*/, SparseAttention& grad) const {
    attention.backward_routed(dy_selected, x, routed, KeyValues::routed, cache, dx, grad.attention);
  }
  void step(ConstTensorView<T, 3> x, const RoutedRows& routed, MatrixView<T> y_selected, State& state) const {
    attention.step_routed(x, routed, KeyValues::routed, y_selected, state);
  }

  void parameters(auto&& visit) { attention.parameters(visit); }
};

}  // namespace rbar
