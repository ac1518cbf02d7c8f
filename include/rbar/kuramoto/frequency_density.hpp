// Densities of natural frequencies g(ω), symmetric and falling from their centre, and what the mean-field theory says
// of infinitely many oscillators drawn from them: they begin to synchronise at
//   K_c = 2/(π g(0)),
// and above it R solves  1 = K ∫ cos²θ g(K R sin θ) dθ  over (−π/2, π/2), ω measured from the centre. For the
// Lorentzian that is R = √(1 − K_c/K). Source: Kuramoto, "Self-entrainment of a population of coupled non-linear
// oscillators", 1975; Strogatz, "From Kuramoto to Crawford", Physica D 143, 2000.
#pragma once

#include "rbar/core/error.hpp"
#include "rbar/core/random.hpp"
#include "rbar/core/tensor.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <string_view>
#include <vector>

namespace rbar {

enum class FrequencyShape { lorentzian, gaussian, uniform };

inline constexpr FrequencyShape all_frequency_shapes[] = {FrequencyShape::lorentzian, FrequencyShape::gaussian,
                                                          FrequencyShape::uniform};
constexpr const char* name_of(FrequencyShape shape) {
  constexpr const char* names[] = {"lorentzian", "gaussian", "uniform"};
  return names[static_cast<int>(shape)];
}
constexpr bool parse(std::string_view text, FrequencyShape& shape) {
  for (const FrequencyShape candidate : all_frequency_shapes)
    if (text == name_of(candidate)) return shape = candidate, true;
  return false;
}

// 2/(π g(0)), from the density at its centre.
inline double critical_coupling(double density_at_center) {
  require(density_at_center > 0 && std::isfinite(density_at_center), "critical_coupling", "density_at_center",
          "a positive number", density_at_center);
  return 2 / (std::numbers::pi * density_at_center);
}

struct FrequencyDensity {
  FrequencyShape shape = FrequencyShape::lorentzian;
  double center = 0;
  double width = 1;  // half width at half maximum, standard deviation, or half the interval

  template <class Visit>
  void fields(Visit&& visit) {
    visit("shape", shape);
    visit("center", center);
    visit("width", width);
  }
  void validate() const {
    require(std::isfinite(center), "FrequencyDensity", "center", "a finite number", center);
    require(width > 0 && std::isfinite(width), "FrequencyDensity", "width", "a positive number", width);
  }

  // g(ω).
  double operator()(double frequency) const {
    const double x = (frequency - center) / width;
    switch (shape) {
      case FrequencyShape::lorentzian:
        return std::numbers::inv_pi / (width * (1 + x * x));
      case FrequencyShape::gaussian:
        return std::exp(-0.5 * x * x) / (width * std::sqrt(2 * std::numbers::pi));
      case FrequencyShape::uniform:
        break;
    }
    return std::abs(x) <= 1 ? 0.5 / width : 0.0;
  }

  // The frequency below which a share 0 < p < 1 of them lies.
  double quantile(double p) const {
    require(p > 0 && p < 1, "FrequencyDensity::quantile", "p", "between 0 and 1", p);
    switch (shape) {
      case FrequencyShape::lorentzian:
        return center + width * std::tan(std::numbers::pi * (p - 0.5));
      case FrequencyShape::gaussian:
        return center + width * normal_quantile(p);
      case FrequencyShape::uniform:
        break;
    }
    return center + width * (2 * p - 1);
  }

  // The quantiles of (i + ½)/count: as even a sample as there is. What is left of chance is in the first phases.
  template <class T>
  std::vector<T> quantiles(Index count) const {
    return draw<T>(count, [&](Index i) { return (static_cast<double>(i) + 0.5) / static_cast<double>(count); });
  }
  template <class T>
  std::vector<T> sample(Index count, Rng& rng) const {
    return draw<T>(count, [&](Index) { return std::max(rng.uniform(), 0x1.0p-54); });
  }

  double critical_coupling() const { return rbar::critical_coupling((*this)(center)); }

  // R of infinitely many oscillators, 0 up to K_c; within about 1e-6.
  double order_parameter(double coupling) const {
    if (!(coupling > critical_coupling())) return 0;
    // x = K·R: 1/K = ∫ cos²θ g(x sin θ) dθ falls with x.
    double low = 0, high = coupling;
    for (int i = 0; i < 60; ++i) {
      const double middle = 0.5 * (low + high);
      (coupling * locked_integral(middle) > 1 ? low : high) = middle;
    }
    return low / coupling;
  }

 private:
  template <class T, class Share>
  std::vector<T> draw(Index count, Share&& share) const {
    validate();
    require(count >= 1, "FrequencyDensity", "count", "at least 1", count);
    std::vector<T> frequencies;
    frequencies.reserve(static_cast<std::size_t>(count));
    for (Index i = 0; i < count; ++i) frequencies.push_back(static_cast<T>(quantile(share(i))));
    return frequencies;
  }

  // By bisection of erfc, of the smaller tail, so that the extreme ones are exact too.
  static double normal_quantile(double p) {
    const double tail = std::min(p, 1 - p);
    double low = -40, high = 0;
    for (int i = 0; i < 60; ++i) {
      const double middle = 0.5 * (low + high);
      (0.5 * std::erfc(-middle / std::numbers::sqrt2) < tail ? low : high) = middle;
    }
    return p < 0.5 ? low : -low;
  }

  // ∫ cos²θ g(x sin θ) dθ over the oscillators that lock, by Simpson's rule.
  double locked_integral(double x) const {
    const bool cut = shape == FrequencyShape::uniform && x > width;
    const double reach = cut ? std::asin(width / x) : 0.5 * std::numbers::pi;
    constexpr int intervals = 1024;
    double sum = 0;
    for (int i = 0; i <= intervals; ++i) {
      const double theta = reach * i / intervals, cosine = std::cos(theta);
      const double frequency = cut ? std::min(x * std::sin(theta), width) : x * std::sin(theta);
      const double weight = i == 0 || i == intervals ? 1 : i % 2 == 1 ? 4 : 2;
      sum += weight * cosine * cosine * (*this)(center + frequency);
    }
    return 2 * sum * reach / (3 * intervals);
  }
};

}  // namespace rbar
