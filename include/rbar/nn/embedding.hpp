// Rows of a table: y[n] = W[token[n]].
#pragma once

#include "rbar/core/parallel.hpp"
#include "rbar/core/parameters.hpp"
#include "rbar/nn/init.hpp"

#include <algorithm>
#include <span>

namespace rbar {

// tokens [N] -> [N, D]. Errors: a token outside [0, V), a matrix of another shape.
template <class T>
struct Embedding {
  using Scalar = T;

  Tensor<T, 2> weight;  // [V, D]

  Embedding() = default;
  // N(0, 0.02²), as GPT-2 starts.
  Embedding(Index vocabulary, Index dim, Rng& rng) : weight(vocabulary, dim) {
    require(vocabulary > 0 && dim > 0, "Embedding", "sizes", "vocabulary > 0 and dim > 0",
            detail::describe_shape(shape_of(weight)));
    normal(weight, 0.02, rng);
  }

  Index vocabulary() const { return weight.dimension(0); }
  Index dim() const { return weight.dimension(1); }

  void forward(std::span<const Token> tokens, MatrixView<T> y) const {
    check("Embedding::forward", tokens, y);
    parallel_for(y.rows(), std::max<Index>(1, 32768 / dim()), [&](Index begin, Index end) {
      for (Index n = begin; n < end; ++n)
        std::copy_n(weight.data() + tokens[static_cast<std::size_t>(n)] * dim(), dim(), y.data() + n * dim());
    });
  }

  // dW[token[n]] += dy[n]. A token may occur twice: threads take columns and walk all rows, so no
  // two of them meet, and the order of every sum is that of the tokens.
  void backward(std::span<const Token> tokens, ConstMatrixView<T> dy, Embedding& grad) const {
    check("Embedding::backward", tokens, dy);
    require_shape("Embedding::backward", "gradient of weight", grad.weight, {vocabulary(), dim()});
    parallel_for(dim(), 64, [&](Index begin, Index end) {
      for (std::size_t n = 0; n < tokens.size(); ++n) {
        const T* RBAR_RESTRICT from = dy.data() + static_cast<Index>(n) * dim();
        T* RBAR_RESTRICT to = grad.weight.data() + tokens[n] * dim();
        for (Index d = begin; d < end; ++d) to[d] += from[d];
      }
    });
  }

  void parameters(auto&& visit) { visit("weight", weight); }

 private:
  void check(std::string_view operation, std::span<const Token> tokens, const auto& y) const {
    require_shape(operation, "rows", y, {static_cast<Index>(tokens.size()), dim()});
    for (const Token token : tokens)
      if (token < 0 || token >= vocabulary()) [[unlikely]]
        throw Error(operation, "token", "0 <= token < " + std::to_string(vocabulary()), std::to_string(token));
  }
};

}  // namespace rbar
