// Which lane a token takes (ADR-015), decided by its token energy against the causal context (sheaf/token_energy.hpp),
// divided by the running scale of the point where it is measured (sheaf/energy_scale.hpp).
//   point 0: the embeddings     point 1: after the reflex layers     point 2: after the standard layers
//   point 3: the final state
// The router's own maps measure everywhere; nothing here depends on the layers' attention.
//   route_at = embedding    E at point 0 chooses among all lanes: lane_of(E, θ)
//   route_at = boundaries   a token goes on past point 1 if E₁ ≥ θ_reflex, past point 2 if E₂ ≥ θ_standard, and is
//                           reported as uncertain (escalate) if E₃ ≥ θ_deep
// In both, θ_max bounds the final energy of what may be emitted.
//
// Thresholds are quantiles: they hold the lanes' shares of the tokens at their targets. At a boundary the quantile is
// that of the tokens that came so far: P(E₂ < θ_standard | went on) = share_standard / (1 − share_reflex).
#pragma once

#include "rbar/routing/compute_lane.hpp"
#include "rbar/routing/pressure.hpp"
#include "rbar/routing/threshold_tuner.hpp"
#include "rbar/sheaf/energy_scale.hpp"
#include "rbar/sheaf/token_energy.hpp"

#include <limits>

namespace rbar {

enum class RouteAt { embedding, boundaries };

inline constexpr RouteAt all_route_at[] = {RouteAt::embedding, RouteAt::boundaries};
constexpr const char* name_of(RouteAt route_at) { return route_at == RouteAt::embedding ? "embedding" : "boundaries"; }
constexpr bool parse(std::string_view text, RouteAt& route_at) {
  for (const RouteAt candidate : all_route_at)
    if (text == name_of(candidate)) return route_at = candidate, true;
  return false;
}

// Target shares of the tokens. What the three lanes leave over escalates; what is refused is a share of all tokens.
struct LaneShares {
  double reflex = 0.6, standard = 0.25, deep = 0.14, refused = 0.01;

  double escalate() const { return std::max(0.0, 1 - reflex - standard - deep); }

  void validate() const {
    constexpr const char* where = "LaneShares";
    for (const double share : {reflex, standard, deep, refused})
      require(share >= 0 && share <= 1, where, "share", "0 <= share <= 1", share);
    require(reflex + standard + deep <= 1 + 1e-9, where, "reflex + standard + deep", "at most 1",
            reflex + standard + deep);
  }
};

// Thresholds that give exactly these shares of `energies` (of one point): the absolute calibration, for energies
// measured once. θ_max bounds the other thresholds: what is refused is uncertain too. Errors: no energies, one that is
// not finite, shares that are none.
template <class T>
CoherenceThresholds calibrate(std::span<const T> energies, const LaneShares& shares) {
  shares.validate();
  require(!energies.empty(), "calibrate", "energies", "at least one", energies.size());
  require_finite("calibrate", "energies", energies);
  const auto cut = [&](double share) {
    if (share >= 1 - 1e-9) return ThresholdTuner<T>::above_every_energy;
    return share <= 0 ? 0.0 : separator(energies, share * static_cast<double>(energies.size()));
  };
  CoherenceThresholds thresholds;
  thresholds.reflex = cut(shares.reflex);
  thresholds.standard = cut(shares.reflex + shares.standard);
  thresholds.deep = cut(shares.reflex + shares.standard + shares.deep);
  thresholds.max = cut(1 - shares.refused);
  for (double* below : {&thresholds.deep, &thresholds.standard, &thresholds.reflex})
    *below = std::min(*below, thresholds.max);
  return thresholds;
}

struct LaneRouterConfig {
  Index d_model = 0;
  Index energy_dim = 32;
  RestrictionMapKind energy_map = RestrictionMapKind::dense;
  Index energy_map_rank = 0;
  RouteAt route_at = RouteAt::boundaries;
  double share_reflex = 0.6, share_standard = 0.25, share_deep = 0.14;  // the rest escalates
  double share_refused = 0.01;                                          // of all tokens, by θ_max
  double scale_decay = 0.99;                                            // γ of the running scales
  ThresholdTunerConfig tuner;

  TokenEnergyConfig energy() const { return {d_model, energy_dim, energy_map, energy_map_rank}; }
  LaneShares shares() const { return {share_reflex, share_standard, share_deep, share_refused}; }

  template <class Visit>
  void fields(Visit&& visit) {
    visit("d_model", d_model);
    visit("energy_dim", energy_dim);
    visit("energy_map", energy_map);
    visit("energy_map_rank", energy_map_rank);
    visit("route_at", route_at);
    visit("share_reflex", share_reflex);
    visit("share_standard", share_standard);
    visit("share_deep", share_deep);
    visit("share_refused", share_refused);
    visit("scale_decay", scale_decay);
    tuner.fields(visit);
  }

