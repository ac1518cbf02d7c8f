// A router whose share of attention follows the coherence of the text: incoherent text gets more.
//   e = target − mean coherence,   share = clamp(base + K_p e + K_i Σe + K_d Δe, minimum, maximum)
// Source: the CoRT package 0.1.0, AdaptiveCoherentRouter.
#pragma once

#include "rbar/routing/router.hpp"

namespace rbar {

struct AdaptiveRouterConfig {
  RouterConfig router;
  bool adaptive = true;  // false: the share stays router.route_frac
  double target_coherence = 0.5;
  PidConfig pid = {};  // its base is replaced by router.route_frac

  template <class Visit>
  void fields(Visit&& visit) {
    router.fields(visit);
    visit("adaptive", adaptive);
    visit("target_coherence", target_coherence);
    pid.fields(visit);
  }

  void validate() const {
    router.validate();
    pid.validate();
    require(std::isfinite(target_coherence), "AdaptiveRouterConfig", "target_coherence", "a finite number",
            target_coherence);
    require(!adaptive || (pid.minimum > 0 && pid.maximum <= 1), "AdaptiveRouterConfig", "pid.minimum, pid.maximum",
            "0 < minimum and maximum <= 1", std::to_string(pid.minimum) + ", " + std::to_string(pid.maximum));
  }
};

// Same interface as CoherentRouter. Causal: the share moves between training steps (`adapt`), and τ
// after it; inference is frozen. Reference: as in the package, this batch's coherence sets this
// batch's share; forward computes it without moving the controller, `adapt` moves it.
template <class T>
struct AdaptiveCoherentRouter {
  using Scalar = T;
  using Cache = typename CoherentRouter<T>::Cache;
  using State = typename CoherentRouter<T>::State;

  AdaptiveRouterConfig config;
  CoherentRouter<T> router;
  Tensor<T, 1> budget;        // buffer [1]: share to hold
  Tensor<T, 1> budget_state;  // buffer [2]: PID integral, PID previous error

  AdaptiveCoherentRouter() = default;
  AdaptiveCoherentRouter(const AdaptiveRouterConfig& config_, Rng& rng)
      : config(config_), router(config_.router, rng), budget(1), budget_state(2) {
    config.pid.base = config.router.route_frac;
    config.validate();
    budget.setConstant(static_cast<T>(config.router.route_frac));
    budget_state.setZero();
  }

  void forward(ConstTensorView<T, 3> hidden, Cache& cache) const {
    router.compute_scores(hidden, cache);
    const bool preview = config.adaptive && config.router.causality == Causality::reference;
    router.decide(preview ? controller().preview(error(cache)) : config.router.route_frac, cache);
  }

  void backward(ConstTensorView<T, 2> dscores, ConstTensorView<T, 3> hidden, const Cache& cache, Tensor<T, 3>& dhidden,
                AdaptiveCoherentRouter& grad) const {
    router.backward(dscores, hidden, cache, dhidden, grad.router);
  }

  void step(ConstTensorView<T, 3> hidden, State& state) const { router.step(hidden, state); }

  void adapt(const Cache& cache) {
    if (!config.adaptive) return router.adapt(cache);
    PidController pid = controller();
    budget(0) = static_cast<T>(pid.update(error(cache)));
    budget_state(0) = static_cast<T>(pid.integral);
    budget_state(1) = static_cast<T>(pid.previous_error);
    router.adapt(cache, static_cast<double>(budget(0)));
  }

  void parameters(auto&& visit) { router.parameters(visit); }
  void buffers(auto&& visit) {
    router.buffers(visit);
    visit("budget", budget);
    visit("budget_state", budget_state);
  }

 private:
  double error(const Cache& cache) const { return config.target_coherence - cache.stats.mean_coherence; }

  PidController controller() const {
    PidController pid(config.pid);
    pid.integral = static_cast<double>(budget_state(0));
    pid.previous_error = static_cast<double>(budget_state(1));
    return pid;
  }
};

}  // namespace rbar
