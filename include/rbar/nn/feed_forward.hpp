// The feed-forward block of a transformer, with one hidden layer or with a gated one.
//   FeedForward  y = W_down f(W_up x + b_up) + b_down
//   SwiGLU       y = W_down (silu(W_gate x) ∘ W_up x)        (Shazeer, arXiv:2002.05202)
#pragma once

#include "rbar/nn/activation.hpp"
#include "rbar/nn/linear.hpp"

#include <utility>

namespace rbar {

// [N, D] -> [N, D]. Errors: a matrix of another width, a cache of other rows.
template <class T>
struct FeedForward {
  using Scalar = T;
  // Buffers keep room for the most rows seen: the rows of a call are the first ones.
  struct Cache {
    Index rows = 0;                           // N
    Tensor<T, 2> hidden;                      // [N, F] before f
    mutable Tensor<T, 2> activated, dhidden;  // [N, F] scratch: f(hidden), cheaper to compute again than to keep

    void swap_scratch(const Cache& other) const {
      std::swap(activated, other.activated);
      std::swap(dhidden, other.dhidden);
    }
  };

  Linear<T> up, down;  // [F, D], [D, F]
  Activation activation = Activation::gelu;

  FeedForward() = default;
  FeedForward(Index dim, Index hidden, bool bias, Rng& rng, Activation activation_ = Activation::gelu)
      : up(dim, hidden, bias, rng), down(hidden, dim, bias, rng), activation(activation_) {}

  void forward(ConstMatrixView<T> x, MatrixView<T> y, Cache& cache) const {
    fill(x, cache);
    down.forward(activated(cache), y);
  }

  // The cache that forward leaves, without its output.
  void fill(ConstMatrixView<T> x, Cache& cache) const {
    cache.rows = x.rows();
    ensure_rows(cache.hidden, x.rows(), up.out());
    up.forward(x, top_rows(cache.hidden, x.rows()));
  }

  void backward(ConstMatrixView<T> dy, ConstMatrixView<T> x, const Cache& cache, MatrixView<T> dx, FeedForward& grad,
                bool accumulate_dx = false) const {
    require(cache.rows == x.rows(), "FeedForward::backward", "rows of the cache", x.rows(), cache.rows);
    ensure_rows(cache.dhidden, x.rows(), up.out());
    const MatrixView<T> dhidden = top_rows(cache.dhidden, x.rows());
    down.backward(dy, activated(cache), dhidden, grad.down);
    activation_backward<T>(activation, as_const(dhidden), top_rows(cache.hidden, x.rows()), dhidden);
    up.backward(as_const(dhidden), x, dx, grad.up, accumulate_dx);
  }

  void parameters(auto&& visit) {
    visit_layer(visit, "up", up);
    visit_layer(visit, "down", down);
  }
  void linears(auto&& visit) {
    for (Linear<T>* map : {&up, &down}) visit(*map);
  }

 private:
  ConstMatrixView<T> activated(const Cache& cache) const {
    ensure_rows(cache.activated, cache.rows, up.out());
    const MatrixView<T> result = top_rows(cache.activated, cache.rows);
    activation_forward<T>(activation, top_rows(cache.hidden, cache.rows), result);
    return as_const(result);
  }
};

// [N, D] -> [N, D], or another width out. Llama names the three matrices w1 (gate), w3 (up) and w2 (down). Errors: as
// above.
template <class T>
struct SwiGLU {
  using Scalar = T;
  struct Cache {
    Tensor<T, 2> gate, up;  // [N, F] W_gate x, W_up x
    // [N, F] scratch: silu(gate)∘up, cheaper to compute again than to keep, and gradients.
    mutable Tensor<T, 2> product, dgate, dup;

    void swap_scratch(const Cache& other) const {
      std::swap(product, other.product);
      std::swap(dgate, other.dgate);
      std::swap(dup, other.dup);
    }
  };

  Linear<T> gate, up, down;  // [F, D], [F, D], [D, F]

  SwiGLU() = default;
  SwiGLU(Index dim, Index hidden, bool bias, Rng& rng) : SwiGLU(dim, hidden, dim, bias, rng) {}
  SwiGLU(Index in, Index hidden, Index out, bool bias, Rng& rng)
      : gate(in, hidden, bias, rng), up(in, hidden, bias, rng), down(hidden, out, bias, rng) {}

  void forward(ConstMatrixView<T> x, MatrixView<T> y, Cache& cache) const {
    fill(x, cache);
    down.forward(product(cache), y);
  }

  // The cache that forward leaves, without its output.
  void fill(ConstMatrixView<T> x, Cache& cache) const {
    const Shape<2> hidden{x.rows(), up.out()};
    ensure_shape(cache.gate, hidden);
    ensure_shape(cache.up, hidden);
    gate.forward(x, rows(cache.gate));
    up.forward(x, rows(cache.up));
  }

  void backward(ConstMatrixView<T> dy, ConstMatrixView<T> x, const Cache& cache, MatrixView<T> dx, SwiGLU& grad,
                bool accumulate_dx = false) const {
    require_shape("SwiGLU::backward", "cache", cache.gate, {x.rows(), up.out()});
    ensure_shape(cache.dgate, shape_of(cache.gate));
    ensure_shape(cache.dup, shape_of(cache.up));
    down.backward(dy, product(cache), rows(cache.dup), grad.down);  // d(product), split below
    detail::for_each_register<T>(cache.gate.size(), [&](Index i, Index count) {
      const auto silu = detail::activate<Activation::silu, T>(detail::load_some(cache.gate.data() + i, count));
      const auto dproduct = detail::load_some(cache.dup.data() + i, count);
      const auto slope = silu.slope * detail::load_some(cache.up.data() + i, count);
      detail::store_some(cache.dgate.data() + i, dproduct * slope, count);
      detail::store_some(cache.dup.data() + i, dproduct * silu.value, count);
    });
    gate.backward(rows(std::as_const(cache.dgate)), x, dx, grad.gate, accumulate_dx);
    up.backward(rows(std::as_const(cache.dup)), x, dx, grad.up, /*accumulate_dx=*/true);
  }

  void parameters(auto&& visit) {
    visit_layer(visit, "gate", gate);
    visit_layer(visit, "up", up);
    visit_layer(visit, "down", down);
  }
  void linears(auto&& visit) {
    for (Linear<T>* map : {&gate, &up, &down}) visit(*map);
  }

 private:
  ConstMatrixView<T> product(const Cache& cache) const {
    ensure_shape(cache.product, shape_of(cache.gate));
    detail::for_each_register<T>(cache.gate.size(), [&](Index i, Index count) {
      const auto gated = detail::activate<Activation::silu, T>(detail::load_some(cache.gate.data() + i, count)).value;
      detail::store_some(cache.product.data() + i, gated * detail::load_some(cache.up.data() + i, count), count);
    });
    return rows(std::as_const(cache.product));
  }
};

}  // namespace rbar
