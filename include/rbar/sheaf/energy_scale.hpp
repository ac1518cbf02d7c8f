// The unit of an energy. A raw energy grows with the width of the maps and the size of the states, so that a fixed
// threshold means nothing: tokens of unit normal features all lie far above 1. Divided by its running mean,
//   Ê = E / s,   s ← γ s + (1 − γ) · mean E of a training batch   (the first batch sets s)
// an energy of 1 is an average one, at any depth and width.
#pragma once

#include "rbar/core/parameters.hpp"

namespace rbar {

// One scale for each of several points of measurement. A buffer: `adapt` moves it between training steps, nothing
// else does.
template <class T>
struct EnergyScale {
  using Scalar = T;

  Tensor<T, 1> value;  // [points] s, 1 until adapted
  Tensor<T, 1> seen;   // [points] 1 once adapted

  EnergyScale() = default;
  explicit EnergyScale(Index points) : value(points), seen(points) {
    require(points >= 1, "EnergyScale", "points", "at least 1", points);
    value.setConstant(T(1));
    seen.setZero();
  }

  T operator()(Index point) const { return value(point); }

  // Learns from one batch's energies at `point`, given in today's unit (divided by s). Returns old s / new s, which
  // turns them into tomorrow's. A batch of zeros tells nothing and moves nothing.
  // Errors: another point, no energies, one that is not finite, a decay outside [0, 1).
  double adapt(Index point, std::span<const T> energies, double decay) {
    constexpr const char* where = "EnergyScale::adapt";
    require(point >= 0 && point < value.size(), where, "point", value.size(), point);
    require(!energies.empty(), where, "energies", "at least one", energies.size());
    require_finite(where, "energies", energies);
    require(decay >= 0 && decay < 1, where, "decay", "0 <= decay < 1", decay);
    double sum = 0;
    for (const T energy : energies) sum += static_cast<double>(energy);
    const double mean = sum / static_cast<double>(energies.size());
    const double old = static_cast<double>(value(point));
    const double moved = seen(point) == T(0) ? old * mean : old * (decay + (1 - decay) * mean);
    if (!(mean > 0) || !(static_cast<T>(moved) > T(0))) return 1;
    value(point) = static_cast<T>(moved);
    seen(point) = T(1);
    return old / static_cast<double>(value(point));
  }

  void buffers(auto&& visit) {
    visit("scale", value);
    visit("scale_seen", seen);
  }
};

}  // namespace rbar
