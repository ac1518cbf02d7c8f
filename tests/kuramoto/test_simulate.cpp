#include "kuramoto/naive_oscillators.hpp"
#include "rbar/kuramoto/simulate.hpp"
#include "support/catch.hpp"
#include "support/differences.hpp"

#include <limits>

using namespace rbar;

namespace {

std::vector<double> pair_velocity(const std::vector<double>& theta, const std::vector<double>& frequency, double k) {
  std::vector<double> result(theta.size());
  for (std::size_t i = 0; i < theta.size(); ++i) {
    double sum = 0;
    for (const double other : theta) sum += std::sin(other - theta[i]);
    result[i] = frequency[i] + k * sum / static_cast<double>(theta.size());
  }
  return result;
}

// Every pair, in double.
std::vector<double> simulate_pairs(std::vector<double> theta, const std::vector<double>& frequency,
                                   const SimulationConfig& config) {
  const auto field = [&](const std::vector<double>& at) { return pair_velocity(at, frequency, config.coupling); };
  for (Index step = 0; step < config.n_steps; ++step) {
    const auto k1 = field(theta);
    if (config.integrator == Integrator::euler) {
      theta = naive::moved(theta, k1, config.dt);
      continue;
    }
    const auto k2 = field(naive::moved(theta, k1, config.dt / 2));
    const auto k3 = field(naive::moved(theta, k2, config.dt / 2));
    const auto k4 = field(naive::moved(theta, k3, config.dt));
    for (std::size_t i = 0; i < theta.size(); ++i) theta[i] += config.dt / 6 * (k1[i] + 2 * k2[i] + 2 * k3[i] + k4[i]);
  }
  return theta;
}

template <class T>
void compare_with_pairs(double tolerance) {
  Rng rng(21);
  for (int round = 0; round < 40; ++round) {
    const auto count = static_cast<Index>(1 + rng.below(70));
    SimulationConfig config;
    config.coupling = rng.uniform(-3, 3);
    config.dt = rng.uniform(0.01, 0.2);
    config.n_steps = static_cast<Index>(1 + rng.below(12));
    config.burn_in = 0;
    config.integrator = all_integrators[rng.below(2)];
    std::vector<double> frequency, phases;
    std::vector<T> our_frequency, our_phases;
    for (Index i = 0; i < count; ++i) {
      our_frequency.push_back(static_cast<T>(rng.normal(0, 3)));
      our_phases.push_back(static_cast<T>(rng.uniform(-9, 9)));  // any angle, not only a wrapped one
      frequency.push_back(static_cast<double>(our_frequency.back()));
      phases.push_back(static_cast<double>(our_phases.back()));
    }
    const auto run = simulate<T>(our_frequency, our_phases, config);
    const auto expected = simulate_pairs(phases, frequency, config);
    INFO("round " << round << " count " << count << " " << name_of(config.integrator));
    double cosine = 0, sine = 0, worst = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      cosine += std::cos(expected[i]) / static_cast<double>(count);
      sine += std::sin(expected[i]) / static_cast<double>(count);
      worst = test::larger(worst, naive::angle_difference(static_cast<double>(run.angles[i]), expected[i]));
      REQUIRE(std::abs(run.angles[i]) <= static_cast<T>(3.1416));
    }
    CHECK(worst <= tolerance);
    REQUIRE(std::ssize(run.order) == config.n_steps + 1);
    CHECK(std::abs(run.order.back() - std::hypot(cosine, sine)) <= tolerance);
  }
}

struct Population {
  std::vector<double> frequencies, phases;
  Population(const FrequencyDensity& density, Index count) : frequencies(density.quantiles<double>(count)) {
    Rng rng(4);
    phases = random_phases<double>(count, rng);
  }
};

SimulationConfig long_run() {
  SimulationConfig config;
  config.dt = 0.1;
  config.n_steps = 600;
  config.burn_in = 300;
  return config;
}

}  // namespace

TEST_CASE("an ensemble moves as the sum over pairs says") {
  compare_with_pairs<double>(1e-11);
  compare_with_pairs<float>(1e-4);  // steps of an expanding map: up to (1 + .2·3)^12 times the rounding
}

TEST_CASE("R of Lorentzian frequencies follows the theory on both sides of K_c") {
  const FrequencyDensity density{.shape = FrequencyShape::lorentzian, .width = 0.5};
  const double critical = density.critical_coupling();
  CHECK(std::abs(critical - 1) <= 1e-12);  // 2γ
  constexpr Index count = 1000;
  const Population population(density, count);
  const double couplings[] = {0.3, 0.5, 1.3, 1.7, 2.5};
  const auto points = coupling_sweep<double>(population.frequencies, population.phases, couplings, long_run());
  const double noise = 1 / std::sqrt(static_cast<double>(count));
  for (const SweepPoint& point : points) {
    INFO("K " << point.coupling << " R " << point.order << " ± " << point.order_deviation);
    // Below K_c the linear theory gives fluctuations of 1/√(N(1 − K/K_c)); above it R fluctuates by as little, and the
    // mean over 30 units of time less.
    if (point.coupling < critical)
      CHECK(point.order <= 2 * noise / std::sqrt(1 - point.coupling));
    else
      CHECK(std::abs(point.order - std::sqrt(1 - critical / point.coupling)) <= 0.5 * noise);
  }
}

