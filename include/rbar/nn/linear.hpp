// The dense layer: y = x Wᵀ + b.
#pragma once

#include "rbar/core/parameters.hpp"
#include "rbar/nn/init.hpp"
#include "rbar/nn/packed_matrix.hpp"
#include "rbar/nn/products.hpp"
#include "rbar/simd/batch.hpp"

#include <algorithm>
#include <type_traits>

namespace rbar {

namespace detail {

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
// Errors: a matrix of another width, or x and y with different numbers of rows; training or saving frozen weights.
template <class T>
struct Linear {
  using Scalar = T;

  Tensor<T, 2> weight;  // [out, in]
  Tensor<T, 1> bias;    // [out] or empty
  // What stands for a frozen `weight`, which then has no elements: one of these.
  PackedMatrix<T> packed;
  RoundedMatrix rounded;
  Bf16Inputs rounded_inputs = Bf16Inputs::weights;
  Products products = Products::fp32;  // of a weight that is not frozen

  Linear() = default;
  // Xavier-uniform weight, zero bias.
  Linear(Index in, Index out, bool has_bias, Rng& rng) : weight(out, in), bias(has_bias ? out : 0) {
    require(in > 0 && out > 0, "Linear", "sizes", "in > 0 and out > 0", detail::describe_shape(shape_of(weight)));
    xavier_uniform(weight, rng);
    bias.setZero();
  }

  Index in() const { return is_packed() ? packed.in() : is_rounded() ? rounded.in() : weight.dimension(1); }
  Index out() const { return is_packed() ? packed.out() : is_rounded() ? rounded.out() : weight.dimension(0); }

  // For inference; what is frozen neither trains nor is saved, nor can it be frozen in another way.
  bool is_packed() const { return !packed.empty(); }
  bool is_rounded() const { return !rounded.empty(); }
  bool is_frozen() const { return is_packed() || is_rounded(); }
  // The weight as products read it: the same bits, faster. Where there are few outputs, they read it as it is.
  void pack_weights() {
    require(!is_rounded(), "Linear::pack_weights", "weight", "one that was not rounded", "rounded");
    if (is_packed() || weight.dimension(0) <= simd::gemm_few_columns) return;
    packed = PackedMatrix<T>(rows(std::as_const(weight)));
    weight = Tensor<T, 2>();
  }
  // The weight in half the memory, which decoding reads in half the time. With Bf16Inputs::both, products of many rows
  // are faster as well, and less exact.
  void round_weights(Bf16Inputs inputs = Bf16Inputs::weights) {
    static_assert(std::is_same_v<T, float>);
    require(!is_packed(), "Linear::round_weights", "weight", "one that was not packed", "packed");
    rounded_inputs = inputs;
    if (is_rounded()) return;
    rounded = RoundedMatrix(rows(std::as_const(weight)));
    weight = Tensor<T, 2>();
  }

  void forward(ConstMatrixView<T> x, MatrixView<T> y) const {
    require_shape("Linear::forward", "x", x, {-1, in()});
    require_shape("Linear::forward", "y", y, {x.rows(), out()});
    multiply(x, y, /*accumulate=*/false, bias.size() > 0 ? bias.data() : nullptr);
  }
  // y (+)= x Wᵀ.
  void product(ConstMatrixView<T> x, MatrixView<T> y, bool accumulate) const {
    require_shape("Linear::product", "x", x, {-1, in()});
    require_shape("Linear::product", "y", y, {x.rows(), out()});
    multiply(x, y, accumulate, nullptr);
  }

  // dW += dyᵀ x, db += Σ dy, dx (+)= dy W. An empty dx is skipped.
  void backward(ConstMatrixView<T> dy, ConstMatrixView<T> x, MatrixView<T> dx, Linear& grad,
                bool accumulate_dx = false) const {
    require_trainable("Linear::backward");
    require_shape("Linear::backward", "x", x, {-1, in()});
    require_shape("Linear::backward", "dy", dy, {x.rows(), out()});
    require_shape("Linear::backward", "gradient of weight", grad.weight, {out(), in()});
    gemm(products, Transpose::yes, Transpose::no, out(), in(), dy.rows(), dy.data(), out(), x.data(), in(),
         grad.weight.data(), in(), /*accumulate=*/true);
    if (grad.bias.size() > 0) detail::add_column_sums(dy, grad.bias.data());
    if (dx.size() == 0) return;
    require_shape("Linear::backward", "dx", dx, {x.rows(), in()});
    gemm(products, Transpose::no, Transpose::no, dy.rows(), in(), out(), dy.data(), out(), weight.data(), in(),
         dx.data(), in(), accumulate_dx);
  }

  void parameters(auto&& visit) {
    require_trainable("Linear::parameters");
    visit("weight", weight);
    if (bias.size() > 0) visit("bias", bias);
  }
  void linears(auto&& visit) { visit(*this); }
  void require_trainable(std::string_view operation) const {
    require(!is_frozen(), operation, "weight", "one that was not frozen for inference",
            is_packed() ? "packed" : "rounded");
  }

 private:
  // The bias is where the product begins: it has no pass of its own.
  void multiply(ConstMatrixView<T> x, MatrixView<T> y, bool accumulate, const T* begin) const {
    if (is_packed()) return packed.product(x, y, accumulate, begin);
    if constexpr (std::is_same_v<T, float>)
      if (is_rounded()) {
        if (begin) detail::fill_rows(begin, y.rows(), y.cols(), y.data(), y.cols());
        return rounded.product(x, y, accumulate || begin, rounded_inputs);
      }
    gemm(products, Transpose::no, Transpose::yes, x.rows(), out(), in(), x.data(), in(), weight.data(), in(), y.data(),
         out(), accumulate, begin);
  }
};

// Freezes the matrices of a layer or model for inference, as Linear says. Its linears(visit) visits each, or with a
// head tied to a table visit(head, the head's weight [out, in]): the head becomes a copy, the table stays.
namespace detail {
template <class Model>
void freeze_linears(Model& model, const auto& freeze) {
  model.linears([&]<class T>(Linear<T>& map, const auto&... tied_weight) {
    if (!map.is_frozen()) (void(map.weight = tied_weight), ...);
    freeze(map);
    if (sizeof...(tied_weight) > 0 && !map.is_frozen()) map.weight = Tensor<T, 2>();
  });
}
}  // namespace detail
template <class Model>
void pack_weights(Model& model) {
  detail::freeze_linears(model, [](auto& map) { map.pack_weights(); });
}
template <class Model>
void round_weights(Model& model, Bf16Inputs inputs = Bf16Inputs::weights) {
  detail::freeze_linears(model, [=](auto& map) { map.round_weights(inputs); });
}

// What the same matrices of a model that trains are multiplied in, as Linear says; a tied head included.
template <class Model>
void set_products(Model& model, Products products) {
  static_assert(std::is_same_v<typename Model::Scalar, float>);
  model.linears([=](auto& map, const auto&...) { map.products = products; });
}

}  // namespace rbar
