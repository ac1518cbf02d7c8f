// Kuramoto oscillators as the definition says it: every pair, every step, in double.
#pragma once

#include "rbar/kuramoto/dynamics.hpp"

#include <cmath>
#include <numbers>
#include <vector>

namespace naive {

using rbar::Index;

inline double wrapped(double angle) { return std::remainder(angle, 2 * std::numbers::pi); }

// Distance on the circle: π and −π are the same angle.
inline double angle_difference(double a, double b) { return std::abs(wrapped(a - b)); }

// dθ_t/ds of one oscillator's copies at all positions.
inline std::vector<double> velocity(const std::vector<double>& theta, double frequency, double strength,
                                    const rbar::KuramotoConfig& config) {
  std::vector<double> result(theta.size());
  for (std::size_t t = 0; t < theta.size(); ++t) {
    const std::size_t seen = config.causality == rbar::Causality::causal ? t + 1 : theta.size();
    double sum = 0;
    for (std::size_t j = 0; j < seen; ++j)
      sum +=
          config.coupling == rbar::Coupling::attractive ? std::sin(theta[j] - theta[t]) : std::sin(theta[t] - theta[j]);
    result[t] = frequency + strength * sum / static_cast<double>(seen);
  }
  return result;
}

inline std::vector<double> moved(const std::vector<double>& theta, const std::vector<double>& k, double by) {
  std::vector<double> result(theta);
  for (std::size_t t = 0; t < theta.size(); ++t) result[t] += by * k[t];
  return result;
}

inline std::vector<double> run(std::vector<double> theta, double frequency, double strength,
                               const rbar::KuramotoConfig& config) {
  const auto field = [&](const std::vector<double>& at) { return velocity(at, frequency, strength, config); };
  for (Index step = 0; step < config.n_steps; ++step) {
    const auto k1 = field(theta);
    if (config.integrator == rbar::Integrator::euler) {
      theta = moved(theta, k1, config.dt);
    } else {
      const auto k2 = field(moved(theta, k1, config.dt / 2));
      const auto k3 = field(moved(theta, k2, config.dt / 2));
      const auto k4 = field(moved(theta, k3, config.dt));
      for (std::size_t t = 0; t < theta.size(); ++t)
        theta[t] += config.dt / 6 * (k1[t] + 2 * k2[t] + 2 * k3[t] + k4[t]);
    }
    for (double& angle : theta) angle = wrapped(angle);
  }
  return theta;
}

// Angles [B, T, H·N] of a whole layer.
template <class T>
rbar::Tensor<double, 3> run(const rbar::KuramotoDynamics<T>& layer, const rbar::Tensor<T, 3>& initial) {
  const auto& config = layer.config;
  rbar::Tensor<double, 3> result(initial.dimension(0), initial.dimension(1), initial.dimension(2));
  for (Index b = 0; b < initial.dimension(0); ++b)
    for (Index w = 0; w < config.width(); ++w) {
      std::vector<double> theta;
      for (Index t = 0; t < initial.dimension(1); ++t) theta.push_back(static_cast<double>(initial(b, t, w)));
      theta = run(theta, static_cast<double>(layer.natural_frequency.data()[w]),
                  static_cast<double>(layer.coupling_strength(w / config.n_oscillators)), config);
      for (Index t = 0; t < initial.dimension(1); ++t) result(b, t, w) = theta[static_cast<std::size_t>(t)];
    }
  return result;
}

template <class T>
rbar::Tensor<T, 3> random_angles(Index batch, Index tokens, Index width, rbar::Rng& rng, double largest = 3.1) {
  rbar::Tensor<T, 3> angles(batch, tokens, width);
  for (T& angle : rbar::elements(angles)) angle = static_cast<T>(rng.uniform(-largest, largest));
  return angles;
}

}  // namespace naive
