// The dense layer: y = x Wᵀ + b.
#pragma once

#include "rbar/core/gemm.hpp"
#include "rbar/core/parameters.hpp"
#include "rbar/nn/init.hpp"
#include "rbar/simd/batch.hpp"
#include "rbar/simd/bf16_gemm.hpp"

#include <algorithm>
#include <type_traits>

namespace rbar {

namespace detail {

// Every row of y becomes `row` [y.cols()].
template <class T>
void fill_rows(MatrixView<T> y, const T* row) {
  const Index chunk = std::max<Index>(1, 32768 / std::max<Index>(1, y.cols()));
  parallel_for(y.rows(), chunk, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) std::copy_n(row, y.cols(), y.data() + i * y.cols());
  });
}

// total[j] += Σᵢ x[i][j]. Threads take columns, so the order of the sum is always the same; sums of
// 128 rows are added up separately, which keeps fp32 accurate over many rows.
template <class T>
void add_column_sums(ConstMatrixView<T> x, T* total) {
  constexpr Index row_block = 128, column_chunk = 2 * simd::lanes<T>;
  parallel_for(x.cols(), column_chunk, [&](Index begin, Index end) {
    for (Index column = begin; column < end; column += simd::lanes<T>) {
      const Index count = std::min(simd::lanes<T>, end - column);
      for (Index first = 0; first < x.rows(); first += row_block) {
        const Index last = std::min(first + row_block, x.rows());
        const T* data = x.data() + column;
        auto sum = simd::zero<T>();
        if (count == simd::lanes<T>) {
          for (Index row = first; row < last; ++row) sum += simd::load(data + row * x.cols());
          simd::store(total + column, simd::load(total + column) + sum);
        } else {
          for (Index row = first; row < last; ++row) sum += simd::load_partial(data + row * x.cols(), count);
          simd::store_partial(total + column, simd::load_partial(total + column, count) + sum, count);
        }
      }
    }
  });
}

}  // namespace detail

// Works on the rows of anything: [N, in] -> [N, out]. Without a bias, `bias` has no elements.
// Errors: a matrix of another width, or x and y with different numbers of rows; training or saving rounded weights.
template <class T>
struct Linear {
  using Scalar = T;

  Tensor<T, 2> weight;          // [out, in]
  Tensor<T, 1> bias;            // [out] or empty
  Tensor<BFloat16, 2> rounded;  // [out, in] the weight after round_weights, and `weight` then has no elements

  Linear() = default;
  // Xavier-uniform weight, zero bias.
  Linear(Index in, Index out, bool has_bias, Rng& rng) : weight(out, in), bias(has_bias ? out : 0) {
    require(in > 0 && out > 0, "Linear", "sizes", "in > 0 and out > 0", detail::describe_shape(shape_of(weight)));
    xavier_uniform(weight, rng);
    bias.setZero();
  }

  Index in() const { return is_rounded() ? rounded.dimension(1) : weight.dimension(1); }
  Index out() const { return is_rounded() ? rounded.dimension(0) : weight.dimension(0); }

  // For inference: the weight in half the memory, which decoding reads in half the time.
  bool is_rounded() const { return rounded.size() > 0; }
  void round_weights() {
    static_assert(std::is_same_v<T, float>);
    if (is_rounded()) return;
    ensure_shape(rounded, shape_of(weight));
    to_bf16(elements(std::as_const(weight)), rounded.data());
    weight = Tensor<T, 2>();
  }

  void forward(ConstMatrixView<T> x, MatrixView<T> y) const {
    require_shape("Linear::forward", "x", x, {-1, in()});
    require_shape("Linear::forward", "y", y, {x.rows(), out()});
    // The bias is where the product starts: no pass of its own afterwards.
    const bool has_bias = bias.size() > 0;
    if (has_bias) detail::fill_rows(y, bias.data());
    if constexpr (std::is_same_v<T, float>)
      if (is_rounded())
        return simd::bf16_gemm(x.rows(), out(), in(), x.data(), in(), rounded.data(), in(), y.data(), out(), has_bias);
    gemm(Transpose::no, Transpose::yes, x.rows(), out(), in(), x.data(), in(), weight.data(), in(), y.data(), out(),
         has_bias);
  }

  // dW += dyᵀ x, db += Σ dy, dx (+)= dy W. An empty dx is skipped.
  void backward(ConstMatrixView<T> dy, ConstMatrixView<T> x, MatrixView<T> dx, Linear& grad,
                bool accumulate_dx = false) const {
    require_unrounded("Linear::backward");
    require_shape("Linear::backward", "x", x, {-1, in()});
    require_shape("Linear::backward", "dy", dy, {x.rows(), out()});
    require_shape("Linear::backward", "gradient of weight", grad.weight, {out(), in()});
    gemm(Transpose::yes, Transpose::no, out(), in(), dy.rows(), dy.data(), out(), x.data(), in(), grad.weight.data(),
         in(), /*accumulate=*/true);
    if (grad.bias.size() > 0) detail::add_column_sums(dy, grad.bias.data());
    if (dx.size() == 0) return;
    require_shape("Linear::backward", "dx", dx, {x.rows(), in()});
    gemm(Transpose::no, Transpose::no, dy.rows(), in(), out(), dy.data(), out(), weight.data(), in(), dx.data(), in(),
         accumulate_dx);
  }

  void parameters(auto&& visit) {
    require_unrounded("Linear::parameters");
    visit("weight", weight);
    if (bias.size() > 0) visit("bias", bias);
  }
  void require_unrounded(std::string_view operation) const {
    require(!is_rounded(), operation, "weight", "one that was not rounded to bf16 for inference", "rounded");
  }
};

}  // namespace rbar
