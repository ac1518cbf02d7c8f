// The part of phase-modulated attention that never looks at a pair: from every token to its phases, its order parameter
// and its temperatures, and from the sums over the pairs back to all parameters of the phases.
#pragma once

#include "rbar/core/parallel.hpp"
#include "rbar/kuramoto/dynamics_config.hpp"
#include "rbar/kuramoto/head_oscillators.hpp"
#include "rbar/kuramoto/interventions.hpp"
#include "rbar/kuramoto/phase_score.hpp"
#include "rbar/kuramoto/phase_statistics.hpp"
#include "rbar/nn/linear.hpp"
#include "rbar/simd/scratch.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

namespace rbar {

// Of a PhaseModulatedAttention<T>; equations, parameters and the cache are there.
template <class Layer>
struct PhasePasses {
  using T = typename Layer::Scalar;
  using Cache = typename Layer::Cache;
  using Oscillators = HeadOscillators<T>;

  const Layer& layer;

  // Room for the results of `settle` on `count` rows: exactly that in a forward pass, whose cache is read as a whole. A
  // stream's pieces change in length, so its room only grows.
  void make_room(Index count, bool streaming, Cache& cache) const {
    const Index heads = layer.config.n_heads;
    const auto make = [&](Tensor<T, 2>& tensor) {
      streaming ? ensure_rows(tensor, count, heads) : ensure_shape(tensor, {count, heads});
    };
    for (Tensor<T, 2>* tensor : {&cache.phases, &cache.cosine, &cache.sine, &cache.temperature}) make(*tensor);
    if (layer.config.has_phase_map()) make(cache.initial);
    for (Tensor<T, 1>* tensor : {&cache.order_parameter, &cache.coupling})
      if (!streaming || tensor->size() < count) ensure_shape(*tensor, {count});
  }

  // Phases, R, K and τ of every row of x and state, which start at `first_position`, into a cache with room for them.
  void settle(ConstTensorView<T, 3> x, ConstTensorView<T, 3> state, Index first_position,
              const PhaseIntervention* intervention, const PositionPhases<T>& positions, Cache& cache) const {
    const auto& config = layer.config;
    const Index tokens = x.dimension(1), count = x.dimension(0) * tokens, heads = config.n_heads;
    cache.applied = intervention ? *intervention : PhaseIntervention{};
    cache.applied.validate();
    const PhaseTemperature<T> law = temperature_law();
    require_temperatures(law, cache.applied);
    require_turn(cache.applied);
    if (config.has_phase_map()) layer.phase_map.forward(rows(x), top_rows(cache.initial, count));
    if (!cache.applied.coupling && config.has_coupling_map()) {
      layer.coupling_map.forward(rows(state), MatrixView<T>(cache.coupling.data(), count, 1));
      for (Index n = 0; n < count; ++n) cache.coupling(n) = T(2) / (T(1) + std::exp(-cache.coupling(n)));
    } else {
      std::fill_n(cache.coupling.data(), count, static_cast<T>(constant_coupling(cache.applied)));
    }
    const auto position = [=](Index row) { return first_position + row % tokens; };
    parallel_for((count + columns - 1) / columns, blocks_per_chunk(), [&](Index begin, Index end) {
      Block block(oscillators());
      for (Index first = begin * columns; first < std::min(count, end * columns); first += columns) {
        const Index length = std::min(columns, count - first);
        run(cache, positions, first, length, position, block);
        for (Index c = 0; c < length; ++c) {
          const T order = block.order(c);
          const T read = cache.applied.order_parameter ? static_cast<T>(*cache.applied.order_parameter) : order;
          cache.order_parameter(first + c) = order;
          for (Index h = 0; h < heads; ++h) {
            const Index at = h * columns + c;
            const T variance = phase_variance(block.cosine[at], block.sine[at], block.mean[0][c], block.mean[1][c],
                                              block.mean[2][c], block.mean[3][c]);
            cache.phases(first + c, h) = block.phases[at];
            cache.cosine(first + c, h) = block.cosine[at];
            cache.sine(first + c, h) = block.sine[at];
            cache.temperature(first + c, h) = cache.applied.temperature ? static_cast<T>(*cache.applied.temperature)
                                                                        : law(std::max(T(0), variance), read);
          }
        }
      }
    });
  }