  void validate() const {
    energy().validate();
    shares().validate();
    require(scale_decay >= 0 && scale_decay < 1, "LaneRouterConfig", "scale_decay", "0 <= scale_decay < 1",
            scale_decay);
    tuner.validate();
  }
};

// Causal, streamable; forward never moves scales and thresholds, `adapt` does, between training steps.
template <class T>
struct LaneRouter {
  using Scalar = T;

  static constexpr Index points = 4;       // of measurement
  static constexpr Index curve_size = 17;  // pressures 0, 1/16, ..., 1
  enum Threshold : Index { reflex, standard, deep, max };

  LaneRouterConfig config;
  TokenEnergy<T> measure;
  EnergyScale<T> scale;          // buffer [points]
  ThresholdTuner<T> thresholds;  // buffer [4]: reflex, standard, deep, max, in normalised energy
  Tensor<T, 1> pressure_curve;   // buffer [curve_size]: running quantiles where θ_reflex cuts (pressure.hpp)
  Tensor<T, 1> curve_seen;       // buffer [1]

  // One for each point of each pass; the model owns them.
  struct Cache {
    typename TokenEnergy<T>::Cache energy;
    mutable Tensor<T, 2> denergy;  // scratch of backward
  };
  struct State {
    typename TokenEnergy<T>::State energy;

    void reset() { energy.reset(); }
  };

  // Until the first `adapt` the thresholds are the record's .01, .1 and 1 on a scale of 1, which send practically every
  // token through all layers, so that every layer learns and every point is measured; θ_max is infinite: there is
  // nothing yet that a refusal could rest on.
  LaneRouter() = default;
  LaneRouter(const LaneRouterConfig& config_, Rng& rng)
      : config(config_), scale(points), pressure_curve(curve_size), curve_seen(1) {
    config.validate();
    measure = TokenEnergy<T>(config.energy(), rng);
    const CoherenceThresholds record;
    const double initial[] = {record.reflex, record.standard, record.deep, std::numeric_limits<double>::infinity()};
    thresholds = ThresholdTuner<T>(config.tuner, initial);
    pressure_curve.setConstant(thresholds.value(reflex));
    curve_seen.setZero();
  }

  // --- energies: hidden [B, T, d_model] -> normalised [B, T] -----------------------------------------------------

  // Errors (all three): another d_model, no tokens, a NaN or an infinity in the states, another point.
  void energies(Index point, ConstTensorView<T, 3> hidden, Tensor<T, 2>& normalised, Cache& cache) const {
    check_point("LaneRouter::energies", point);
    measure.forward(hidden, normalised, cache.energy);
    normalise(point, elements(normalised));
  }
  // Adds to dhidden.
  void energies_backward(Index point, ConstTensorView<T, 2> dnormalised, ConstTensorView<T, 3> hidden,
                         const Cache& cache, Tensor<T, 3>& dhidden, LaneRouter& grad) const {
    check_point("LaneRouter::energies_backward", point);
    ensure_shape(cache.denergy, shape_of(dnormalised));
    for (Index i = 0; i < dnormalised.size(); ++i) cache.denergy.data()[i] = dnormalised.data()[i] / scale(point);
    measure.backward(view(std::as_const(cache.denergy)), hidden, cache.energy, dhidden, grad.measure);
  }
  void energies_step(Index point, ConstTensorView<T, 3> hidden, Tensor<T, 2>& normalised, State& state) const {
    check_point("LaneRouter::energies_step", point);
    measure.step(hidden, normalised, state.energy);
    normalise(point, elements(normalised));
  }
  // The energies that the tokens `token_rows` [n] of the last `energies` would have with the states hidden_rows
  // [n, d_model], all others being as they were: what an escalated token is measured by. After a step the cache is
  // state.energy.cache.
  void remeasure(Index point, ConstMatrixView<T> hidden_rows, const Index* token_rows,
                 const typename TokenEnergy<T>::Cache& cache, T* normalised) const {
    check_point("LaneRouter::remeasure", point);
    measure.remeasure(hidden_rows, token_rows, cache, normalised);
    normalise(point, std::span<T>(normalised, static_cast<std::size_t>(hidden_rows.rows())));
  }

  // --- decisions -------------------------------------------------------------------------------------------------

  // What a pass decides by. Pressure raises θ_reflex alone; a threshold of the same point stays at least as high. Each
  // threshold is in the unit of its point: those of different points are in no order (with `boundaries` only
  // θ_deep ≤ θ_max holds, with `embedding` θ_reflex ≤ θ_standard ≤ θ_deep).
  CoherenceThresholds thresholds_in_force(double pressure = 0) const {
    CoherenceThresholds result;
    result.reflex = pressed_threshold(
        thresholds(reflex), std::span<const T>(pressure_curve.data(), static_cast<std::size_t>(pressure_curve.size())),
        pressure);
    result.standard = thresholds(standard);
    result.deep = thresholds(deep);
    result.max = thresholds(max);
    if (config.route_at == RouteAt::embedding) {
      result.standard = std::max(result.standard, result.reflex);
      result.deep = std::max(result.deep, result.standard);
    } else {
      // What nobody escalates for has a θ_deep above everything: the bound is what holds.
      result.deep = std::min(result.deep, result.max);
    }
    return result;
  }

