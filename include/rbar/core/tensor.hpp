// Tensors are Eigen's, row-major. Activations are [batch, tokens, features], per-token scalars
// [batch, tokens], attention internals [batch, heads, tokens, head_dim].
#pragma once

#include "rbar/core/error.hpp"

#include <Eigen/Core>
#include <unsupported/Eigen/CXX11/Tensor>

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

namespace rbar {

using Index = Eigen::Index;
using Token = std::int32_t;

template <class T, int Rank>
using Tensor = Eigen::Tensor<T, Rank, Eigen::RowMajor>;
template <class T, int Rank>
using TensorView = Eigen::TensorMap<Tensor<T, Rank>>;
template <class T, int Rank>
using ConstTensorView = Eigen::TensorMap<const Tensor<T, Rank>>;

template <class T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using MatrixView = Eigen::Map<Matrix<T>>;
template <class T>
using ConstMatrixView = Eigen::Map<const Matrix<T>>;

template <int Rank>
using Shape = std::array<Index, static_cast<std::size_t>(Rank)>;

// --- shapes -------------------------------------------------------------------------------------

// Sizes of a tensor, of a view of one or of a matrix.
template <class Tensorial>
auto shape_of(const Tensorial& tensor) {
  if constexpr (requires { tensor.rows(); }) {
    return Shape<2>{tensor.rows(), tensor.cols()};
  } else {
    Shape<Tensorial::NumDimensions> shape{};
    for (std::size_t i = 0; i < shape.size(); ++i) shape[i] = tensor.dimensions()[i];
    return shape;
  }
}

// Gives `tensor` this shape. Memory is touched only when the number of elements changes, so a
// buffer that lives in a cache is allocated once. The contents are unspecified afterwards.
template <class T, int Rank>
void ensure_shape(Tensor<T, Rank>& tensor, const Shape<Rank>& shape) {
  if (shape_of(tensor) == shape) return;
  Eigen::array<Index, static_cast<std::size_t>(Rank)> dimensions;
  for (std::size_t i = 0; i < static_cast<std::size_t>(Rank); ++i) dimensions[i] = shape[i];
  tensor.resize(dimensions);
}

template <class T, int Rank>
Tensor<T, Rank> zeros(const Shape<Rank>& shape) {
  Tensor<T, Rank> tensor;
  ensure_shape(tensor, shape);
  tensor.setZero();
  return tensor;
}

// --- views --------------------------------------------------------------------------------------

template <class T, int Rank>
TensorView<T, Rank> view(Tensor<T, Rank>& tensor) {
  return TensorView<T, Rank>(tensor);
}
template <class T, int Rank>
ConstTensorView<T, Rank> view(const Tensor<T, Rank>& tensor) {
  return ConstTensorView<T, Rank>(tensor);
}
template <class T, int Rank>
ConstTensorView<T, Rank> as_const(const TensorView<T, Rank>& tensor) {
  return ConstTensorView<T, Rank>(tensor.data(), tensor.dimensions());
}
template <class T>
ConstMatrixView<T> as_const(const MatrixView<T>& matrix) {
  return ConstMatrixView<T>(matrix.data(), matrix.rows(), matrix.cols());
}

template <class T, class... Sizes>
auto view(T* data, Sizes... sizes) {
  constexpr int rank = static_cast<int>(sizeof...(Sizes));
  if constexpr (std::is_const_v<T>)
    return ConstTensorView<std::remove_const_t<T>, rank>(data, static_cast<Index>(sizes)...);
  else
    return TensorView<T, rank>(data, static_cast<Index>(sizes)...);
}

// Any tensor or view as a row-major matrix [product of the leading sizes, last size].
template <class Tensorial>
auto rows(Tensorial&& tensor) {
  using Plain = std::remove_cvref_t<Tensorial>;
  using Pointer = decltype(tensor.data());
  using T = typename Plain::Scalar;
  const Index last = tensor.dimension(Plain::NumDimensions - 1);
  const Index leading = last == 0 ? 0 : tensor.size() / last;
  if constexpr (std::is_const_v<std::remove_pointer_t<Pointer>>)
    return ConstMatrixView<T>(tensor.data(), leading, last);
  else
    return MatrixView<T>(tensor.data(), leading, last);
}

// Room for `count` rows: grows, and never shrinks. For packed rows, whose number changes from call to call; top_rows
// then views those in use. The contents are unspecified after growth.
template <class T>
void ensure_rows(Tensor<T, 2>& buffer, Index count, Index width) {
  if (buffer.dimension(0) < count || buffer.dimension(1) != width) buffer.resize(count, width);
}

// The first `count` rows of a buffer that has room for more (packed rows, whose number changes).
template <class T>
MatrixView<T> top_rows(Tensor<T, 2>& buffer, Index count) {
  return MatrixView<T>(buffer.data(), count, buffer.dimension(1));
}
template <class T>
ConstMatrixView<T> top_rows(const Tensor<T, 2>& buffer, Index count) {
  return ConstMatrixView<T>(buffer.data(), count, buffer.dimension(1));
}

// All elements in memory order.
template <class Tensorial>
auto elements(Tensorial&& tensor) {
  return std::span(tensor.data(), static_cast<std::size_t>(tensor.size()));
}

template <class Tensorial, std::size_t Rank>
void require_shape(std::string_view operation, std::string_view argument, const Tensorial& tensor,
                   const Index (&expected)[Rank]) {
  static_assert(Rank == Tensorial::NumDimensions, "expected shape has another rank than the tensor");
  require_shape(operation, argument, shape_of(tensor), std::span<const Index>(expected, Rank));
}

}  // namespace rbar