  // From the sums of the score to every parameter of the phases, to dx (added) and dstate (overwritten).
  void backward(const Cache& cache, Tensor<T, 3>& dx, Tensor<T, 3>& dstate, Layer& grad) const {
    const auto& config = layer.config;
    const Index tokens = dx.dimension(1), count = dx.dimension(0) * tokens, heads = config.n_heads;
    const Index per_chunk = blocks_per_chunk(), blocks = (count + columns - 1) / columns;
    const bool coupling_learns = config.has_coupling_map() && phases_learn(cache) && !cache.applied.coupling;
    if (!coupling_learns) dstate.setZero();
    if (!config.has_oscillators()) return;
    ensure_shape(cache.dinitial, {count, heads});
    ensure_shape(cache.dcoupling, {count, 1});
    ensure_shape(cache.dmean, {count, 4});
    ensure_shape(cache.partial, {(blocks + per_chunk - 1) / per_chunk, heads + 3});
    cache.partial.setZero();
    parallel_for(blocks, per_chunk, [&](Index begin, Index end) {
      Block block(oscillators());
      for (Index first = begin * columns; first < std::min(count, end * columns); first += columns)
        backward_block(cache, first, std::min(columns, count - first), tokens, block,
                       &cache.partial(begin / per_chunk, 0));
    });
    const double lambda = cache.applied.gate.value_or(layer.gate());
    for (Index chunk = 0; chunk < cache.partial.dimension(0); ++chunk) {
      const double* sums = &cache.partial(chunk, 0);
      for (Index h = 0; h < heads; ++h) grad.frequency(h) += static_cast<T>(sums[h]);
      if (config.phase_gate && !cache.applied.gate)
        grad.gate_logit(0) += static_cast<T>(sums[heads] * lambda * (1 - lambda));
      if (config.adaptive_temperature) {
        grad.alpha(0) += static_cast<T>(sums[heads + 1]);
        grad.beta(0) += static_cast<T>(sums[heads + 2]);
      }
    }
    if (config.has_phase_map() && phases_learn(cache))
      layer.phase_map.backward(rows(std::as_const(cache.dinitial)), rows(cache.attention.input), rows(dx),
                               grad.phase_map,
                               /*accumulate_dx=*/true);
    if (coupling_learns)
      layer.coupling_map.backward(rows(std::as_const(cache.dcoupling)), rows(cache.state), rows(dstate),
                                  grad.coupling_map);
    if (config.has_position_phases()) backward_positions(cache, tokens, grad);
  }

 private:
  // Memory of one block of tokens: everything [n_heads, columns], the record once a step.
  static constexpr Index columns = Oscillators::columns;
  struct Block {
    T *phases, *cosine, *sine, *dphases, *record;
    alignas(64) T strength[columns], cosine_mean[columns], sine_mean[columns];  // K, and mean e^{iφ}
    alignas(64) T mean[4][columns];  // C₁, S₁, C₂, S₂ of its position

    explicit Block(const Oscillators& oscillators) {
      const Index size = oscillators.block_size();
      struct Blocks {};
      phases = simd::thread_scratch<T, Blocks>(4 * size + oscillators.record_size());
      cosine = phases + size;
      sine = cosine + size;
      dphases = sine + size;
      record = dphases + size;
    }
    T order(Index c) const { return std::hypot(cosine_mean[c], sine_mean[c]); }
  };

  Oscillators oscillators() const {
    return {layer.frequency.data(), layer.config.n_heads, layer.config.has_phase_map() ? layer.config.n_steps : 0,
            layer.config.dt};
  }
  Index blocks_per_chunk() const { return std::max<Index>(1, 128 / layer.config.n_heads); }
  double constant_coupling(const PhaseIntervention& set) const {
    return set.coupling.value_or(layer.config.has_phase_map() ? layer.config.coupling : 0.0);
  }

