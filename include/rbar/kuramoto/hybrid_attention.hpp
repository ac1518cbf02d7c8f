// Attention by comparison and by synchronisation, side by side:
//   y = (1 − a)·MultiHeadAttention(x) + a·PhaseAttention(x)
// Source: the PhaseGPT package, a = .5.
#pragma once

#include "rbar/attention/multi_head_attention.hpp"
#include "rbar/kuramoto/phase_attention.hpp"

namespace rbar {

struct HybridAttentionConfig {
  MultiHeadAttentionConfig attention;
  PhaseAttentionConfig phase;
  double phase_share = 0.5;  // a

  void validate() const {
    attention.validate();
    phase.validate();
    require(phase_share >= 0 && phase_share <= 1, "HybridAttentionConfig", "phase_share", "0 to 1", phase_share);
    require(attention.d_model == phase.d_model, "HybridAttentionConfig", "phase.d_model", attention.d_model,
            phase.d_model);
  }
};

// [batch, tokens, d_model] -> the same. Errors: those of the two parts.
template <class T>
struct HybridAttention {
  using Scalar = T;
  using Config = HybridAttentionConfig;

  struct Cache {
    typename MultiHeadAttention<T>::Cache attention;
    typename PhaseAttention<T>::Cache phase;
    double auxiliary_loss = 0;  // the phases' regulariser
    Tensor<T, 3> phase_output;
    mutable Tensor<T, 3> scaled, dphase;  // scratch of backward

    void swap_scratch(const Cache& other) const {
      attention.swap_scratch(other.attention);
      phase.swap_scratch(other.phase);
      std::swap(scaled, other.scaled);
      std::swap(dphase, other.dphase);
    }
  };
  struct State {
    typename MultiHeadAttention<T>::State attention;
    typename PhaseAttention<T>::State phase;
    Tensor<T, 3> phase_output;
  };

  Config config;
  MultiHeadAttention<T> attention;
  PhaseAttention<T> phase;

  HybridAttention() = default;
  HybridAttention(const Config& config_, Rng& rng) : config(config_) {
    config.validate();
    attention = MultiHeadAttention<T>(config.attention, rng);
    phase = PhaseAttention<T>(config.phase, rng);
  }

  void forward(ConstTensorView<T, 3> x, Tensor<T, 3>& y, Cache& cache) const {
    attention.forward(x, y, cache.attention);
    phase.forward(x, cache.phase_output, cache.phase);
    cache.auxiliary_loss = cache.phase.auxiliary_loss;
    blend(y, cache.phase_output);
  }

  void backward(ConstTensorView<T, 3> dy, const Cache& cache, Tensor<T, 3>& dx, HybridAttention& grad) const {
    require_shape("HybridAttention::backward", "dy", shape_of(dy), shape_of(cache.phase_output));
    attention.backward(scaled(dy, 1 - config.phase_share, cache.scaled), cache.attention, dx, grad.attention);
    phase.backward(scaled(dy, config.phase_share, cache.scaled), cache.phase, cache.dphase, grad.phase);
    parallel_for(dx.size(), 16384, [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i) dx.data()[i] += cache.dphase.data()[i];
    });
  }

  void step(ConstTensorView<T, 3> x, Tensor<T, 3>& y, State& state) const {
    attention.step(x, y, state.attention);
    phase.step(x, state.phase_output, state.phase);
    blend(y, state.phase_output);
  }

  Tensor<T, 3> operator()(ConstTensorView<T, 3> x) const {
    Tensor<T, 3> y;
    Cache cache;
    forward(x, y, cache);
    return y;
  }

  void parameters(auto&& visit) {
    visit_layer(visit, "attention", attention);
    visit_layer(visit, "phase", phase);
  }
  void linears(auto&& visit) {
    attention.linears(visit);
    phase.linears(visit);
  }

 private:
  void blend(Tensor<T, 3>& y, const Tensor<T, 3>& phase_output) const {
    const T a = static_cast<T>(config.phase_share);
    parallel_for(y.size(), 16384, [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i) y.data()[i] = (T(1) - a) * y.data()[i] + a * phase_output.data()[i];
    });
  }
  static ConstTensorView<T, 3> scaled(ConstTensorView<T, 3> dy, double factor, Tensor<T, 3>& buffer) {
    ensure_shape(buffer, shape_of(dy));
    parallel_for(dy.size(), 16384, [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i) buffer.data()[i] = static_cast<T>(factor) * dy.data()[i];
    });
    return view(std::as_const(buffer));
  }
};

}  // namespace rbar
