// Circular statistics of angles in radians (Mardia & Jupp, "Directional Statistics", 2000; Fisher, "Statistical
// Analysis of Circular Data", 1993). All take any contiguous range of float or double (std::vector, std::span,
// rbar::elements(tensor)), reduce in double, and throw rbar::Error when it is empty.
//
//   const auto s = rbar::circular_statistics(phases);
//   s.mean_direction, s.resultant_length, s.variance, s.deviation
//   if (rbar::rayleigh_test(phases).p_value < 0.05) ...   // the phases have a preferred direction
#pragma once

#include "rbar/core/error.hpp"
#include "rbar/simd/phase.hpp"

#include <cmath>
#include <complex>
#include <limits>
#include <numbers>
#include <ranges>

namespace rbar {

template <class Angles>
concept AngleRange = std::ranges::contiguous_range<Angles> && std::ranges::sized_range<Angles> &&
    std::floating_point<std::ranges::range_value_t<Angles>>;

// r·e^{iψ} = 1/N Σ e^{iφ}: the order parameter of Kuramoto. |.| is R̄, its argument the mean direction.
template <AngleRange Angles>
std::complex<double> order_parameter(const Angles& angles) {
  const auto count = static_cast<simd::Index>(std::ranges::size(angles));
  require(count > 0, "order_parameter", "angles", "at least one", count);
  const simd::PhaseSums sums = simd::angle_sums(std::ranges::data(angles), count);
  return {sums.cosine / static_cast<double>(count), sums.sine / static_cast<double>(count)};
}

struct CircularStatistics {
  double mean_direction;    // ψ in (−π, π]; arbitrary where resultant_length is 0
  double resultant_length;  // R̄ in [0, 1]
  double variance;          // 1 − R̄
  double deviation;         // √(−2 ln R̄), radians: the σ of a wrapped normal with this R̄
};

inline CircularStatistics circular_statistics(std::complex<double> order) {
  // The bounds come second: std::min and std::max hand on their first argument where that is NaN.
  const double length = std::min(std::abs(order), 1.0);
  return {std::arg(order), length, 1.0 - length, std::sqrt(std::max(-2.0 * std::log(length), 0.0))};
}
template <AngleRange Angles>
CircularStatistics circular_statistics(const Angles& angles) {
  return circular_statistics(order_parameter(angles));
}

template <AngleRange Angles>
double mean_direction(const Angles& angles) {
  return circular_statistics(angles).mean_direction;
}
template <AngleRange Angles>
double circular_variance(const Angles& angles) {
  return circular_statistics(angles).variance;
}

// --- is there a direction at all? ---------------------------------------------------------------

struct RayleighTest {
  double statistic;  // z = N·R̄²
  double p_value;    // probability of a z this large if the angles were uniform and independent
};

// Rayleigh's test of uniformity against one preferred direction, from R̄ and the number of angles. p-value after Zar
// ("Biostatistical Analysis", 27.1): exp(√(1 + 4N + 4(N² − (N·R̄)²)) − (1 + 2N)), good to .001 from N = 10 on.
inline RayleighTest rayleigh_test(double resultant_length, double count) {
  require(count >= 1, "rayleigh_test", "count", "at least 1", count);
  require(resultant_length >= 0 && resultant_length <= 1, "rayleigh_test", "resultant_length", "0 to 1",
          resultant_length);
  const double r = count * resultant_length, n = count;
  // The difference of two large numbers, written as a quotient: it keeps its digits for millions of angles.
  const double root = std::sqrt(1 + 4 * n + 4 * (n * n - r * r));
  const double p_value = std::exp(-4 * r * r / (root + 1 + 2 * n));
  return {n * resultant_length * resultant_length, p_value};
}
template <AngleRange Angles>
RayleighTest rayleigh_test(const Angles& angles) {
  return rayleigh_test(circular_statistics(angles).resultant_length, static_cast<double>(std::ranges::size(angles)));
}

// --- von Mises ----------------------------------------------------------------------------------

// A(κ) = I₁(κ)/I₀(κ), the R̄ of a von Mises distribution of concentration κ ≥ 0. Continued fraction of Gauss,
//   I₁/I₀ = 1/(2/κ + 1/(4/κ + 1/(6/κ + …))), evaluated backwards: every term is positive, nothing overflows.
inline double von_mises_resultant_length(double kappa) {
  require(kappa >= 0, "von_mises_resultant_length", "kappa", "at least 0", kappa);
  if (kappa == 0) return 0;
  if (kappa > 1e4) return 1 - 1 / (2 * kappa) - 1 / (8 * kappa * kappa);  // asymptotic, error 1/(8κ³)
  double fraction = 0;
  for (int term = static_cast<int>(20 + kappa); term >= 1; --term) fraction = 1 / (2 * term / kappa + fraction);
  return fraction;
}

// Maximum-likelihood κ of a von Mises distribution: the root of A(κ) = R̄, by Newton's method from the approximation
// of Best & Fisher (1981). 0 for R̄ = 0, infinite for R̄ = 1. Biased upwards for a handful of angles.
inline double von_mises_kappa(double resultant_length) {
  const double r = resultant_length;
  require(r >= 0 && r <= 1, "von_mises_kappa", "resultant_length", "0 to 1", r);
  if (r == 0) return 0;
  if (r == 1) return std::numeric_limits<double>::infinity();
  double kappa = r < 0.53   ? 2 * r + r * r * r + 5 * r * r * r * r * r / 6
                 : r < 0.85 ? -0.4 + 1.39 * r + 0.43 / (1 - r)
                            : 1 / (r * (1 - r) * (3 - r));
  if (kappa > 1e4) return 1 / (2 * (1 - r)) + 0.25;  // A(κ) ≈ 1 − 1/2κ − 1/8κ² inverted
  for (int iteration = 0; iteration < 4; ++iteration) {
    const double a = von_mises_resultant_length(kappa);
    kappa -= (a - r) / (1 - a / kappa - a * a);
  }
  return kappa;
}
template <AngleRange Angles>
double von_mises_kappa(const Angles& angles) {
  return von_mises_kappa(circular_statistics(angles).resultant_length);
}

}  // namespace rbar
