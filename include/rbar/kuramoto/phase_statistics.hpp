// What phase-modulated attention knows of a row without looking at its pairs. P_ij = cos(φ_i − φ_pos,j) over the keys
// j ≤ i of the row has a variance in closed form, from prefix means over the positions alone,
//   C₁, S₁ = mean cos φ_pos, mean sin φ_pos,   C₂, S₂ = mean cos 2φ_pos, mean sin 2φ_pos:
//   Var P = ½(1 + cos 2φ·C₂ + sin 2φ·S₂) − (cos φ·C₁ + sin φ·S₁)²
// and the temperature of the row is  τ = τ_base (1 + β Var P)(1 + α(1 − R)).
// Statistics over a whole sequence or batch in place of a row's would let later tokens and other sequences in.
#pragma once

#include "rbar/core/tensor.hpp"

#include <cmath>

namespace rbar {

// cos φ_pos and sin φ_pos of the positions, and their means up to each of them.
template <class T>
struct PositionPhases {
  Tensor<T, 2> phasor;  // [room, 2]
  Tensor<T, 2> mean;    // [room, 4]: C₁, S₁, C₂, S₂
  Index count = 0;      // positions that are there
  double sums[4] = {};

  // Positions up to `positions`, of a table with room for `room` of them; `phases` [room or more], null where φ_pos =
  // 0.
  void extend(const T* phases, Index positions, Index room) {
    if (count == 0) {
      ensure_shape(phasor, {room, 2});
      ensure_shape(mean, {room, 4});
      for (double& sum : sums) sum = 0;
    }
    for (; count < positions; ++count) {
      const T c = phases ? std::cos(phases[count]) : T(1), s = phases ? std::sin(phases[count]) : T(0);
      phasor(count, 0) = c;
      phasor(count, 1) = s;
      const T terms[4] = {c, s, c * c - s * s, 2 * s * c};
      for (Index i = 0; i < 4; ++i) {
        sums[i] += static_cast<double>(terms[i]);
        mean(count, i) = static_cast<T>(sums[i] / static_cast<double>(count + 1));
      }
    }
  }

  // dphases[j] += ∂L/∂φ_pos,j from dphasor [count, 2] and from dmean [count, 4], both of them sums over the batch.
  void backward(const double* dphasor, const double* dmean, T* dphases) const {
    double later[4] = {};  // Σ_{i ≥ j} dmean_i / (i + 1)
    for (Index j = count; j-- > 0;) {
      for (Index i = 0; i < 4; ++i) later[i] += dmean[4 * j + i] / static_cast<double>(j + 1);
      const double c = static_cast<double>(phasor(j, 0)), s = static_cast<double>(phasor(j, 1));
      const double dc = dphasor[2 * j] + later[0], ds = dphasor[2 * j + 1] + later[1];
      dphases[j] += static_cast<T>(c * ds - s * dc + 2 * ((c * c - s * s) * later[3] - 2 * s * c * later[2]));
    }
  }
};

// Var P of a row, not clamped: rounding leaves a small negative number where it is 0.
template <class T>
RBAR_INLINE T phase_variance(T cosine, T sine, T c1, T s1, T c2, T s2) {
  const T mean = cosine * c1 + sine * s1;
  const T double_cosine = cosine * cosine - sine * sine, double_sine = 2 * sine * cosine;
  return T(0.5) * (1 + double_cosine * c2 + double_sine * s2) - mean * mean;
}

// Its gradient: dφ is returned, dmean [4] added to.
template <class T>
RBAR_INLINE T phase_variance_backward(T dvariance, T cosine, T sine, T c1, T s1, T c2, T s2, T* dmean) {
  const T mean = cosine * c1 + sine * s1;
  const T double_cosine = cosine * cosine - sine * sine, double_sine = 2 * sine * cosine;
  dmean[0] -= dvariance * 2 * mean * cosine;
  dmean[1] -= dvariance * 2 * mean * sine;
  dmean[2] += dvariance * T(0.5) * double_cosine;
  dmean[3] += dvariance * T(0.5) * double_sine;
  return dvariance * (double_cosine * s2 - double_sine * c2 - 2 * mean * (cosine * s1 - sine * c1));
}

// τ as a function of the variance and the order parameter.
template <class T>
struct PhaseTemperature {
  T base, alpha, beta;

  T operator()(T variance, T order) const { return base * (1 + beta * variance) * (1 + alpha * (1 - order)); }
};

}  // namespace rbar
