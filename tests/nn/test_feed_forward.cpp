#include "nn/support.hpp"
#include "rbar/nn/feed_forward.hpp"
#include "support/differences.hpp"

#include <numbers>

using namespace rbar;
using namespace rbar::test;

namespace {

double textbook(Activation activation, double x) {
  switch (activation) {
    case Activation::gelu:
      return x * 0.5 * std::erfc(-x / std::numbers::sqrt2);
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
    case Activation::relu:
      return x > 0 ? x : 0;
    case Activation::silu:
      return x / (1 + std::exp(-x));
  }
  return 0;
}

double textbook_slope(Activation activation, double x) {
  const double h = 1e-6 * std::max(1.0, std::abs(x));
  return (textbook(activation, x + h) - textbook(activation, x - h)) / (2 * h);
}

}  // namespace

TEMPLATE_TEST_CASE("activations and slopes over the whole range", "", float, double) {
  // Rounding of the argument inside exp and tanh leaves about |x|·2⁻²⁴ in fp32.
  const double tolerance = std::is_same_v<TestType, float> ? 5e-7 : 1e-13;
  const Index count = 4001;
  Tensor<TestType, 2> x(1, count), y(1, count), slope(1, count), one(1, count);
  for (Index i = 0; i < count; ++i) x(0, i) = static_cast<TestType>(static_cast<double>(i - 2000) * 0.0101);
  one.setConstant(TestType(1));
  for (const Activation activation : all_activations) {
    activation_forward<TestType>(activation, rows(std::as_const(x)), rows(y));
    activation_backward<TestType>(activation, rows(std::as_const(one)), rows(std::as_const(x)), rows(slope));
    double error = 0, slope_error = 0;
    for (Index i = 0; i < count; ++i) {
      const double at = static_cast<double>(x(0, i)), expected = textbook(activation, at);
      error = ::test::larger(error, std::abs(static_cast<double>(y(0, i)) - expected) / (1 + std::abs(at)));
      if (activation == Activation::relu && at == 0) continue;
      slope_error =
          ::test::larger(slope_error, std::abs(static_cast<double>(slope(0, i)) - textbook_slope(activation, at)));
    }
    INFO(name_of(activation));
    CHECK(error < tolerance);
    CHECK(slope_error < std::max(4 * tolerance, 1e-8));  // the textbook slope is a difference
  }
}

TEST_CASE("gelu keeps its tail in fp32") {
  // x·Φ(x) is tiny for x << 0; 1 + erf would lose all of it.
  Tensor<float, 2> x(1, 3), y(1, 3);
  x.setValues({{-4.0f, -6.0f, -9.0f}});
  activation_forward<float>(Activation::gelu, rows(std::as_const(x)), rows(y));
  for (Index i = 0; i < 3; ++i)
    CHECK(y(0, i) == Approx(textbook(Activation::gelu, static_cast<double>(x(0, i)))).epsilon(1e-5).margin(0));
}

TEST_CASE("FeedForward and SwiGLU are their formulas") {
  Rng rng(1);
  const Index count = 3, dim = 5, hidden = 19;
  const auto x = random_matrix<double>(count, dim, 2);
  Tensor<double, 2> y(count, dim);
  const auto product = [](const Linear<double>& layer, const Tensor<double, 2>& input, Index row, Index out) {
    double sum = layer.bias.size() > 0 ? layer.bias(out) : 0;
    for (Index i = 0; i < layer.in(); ++i) sum += layer.weight(out, i) * input(row, i);
    return sum;
  };
  Tensor<double, 2> inner(count, hidden);
  for (const Activation activation : all_activations) {
    const auto layer = perturbed(FeedForward<double>(dim, hidden, true, rng, activation), 3);
    FeedForward<double>::Cache cache;
    layer.forward(rows(x), rows(y), cache);
    for (Index n = 0; n < count; ++n)
      for (Index f = 0; f < hidden; ++f) inner(n, f) = textbook(activation, product(layer.up, x, n, f));
    for (Index n = 0; n < count; ++n)
      for (Index d = 0; d < dim; ++d) CHECK(y(n, d) == Approx(product(layer.down, inner, n, d)).margin(1e-12));
  }
  const auto layer = perturbed(SwiGLU<double>(dim, hidden, false, rng), 4);
  SwiGLU<double>::Cache cache;
  layer.forward(rows(x), rows(y), cache);
  for (Index n = 0; n < count; ++n)
    for (Index f = 0; f < hidden; ++f)
      inner(n, f) = textbook(Activation::silu, product(layer.gate, x, n, f)) * product(layer.up, x, n, f);
  for (Index n = 0; n < count; ++n)
    for (Index d = 0; d < dim; ++d) CHECK(y(n, d) == Approx(product(layer.down, inner, n, d)).margin(1e-12));
}

TEST_CASE("feed-forward blocks: gradients and threads") {
  Rng rng(5);
  for (const Activation activation : all_activations) {
    INFO(name_of(activation));
    check_gradients(FeedForward<double>(5, 13, true, rng, activation), 4, 5, 5, 30);
  }
  check_gradients(SwiGLU<double>(5, 13, false, rng), 4, 5, 5, 40);
  check_gradients(SwiGLU<double>(9, 3, true, rng), 40, 9, 9, 50);
  check_threads(FeedForward<float>(33, 70, true, rng), 301, 33, 33);
  check_threads(SwiGLU<float>(33, 70, false, rng), 301, 33, 33);
}

TEST_CASE("activation names go both ways") {
  Activation activation = Activation::gelu;
  for (const Activation candidate : all_activations) {
    CHECK(parse(name_of(candidate), activation));
    CHECK(activation == candidate);
  }
  CHECK_FALSE(parse("softmax", activation));
}
