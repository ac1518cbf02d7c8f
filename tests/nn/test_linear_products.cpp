// Linear layers that train in bf16: what is rounded, and that nothing else is.
#include "nn/support.hpp"
#include "rbar/nn/linear.hpp"
#include "support/allocation_count.hpp"

using namespace rbar;
using namespace rbar::test;

namespace {

struct Passes {
  Tensor<float, 2> y, dx;
  Linear<float> grad;

  Passes(const Linear<float>& layer, const Tensor<float, 2>& x, const Tensor<float, 2>& dy)
      : y(dy.dimension(0), dy.dimension(1)), dx(x.dimension(0), x.dimension(1)), grad(zeros_like(layer)) {
    run(layer, x, dy);
  }
  void run(const Linear<float>& layer, const Tensor<float, 2>& x, const Tensor<float, 2>& dy) {
    layer.forward(rows(x), rows(y));
    layer.backward(rows(dy), rows(x), rows(dx), grad);
  }
};

Tensor<double, 2> widened(const Tensor<float, 2>& values, bool round) {
  Tensor<double, 2> result(values.dimension(0), values.dimension(1));
  for (Index i = 0; i < values.size(); ++i)
    result.data()[i] = static_cast<double>(round ? to_float(to_bf16(values.data()[i])) : values.data()[i]);
  return result;
}

// y, dx and dW in double, of rounded factors or of exact ones; the bias is in neither.
struct Reference {
  Tensor<double, 2> y, dx, dW;

  Reference(const Linear<float>& layer, const Tensor<float, 2>& x_, const Tensor<float, 2>& dy_, bool round)
      : y(dy_.dimension(0), dy_.dimension(1)), dx(x_.dimension(0), x_.dimension(1)), dW(layer.out(), layer.in()) {
    const auto x = widened(x_, round), dy = widened(dy_, round), weight = widened(layer.weight, round);
    y.setZero(), dx.setZero(), dW.setZero();
    for (Index n = 0; n < x.dimension(0); ++n)
      for (Index o = 0; o < layer.out(); ++o)
        for (Index i = 0; i < layer.in(); ++i) {
          y(n, o) += x(n, i) * weight(o, i);
          dx(n, i) += dy(n, o) * weight(o, i);
          dW(o, i) += dy(n, o) * x(n, i);
        }
  }
};

double apart(const Tensor<float, 2>& values, const Tensor<double, 2>& expected) {
  double largest = 0;
  for (Index i = 0; i < values.size(); ++i)
    largest = std::max(largest, std::abs(static_cast<double>(values.data()[i]) - expected.data()[i]));
  return largest;
}
double apart(const Tensor<double, 2>& values, const Tensor<double, 2>& expected) {
  double largest = 0;
  for (Index i = 0; i < values.size(); ++i)
    largest = std::max(largest, std::abs(values.data()[i] - expected.data()[i]));
  return largest;
}

}  // namespace

TEST_CASE("a linear layer in bf16 rounds the factors of its three products, and nothing else") {
  for (const auto [count, in, out] : {std::array<Index, 3>{1, 1, 1}, {3, 17, 5}, {131, 33, 65}, {40, 70, 300}}) {
    INFO("rows " << count << ", " << in << " -> " << out);
    Rng rng(1);
    Linear<float> layer(in, out, /*has_bias=*/false, rng);
    const auto x = random_matrix<float>(count, in, 2), dy = random_matrix<float>(count, out, 3);
    const Passes plain(layer, x, dy);
    layer.products = Products::bf16;
    const Passes rounded(layer, x, dy);
    const Reference naive(layer, x, dy, /*round=*/true), exact(layer, x, dy, /*round=*/false);
    CHECK(apart(rounded.y, naive.y) < 1e-5);
    CHECK(apart(rounded.dx, naive.dx) < 5e-5);
    CHECK(apart(rounded.grad.weight, naive.dW) < 5e-5);
    CHECK(apart(rounded.y, exact.y) <= 2 * apart(naive.y, exact.y));
    CHECK(apart(rounded.dx, exact.dx) <= 2 * apart(naive.dx, exact.dx));
    CHECK(apart(rounded.grad.weight, exact.dW) <= 2 * apart(naive.dW, exact.dW));
    CHECK(apart(plain.y, exact.y) < 1e-5);  // as it computes unless told otherwise
  }
}

TEST_CASE("a linear layer in bf16: bias, accumulation, threads, memory and bad shapes") {
  Rng rng(1);
  Linear<float> layer = perturbed(Linear<float>(70, 210, /*has_bias=*/true, rng), 4), bare = layer;
  bare.bias = Tensor<float, 1>();
  layer.products = bare.products = Products::bf16;
  const auto x = random_matrix<float>(90, 70, 2), dy = random_matrix<float>(90, 210, 3);
  const Passes once(layer, x, dy), without_bias(bare, x, dy);
  for (Index n = 0; n < 90; ++n)
    for (Index o = 0; o < 210; ++o) REQUIRE(once.y(n, o) == Approx(without_bias.y(n, o) + layer.bias(o)).margin(1e-5));
  CHECK(largest_difference(once.dx, without_bias.dx) == 0);

  Passes twice = once;
  CHECK(::test::allocations_in([&] { twice.run(layer, x, dy); }) == 0);
  for (Index i = 0; i < layer.weight.size(); ++i)
    REQUIRE(twice.grad.weight.data()[i] == Approx(2 * once.grad.weight.data()[i]).margin(1e-5));
  layer.backward(rows(dy), rows(x), rows(twice.dx), twice.grad, /*accumulate_dx=*/true);
  for (Index i = 0; i < x.size(); ++i) REQUIRE(twice.dx.data()[i] == Approx(2 * once.dx.data()[i]).margin(1e-5));

  for (const int threads : {2, 5}) {
    set_num_threads(threads);
    const Passes again(layer, x, dy);
    CHECK(largest_difference(again.y, once.y) == 0);
    CHECK(largest_difference(again.dx, once.dx) == 0);
    CHECK(largest_difference(again.grad.weight, once.grad.weight) == 0);
    CHECK(largest_difference(again.grad.bias, once.grad.bias) == 0);
  }
  set_num_threads(1);

  CHECK_THROWS_WITH(layer.forward(rows(dy), rows(twice.y)), ContainsText("Linear"));
  CHECK_THROWS_WITH(layer.backward(rows(x), rows(x), rows(twice.dx), twice.grad), ContainsText("dy"));
}

TEST_CASE("products have names") {
  Products products = Products::fp32;
  CHECK((parse("bf16", products) && products == Products::bf16));
  CHECK((parse("fp32", products) && products == Products::fp32));
  CHECK_FALSE(parse("fp16", products));
}