  // Whether a token goes on past boundary 1 or 2 (route_at = boundaries). Errors: another boundary, an energy that is
  // not finite.
  bool continues(Index boundary, double energy, const CoherenceThresholds& in_force) const {
    require(boundary == 1 || boundary == 2, "LaneRouter::continues", "boundary", "1 or 2", boundary);
    require(std::isfinite(energy), "LaneRouter::continues", "energy", "a finite number", energy);
    return energy >= (boundary == 1 ? in_force.reflex : in_force.standard);
  }
  // route_at = embedding: the lane of a token's energy at point 0.
  ComputeLane lane(double energy, const CoherenceThresholds& in_force) const { return lane_of(energy, in_force); }
  // route_at = boundaries: the lane of a token that went through all layers, from its final energy.
  ComputeLane last_lane(double final_energy, const CoherenceThresholds& in_force) const {
    require(std::isfinite(final_energy), "LaneRouter::last_lane", "energy", "a finite number", final_energy);
    return final_energy < in_force.deep ? ComputeLane::deep : ComputeLane::escalate;
  }

  // --- between training steps ------------------------------------------------------------------------------------

  // Learns from the normalised energies that a pass measured at `point`, of all tokens: the scale follows their mean,
  // and the thresholds that cut at this point follow their quantiles. `decided` marks the tokens that were decided here
  // (with `boundaries`, those that came so far; empty: all); the quantile of θ_max is that of all tokens.
  // Errors: another point, no energies, one that is not finite, as many marks as there are not energies.
  void adapt(Index point, std::span<const T> energies, std::span<const bool> decided = {}) {
    check_point("LaneRouter::adapt", point);
    require(decided.empty() || decided.size() == energies.size(), "LaneRouter::adapt", "decided", energies.size(),
            decided.size());
    const double unit_change = scale.adapt(point, energies, config.scale_decay);
    std::vector<T> all, chosen;
    for (std::size_t i = 0; i < energies.size(); ++i) {
      all.push_back(static_cast<T>(unit_change * static_cast<double>(energies[i])));
      if (decided.empty() || decided[i]) chosen.push_back(all.back());
    }
    const LaneShares shares = config.shares();
    const auto tune = [&](Threshold threshold, double below, double of) {
      if (!chosen.empty() && of > 1e-9)
        thresholds.adapt(threshold, std::span<const T>(chosen), std::min(1.0, below / of));
    };
    if (point == (config.route_at == RouteAt::embedding ? 0 : 1)) {
      tune(reflex, shares.reflex, 1);
      if (!chosen.empty()) follow_curve(chosen);
    }
    if (config.route_at == RouteAt::embedding) {
      if (point == 0) tune(standard, shares.reflex + shares.standard, 1);
      if (point == 0) tune(deep, shares.reflex + shares.standard + shares.deep, 1);
    } else {
      if (point == 2) tune(standard, shares.standard, 1 - shares.reflex);
      if (point == 3) tune(deep, shares.deep, 1 - shares.reflex - shares.standard);
    }
    if (point == 3) thresholds.adapt(max, std::span<const T>(all), 1 - shares.refused);
  }

  // Thresholds given by hand, in normalised energy. The tuner moves them on if `adapt` is called.
  // Errors: thresholds out of order.
  void set_thresholds(const CoherenceThresholds& given) {
    given.validate();
    const double values[] = {given.reflex, given.standard, given.deep, given.max};
    for (Index i = 0; i < 4; ++i) thresholds.value(i) = static_cast<T>(values[i]);
  }

  void parameters(auto&& visit) { measure.parameters(visit); }
  void buffers(auto&& visit) {
    scale.buffers(visit);
    thresholds.buffers(visit);
    visit("pressure_curve", pressure_curve);
    visit("curve_seen", curve_seen);
  }

 private:
  static void check_point(std::string_view operation, Index point) {
    require(point >= 0 && point < points, operation, "point", "0 to 3", point);
  }
  void normalise(Index point, std::span<T> energies) const {
    for (T& energy : energies) energy /= scale(point);
  }

  // Averages of ascending quantiles ascend, so the curve stays monotone.
  void follow_curve(std::vector<T>& energies) {
    std::sort(energies.begin(), energies.end());
    const double weight = curve_seen(0) == T(0) ? 1 : config.tuner.smoothing;
    for (Index k = 0; k < curve_size; ++k) {
      const double pressure = static_cast<double>(k) / static_cast<double>(curve_size - 1);
      const double rank = pressed_share(config.share_reflex, pressure) * static_cast<double>(energies.size());
      const auto at = std::min(static_cast<std::size_t>(rank), energies.size() - 1);
      pressure_curve(k) += static_cast<T>(weight * static_cast<double>(energies[at] - pressure_curve(k)));
    }
    curve_seen(0) = T(1);
  }
};

}  // namespace rbar
