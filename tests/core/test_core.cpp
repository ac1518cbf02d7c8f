#include "rbar/core/error.hpp"
#include "rbar/core/gemm.hpp"
#include "rbar/core/parameters.hpp"
#include "rbar/core/random.hpp"
#include "rbar/core/tensor.hpp"
#include "support/catch.hpp"

#include <limits>

using namespace rbar;

TEST_CASE("philox gives the published known answers") {
  // Random123's kat_vectors, philox4x32 with 10 rounds.
  CHECK(philox4x32({0, 0, 0, 0}, {0, 0}) ==
        std::array<std::uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  const std::uint32_t f = 0xffffffff;
  CHECK(philox4x32({f, f, f, f}, {f, f}) ==
        std::array<std::uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        std::array<std::uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("random numbers have the right moments, restart anywhere and differ by stream") {
  Rng rng(7, 3);
  double mean = 0, square = 0;
  constexpr int n = 100000;
  for (int i = 0; i < n; ++i) {
    const double x = rng.normal();
    mean += x / n;
    square += x * x / n;
  }
  CHECK(std::abs(mean) < 4 / std::sqrt(n));
  CHECK(std::abs(square - 1) < 4 * std::sqrt(2.0 / n));
  Rng copy = rng;
  CHECK(copy() == rng());
  CHECK(rng.at(5) == Rng(7, 3, 5)());
  CHECK(Rng(7, 4)() != Rng(7, 3)());
  CHECK(Rng(8, 3)() != Rng(7, 3)());
  for (int i = 0; i < 1000; ++i) CHECK(rng.below(7) < 7);
}

TEST_CASE("errors say operation, argument, expected and got") {
  Tensor<float, 3> tensor(2, 12, 17);
  try {
    require_shape("Router::forward", "hidden", tensor, {2, -1, 16});
    FAIL("no error");
  } catch (const Error& error) {
    CHECK(std::string(error.what()) == "Router::forward: hidden: expected [2, -1, 16], got [2, 12, 17]");
  }
  require_shape("Router::forward", "hidden", tensor, {2, -1, 17});
  std::vector<float> values(33, 1.0f);
  require_finite<float>("op", "values", values);
  values[20] = std::numeric_limits<float>::infinity();
  CHECK_THROWS_WITH(require_finite<float>("op", "values", values),
                    "op: values: expected finite values, got inf at element 20");
  values[20] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_AS(require_finite<float>("op", "values", values), Error);
}

namespace {
struct Leaf {
  using Scalar = float;
  Tensor<float, 2> weight = zeros<float, 2>({2, 3});
  Tensor<float, 1> bias = zeros<float, 1>({2});
  Tensor<float, 1> scale = zeros<float, 1>({1});
  void parameters(auto&& visit) { visit("weight", weight), visit("bias", bias); }
  void buffers(auto&& visit) { visit("scale", scale); }
};
struct Pair {
  using Scalar = float;
  Leaf first, second;
  void parameters(auto&& visit) { visit_layer(visit, "first", first), visit_layer(visit, "second", second); }
  void buffers(auto&& visit) { visit_buffers(visit, "first", first), visit_buffers(visit, "second", second); }
};
}  // namespace

TEST_CASE("one visitor names, counts, zeroes and copies parameters") {
  Pair pair;
  pair.second.weight.setConstant(2.0f);
  const auto list = parameters_of(pair);
  REQUIRE(list.size() == 4);
  CHECK(list[2].name == "second.weight");
  CHECK(list[2].shape == std::vector<Index>{2, 3});
  CHECK(count_parameters(pair) == 16);
  CHECK(buffers_of(pair).size() == 2);
  const Pair gradient = zeros_like(pair);
  CHECK(gradient.second.weight(1, 2) == 0.0f);
  CHECK(pair.second.weight(1, 2) == 2.0f);
  Pair copy;
  copy_parameters(pair, copy);
  CHECK(copy.second.weight(1, 2) == 2.0f);
  pair.first.bias = zeros<float, 1>({5});
  CHECK_THROWS_AS(copy_parameters(pair, copy), Error);
  static_assert(Parameterised<Pair>);
}

TEST_CASE("views share memory and rows() flattens the leading sizes") {
  Tensor<double, 3> tensor(2, 3, 4);
  tensor.setConstant(1.0);
  rows(tensor)(5, 3) = 9.0;
  CHECK(tensor(1, 2, 3) == 9.0);
  const double* before = tensor.data();
  ensure_shape(tensor, {4, 3, 2});
  CHECK(tensor.data() == before);
  CHECK(rows(as_const(view(tensor))).rows() == 12);
  CHECK(view(tensor.data(), 6, 4)(5, 3) == 9.0);
}
