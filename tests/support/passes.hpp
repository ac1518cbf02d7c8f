// What every layer keeps, whatever it computes: the same bits for any number of threads.
#pragma once

#include "rbar/core/parallel.hpp"
#include "rbar/core/parameters.hpp"
#include "rbar/core/tensor.hpp"

#include <algorithm>
#include <vector>

namespace test {

// All numbers of a forward and a backward pass: what comes out, the gradient of the input (where there is one: a
// language model's input is tokens) and those of the parameters. The output is its own gradient.
template <class Layer, class Input>
std::vector<typename Layer::Scalar> numbers_of_passes(const Layer& layer, const Input& x,
                                                      typename Layer::Cache cache = {}) {
  rbar::Tensor<typename Layer::Scalar, 3> y, dx;
  auto grad = rbar::zeros_like(layer);
  layer.forward(x, y, cache);
  std::vector<typename Layer::Scalar> numbers(y.data(), y.data() + y.size());
  if constexpr (requires { layer.backward(rbar::view(std::as_const(y)), cache, dx, grad); }) {
    layer.backward(rbar::view(std::as_const(y)), cache, dx, grad);
    numbers.insert(numbers.end(), dx.data(), dx.data() + dx.size());
  } else {
    layer.backward(rbar::view(std::as_const(y)), cache, grad);
  }
  for (const auto& parameter : rbar::parameters_of(grad))
    numbers.insert(numbers.end(), parameter.data, parameter.data + parameter.size);
  return numbers;
}

template <class Layer, class Input>
bool same_for_any_threads(const Layer& layer, const Input& x, const typename Layer::Cache& cache = {}) {
  const auto alone = numbers_of_passes(layer, x, cache);
  bool same = true;
  for (const int threads : {2, 5}) {
    rbar::set_num_threads(threads);
    same = same && numbers_of_passes(layer, x, cache) == alone;
  }
  rbar::set_num_threads(1);
  return same;
}

}  // namespace test
