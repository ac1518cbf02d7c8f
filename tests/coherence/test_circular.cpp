#include "rbar/coherence/circular.hpp"
#include "rbar/core/random.hpp"
#include "rbar/core/tensor.hpp"
#include "support/catch.hpp"

#include <vector>

using namespace rbar;

namespace {

constexpr double pi = std::numbers::pi;

// Best & Fisher's (1979) rejection sampler of a von Mises distribution.
double von_mises_sample(double mean, double kappa, Rng& rng) {
  const double tau = 1 + std::sqrt(1 + 4 * kappa * kappa), rho = (tau - std::sqrt(2 * tau)) / (2 * kappa);
  const double r = (1 + rho * rho) / (2 * rho);
  for (;;) {
    const double z = std::cos(pi * rng.uniform()), f = (1 + r * z) / (r + z), c = kappa * (r - f),
                 u = 1 - rng.uniform();
    if (c * (2 - c) > u || std::log(c / u) + 1 - c >= 0) return mean + (rng.uniform() < 0.5 ? -1 : 1) * std::acos(f);
  }
}

// ∫ cos θ e^{κ cos θ} / ∫ e^{κ cos θ} by the trapezium rule, which converges exponentially on a circle.
double resultant_length_by_integral(double kappa) {
  double weight = 0, moment = 0;
  for (int i = 0; i < 20000; ++i) {
    const double c = std::cos(2 * pi * i / 20000), w = std::exp(kappa * (c - 1));
    weight += w;
    moment += c * w;
  }
  return moment / weight;
}

}  // namespace

TEMPLATE_TEST_CASE("mean direction, variance and order parameter of known angles", "[circular]", float, double) {
  using T = TestType;
  const std::vector<T> angles = {T(0.1), T(0.1 + pi / 2)};
  CHECK(mean_direction(angles) == Approx(0.1 + pi / 4).epsilon(1e-6));
  CHECK(circular_variance(angles) == Approx(1 - std::sqrt(0.5)).epsilon(1e-6));
  CHECK(std::abs(order_parameter(angles)) == Approx(std::sqrt(0.5)).epsilon(1e-6));

  // Where averaging the numbers fails: 350° and 10° point to 0°.
  const std::vector<T> around_zero = {T(350 * pi / 180), T(10 * pi / 180)};
  CHECK(mean_direction(around_zero) == Approx(0.0).margin(1e-6));

  const std::vector<T> same(100, T(2.5));
  const auto s = circular_statistics(same);
  CHECK(s.mean_direction == Approx(2.5).epsilon(1e-6));
  CHECK(s.resultant_length == Approx(1.0).epsilon(1e-6));
  CHECK(s.variance == Approx(0.0).margin(1e-6));

  std::vector<T> spread;
  for (int i = 0; i < 37; ++i) spread.push_back(static_cast<T>(2 * pi * i / 37 + 0.3));
  CHECK(circular_statistics(spread).resultant_length == Approx(0.0).margin(1e-6));
  CHECK_THROWS_AS(mean_direction(std::vector<T>{}), Error);

  const auto unknown = circular_statistics(std::vector<T>{T(1), std::numeric_limits<T>::quiet_NaN()});
  CHECK(std::isnan(unknown.resultant_length));
  CHECK(std::isnan(unknown.deviation));
}

TEST_CASE("circular deviation recovers the spread of a wrapped normal", "[circular]") {
  Rng rng(5);
  Tensor<double, 1> angles(20000);
  for (double& angle : elements(angles)) angle = rng.normal(1.0, 0.8);
  const auto s = circular_statistics(elements(angles));
  CHECK(s.mean_direction == Approx(1.0).margin(0.02));
  CHECK(s.deviation == Approx(0.8).margin(0.02));
}

TEST_CASE("the Rayleigh test rejects uniform angles as often as it says, and finds a direction", "[circular]") {
  Rng rng(6);
  constexpr int trials = 4000;
  for (const int count : {10, 50}) {
    int rejected = 0;
    std::vector<double> angles(static_cast<std::size_t>(count));
    for (int trial = 0; trial < trials; ++trial) {
      for (double& angle : angles) angle = rng.uniform(0, 2 * pi);
      rejected += rayleigh_test(angles).p_value < 0.05;
    }
    // Binomial deviation √(.05·.95/4000) = .0034.
    CHECK(rejected / double(trials) == Approx(0.05).margin(0.0125));
  }
  std::vector<double> angles(200);
  for (double& angle : angles) angle = von_mises_sample(1.0, 1.0, rng);
  CHECK(rayleigh_test(angles).p_value < 1e-6);

  const auto test = rayleigh_test(0.1, 1e8);  // no cancellation at large counts: p = e^{−z} in the limit
  CHECK(test.statistic == Approx(1e6));
  CHECK(rayleigh_test(1e-4, 1e8).p_value == Approx(std::exp(-1.0)).epsilon(1e-3));
  CHECK_THROWS_AS(rayleigh_test(1.5, 10), Error);
}

TEST_CASE("von Mises concentration inverts the Bessel ratio", "[circular]") {
  CHECK(von_mises_resultant_length(0) == 0);
  for (const double kappa : {0.01, 0.3, 1.0, 2.5, 10.0, 80.0, 700.0}) {
    const double r = resultant_length_by_integral(kappa);
    INFO("kappa " << kappa);
    CHECK(von_mises_resultant_length(kappa) == Approx(r).epsilon(1e-9));
    CHECK(von_mises_kappa(r) == Approx(kappa).epsilon(1e-6));
  }
  for (const double kappa : {5e3, 9.9e3, 1.01e4, 1e6})
    CHECK(von_mises_kappa(von_mises_resultant_length(kappa)) == Approx(kappa).epsilon(1e-4));
  CHECK(von_mises_kappa(0.0) == 0);
  CHECK(std::isinf(von_mises_kappa(1.0)));
  CHECK_THROWS_AS(von_mises_kappa(-0.1), Error);

  Rng rng(7);
  std::vector<double> angles(20000);
  for (double& angle : angles) angle = von_mises_sample(-2.0, 3.0, rng);
  CHECK(von_mises_kappa(angles) == Approx(3.0).epsilon(0.03));
  CHECK(mean_direction(angles) == Approx(-2.0).margin(0.02));
}
