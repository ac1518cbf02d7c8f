#include "nn/support.hpp"
#include "rbar/nn/embedding.hpp"
#include "rbar/nn/linear.hpp"

using namespace rbar;
using namespace rbar::test;

TEST_CASE("Linear is x W^T + b") {
  for (const auto [count, in, out] : {std::array<Index, 3>{1, 1, 1}, {3, 17, 5}, {130, 33, 65}, {2, 64, 1}}) {
    for (const bool bias : {true, false}) {
      INFO("rows " << count << ", " << in << " -> " << out << ", bias " << bias);
      Rng rng(1);
      const auto layer = perturbed(Linear<double>(in, out, bias, rng), 5);
      CHECK(layer.bias.size() == (bias ? out : 0));
      CHECK(count_parameters(layer) == out * in + (bias ? out : 0));
      const auto x = random_matrix<double>(count, in, 2);
      Tensor<double, 2> y(count, out);
      layer.forward(rows(x), rows(y));
      for (Index n = 0; n < count; ++n)
        for (Index o = 0; o < out; ++o) {
          double expected = bias ? layer.bias(o) : 0;
          for (Index i = 0; i < in; ++i) expected += x(n, i) * layer.weight(o, i);
          CHECK(y(n, o) == Approx(expected).margin(1e-12));
        }
    }
  }
}

TEST_CASE("Linear: gradients, threads, many rows") {
  Rng rng(2);
  check_gradients(Linear<double>(7, 5, true, rng), 3, 7, 5, 10);
  check_gradients(Linear<double>(9, 17, false, rng), 131, 9, 17, 20);
  check_threads(Linear<float>(33, 70, true, rng), 300, 33, 70);

  // fp32 column sums stay accurate over many rows: 20,000 times 0.1 is 2,000.
  const Index count = 20000;
  Linear<float> layer(1, 3, true, rng);
  Tensor<float, 2> x(count, 1), dy(count, 3);
  x.setZero();
  dy.setConstant(0.1f);
  Linear<float> grad = zeros_like(layer);
  layer.backward(rows(std::as_const(dy)), rows(std::as_const(x)), MatrixView<float>(nullptr, 0, 0), grad);
  for (Index o = 0; o < 3; ++o) CHECK(grad.bias(o) == Approx(2000).epsilon(1e-5));
}

TEST_CASE("initialisation has the promised spread") {
  Rng rng(3);
  const Linear<double> layer(300, 500, true, rng);
  const double bound = std::sqrt(6.0 / 800);
  double square = 0, largest = 0;
  for (const double w : elements(layer.weight)) {
    square += w * w / static_cast<double>(layer.weight.size());
    largest = std::max(largest, std::abs(w));
  }
  CHECK(largest <= bound);
  CHECK(largest > 0.999 * bound);
  CHECK(square == Approx(bound * bound / 3).epsilon(0.01));
  for (const double b : elements(layer.bias)) CHECK(b == 0);
  const Embedding<double> embedding(1000, 20, rng);
  double variance = 0;
  for (const double w : elements(embedding.weight)) variance += w * w / static_cast<double>(embedding.weight.size());
  CHECK(std::sqrt(variance) == Approx(0.02).epsilon(0.03));
}

TEST_CASE("Embedding reads rows and adds gradients up, repeated tokens included") {
  Rng rng(4);
  const Index vocabulary = 11, dim = 70;
  const Embedding<double> table(vocabulary, dim, rng);
  const std::vector<Token> tokens = {3, 0, 10, 3, 3};
  Tensor<double, 2> y(5, dim);
  table.forward(tokens, rows(y));
  const auto dy = random_matrix<double>(5, dim, 5);
  Embedding<double> grad = zeros_like(table);
  table.backward(tokens, rows(dy), grad);
  for (Index d = 0; d < dim; ++d) {
    for (Index n = 0; n < 5; ++n) CHECK(y(n, d) == table.weight(tokens[static_cast<std::size_t>(n)], d));
    CHECK(grad.weight(3, d) == Approx(dy(0, d) + dy(3, d) + dy(4, d)));
    CHECK(grad.weight(0, d) == dy(1, d));
    CHECK(grad.weight(5, d) == 0);
  }
}

TEST_CASE("Linear and Embedding refuse wrong shapes and tokens") {
  Rng rng(5);
  const Linear<float> layer(4, 3, true, rng);
  Tensor<float, 2> x(2, 5), y(2, 3), good(2, 4);
  CHECK_THROWS_WITH(layer.forward(rows(std::as_const(x)), rows(y)), "Linear::forward: x: expected [-1, 4], got [2, 5]");
  Linear<float> grad = zeros_like(layer);
  CHECK_THROWS_AS(layer.backward(rows(std::as_const(y)), rows(std::as_const(good)), rows(x), grad), Error);
  CHECK_THROWS_AS(Linear<float>(0, 3, true, rng), Error);
  const Embedding<float> table(7, 3, rng);
  const std::vector<Token> tokens = {1, 7};
  CHECK_THROWS_WITH(table.forward(tokens, rows(y)), "Embedding::forward: token: expected 0 <= token < 7, got 7");
  CHECK_THROWS_AS(table.forward(std::vector<Token>{0, -1}, rows(y)), Error);
  CHECK_THROWS_AS(table.forward(std::vector<Token>{0}, rows(y)), Error);
}
