// The formulas of phase_coherence.hpp as a textbook would program them: double, std::sin, nested loops.
#pragma once

#include "rbar/coherence/phase_coherence.hpp"
#include "rbar/core/random.hpp"
#include "support/differences.hpp"

#include <complex>
#include <vector>

namespace naive {

using rbar::Index;
using Complex = std::complex<double>;

template <class T>
rbar::Tensor<T, 3> random_hidden(Index batch, Index tokens, Index features, std::uint64_t seed, double deviation = 2) {
  rbar::Tensor<T, 3> hidden(batch, tokens, features);
  rbar::Rng rng(seed);
  for (T& value : rbar::elements(hidden)) value = static_cast<T>(rng.normal(0.3, deviation));
  return hidden;
}

inline Complex phasor(double x) {
  const double angle = 2 * std::numbers::pi / (1 + std::exp(-x));
  return {std::cos(angle), std::sin(angle)};
}

// coherence [B,T] of one mode; `t ± o` as the modes define them, without any running sum.
template <class T>
rbar::Tensor<double, 2> coherence(const rbar::Tensor<T, 3>& hidden, const rbar::CoherenceConfig& config) {
  const Index batch = hidden.dimension(0), tokens = hidden.dimension(1), features = hidden.dimension(2);
  const bool reference = config.causality == rbar::Causality::reference;
  rbar::Tensor<double, 2> result(batch, tokens);
  for (Index b = 0; b < batch; ++b) {
    const auto z = [&](Index t, Index d) { return phasor(static_cast<double>(hidden(b, t, d))); };
    const auto token = [&](Index t) {
      Complex sum = 0;
      for (Index d = 0; d < features; ++d) sum += z(t, d);
      return std::abs(sum) / static_cast<double>(features);
    };
    const auto local = [&](Index t) {
      double total = 0;
      for (Index d = 0; d < features; ++d) {
        Complex sum = 0;
        double count = 0;
        const Index first = reference ? t - (config.window - 1) / 2 : t - config.window + 1;
        for (Index i = first; i < first + config.window; ++i) {
          if (!reference && i < 0) continue;
          sum += z(std::clamp(i, Index{0}, tokens - 1), d);
          count += 1;
        }
        total += std::abs(sum) / count;
      }
      return total / static_cast<double>(features);
    };
    const auto cross = [&](Index t) {
      double total = 0, count = 0;
      for (Index o = 1; o <= config.offsets; ++o) {
        const Index partner = reference ? t + o : t - o;
        if (partner < 0 || partner >= tokens) continue;
        Complex sum = 0;
        for (Index d = 0; d < features; ++d) sum += z(t, d) * std::conj(z(partner, d));
        total += std::abs(sum) / static_cast<double>(features);
        count += 1;
      }
      if (reference) count = static_cast<double>(config.offsets);
      return count == 0 ? 0.0 : total / count;
    };
    for (Index t = 0; t < tokens; ++t) {
      switch (config.mode) {
        case rbar::CoherenceMode::token:
          result(b, t) = token(t);
          break;
        case rbar::CoherenceMode::local:
          result(b, t) = local(t);
          break;
        case rbar::CoherenceMode::cross:
          result(b, t) = cross(t);
          break;
        case rbar::CoherenceMode::combined:
          result(b, t) = 0.5 * token(t) + 0.5 * local(t);
          break;
      }
    }
  }
  return result;
}

using ::test::largest_difference;

// All modes, both causalities, windows shorter and longer than the sequence.
inline std::vector<rbar::CoherenceConfig> all_configs(std::initializer_list<Index> windows) {
  std::vector<rbar::CoherenceConfig> configs;
  for (const auto causality : rbar::all_causality)
    for (const auto mode : rbar::all_coherence_modes)
      for (const Index window : windows)
        configs.push_back({.mode = mode, .window = window, .offsets = window, .causality = causality});
  return configs;
}

inline std::string describe(const rbar::CoherenceConfig& c) {
  return std::string(name_of(c.mode)) + ", " + name_of(c.causality) + ", window " + std::to_string(c.window);
}

}  // namespace naive