TEST_CASE("K_c is read off the curve") {
  for (const FrequencyShape shape : {FrequencyShape::lorentzian, FrequencyShape::gaussian}) {
    const FrequencyDensity density{.shape = shape, .center = 0.3};
    const Population population(density, 1000);
    std::vector<double> couplings;
    for (int i = 0; i < 8; ++i) couplings.push_back(density.critical_coupling() * (1.06 + 0.03 * i));
    const auto points = coupling_sweep<double>(population.frequencies, population.phases, couplings, long_run());
    INFO(name_of(shape));
    CHECK(std::abs(estimate_critical_coupling(points) / density.critical_coupling() - 1) <= 0.03);
  }
}

TEST_CASE("what infinitely many oscillators do") {
  const double pi = std::numbers::pi;
  const FrequencyDensity lorentzian{.shape = FrequencyShape::lorentzian, .center = -2, .width = 0.3};
  const FrequencyDensity gaussian{.shape = FrequencyShape::gaussian, .center = 5, .width = 2};
  const FrequencyDensity uniform{.shape = FrequencyShape::uniform, .width = 0.7};
  CHECK(std::abs(lorentzian.critical_coupling() - 0.6) <= 1e-12);
  CHECK(std::abs(gaussian.critical_coupling() - 2 * std::sqrt(8 / pi)) <= 1e-12);
  CHECK(std::abs(uniform.critical_coupling() - 4 * 0.7 / pi) <= 1e-12);
  for (const double k : {0.1, 0.6, 0.61, 0.8, 1.5, 20.0})
    CHECK(std::abs(lorentzian.order_parameter(k) - std::sqrt(std::max(0.0, 1 - 0.6 / k))) <= 1e-6);
  // Uniform: nothing, then all at once R = π/4 (Pazó 2005).
  CHECK(uniform.order_parameter(uniform.critical_coupling()) == 0);
  CHECK(std::abs(uniform.order_parameter(uniform.critical_coupling() * (1 + 1e-9)) - pi / 4) <= 1e-3);
  // Near the onset R² = 16μ/(π K_c³ |g''|), K = K_c(1 + μ), but for a share of order μ; g'' = −g/σ² at the centre.
  const double k_c = gaussian.critical_coupling(), curvature = gaussian(5) / 4;
  const double mu = 1e-3, expected = std::sqrt(16 * mu / (pi * k_c * k_c * k_c * curvature));
  CHECK(std::abs(gaussian.order_parameter(k_c * (1 + mu)) / expected - 1) <= 5 * mu);
}

TEST_CASE("samples of the densities") {
  for (const FrequencyShape shape : all_frequency_shapes) {
    const FrequencyDensity density{.shape = shape, .center = 1, .width = 2};
    INFO(name_of(shape));
    FrequencyShape read{};
    CHECK((parse(name_of(shape), read) && read == shape));
    const auto even = density.quantiles<double>(2001);
    CHECK(std::abs(even[1000] - 1) <= 1e-12);
    for (std::size_t i = 0; i + 1 < even.size(); ++i) REQUIRE(even[i] < even[i + 1]);
    for (std::size_t i = 0; i < 1000; ++i) REQUIRE(std::abs(even[i] + even[2000 - i] - 2) <= 1e-9 * even[2000]);
    // Each gap holds a 2001st of g; the midpoint rule errs by its curvature there, small around the centre.
    for (std::size_t i = 500; i < 1500; ++i)
      REQUIRE(std::abs((even[i + 1] - even[i]) * density(0.5 * (even[i] + even[i + 1])) * 2001 - 1) <= 1e-5);
    Rng rng(8);
    const auto drawn = density.sample<float>(4000, rng);
    // A quarter lies below the lower quartile: binomial, 4 deviations of √(.25·.75/4000).
    const auto below = std::count_if(drawn.begin(), drawn.end(), [&](float w) { return w < density.quantile(0.25); });
    CHECK(std::abs(static_cast<double>(below) / 4000 - 0.25) <= 4 * std::sqrt(0.25 * 0.75 / 4000));
  }
  const FrequencyDensity normal{.shape = FrequencyShape::gaussian};
  for (const double p : {1e-12, 1e-4, 0.3, 0.5, 0.9, 1 - 1e-9})
    CHECK(std::abs(0.5 * std::erfc(-normal.quantile(p) / std::numbers::sqrt2) - p) <= 1e-12 * std::max(p, 1e-4));
}

