// Normalisation of a row x of D features:
//   LayerNorm  x̂ = (x − μ)·r,  r = 1/√(mean((x − μ)²) + ε),  y = w∘x̂ + b    (Ba et al., arXiv:1607.06450)
//   RMSNorm    x̂ = x·r,        r = 1/√(mean(x²) + ε),         y = w∘x̂        (Zhang, Sennrich, arXiv:1910.07467)
// With g = w∘dy, both have
//   dx = r·(g − x̂·mean(g∘x̂) − mean(g)),   dw += Σ dy∘x̂,   db += Σ dy,
// where the term mean(g) belongs to LayerNorm only. Both are one kernel with a compile-time switch.
#pragma once

#include "rbar/core/parallel.hpp"
#include "rbar/core/parameters.hpp"
#include "rbar/simd/batch.hpp"

#include <algorithm>
#include <cmath>

namespace rbar {
namespace detail {

// body(offset, load, store) for every register-wide piece of a row; the last one may be partial,
// its missing elements read as 0, or as the second argument of load.
template <class T, class Body>
RBAR_INLINE void for_each_piece(Index dim, Body&& body) {
  constexpr Index lanes = simd::lanes<T>;
  Index d = 0;
  for (; d + lanes <= dim; d += lanes)
    body([d](const T* data, T = T(0)) { return simd::load(data + d); },
         [d](T* data, const simd::Batch<T>& value) { simd::store(data + d, value); });
  if (const Index rest = dim - d; rest > 0)
    body([d, rest](const T* data, T fill = T(0)) { return simd::load_partial(data + d, rest, fill); },
         [d, rest](T* data, const simd::Batch<T>& value) { simd::store_partial(data + d, value, rest); });
}

// Rows a chunk works on; also the number of rows whose weight gradients are added up together.
inline constexpr Index norm_chunk = 32;

template <bool Centred, class T>
void norm_forward(ConstMatrixView<T> x, const T* weight, const T* bias, T epsilon, T* mean, T* rstd, MatrixView<T> y) {
  const Index dim = x.cols();
  parallel_for(x.rows(), norm_chunk, [&](Index begin, Index end) {
    for (Index row = begin; row < end; ++row) {
      const T* from = x.data() + row * dim;
      T* to = y.data() + row * dim;
      T average = 0;
      if constexpr (Centred) {
        auto sum = simd::zero<T>();
        for_each_piece<T>(dim, [&](auto load, auto) { sum += load(from); });
        average = simd::reduce_add(sum) / static_cast<T>(dim);
        mean[row] = average;
      }
      const auto centre = simd::broadcast(average);
      auto square = simd::zero<T>();
      for_each_piece<T>(dim, [&](auto load, auto) {
        const auto difference = load(from, average) - centre;
        square = simd::multiply_add(difference, difference, square);
      });
      const T scale = T(1) / std::sqrt(simd::reduce_add(square) / static_cast<T>(dim) + epsilon);
      rstd[row] = scale;
      const auto factor = simd::broadcast(scale);
      for_each_piece<T>(dim, [&](auto load, auto store) {
        const auto normalised = (load(from) - centre) * factor;
        if constexpr (Centred)
          store(to, simd::multiply_add(normalised, load(weight), load(bias)));
        else
          store(to, normalised * load(weight));
      });
    }
  });
}

// partial[chunk] = [Σ dy∘x̂ | Σ dy] over the rows of a chunk: the caller adds the chunks in order.
template <bool Centred, class T>
void norm_backward(ConstMatrixView<T> dy, ConstMatrixView<T> x, const T* weight, const T* mean, const T* rstd,
                   MatrixView<T> dx, bool accumulate_dx, Tensor<T, 2>& partial, T* dweight, T* dbias) {
  const Index dim = x.cols(), chunks = (x.rows() + norm_chunk - 1) / norm_chunk;
  const Index width = Centred ? 2 * dim : dim;
  ensure_rows(partial, chunks, width);
  parallel_for(x.rows(), norm_chunk, [&](Index begin, Index end) {
    T* dweight_part = partial.data() + begin / norm_chunk * width;
    T* dbias_part = dweight_part + dim;
    std::fill_n(dweight_part, width, T(0));
    for (Index row = begin; row < end; ++row) {
      const T* from = x.data() + row * dim;
      const T* gradient = dy.data() + row * dim;
      const auto centre = simd::broadcast(Centred ? mean[row] : T(0));
      const auto scale = simd::broadcast(rstd[row]);
      auto sum = simd::zero<T>(), sum_normalised = simd::zero<T>();  // Σ g and Σ g∘x̂
      for_each_piece<T>(dim, [&](auto load, auto store) {
        const auto normalised = (load(from) - centre) * scale;
        const auto dout = load(gradient);  // 0 beyond the row, so padding adds nothing
        const auto weighted = dout * load(weight);
        sum_normalised = simd::multiply_add(weighted, normalised, sum_normalised);
        store(dweight_part, simd::multiply_add(dout, normalised, load(dweight_part)));
        if constexpr (Centred) {
          sum += weighted;
          store(dbias_part, load(dbias_part) + dout);
        }
      });
      if (dx.size() == 0) continue;
      const auto mean_gradient = simd::broadcast(Centred ? simd::reduce_add(sum) / static_cast<T>(dim) : T(0));
      const auto mean_normalised = simd::broadcast(simd::reduce_add(sum_normalised) / static_cast<T>(dim));
      T* to = dx.data() + row * dim;
      for_each_piece<T>(dim, [&](auto load, auto store) {
        const auto normalised = (load(from) - centre) * scale;
        const auto value = (load(gradient) * load(weight) - mean_gradient - normalised * mean_normalised) * scale;
        store(to, accumulate_dx ? load(to) + value : value);
      });
    }
  });
  for (Index chunk = 0; chunk < chunks; ++chunk) {
    const T* part = partial.data() + chunk * width;
    for (Index d = 0; d < dim; ++d) dweight[d] += part[d];
    if constexpr (Centred)
      for (Index d = 0; d < dim; ++d) dbias[d] += part[dim + d];
  }
}

template <class T>
void check_norm(std::string_view operation, Index dim, ConstMatrixView<T> x, const auto& other) {
  require_shape(operation, "x", x, {-1, dim});
  require_shape(operation, "rows", other, {x.rows(), dim});
}

}  // namespace detail

// [N, D] -> [N, D]. Errors: a matrix of another width, a cache of other rows.
template <class T>
struct LayerNorm {
  using Scalar = T;
  struct Cache {
    Index rows = 0;                // N; the buffers keep room for the most seen
    Tensor<T, 1> mean, rstd;       // [N]
    mutable Tensor<T, 2> partial;  // scratch of backward
  };

