#include "rbar/sheaf/energy_scale.hpp"

#include "rbar/core/random.hpp"
#include "rbar/sheaf/state_spread.hpp"
#include "support/catch.hpp"

#include <cmath>
#include <limits>

using namespace rbar;

TEST_CASE("the spread of the states is 0 only for collapse") {
  Rng rng(11);
  Tensor<float, 3> hidden(2, 30, 9);
  for (float& value : elements(hidden)) value = static_cast<float>(rng.normal(2, 1));
  for (Index i = 0; i < 30; ++i)
    for (Index d = 0; d < 9; ++d) hidden(1, i, d) = 0.1f * static_cast<float>(d + 1);  // collapsed
  ContextMoments moments;
  Tensor<float, 2> spread, streamed;
  relative_spread<float>(hidden, moments, spread);
  CHECK(spread(0, 0) == 1);
  CHECK(spread(1, 0) == 1);
  for (Index i = 1; i < 30; ++i) {
    double square = 0, mean_square = 0;
    for (Index d = 0; d < 9; ++d) {
      double mean = 0;
      for (Index j = 0; j <= i; ++j) {
        mean += static_cast<double>(hidden(0, j, d)) / static_cast<double>(i + 1);
        square += std::pow(static_cast<double>(hidden(0, j, d)), 2) / static_cast<double>(i + 1);
      }
      mean_square += mean * mean;
    }
    CHECK(static_cast<double>(spread(0, i)) == Approx((square - mean_square) / square).epsilon(1e-5));
    CHECK(spread(1, i) == 0);
  }
  ContextMoments stream;
  for (Index i = 0; i < 30; ++i) {
    const Tensor<float, 3> token = hidden.slice(Eigen::array<Index, 3>{0, i, 0}, Eigen::array<Index, 3>{2, 1, 9});
    relative_spread<float>(token, stream, streamed);
    CHECK(streamed(0, 0) == spread(0, i));
  }
  hidden(0, 3, 3) = std::numeric_limits<float>::infinity();
  ContextMoments other;
  CHECK_THROWS_AS(relative_spread<float>(hidden, other, spread), Error);
}

TEST_CASE("the scale follows the mean energy of each point") {
  EnergyScale<double> scale(2);
  CHECK(scale(0) == 1);
  const std::vector<double> first{10, 30}, zero{0, 0};
  CHECK(scale.adapt(0, first, 0.9) == Approx(1 / 20.0));
  CHECK(scale(0) == Approx(20));
  CHECK(scale(1) == 1);
  const std::vector<double> normalised{1.5, 2.5};  // raw mean 40
  const double change = scale.adapt(0, normalised, 0.9);
  CHECK(scale(0) == Approx(22));
  CHECK(change == Approx(20.0 / 22));
  CHECK(scale.adapt(0, zero, 0.9) == 1);
  CHECK(scale(0) == Approx(22));

  const std::vector<double> none, nan{1, std::numeric_limits<double>::quiet_NaN()};
  CHECK_THROWS_AS(scale.adapt(0, none, 0.9), Error);
  CHECK_THROWS_AS(scale.adapt(0, nan, 0.9), Error);
  CHECK_THROWS_AS(scale.adapt(2, first, 0.9), Error);
  CHECK_THROWS_AS(scale.adapt(0, first, 1.0), Error);
  CHECK(scale(0) == Approx(22));
}
