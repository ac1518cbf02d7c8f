#include "nn/support.hpp"
#include "rbar/nn/norm.hpp"

using namespace rbar;
using namespace rbar::test;

namespace {

template <bool Centred>
double naive(const Tensor<double, 2>& x, Index row, Index d, double weight, double bias, double epsilon) {
  const Index dim = x.dimension(1);
  double mean = 0, square = 0;
  for (Index i = 0; Centred && i < dim; ++i) mean += x(row, i) / static_cast<double>(dim);
  for (Index i = 0; i < dim; ++i) square += (x(row, i) - mean) * (x(row, i) - mean) / static_cast<double>(dim);
  return (x(row, d) - mean) / std::sqrt(square + epsilon) * weight + bias;
}

}  // namespace

TEST_CASE("norms follow their formulas for every tail") {
  for (Index dim = 1; dim < 40; ++dim) {
    const auto x = random_matrix<double>(3, dim, static_cast<std::uint64_t>(dim), /*mean=*/2);
    const auto layer = perturbed(LayerNorm<double>(dim, 1e-3), 1);
    const auto rms = perturbed(RMSNorm<double>(dim, 1e-3), 2);
    LayerNorm<double>::Cache cache;
    RMSNorm<double>::Cache rms_cache;
    Tensor<double, 2> y(3, dim), z(3, dim);
    layer.forward(rows(x), rows(y), cache);
    rms.forward(rows(x), rows(z), rms_cache);
    INFO("dim " << dim);
    for (Index n = 0; n < 3; ++n)
      for (Index d = 0; d < dim; ++d) {
        CHECK(y(n, d) == Approx(naive<true>(x, n, d, layer.weight(d), layer.bias(d), 1e-3)).margin(1e-12));
        CHECK(z(n, d) == Approx(naive<false>(x, n, d, rms.weight(d), 0, 1e-3)).margin(1e-12));
      }
  }
}

TEST_CASE("LayerNorm in fp32 does not lose a small spread on a large mean") {
  const Index dim = 37;
  const auto x = random_matrix<float>(2, dim, 4, /*mean=*/1000);
  Tensor<double, 2> exact(2, dim);
  for (Index i = 0; i < x.size(); ++i) exact.data()[i] = static_cast<double>(x.data()[i]);
  const LayerNorm<float> layer(dim);
  LayerNorm<float>::Cache cache;
  Tensor<float, 2> y(2, dim);
  layer.forward(rows(x), rows(y), cache);
  // The mean itself is rounded to 1000·2⁻²⁴.
  for (Index d = 0; d < dim; ++d) CHECK(std::abs(y(1, d) - naive<true>(exact, 1, d, 1, 0, 1e-5)) < 2e-4);
}

TEST_CASE("norms: gradients and threads") {
  check_gradients(LayerNorm<double>(7), 3, 7, 7, 1);
  check_gradients(LayerNorm<double>(33), 70, 33, 33, 2);
  check_gradients(RMSNorm<double>(7), 3, 7, 7, 3);
  check_gradients(RMSNorm<double>(33), 70, 33, 33, 4);
  check_threads(LayerNorm<float>(45), 333, 45, 45);
  check_threads(RMSNorm<float>(45), 333, 45, 45);
}

TEST_CASE("norms refuse other widths and stale caches") {
  const LayerNorm<float> layer(4);
  LayerNorm<float>::Cache cache;
  Tensor<float, 2> x(2, 5), y(2, 4), more(3, 4);
  y.setZero();
  more.setZero();
  CHECK_THROWS_WITH(layer.forward(rows(std::as_const(x)), rows(y), cache),
                    "LayerNorm::forward: x: expected [-1, 4], got [2, 5]");
  layer.forward(rows(std::as_const(y)), rows(y), cache);
  LayerNorm<float> grad = zeros_like(layer);
  CHECK_THROWS_AS(layer.backward(rows(std::as_const(more)), rows(std::as_const(more)), cache, rows(more), grad), Error);
  CHECK_THROWS_AS(RMSNorm<float>(0), Error);
}
