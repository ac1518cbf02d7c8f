// Attention by synchronisation: instead of comparing queries with keys, the tokens of a sequence pull at each other's
// phases until they have exchanged what they know,
//   θ = π·tanh(W_θ x + b_θ)                  H heads of N oscillators a token
//   θ ← Kuramoto dynamics over the tokens    dynamics.hpp, n_steps of dt
//   y = W_o [cos θ; sin θ] + b_o             or W_o θ + b_o (`raw`), which jumps where an angle passes ±π
// O(tokens). Source: the PhaseGPT package, which couples all positions (the future included), with the sign that
// repels, and reads the raw angles: Causality::reference, Coupling::reference and PhaseReadout::raw.
#pragma once

#include "rbar/core/bulk.hpp"
#include "rbar/kuramoto/controls.hpp"
#include "rbar/kuramoto/dynamics.hpp"
#include "rbar/nn/dropout.hpp"
#include "rbar/nn/linear.hpp"

#include <utility>

namespace rbar {

enum class PhaseReadout { circular, raw };

inline constexpr PhaseReadout all_phase_readouts[] = {PhaseReadout::circular, PhaseReadout::raw};
constexpr const char* name_of(PhaseReadout readout) { return readout == PhaseReadout::circular ? "circular" : "raw"; }
constexpr bool parse(std::string_view text, PhaseReadout& readout) {
  for (const PhaseReadout candidate : all_phase_readouts)
    if (text == name_of(candidate)) return readout = candidate, true;
  return false;
}

struct PhaseAttentionConfig {
  Index d_model = 512;
  KuramotoConfig kuramoto;
  PhaseReadout readout = PhaseReadout::circular;
  double coupling = 1;          // K at first
  double phase_noise = 0;       // σ, radians; only while training
  double frequency_jitter = 0;  // relative; only while training
  CoherenceRegularizer regularizer;

  Index read_width() const { return (readout == PhaseReadout::circular ? 2 : 1) * kuramoto.width(); }

  template <class Visit>
  void fields(Visit&& visit) {
    visit("d_model", d_model);
    kuramoto.fields(visit);
    visit("readout", readout);
    visit("coupling_init", coupling);
    visit("phase_noise", phase_noise);
    visit("frequency_jitter", frequency_jitter);
    visit("coherence_target", regularizer.target);
    visit("coherence_level", regularizer.level);
    visit("coherence_strength", regularizer.strength);
    visit("coherence_half_width", regularizer.half_width);
  }

  void validate() const {
    constexpr const char* where = "PhaseAttentionConfig";
    require(d_model >= 1, where, "d_model", "at least 1", d_model);
    kuramoto.validate();
    require(std::isfinite(coupling), where, "coupling_init", "a finite number", coupling);
    require(phase_noise >= 0 && std::isfinite(phase_noise), where, "phase_noise", "at least 0", phase_noise);
    require(frequency_jitter >= 0 && std::isfinite(frequency_jitter), where, "frequency_jitter", "at least 0",
            frequency_jitter);
    regularizer.validate();
  }
};

// [batch, tokens, d_model] -> the same. Errors: other shapes; `step` with Causality::reference.
template <class T>
struct PhaseAttention {
  using Scalar = T;
  using Config = PhaseAttentionConfig;

  struct Cache {
    DropoutState dropout;              // active: noise and jitter are drawn from (seed, step, stream)
    std::uint64_t dropout_stream = 0;  // this layer uses it and the next one
    double auxiliary_loss = 0;         // the regulariser's, weighted
    Tensor<T, 3> input;                // copy of x
    Tensor<T, 3> noiseless;          // [B, T, H·N] π·tanh(…), where noise is added; else dynamics.initial is that
    Tensor<T, 3> angles;             // [B, T, H·N] after the last step
    Tensor<T, 2> read;               // [B·T, read_width] what W_o reads (circular)
    Tensor<T, 2> jitter, frequency;  // [H, N] factor, and ω with it
    RegularizerCache regularizer;
    typename KuramotoDynamics<T>::Cache dynamics;
    mutable Tensor<T, 2> dread, dfrequency;  // scratch of backward
    mutable Tensor<T, 3> dangles, dinitial;