  // As numbers of T: a τ of 1e-50 is 0 as a float, and one of 1e39 infinite. Var P and R lie in [0, 1], so the law
  // takes its extremes at their ends.
  static void require_temperatures(const PhaseTemperature<T>& law, const PhaseIntervention& set) {
    constexpr const char *where = "PhaseModulatedAttention", *expected = "a positive normal number of its precision";
    const auto fits = [](T temperature) { return temperature > 0 && std::isnormal(temperature); };
    require(law.alpha > -1, where, "alpha", "above -1: a positive temperature", law.alpha);
    require(law.beta > -1, where, "beta", "above -1: a positive temperature", law.beta);
    require(fits(law.base), where, "temperature", expected, law.base);
    const T coldest = law(law.beta < 0 ? T(1) : T(0), law.alpha < 0 ? T(0) : T(1));
    const T hottest = law(law.beta < 0 ? T(0) : T(1), law.alpha < 0 ? T(1) : T(0));
    require(fits(coldest), where, "temperature with alpha and beta", expected, coldest);
    require(fits(hottest), where, "temperature with alpha and beta", expected, hottest);
    if (set.temperature)
      require(fits(static_cast<T>(*set.temperature)), "PhaseIntervention", "temperature", expected, *set.temperature);
  }
  // Angles that grow without bound lose their digits and then their number. The mean of sines is at most 1 long, and a
  // learned K at most 2.
  void require_turn(const PhaseIntervention& set) const {
    if (!layer.config.has_phase_map() || layer.config.n_steps == 0) return;
    const bool learned = !set.coupling && layer.config.has_coupling_map();
    const double strength = learned ? 2.0 : std::abs(constant_coupling(set));
    for (Index h = 0; h < layer.config.n_heads; ++h) {
      const double turn = layer.config.dt * (std::abs(static_cast<double>(layer.frequency(h))) + strength);
      require(turn <= largest_phase_step, "PhaseModulatedAttention", "dt·(|ω| + |K|)", "at most 1000 radians a step",
              turn);
    }
  }
  bool phases_learn(const Cache& cache) const { return layer.config.has_oscillators() && !cache.applied.phase; }
  bool temperature_learns(const Cache& cache) const {
    return layer.config.adaptive_temperature && !cache.applied.temperature;
  }
  PhaseTemperature<T> temperature_law() const {
    return {static_cast<T>(layer.config.temperature), layer.config.adaptive_temperature ? layer.alpha(0) : T(0),
            layer.config.adaptive_temperature ? layer.beta(0) : T(0)};
  }

  // Rows [first, first + count) of the cache from φ⁰ to what the score and the temperature read of them.
  void run(const Cache& cache, const PositionPhases<T>& positions, Index first, Index count, auto&& position,
           Block& block) const {
    const Index heads = layer.config.n_heads, size = heads * columns;
    for (Index c = 0; c < columns; ++c) {
      block.strength[c] = c < count ? cache.coupling(first + c) : T(0);
      for (Index i = 0; i < 4; ++i) block.mean[i][c] = c < count ? positions.mean(position(first + c), i) : T(0);
      block.cosine_mean[c] = block.sine_mean[c] = 0;
    }
    if (cache.applied.phase || !layer.config.has_oscillators()) {
      const double phase = std::remainder(cache.applied.phase.value_or(0.0), 2 * std::numbers::pi);
      std::fill_n(block.phases, size, static_cast<T>(phase));
    } else {
      for (Index h = 0; h < heads; ++h)
        for (Index c = 0; c < columns; ++c)
          block.phases[h * columns + c] =
              (layer.config.has_phase_map() && c < count ? cache.initial(first + c, h) : T(0)) + layer.frequency(h);
      oscillators().advance(block.strength, block.phases, block.record);
    }
    simd::write_angle_phasors(block.phases, size, block.cosine, block.sine);
    const T share = T(1) / static_cast<T>(heads);
    for (Index h = 0; h < heads; ++h)
      for (Index c = 0; c < columns; ++c) {
        block.cosine_mean[c] += share * block.cosine[h * columns + c];
        block.sine_mean[c] += share * block.sine[h * columns + c];
      }
  }

