// The plain alternative to CoherenceMixer: an MLP D → 2D → GELU → D for every token by itself.
// Source: the CoRT package 0.1.0, SimpleMixer.
#pragma once

#include "rbar/core/bulk.hpp"
#include "rbar/nn/feed_forward.hpp"

#include <algorithm>

namespace rbar {

// [B, T, D] -> [B, T, D]. Errors: another D.
template <class T>
struct SimpleMixer {
  using Scalar = T;
  struct Cache {
    Tensor<T, 3> hidden;  // [B, T, D] input
    typename FeedForward<T>::Cache net;
  };

  FeedForward<T> net;

  SimpleMixer() = default;
  SimpleMixer(Index d_model, Rng& rng) : net(d_model, 2 * d_model, /*bias=*/true, rng) {}

  void forward(ConstTensorView<T, 3> hidden, Tensor<T, 3>& y, Cache& cache) const {
    ensure_shape(cache.hidden, shape_of(hidden));
    bulk_copy(hidden.data(), hidden.size(), cache.hidden.data());
    ensure_shape(y, shape_of(hidden));
    net.forward(rows(hidden), rows(y), cache.net);
  }
  void backward(ConstTensorView<T, 3> dy, const Cache& cache, Tensor<T, 3>& dx, SimpleMixer& grad) const {
    ensure_shape(dx, shape_of(cache.hidden));
    net.backward(rows(dy), rows(cache.hidden), cache.net, rows(dx), grad.net);
  }

  void parameters(auto&& visit) { visit_layer(visit, "net", net); }
};

}  // namespace rbar
