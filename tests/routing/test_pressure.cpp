#include "rbar/routing/pressure.hpp"

#include "support/catch.hpp"

#include <limits>
#include <vector>

using namespace rbar;

TEST_CASE("pressure moves along the curve, from what it was to everything") {
  const std::vector<float> curve{1, 1.5f, 2, 4, 8};
  const std::span<const float> points(curve);
  CHECK(pressed_threshold(1, points, 0) == 1);
  CHECK(pressed_threshold(1, points, 0.25) == Approx(1.5));
  CHECK(pressed_threshold(1, points, 0.375) == Approx(1.75));
  CHECK(pressed_threshold(1, points, 1) == Approx(8));
  CHECK(pressed_threshold(1.25, points, 0.5) == Approx(2.25));  // a threshold at rest beside its quantile
  CHECK(pressed_threshold(3, std::span<const float>(), 0.5) == 3);
  CHECK(pressed_share(0.6, 0) == 0.6);
  CHECK(pressed_share(0.6, 0.5) == Approx(0.8));
  CHECK(pressed_share(0.6, 1) == Approx(1));
}

TEST_CASE("every knob is monotone in the pressure") {
  const std::vector<double> curve{0.5, 0.5, 0.9, 1.1, 5};
  SparsityConfig sparsity;
  double threshold = 0, share = 0;
  for (int i = 0; i <= 1000; ++i) {
    const double pressure = i / 1000.0;
    const double next_threshold = pressed_threshold(0.6, std::span<const double>(curve), pressure);
    const SparsityConfig next = pressed_sparsity(SparsityConfig{}, pressure);
    CHECK(next_threshold >= threshold);
    CHECK(pressed_share(0.3, pressure) >= share);
    CHECK(next.epsilon >= sparsity.epsilon);
    CHECK(next.keep_share <= sparsity.keep_share);
    CHECK_NOTHROW(next.validate());
    threshold = next_threshold, share = pressed_share(0.3, pressure), sparsity = next;
  }
}

TEST_CASE("attention gets sparser under pressure") {
  const auto epsilon = [](double from, double pressure) {
    SparsityConfig config;
    config.epsilon = from;
    return pressed_sparsity(config, pressure).epsilon;
  };
  CHECK(epsilon(1e-3, 0) == 1e-3);
  CHECK(epsilon(1e-3, 0.5) == Approx(1e-2));
  CHECK(epsilon(1e-3, 1) == Approx(0.1));
  CHECK(epsilon(0.3, 1) == 0.3);  // never below what was asked for
  CHECK(epsilon(0, 0) == 0);
  CHECK(epsilon(0, 1) == Approx(0.1));
  CHECK(pressed_sparsity(SparsityConfig{}, 1).keep_share == Approx(SparsityConfig{}.keep_share / 2));
  CHECK(!pressed_sparsity(SparsityConfig{}, 1).enabled);
}

TEST_CASE("a pressure outside [0, 1] is an error") {
  const std::vector<double> curve{1, 2};
  for (const double bad : {-0.01, 1.01, std::numeric_limits<double>::quiet_NaN()}) {
    CHECK_THROWS_WITH(pressed_threshold(1, std::span<const double>(curve), bad), ContainsText("pressure"));
    CHECK_THROWS_WITH(pressed_sparsity(SparsityConfig{}, bad), ContainsText("pressure"));
  }
}
