#include "nn/support.hpp"
#include "rbar/nn/dropout.hpp"
#include "rbar/nn/rotary.hpp"

#include <complex>

using namespace rbar;
using namespace rbar::test;

TEST_CASE("rotary turns pairs by position times frequency, in both layouts") {
  const Index tokens = 9, heads = 3, head_dim = 6, half = head_dim / 2;
  const double base = 100;
  RotaryTable<double> table;
  table.ensure(tokens, head_dim, base);
  const auto x = random_matrix<double>(tokens, heads * head_dim, 1);
  for (const Rotary kind : {Rotary::interleaved, Rotary::half_split}) {
    Tensor<double, 2> y = x;
    rotary_forward(kind, table, rows(y), [](Index row) { return row; });
    for (Index t = 0; t < tokens; ++t)
      for (Index h = 0; h < heads; ++h)
        for (Index i = 0; i < half; ++i) {
          const Index a = h * head_dim + (kind == Rotary::interleaved ? 2 * i : i);
          const Index b = kind == Rotary::interleaved ? a + 1 : a + half;
          const double angle = static_cast<double>(t) / std::pow(base, 2.0 * static_cast<double>(i) / head_dim);
          const auto turned = std::complex(x(t, a), x(t, b)) * std::polar(1.0, angle);
          CHECK(y(t, a) == Approx(turned.real()).margin(1e-12));
          CHECK(y(t, b) == Approx(turned.imag()).margin(1e-12));
        }
    // A rotation is orthogonal: its transpose, the backward pass, undoes it.
    rotary_backward(kind, table, rows(y), [](Index row) { return row; });
    CHECK(largest_difference(x, y) < 1e-12);
  }
}

TEST_CASE("rotary refuses positions and widths that do not fit") {
  RotaryTable<float> table;
  CHECK_THROWS_AS(table.ensure(4, 5, 10000), Error);
  table.ensure(4, 6, 10000);
  Tensor<float, 2> x(2, 12), odd(2, 10);
  x.setZero();
  odd.setZero();
  CHECK_THROWS_AS(rotary_forward(Rotary::interleaved, table, rows(x), [](Index row) { return row + 3; }), Error);
  CHECK_THROWS_AS(rotary_forward(Rotary::interleaved, table, rows(odd), [](Index row) { return row; }), Error);
}

TEST_CASE("dropout's numbers are Philox's") {
  std::vector<std::uint16_t> fates(static_cast<std::size_t>(detail::dropout_group));
  const std::uint64_t seed = 0x123456789abcdef, stream = 0xfedcba987654321, first = 0xfffffff0;
  detail::dropout_fates(seed, stream, first, fates.data());
  Rng rng(seed, stream, 4 * first);
  for (std::size_t i = 0; i < fates.size(); i += 2)
    CHECK((fates[i] | static_cast<std::uint32_t>(fates[i + 1]) << 16) == rng());
}

TEST_CASE("dropout keeps the mean, draws the same mask again, and is off in evaluation") {
  const Index count = 300, dim = 1001;
  Tensor<float, 2> ones(count, dim);
  ones.setConstant(1);
  for (const double probability : {0.1, 0.5}) {
    const DropoutState state{true, 7, 3};
    Tensor<float, 2> x = ones, again = ones;
    dropout(probability, state, 2, rows(x));
    dropout(probability, state, 2, rows(again));
    CHECK(largest_difference(x, again) == 0);
    double mean = 0, kept = 0;
    for (const float value : elements(x)) {
      mean += static_cast<double>(value) / static_cast<double>(x.size());
      kept += value > 0 ? 1.0 / static_cast<double>(x.size()) : 0;
    }
    const double deviation = std::sqrt(probability * (1 - probability) / static_cast<double>(x.size()));
    INFO("p " << probability << ", mean " << mean);
    CHECK(std::abs(kept - (1 - probability)) < 4 * deviation + 1e-5);
    CHECK(std::abs(mean - 1) < 5 * deviation / (1 - probability));
    // Other streams, steps and seeds drop other elements.
    for (const auto& [other, stream] :
         {std::pair(state, 3), {DropoutState{true, 7, 4}, 2}, {DropoutState{true, 8, 3}, 2}}) {
      again = ones;
      dropout(probability, other, static_cast<std::uint64_t>(stream), rows(again));
      CHECK(largest_difference(x, again) > 0);
    }
  }
  Tensor<float, 2> x = ones;
  dropout(0.5, DropoutState{}, 0, rows(x));
  CHECK(largest_difference(x, ones) == 0);
  dropout(0, DropoutState{true, 1, 1}, 0, rows(x));
  CHECK(largest_difference(x, ones) == 0);
  CHECK_THROWS_AS(dropout(1, DropoutState{}, 0, rows(x)), Error);
  CHECK_THROWS_AS(dropout(-0.1, DropoutState{}, 0, rows(x)), Error);
}

TEST_CASE("a residual branch is added with the mask that dropout draws, for every thread count") {
  const Index count = 133, dim = 77;
  const auto x = random_matrix<float>(count, dim, 1), branch = random_matrix<float>(count, dim, 2);
  const DropoutState state{true, 11, 5};
  Tensor<float, 2> dropped = branch, sum(count, dim);
  dropout(0.3, state, 9, rows(dropped));
  for (const int threads : {1, 2, 5}) {
    set_num_threads(threads);
    sum.setZero();
    add_with_dropout<float>(0.3, state, 9, rows(x), rows(branch), rows(sum));
    for (Index i = 0; i < x.size(); ++i) REQUIRE(sum.data()[i] == Approx(x.data()[i] + dropped.data()[i]).margin(1e-6));
    add_with_dropout<float>(0.3, DropoutState{}, 9, rows(x), rows(branch), rows(sum));
    for (Index i = 0; i < x.size(); ++i) REQUIRE(sum.data()[i] == x.data()[i] + branch.data()[i]);
  }
  set_num_threads(1);
}
