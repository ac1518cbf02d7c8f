// Kuramoto's model by itself: N oscillators, each with a natural frequency of its own, all pulling at all,
//   dθ_i/dt = ω_i + K/N Σ_j sin(θ_j − θ_i) = ω_i + K(S cos θ_i − C sin θ_i),   C, S = mean cos, mean sin,
// O(N) a step. R(t) = |mean e^{iθ}| tells whether they synchronise; the K from which they do is K_c
// (frequency_density.hpp). Source: Kuramoto 1975, as there.
#pragma once

#include "rbar/core/parallel.hpp"
#include "rbar/kuramoto/dynamics_config.hpp"
#include "rbar/kuramoto/frequency_density.hpp"
#include "rbar/simd/ensemble.hpp"

#include <Eigen/LU>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <span>
#include <utility>
#include <vector>

namespace rbar {

struct SimulationConfig {
  double coupling = 1;  // K; negative repels
  double dt = 0.05;     // a frequency of 2π/dt stands still for the integrator: keep nearly all of them far below
  Index n_steps = 2000;
  Index burn_in = 1000;  // steps that the mean of R leaves out
  Integrator integrator = Integrator::rk4;

  template <class Visit>
  void fields(Visit&& visit) {
    visit("coupling", coupling);
    visit("dt", dt);
    visit("n_steps", n_steps);
    visit("burn_in", burn_in);
    visit("integrator", integrator);
  }
  void validate() const {
    constexpr const char* where = "SimulationConfig";
    require(std::isfinite(coupling), where, "coupling", "a finite number", coupling);
    require(dt > 0 && std::isfinite(dt), where, "dt", "a positive number", dt);
    require(n_steps >= 1, where, "n_steps", "at least 1", n_steps);
    require(burn_in >= 0 && burn_in < n_steps, where, "burn_in", "from 0 to less than n_steps", burn_in);
  }
};

template <class T>
struct Simulation {
  std::vector<double> order;                   // R before the first step and after each of them
  double mean_order = 0, order_deviation = 0;  // of R after the burn-in: mean, standard deviation
  std::vector<T> angles;                       // at the end, wrapped to [−π, π]
};

// Uniform on the circle.
template <class T>
std::vector<T> random_phases(Index count, Rng& rng) {
  std::vector<T> angles;
  angles.reserve(static_cast<std::size_t>(count));
  for (Index i = 0; i < count; ++i) angles.push_back(static_cast<T>(std::numbers::pi * (2 * rng.uniform() - 1)));
  return angles;
}

// Errors: no oscillators, not as many phases as frequencies, one that is not finite, a bad configuration.
template <class T>
Simulation<T> simulate(std::type_identity_t<std::span<const T>> frequency,
                       std::type_identity_t<std::span<const T>> phases, const SimulationConfig& config) {
  config.validate();
  require(!frequency.empty(), "simulate", "frequency", "at least one oscillator", frequency.size());
  require(phases.size() == frequency.size(), "simulate", "phases", frequency.size(), phases.size());
  for (const auto values : {frequency, phases})
    for (const T value : values) require(std::isfinite(value), "simulate", "frequency, phases", "finite", value);

  const Index count = std::ssize(frequency);
  constexpr Index chunk = 16384;  // oscillators a thread takes at a time
  const std::size_t size = frequency.size();
  std::vector<T> start(size), moved(size), cosine(size), sine(size);
  for (std::size_t i = 0; i < size; ++i)
    start[i] = static_cast<T>(std::remainder(static_cast<double>(phases[i]), 2 * std::numbers::pi));
  moved = start;
  std::vector<simd::PhaseSums> partial(static_cast<std::size_t>((count + chunk - 1) / chunk));
  simd::PhaseSums mean;
  // body(first, oscillators) -> sums of the phasors; their mean, added up in a fixed order.
  const auto for_all = [&](auto&& body) {
    parallel_for(count, chunk, [&](Index begin, Index end) {
      partial[static_cast<std::size_t>(begin / chunk)] = body(begin, end - begin);
    });
    mean = {};
    for (const simd::PhaseSums& sums : partial)
      mean.cosine += sums.cosine / static_cast<double>(count), mean.sine += sums.sine / static_cast<double>(count);
  };

  Simulation<T> run;
  run.order.reserve(static_cast<std::size_t>(config.n_steps) + 1);
  const auto observe = [&] { run.order.push_back(std::min(std::hypot(mean.cosine, mean.sine), 1.0)); };
  for_all([&](Index i, Index n) {
    return simd::ensemble_phasors<T>(start.data() + i, n, cosine.data() + i, sine.data() + i);
  });
  observe();
  const simd::OscillatorSteps steps{config.n_steps, config.dt, config.integrator == Integrator::rk4};
  for (Index step = 0; step < config.n_steps; ++step) {
    for (Index s = 0; s < steps.stages(); ++s) {
      simd::EnsembleStage<T> stage;
      stage.strength_cosine = static_cast<T>(config.coupling * mean.cosine);
      stage.strength_sine = static_cast<T>(config.coupling * mean.sine);
      stage.weight = static_cast<T>(config.dt * (steps.runge_kutta ? simd::detail::rk_weight[s] : 1.0));
      stage.reach = static_cast<T>(config.dt * simd::detail::rk_reach[s]);
      stage.last = s + 1 == steps.stages();
      for_all([&](Index i, Index n) {
        return simd::ensemble_stage<T>(stage, frequency.data() + i, n, start.data() + i, moved.data() + i,
                                       cosine.data() + i, sine.data() + i);
      });
    }
    observe();
  }
  const std::span<const double> late = std::span(run.order).subspan(static_cast<std::size_t>(config.burn_in) + 1);
  for (const double r : late) run.mean_order += r / static_cast<double>(late.size());
  for (const double r : late)
    run.order_deviation += (r - run.mean_order) * (r - run.mean_order) / static_cast<double>(late.size());
  run.order_deviation = std::sqrt(run.order_deviation);
  run.angles = std::move(start);
  return run;
}

// R(K): a simulation for each K, all from the same phases.
struct SweepPoint {
  double coupling = 0, order = 0, order_deviation = 0;
};
template <class T>
std::vector<SweepPoint> coupling_sweep(std::type_identity_t<std::span<const T>> frequency,
                                       std::type_identity_t<std::span<const T>> phases,
                                       std::span<const double> couplings, const SimulationConfig& config) {
  std::vector<SweepPoint> points(couplings.size());
  parallel_for(std::ssize(couplings), 1, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      const auto at = static_cast<std::size_t>(i);
      SimulationConfig one = config;
      one.coupling = couplings[at];
      const Simulation<T> run = simulate<T>(frequency, phases, one);
      points[at] = {one.coupling, run.mean_order, run.order_deviation};
    }
  });
  return points;
}