    void swap_scratch(const Cache& other) const {
      std::swap(dread, other.dread);
      std::swap(dangles, other.dangles);
      std::swap(dinitial, other.dinitial);
    }
  };
  struct State {
    typename KuramotoDynamics<T>::State dynamics;
    Tensor<T, 3> initial, angles;
    Tensor<T, 2> read;
  };

  Config config;
  Linear<T> to_phase, from_phase;
  KuramotoDynamics<T> dynamics;

  PhaseAttention() = default;
  PhaseAttention(const Config& config_, Rng& rng) : config(config_) {
    config.validate();
    to_phase = Linear<T>(config.d_model, config.kuramoto.width(), /*has_bias=*/true, rng);
    dynamics = KuramotoDynamics<T>(config.kuramoto, rng);
    dynamics.coupling_strength.setConstant(static_cast<T>(config.coupling));
    from_phase = Linear<T>(config.read_width(), config.d_model, /*has_bias=*/true, rng);
  }

  void forward(ConstTensorView<T, 3> x, Tensor<T, 3>& y, Cache& cache) const {
    require_shape("PhaseAttention::forward", "x", x, {-1, -1, config.d_model});
    ensure_shape(cache.input, shape_of(x));
    bulk_copy(x.data(), x.size(), cache.input.data());
    ensure_shape(y, shape_of(x));
    first_angles(x, cache.dynamics.initial);
    if (noise_drawn(cache)) {
      cache.noiseless = cache.dynamics.initial;
      add_phase_noise<T>(config.phase_noise, stream(cache, 0), view(cache.dynamics.initial));
    }
    const ConstTensorView<T, 3> start = view(std::as_const(cache.dynamics.initial));
    if (jitter_drawn(cache)) {
      ensure_shape(cache.jitter, shape_of(dynamics.natural_frequency));
      frequency_jitter(config.frequency_jitter, stream(cache, 1), cache.jitter);
      ensure_shape(cache.frequency, shape_of(cache.jitter));
      for (Index i = 0; i < cache.jitter.size(); ++i)
        cache.frequency.data()[i] = cache.jitter.data()[i] * dynamics.natural_frequency.data()[i];
      dynamics.forward(start, view(std::as_const(cache.frequency)), cache.angles, cache.dynamics);
    } else {
      dynamics.forward(start, cache.angles, cache.dynamics);
    }
    cache.auxiliary_loss = x.size() == 0 ? 0.0
                                         : coherence_regularizer<T>(cache.angles, config.kuramoto.n_heads,
                                                                    config.regularizer, cache.regularizer);
    read_out(cache.angles, cache.read, rows(y));
  }

  void backward(ConstTensorView<T, 3> dy, const Cache& cache, Tensor<T, 3>& dx, PhaseAttention& grad) const {
    require_shape("PhaseAttention::backward", "dy", shape_of(dy), shape_of(cache.input));
    const Index width = config.kuramoto.width(), count = rows(dy).rows();
    ensure_shape(dx, shape_of(dy));
    ensure_shape(cache.dangles, shape_of(cache.angles));
    if (config.readout == PhaseReadout::raw) {
      from_phase.backward(rows(dy), rows(cache.angles), rows(cache.dangles), grad.from_phase);
    } else {
      ensure_shape(cache.dread, {count, 2 * width});
      from_phase.backward(rows(dy), rows(cache.read), rows(cache.dread), grad.from_phase);
      parallel_for(count, rows_per_chunk(), [&](Index begin, Index end) {
        for (Index row = begin; row < end; ++row) {
          const T *read = cache.read.data() + row * 2 * width, *dread = cache.dread.data() + row * 2 * width;
          simd::angle_phasors_backward(read, read + width, dread, dread + width, width,
                                       cache.dangles.data() + row * width);
        }
      });
    }
    if (count > 0) coherence_regularizer_backward<T>(cache.angles, cache.regularizer, cache.dangles);
    if (jitter_drawn(cache)) {
      dynamics.backward(view(std::as_const(cache.dangles)), cache.dynamics, cache.dinitial, grad.dynamics,
                        &cache.dfrequency);
      for (Index i = 0; i < cache.jitter.size(); ++i)
        grad.dynamics.natural_frequency.data()[i] += cache.jitter.data()[i] * cache.dfrequency.data()[i];
    } else {
      dynamics.backward(view(std::as_const(cache.dangles)), cache.dynamics, cache.dinitial, grad.dynamics);
    }
    const T* from_tanh = (noise_drawn(cache) ? cache.noiseless : cache.dynamics.initial).data();
    parallel_for(count, rows_per_chunk(), [&](Index begin, Index end) {
      simd::phases_from_features_backward(from_tanh + begin * width, (end - begin) * width,
                                          cache.dinitial.data() + begin * width);
    });
    to_phase.backward(rows(std::as_const(cache.dinitial)), rows(cache.input), rows(dx), grad.to_phase);
  }