  Tensor<T, 1> weight, bias;  // [D]
  T epsilon = T(1e-5);

  LayerNorm() = default;
  explicit LayerNorm(Index dim, double epsilon_ = 1e-5) : weight(dim), bias(dim), epsilon(static_cast<T>(epsilon_)) {
    require(dim > 0, "LayerNorm", "dim", "at least 1", dim);
    weight.setConstant(T(1));
    bias.setZero();
  }

  void forward(ConstMatrixView<T> x, MatrixView<T> y, Cache& cache) const {
    detail::check_norm<T>("LayerNorm::forward", weight.size(), x, y);
    cache.rows = x.rows();
    if (cache.rstd.size() < x.rows()) {
      ensure_shape(cache.mean, {x.rows()});
      ensure_shape(cache.rstd, {x.rows()});
    }
    detail::norm_forward<true>(x, weight.data(), bias.data(), epsilon, cache.mean.data(), cache.rstd.data(), y);
  }
  void backward(ConstMatrixView<T> dy, ConstMatrixView<T> x, const Cache& cache, MatrixView<T> dx, LayerNorm& grad,
                bool accumulate_dx = false) const {
    detail::check_norm<T>("LayerNorm::backward", weight.size(), x, dy);
    require(cache.rows == x.rows(), "LayerNorm::backward", "rows of the cache", x.rows(), cache.rows);
    if (dx.size() > 0) detail::check_norm<T>("LayerNorm::backward", weight.size(), x, dx);
    detail::norm_backward<true>(dy, x, weight.data(), cache.mean.data(), cache.rstd.data(), dx, accumulate_dx,
                                cache.partial, grad.weight.data(), grad.bias.data());
  }

  void parameters(auto&& visit) {
    visit("weight", weight);
    visit("bias", bias);
  }
};

// [N, D] -> [N, D]. Errors: as for LayerNorm.
template <class T>
struct RMSNorm {
  using Scalar = T;
  struct Cache {
    Index rows = 0;                // N; the buffers keep room for the most seen
    Tensor<T, 1> rstd;             // [N]
    mutable Tensor<T, 2> partial;  // scratch of backward
  };

  Tensor<T, 1> weight;  // [D]
  T epsilon = T(1e-5);

  RMSNorm() = default;
  explicit RMSNorm(Index dim, double epsilon_ = 1e-5) : weight(dim), epsilon(static_cast<T>(epsilon_)) {
    require(dim > 0, "RMSNorm", "dim", "at least 1", dim);
    weight.setConstant(T(1));
  }

  void forward(ConstMatrixView<T> x, MatrixView<T> y, Cache& cache) const {
    detail::check_norm<T>("RMSNorm::forward", weight.size(), x, y);
    cache.rows = x.rows();
    if (cache.rstd.size() < x.rows()) ensure_shape(cache.rstd, {x.rows()});
    detail::norm_forward<false, T>(x, weight.data(), nullptr, epsilon, nullptr, cache.rstd.data(), y);
  }
  void backward(ConstMatrixView<T> dy, ConstMatrixView<T> x, const Cache& cache, MatrixView<T> dx, RMSNorm& grad,
                bool accumulate_dx = false) const {
    detail::check_norm<T>("RMSNorm::backward", weight.size(), x, dy);
    require(cache.rows == x.rows(), "RMSNorm::backward", "rows of the cache", x.rows(), cache.rows);
    if (dx.size() > 0) detail::check_norm<T>("RMSNorm::backward", weight.size(), x, dx);
    detail::norm_backward<false, T>(dy, x, weight.data(), nullptr, cache.rstd.data(), dx, accumulate_dx, cache.partial,
                                    grad.weight.data(), nullptr);
  }

  void parameters(auto&& visit) { visit("weight", weight); }
};

}  // namespace rbar
