// A row layer chosen at run time: OneOf<LayerNorm<T>, RMSNorm<T>> is either, behind the same calls.
#pragma once

#include "rbar/core/bf16.hpp"
#include "rbar/core/parameters.hpp"
#include "rbar/core/tensor.hpp"

#include <utility>
#include <variant>

namespace rbar {

// The layers map rows [N, in] -> [N, out] and have forward(x, y, cache) and
// backward(dy, x, cache, dx, grad, accumulate_dx).
template <class First, class... Others>
struct OneOf {
  using Scalar = typename First::Scalar;
  using Cache = std::variant<typename First::Cache, typename Others::Cache...>;
  using T = Scalar;

  std::variant<First, Others...> layer;

  OneOf() = default;
  template <class Chosen>
  requires(!std::is_same_v<Chosen, OneOf>) OneOf(Chosen chosen) : layer(std::move(chosen)) {}

  void forward(ConstMatrixView<T> x, MatrixView<T> y, Cache& cache) const {
    std::visit(
        [&]<class Chosen>(const Chosen& chosen) {
          using ChosenCache = typename Chosen::Cache;
          if (!std::holds_alternative<ChosenCache>(cache)) cache.template emplace<ChosenCache>();
          chosen.forward(x, y, std::get<ChosenCache>(cache));
        },
        layer);
  }
  // The cache that forward leaves, without its output.
  void fill(ConstMatrixView<T> x, Cache& cache) const {
    std::visit(
        [&]<class Chosen>(const Chosen& chosen) {
          using ChosenCache = typename Chosen::Cache;
          if (!std::holds_alternative<ChosenCache>(cache)) cache.template emplace<ChosenCache>();
          chosen.fill(x, std::get<ChosenCache>(cache));
        },
        layer);
  }
  void backward(ConstMatrixView<T> dy, ConstMatrixView<T> x, const Cache& cache, MatrixView<T> dx, OneOf& grad,
                bool accumulate_dx = false) const {
    std::visit(
        [&]<class Chosen>(const Chosen& chosen) {
          chosen.backward(dy, x, std::get<typename Chosen::Cache>(cache), dx, std::get<Chosen>(grad.layer),
                          accumulate_dx);
        },
        layer);
  }
  void parameters(auto&& visit) {
    std::visit([&](auto& chosen) { chosen.parameters(visit); }, layer);
  }
  void linears(auto&& visit) {
    std::visit([&](auto& chosen) { chosen.linears(visit); }, layer);
  }
};

}  // namespace rbar