TEST_CASE("Euler's error falls with dt, Runge-Kutta's with its fourth power") {
  const Population population({.shape = FrequencyShape::gaussian}, 33);
  SimulationConfig config;
  config.coupling = 1.5;
  const auto end = [&](Integrator integrator, Index steps) {
    config.integrator = integrator;
    config.n_steps = steps;
    config.burn_in = 0;
    config.dt = 2.0 / static_cast<double>(steps);
    return simulate<double>(population.frequencies, population.phases, config).angles;
  };
  const auto exact = end(Integrator::rk4, 2048);
  const auto error = [&](Integrator integrator, Index steps) {
    const auto angles = end(integrator, steps);
    double worst = 0;
    for (std::size_t i = 0; i < angles.size(); ++i)
      worst = test::larger(worst, naive::angle_difference(angles[i], exact[i]));
    return worst;
  };
  const double euler = error(Integrator::euler, 64) / error(Integrator::euler, 128);
  const double rk4 = error(Integrator::rk4, 16) / error(Integrator::rk4, 32);
  CHECK((euler > 1.8 && euler < 2.2));
  CHECK((rk4 > 12 && rk4 < 20));
}

TEST_CASE("symmetries of an ensemble") {
  const Population population({.shape = FrequencyShape::gaussian, .width = 0.5}, 100);
  auto config = long_run();
  config.coupling = 0.9;
  const auto run = simulate<double>(population.frequencies, population.phases, config);
  auto faster = population.frequencies;
  for (double& frequency : faster) frequency += 0.7;
  const auto rotating = simulate<double>(faster, population.phases, config);
  for (std::size_t t = 0; t < 60; ++t) REQUIRE(std::abs(run.order[t] - rotating.order[t]) <= 1e-9);

  const std::vector<double> alike(100, 0.4);
  for (const double coupling : {1.0, -1.0}) {
    config.coupling = coupling;
    const auto equal = simulate<double>(alike, population.phases, config);
    for (std::size_t t = 0; t + 1 < equal.order.size(); ++t)
      REQUIRE(coupling * (equal.order[t + 1] - equal.order[t]) >= -1e-12);
  }
}

TEST_CASE("threads do not change a simulation") {
  const FrequencyDensity density;
  Rng rng(3);
  const auto frequencies = density.sample<float>(40000, rng);  // three chunks
  const auto phases = random_phases<float>(40000, rng);
  SimulationConfig config;
  config.coupling = 3;
  config.n_steps = 20;
  config.burn_in = 10;
  const double couplings[] = {1, 2, 3};
  const auto all = [&] {
    auto result = simulate<float>(frequencies, phases, config).order;
    for (const SweepPoint& point : coupling_sweep<float>(frequencies, phases, couplings, config))
      result.push_back(point.order), result.push_back(point.order_deviation);
    return result;
  };
  const auto alone = all();
  CHECK(alone[alone.size() - 2] == simulate<float>(frequencies, phases, config).mean_order);
  set_num_threads(3);
  CHECK(all() == alone);
  set_num_threads(1);
}

TEST_CASE("a simulation says what is wrong with it") {
  const std::vector<double> three = {1, 2, 3}, two = {1, 2};
  const SimulationConfig good;
  CHECK_THROWS_WITH(simulate<double>({}, {}, good), ContainsText("at least one oscillator"));
  CHECK_THROWS_WITH(simulate<double>(three, two, good), ContainsText("simulate: phases"));
  for (const double bad : {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    const std::vector<double> spoilt = {1, bad, 3};
    CHECK_THROWS_WITH(simulate<double>(spoilt, three, good), ContainsText("finite"));
    CHECK_THROWS_WITH(simulate<double>(three, spoilt, good), ContainsText("finite"));
    CHECK_THROWS_AS(critical_coupling(bad), Error);
  }
  for (const auto spoil : {+[](SimulationConfig& c) { c.coupling = NAN; }, +[](SimulationConfig& c) { c.dt = 0; },
                           +[](SimulationConfig& c) { c.n_steps = 0; }, +[](SimulationConfig& c) { c.burn_in = -1; },
                           +[](SimulationConfig& c) { c.burn_in = c.n_steps; }}) {
    SimulationConfig bad;
    spoil(bad);
    CHECK_THROWS_AS(simulate<double>(three, three, bad), Error);
    const double coupling[] = {1.0};
    if (std::isfinite(bad.coupling)) CHECK_THROWS_AS(coupling_sweep<double>(three, three, coupling, bad), Error);
  }
  CHECK_THROWS_AS((FrequencyDensity{.width = 0}.quantiles<double>(3)), Error);
  CHECK_THROWS_AS((FrequencyDensity{.center = NAN}.quantiles<double>(3)), Error);
  CHECK_THROWS_AS(FrequencyDensity{}.quantiles<double>(0), Error);
  CHECK_THROWS_AS(FrequencyDensity{}.quantile(0), Error);
  CHECK_THROWS_AS(critical_coupling(0), Error);
  const SweepPoint flat[] = {{1, 0.4, 0}, {2, 0.5, 0}, {3, 0.9, 0}};
  CHECK_THROWS_WITH(estimate_critical_coupling(flat), ContainsText("three or more"));
}