  // Rows [first, first + count); sums: ω [n_heads], λ, α, β.
  void backward_block(const Cache& cache, Index first, Index count, Index tokens, Block& block, double* sums) const {
    const Index heads = layer.config.n_heads;
    const T lambda = static_cast<T>(cache.applied.gate.value_or(layer.gate()));
    const PhaseTemperature<T> law = temperature_law();
    run(
        cache, cache.positions, first, count, [=](Index row) { return row % tokens; }, block);
    std::fill_n(block.dphases, heads * columns, T(0));
    for (Index c = 0; c < count; ++c) {
      const Index n = first + c;
      T* dmean = &cache.dmean(n, 0);
      std::fill_n(dmean, 4, T(0));
      const T order = block.order(c);
      const T disorder = 1 - (cache.applied.order_parameter ? static_cast<T>(*cache.applied.order_parameter) : order);
      T dorder = 0;
      for (Index h = 0; h < heads; ++h) {
        const T cosine = block.cosine[h * columns + c], sine = block.sine[h * columns + c];
        const T* dscore = &cache.dscore(n, 3 * h);
        T& dphase = block.dphases[h * columns + c];
        dphase = lambda * (cosine * dscore[1] - sine * dscore[0]);
        sums[heads] += static_cast<double>(cosine * dscore[0] + sine * dscore[1] - dscore[2]);
        if (!temperature_learns(cache)) continue;
        const T c1 = block.mean[0][c], s1 = block.mean[1][c], c2 = block.mean[2][c], s2 = block.mean[3][c];
        const T raw = phase_variance(cosine, sine, c1, s1, c2, s2), variance = std::max(T(0), raw);
        const T dlaw = -sum_of_logits(lambda, cosine, sine, dscore) / cache.temperature(n, h) * law.base;
        const T spread = 1 + law.beta * variance, calm = 1 + law.alpha * disorder;
        sums[heads + 1] += static_cast<double>(dlaw * spread * disorder);
        sums[heads + 2] += static_cast<double>(dlaw * variance * calm);
        dorder -= dlaw * spread * law.alpha;
        if (raw > 0) dphase += phase_variance_backward(dlaw * law.beta * calm, cosine, sine, c1, s1, c2, s2, dmean);
      }
      if (cache.applied.order_parameter || order == 0) continue;
      // R = |C + iS|: ∂R/∂φ_h = (S cos φ_h − C sin φ_h)/(n_heads R), and 0 where R = 0 has none.
      const T factor = dorder / (static_cast<T>(heads) * order);
      for (Index h = 0; h < heads; ++h)
        block.dphases[h * columns + c] += factor * (block.sine_mean[c] * block.cosine[h * columns + c] -
                                                    block.cosine_mean[c] * block.sine[h * columns + c]);
    }
    if (!phases_learn(cache)) return;
    double dstrength[columns] = {};
    oscillators().backward(block.strength, block.record, block.dphases, sums, dstrength);
    for (Index c = 0; c < count; ++c) {
      for (Index h = 0; h < heads; ++h) {
        const T dphase = block.dphases[h * columns + c];
        cache.dinitial(first + c, h) = dphase;
        sums[h] += static_cast<double>(dphase);
      }
      cache.dcoupling(first + c, 0) =
          static_cast<T>(dstrength[c]) * block.strength[c] * (T(1) - T(0.5) * block.strength[c]);  // K = 2σ(·)
    }
  }

  void backward_positions(const Cache& cache, Index tokens, Layer& grad) const {
    ensure_shape(cache.position_sums, {6, tokens});
    cache.position_sums.setZero();
    double *dphasor = cache.position_sums.data(), *dmean = dphasor + 2 * tokens;
    for (Index set = 0; set < cache.dposition_phasor.dimension(0); ++set)
      for (Index i = 0; i < 2 * tokens; ++i) dphasor[i] += static_cast<double>(cache.dposition_phasor(set, i));
    for (Index n = 0; n < cache.dmean.dimension(0); ++n)
      for (Index i = 0; i < 4; ++i) dmean[4 * (n % tokens) + i] += static_cast<double>(cache.dmean(n, i));
    cache.positions.backward(dphasor, dmean, grad.position_phases.data());
  }
};

}  // namespace rbar
