// Graceful degradation: one number, pressure ∈ [0, 1], trades accuracy for cost. It sends more tokens to the reflex
// lane, by raising θ_reflex along a curve of quantiles, and makes attention sparser. 0 changes nothing, and every knob
// is monotone in it: no token that stops in the reflex lane goes on under more pressure. The cost falls with it on
// average and not in every text: those that go on meet other states, and what is verified may come back for another
// lane.
#pragma once

#include "rbar/sheaf/sparsity.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>

namespace rbar {

// Errors: a pressure outside [0, 1] or not a number.
inline void require_pressure(double pressure) {
  require(pressure >= 0 && pressure <= 1, "pressure", "pressure", "0 <= pressure <= 1", pressure);
}

// Share of the tokens that stop in the reflex lane: `share` without pressure, all of them at 1, linear in between.
inline double pressed_share(double share, double pressure) { return share + pressure * (1 - share); }

// θ_reflex under pressure. `curve` holds the energies that have the share pressed_share(share, k/n) of the tokens below
// them, k = 0 ... n, ascending; what lies between them is interpolated. An empty curve (nothing measured yet) raises
// nothing.
template <class T>
double pressed_threshold(double threshold, std::span<const T> curve, double pressure) {
  require_pressure(pressure);
  if (curve.size() < 2) return threshold;
  const double position = pressure * static_cast<double>(curve.size() - 1);
  const auto below = std::min(static_cast<std::size_t>(position), curve.size() - 2);
  const auto at = [&](std::size_t i) { return static_cast<double>(curve[i]); };
  const double energy = at(below) + (position - static_cast<double>(below)) * (at(below + 1) - at(below));
  return threshold + std::max(0.0, energy - at(0));
}

// Sparse attention under pressure: the error bound ε moves geometrically towards .1 (a larger one stays), and of the
// blocks that would be kept by share half are at 1. What is switched off stays off.
inline SparsityConfig pressed_sparsity(SparsityConfig config, double pressure) {
  require_pressure(pressure);
  constexpr double smallest = 1e-9, largest = 0.1;
  if (pressure > 0 && config.epsilon < largest) {
    const double from = std::max(config.epsilon, smallest);
    config.epsilon = from * std::pow(largest / from, pressure);
  }
  config.keep_share *= 1 - pressure / 2;
  return config;
}

}  // namespace rbar