  // The next tokens of a stream: the numbers of `forward` on all tokens so far, without noise.
  void step(ConstTensorView<T, 3> x, Tensor<T, 3>& y, State& state) const {
    require_shape("PhaseAttention::step", "x", x, {-1, -1, config.d_model});
    ensure_shape(y, shape_of(x));
    first_angles(x, state.initial);
    dynamics.step(view(std::as_const(state.initial)), state.angles, state.dynamics);
    read_out(state.angles, state.read, rows(y));
  }

  Tensor<T, 3> operator()(ConstTensorView<T, 3> x) const {
    Tensor<T, 3> y;
    Cache cache;
    forward(x, y, cache);
    return y;
  }

  // The package's names; its coupling_matrix is one number a head.
  void parameters(auto&& visit) {
    visit_layer(visit, "to_phase", to_phase);
    visit("natural_freq", dynamics.natural_frequency);
    visit("coupling_matrix", dynamics.coupling_strength);
    visit_layer(visit, "from_phase", from_phase);
  }
  void linears(auto&& visit) {
    for (Linear<T>* map : {&to_phase, &from_phase}) visit(*map);
  }

 private:
  bool noise_drawn(const Cache& cache) const { return cache.dropout.active && config.phase_noise > 0; }
  bool jitter_drawn(const Cache& cache) const { return cache.dropout.active && config.frequency_jitter > 0; }
  static Rng stream(const Cache& cache, std::uint64_t offset) {
    return Rng(cache.dropout.seed, (cache.dropout.step << 16) ^ (cache.dropout_stream + offset));
  }
  Index rows_per_chunk() const { return std::max<Index>(1, 4096 / config.kuramoto.width()); }

  void first_angles(ConstTensorView<T, 3> x, Tensor<T, 3>& initial) const {
    const Index width = config.kuramoto.width();
    ensure_shape(initial, {x.dimension(0), x.dimension(1), width});
    to_phase.forward(rows(x), rows(initial));
    parallel_for(rows(x).rows(), rows_per_chunk(), [&](Index begin, Index end) {
      T* theta = initial.data() + begin * width;
      simd::phases_from_features(theta, (end - begin) * width, theta);
    });
  }

  void read_out(const Tensor<T, 3>& angles, Tensor<T, 2>& read, MatrixView<T> y) const {
    const Index width = config.kuramoto.width(), count = y.rows();
    if (config.readout == PhaseReadout::raw) return from_phase.forward(rows(angles), y);
    ensure_shape(read, {count, 2 * width});
    parallel_for(count, rows_per_chunk(), [&](Index begin, Index end) {
      for (Index row = begin; row < end; ++row) {
        T* to = read.data() + row * 2 * width;
        simd::write_angle_phasors(angles.data() + row * width, width, to, to + width);
      }
    });
    from_phase.forward(rows(std::as_const(read)), y);
  }
};

}  // namespace rbar
