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
  double threshold = 0, share = 0, epsilon = 0;
  for (int i = 0; i <= 1000; ++i) {
    const double pressure = i / 1000.0;
    const double next_threshold = pressed_threshold(0.6, std::span<const double>(curve), pressure);
    CHECK(next_threshold >= threshold);
    CHECK(pressed_share(0.3, pressure) >= share);
    CHECK(pressed_epsilon(1e-3, pressure) >= epsilon);
    threshold = next_threshold, share = pressed_share(0.3, pressure), epsilon = pressed_epsilon(1e-3, pressure);
  }
  CHECK(pressed_epsilon(1e-3, 0) == 1e-3);
  CHECK(pressed_epsilon(1e-3, 0.5) == Approx(1e-2));
  CHECK(pressed_epsilon(1e-3, 1) == Approx(0.1));
  CHECK(pressed_epsilon(0.3, 1) == Approx(0.3));  // never below what was asked for
  CHECK(pressed_epsilon(0, 0) == 0);
  CHECK(pressed_epsilon(0, 1) == Approx(0.1));
}

TEST_CASE("a pressure outside [0, 1] is an error") {
  const std::vector<double> curve{1, 2};
  for (const double bad : {-0.01, 1.01, std::numeric_limits<double>::quiet_NaN()}) {
    CHECK_THROWS_WITH(pressed_threshold(1, std::span<const double>(curve), bad), ContainsText("pressure"));
    CHECK_THROWS_WITH(pressed_epsilon(1e-3, bad), ContainsText("pressure"));
  }
}
