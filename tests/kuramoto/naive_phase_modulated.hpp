// Phase-modulated attention by its definition: pairs of oscillators, P of every pair of tokens, its variance over the
// keys that a row sees.
#pragma once

#include "rbar/kuramoto/phase_modulated_attention.hpp"

#include <cmath>
#include <complex>
#include <vector>

namespace test {

using rbar::Index;
using rbar::Tensor;
using Layer = rbar::PhaseModulatedAttention<double>;

struct NaivePhases {
  Tensor<double, 3> output, weights;      // [batch, tokens, d_model], [batch·heads, tokens, tokens]
  Tensor<double, 2> phases, temperature;  // [batch·tokens, heads]
  Tensor<double, 1> order, coupling;      // [batch·tokens]
  Tensor<double, 3> entropy;              // [batch, heads, tokens]
};

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// W x + b of one row.
inline std::vector<double> apply(const rbar::Linear<double>& map, const double* x) {
  std::vector<double> y;
  for (Index o = 0; o < map.out(); ++o) {
    y.push_back(map.bias.size() > 0 ? map.bias(o) : 0.0);
    for (Index i = 0; i < map.in(); ++i) y.back() += map.weight(o, i) * x[i];
  }
  return y;
}

inline NaivePhases naive_phase_modulated(const Layer& layer, const Tensor<double, 3>& x, const Tensor<double, 3>& state,
                                         const rbar::PhaseIntervention& set = {}) {
  const auto& config = layer.config;
  const Index batch = x.dimension(0), tokens = x.dimension(1), heads = config.n_heads, dim = config.dim_per_head();
  NaivePhases out;
  out.output = rbar::zeros<double, 3>({batch, tokens, config.d_model});
  out.weights = rbar::zeros<double, 3>({batch * heads, tokens, tokens});
  out.phases = out.temperature = rbar::zeros<double, 2>({batch * tokens, heads});
  out.order = out.coupling = rbar::zeros<double, 1>({batch * tokens});
  out.entropy = rbar::zeros<double, 3>({batch, heads, tokens});
  const double alpha = config.adaptive_temperature ? layer.alpha(0) : 0;
  const double beta = config.adaptive_temperature ? layer.beta(0) : 0;
  const double lambda = set.gate.value_or(config.phase_gate ? sigmoid(layer.gate_logit(0)) : 0);
  const auto at_position = [&](Index j) { return config.has_position_phases() ? layer.position_phases(j) : 0.0; };
  for (Index b = 0; b < batch; ++b) {
    std::vector<std::vector<double>> query, key, value;
    for (Index t = 0; t < tokens; ++t) {
      query.push_back(apply(layer.q_proj, &x(b, t, 0)));
      key.push_back(apply(layer.k_proj, &x(b, t, 0)));
      value.push_back(apply(layer.v_proj, &x(b, t, 0)));
    }
    for (Index t = 0; t < tokens; ++t) {
      const Index n = b * tokens + t;
      std::vector<double> phase(static_cast<std::size_t>(heads), 0.0);
      double coupling = config.has_phase_map() ? config.coupling : 0;
      if (config.has_coupling_map()) coupling = 2 * sigmoid(apply(layer.coupling_map, &state(b, t, 0))[0]);
      coupling = set.coupling.value_or(coupling);
      const auto initial =
          config.has_phase_map() ? apply(layer.phase_map, &x(b, t, 0)) : std::vector<double>(phase.size(), 0.0);
      if (config.has_oscillators())
        for (std::size_t h = 0; h < phase.size(); ++h) phase[h] = layer.frequency(static_cast<Index>(h)) + initial[h];
      for (Index step = 0; config.has_phase_map() && step < config.n_steps; ++step) {
        std::vector<double> next;
        for (std::size_t h = 0; h < phase.size(); ++h) {
          double pull = 0;
          for (const double other : phase) pull += std::sin(other - phase[h]) / static_cast<double>(heads);
          next.push_back(phase[h] + config.dt * (layer.frequency(static_cast<Index>(h)) + coupling * pull));
        }
        phase = next;
      }
      std::complex<double> mean = 0;
      for (double& angle : phase) {
        angle = set.phase.value_or(angle);
        mean += std::polar(1.0 / static_cast<double>(heads), angle);
      }
      out.order(n) = std::abs(mean);
      out.coupling(n) = coupling;
      std::vector<double> attended;
      for (Index h = 0; h < heads; ++h) {
        const auto offset = static_cast<std::size_t>(h * dim);
        std::vector<double> coherence;
        double sum = 0, squares = 0;
        for (Index j = 0; j <= t; ++j) {
          coherence.push_back(std::cos(phase[static_cast<std::size_t>(h)] - at_position(j)));
          sum += coherence.back();
        }
        const double count = static_cast<double>(t + 1);
        for (const double p : coherence) squares += (p - sum / count) * (p - sum / count);
        const double order = set.order_parameter.value_or(out.order(n));
        const double temperature =
            set.temperature.value_or(config.temperature * (1 + beta * squares / count) * (1 + alpha * (1 - order)));
        out.phases(n, h) = phase[static_cast<std::size_t>(h)];
        out.temperature(n, h) = temperature;
        double norm = 0;
        for (Index j = 0; j <= t; ++j) {
          double dot = 0;
          for (std::size_t d = offset; d < offset + static_cast<std::size_t>(dim); ++d)
            dot += query[static_cast<std::size_t>(t)][d] * key[static_cast<std::size_t>(j)][d];
          const double modulation = lambda * coherence[static_cast<std::size_t>(j)] + 1 - lambda;
          norm += out.weights(b * heads + h, t, j) =
              std::exp(dot / std::sqrt(static_cast<double>(dim)) * modulation / temperature);
        }
        for (Index j = 0; j <= t; ++j) {
          double& weight = out.weights(b * heads + h, t, j);
          weight /= norm;
          if (weight > 0) out.entropy(b, h, t) -= weight * std::log(weight);
        }
        for (std::size_t d = offset; d < offset + static_cast<std::size_t>(dim); ++d) {
          attended.push_back(0);
          for (Index j = 0; j <= t; ++j)
            attended.back() += out.weights(b * heads + h, t, j) * value[static_cast<std::size_t>(j)][d];
        }
      }
      const auto row = apply(layer.out_proj, attended.data());
      std::copy(row.begin(), row.end(), &out.output(b, t, 0));
    }
  }
  return out;
}

}  // namespace test
