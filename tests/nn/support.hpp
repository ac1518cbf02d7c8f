// What the tests of row layers ([N, in] -> [N, out]) share.
#pragma once

#include "rbar/audit/gradient_check.hpp"
#include "rbar/core/parallel.hpp"
#include "rbar/nn/init.hpp"
#include "support/catch.hpp"
#include "support/differences.hpp"

#include <vector>

namespace rbar::test {

template <class T>
Tensor<T, 2> random_matrix(Index rows, Index cols, std::uint64_t seed, double mean = 0) {
  Rng rng(seed);
  Tensor<T, 2> matrix(rows, cols);
  for (T& value : elements(matrix)) value = static_cast<T>(rng.normal(mean, 1));
  return matrix;
}

// Biases and gains start at 0 and 1, where errors hide.
template <class Layer>
Layer perturbed(Layer layer, std::uint64_t seed) {
  Rng rng(seed);
  for (const auto& parameter : parameters_of(layer))
    for (auto& value : parameter.values()) value += static_cast<typename Layer::Scalar>(rng.normal(0, 0.3));
  return layer;
}

using ::test::largest_difference;

// A layer with or without a cache, through one pair of calls.
struct NoCache {};
template <class L>
struct CacheOf {
  using type = NoCache;
};
template <class L>
requires requires { typename L::Cache; }
struct CacheOf<L> {
  using type = typename L::Cache;
};

template <class T, class L, class Cache>
void run_forward(const L& layer, const Tensor<T, 2>& x, Tensor<T, 2>& y, Cache& cache) {
  if constexpr (std::is_same_v<Cache, NoCache>)
    layer.forward(rows(x), rows(y));
  else
    layer.forward(rows(x), rows(y), cache);
}
template <class T, class L, class Cache>
void run_backward(const L& layer, const Tensor<T, 2>& dy, const Tensor<T, 2>& x, const Cache& cache, MatrixView<T> dx,
                  L& grad, bool accumulate_dx) {
  if constexpr (std::is_same_v<Cache, NoCache>)
    layer.backward(rows(dy), rows(x), dx, grad, accumulate_dx);
  else
    layer.backward(rows(dy), rows(x), cache, dx, grad, accumulate_dx);
}

// Parameters and input against central differences; accumulation into dx and grad; dx left out.
template <class L>
void check_gradients(const L& plain, Index count, Index in, Index out, std::uint64_t seed) {
  INFO("seed " << seed << ", rows " << count << ", " << in << " -> " << out);
  L layer = perturbed(plain, seed);
  Tensor<double, 2> x = random_matrix<double>(count, in, seed + 1);
  const Tensor<double, 2> dy = random_matrix<double>(count, out, seed + 2);
  Tensor<double, 2> y(count, out), dx(count, in);
  typename CacheOf<L>::type cache;
  run_forward(layer, x, y, cache);
  L grad = zeros_like(layer);
  dx.setConstant(1e30);  // must be overwritten
  run_backward(layer, dy, x, cache, rows(dx), grad, false);

  std::vector<GradientPair> pairs;
  const auto values = parameters_of(layer), gradients = parameters_of(grad);
  for (std::size_t i = 0; i < values.size(); ++i)
    pairs.push_back({values[i].name, values[i].values(), gradients[i].values()});
  pairs.push_back({"x", elements(x), elements(std::as_const(dx))});
  const auto report = gradient_check(std::span<const GradientPair>(pairs), [&] {
    run_forward(layer, x, y, cache);
    double loss = auxiliary_loss_of(cache);
    for (Index i = 0; i < y.size(); ++i) loss += y.data()[i] * dy.data()[i];
    return loss;
  });
  INFO(report.worst);
  CHECK(report.error < 1e-6);
  CHECK(report.largest_gradient > 0.1);

  run_forward(layer, x, y, cache);
  Tensor<double, 2> twice = dx;
  L grad_twice = grad;
  run_backward(layer, dy, x, cache, rows(twice), grad_twice, true);
  for (Index i = 0; i < dx.size(); ++i) CHECK(twice.data()[i] == Approx(2 * dx.data()[i]).margin(1e-12));
  L without_dx = zeros_like(layer);
  run_backward(layer, dy, x, cache, MatrixView<double>(nullptr, 0, 0), without_dx, false);
  for (std::size_t p = 0; p < gradients.size(); ++p)
    for (Index i = 0; i < gradients[p].size; ++i) {
      CHECK(parameters_of(grad_twice)[p].data[i] == Approx(2 * gradients[p].data[i]).margin(1e-12));
      CHECK(parameters_of(without_dx)[p].data[i] == gradients[p].data[i]);
    }
}

// The same bits of y, dx and every gradient for 1, 2 and 5 threads.
template <class L>
void check_threads(const L& plain, Index count, Index in, Index out) {
  const L layer = perturbed(plain, 3);
  const Tensor<float, 2> x = random_matrix<float>(count, in, 1), dy = random_matrix<float>(count, out, 2);
  std::vector<float> first;
  for (const int threads : {1, 2, 5}) {
    set_num_threads(threads);
    Tensor<float, 2> y(count, out), dx(count, in);
    typename CacheOf<L>::type cache;
    L grad = zeros_like(layer);
    run_forward(layer, x, y, cache);
    run_backward(layer, dy, x, cache, rows(dx), grad, false);
    std::vector<float> all(y.data(), y.data() + y.size());
    all.insert(all.end(), dx.data(), dx.data() + dx.size());
    for (const auto& p : parameters_of(grad)) all.insert(all.end(), p.data, p.data + p.size);
    if (first.empty()) first = all;
    INFO("threads " << threads);
    CHECK(all == first);
  }
  set_num_threads(1);
}

}  // namespace rbar::test