// K_c from a measured curve: 1/K is a smooth function of R², 1/K_c at R = 0 (for the Lorentzian (1 − R²)/K_c), so the
// best parabola through the points with an R between `lowest` (under it a finite N blurs the onset) and `highest` is
// drawn on to R = 0. For densities whose R starts from 0 there, not the uniform one, where it jumps. Errors: fewer than
// three points in there.
inline double estimate_critical_coupling(std::span<const SweepPoint> points, double lowest = 0.3,
                                         double highest = 0.7) {
  Eigen::Matrix3d normal = Eigen::Matrix3d::Zero();  // of least squares
  Eigen::Vector3d right = Eigen::Vector3d::Zero();
  Index used = 0;
  for (const SweepPoint& p : points) {
    if (!(p.coupling > 0 && p.order >= lowest && p.order <= highest)) continue;
    const double square = p.order * p.order;
    const Eigen::Vector3d powers(1, square, square * square);
    normal += powers * powers.transpose();
    right += powers / p.coupling;
    ++used;
  }
  require(used >= 3, "estimate_critical_coupling", "points", "three or more between the lowest and the highest R",
          used);
  const double at_zero = (normal.inverse() * right)(0);
  require(at_zero > 0 && std::isfinite(at_zero), "estimate_critical_coupling", "points", "R that grows with K",
          at_zero);
  return 1 / at_zero;
}

}  // namespace rbar
