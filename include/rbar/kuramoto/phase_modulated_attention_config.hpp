// The shape of a phase-modulated attention, and which of its parts are there.
#pragma once

#include "rbar/core/error.hpp"
#include "rbar/core/tensor.hpp"
#include "rbar/kuramoto/dynamics_config.hpp"
#include "rbar/nn/rotary.hpp"

#include <cmath>

namespace rbar {

struct PhaseModulatedAttentionConfig {
  Index d_model = 256;
  Index n_heads = 4;     // one oscillator each
  Index d_coupling = 0;  // width of the state that sets the coupling K; 0: d_model
  Index max_seq_len = 1024;
  Index n_steps = 5;  // of the oscillators, 0: they stay at φ⁰
  double dt = 0.1;
  double gate = 0.1;       // λ at first
  double temperature = 1;  // τ_base
  double alpha = 0.1;      // at first, as is beta: what disorder and the spread of P add to τ
  double beta = 0.1;
  bool bias = false;  // of the projections of queries, keys, values and output
  Rotary rotary = Rotary::none;
  double rope_base = 10000;

  // Ablations.
  bool phase_gate = true;            // off: λ = 0, the score knows no phases
  bool adaptive_temperature = true;  // off: α = β = 0, τ = τ_base
  bool learn_coupling = true;        // off: K = coupling for every token
  double coupling = 1;               // K where it is not learned
  bool frozen_phases = false;        // φ = ω_h for every token: no map from the token, no coupling
  bool position_phases = true;       // off: φ_pos = 0

  // What AttentionPasses asks for.
  static constexpr bool causal = true;
  static constexpr Index window = 0;
  static constexpr Index max_head_dim = 256;
  Index kv_heads() const { return n_heads; }
  Index dim_per_head() const { return n_heads == 0 ? 0 : d_model / n_heads; }

  Index coupling_width() const { return d_coupling > 0 ? d_coupling : d_model; }
  // Without a gate and an adaptive temperature nothing reads the phases, and there are none.
  bool has_oscillators() const { return phase_gate || adaptive_temperature; }
  bool has_phase_map() const { return has_oscillators() && !frozen_phases; }
  bool has_coupling_map() const { return has_phase_map() && learn_coupling && n_steps > 0; }
  bool has_position_phases() const { return has_oscillators() && position_phases; }

  template <class Visit>
  void fields(Visit&& visit) {
    visit("d_model", d_model);
    visit("n_heads", n_heads);
    visit("d_coupling", d_coupling);
    visit("max_seq_len", max_seq_len);
    visit("n_steps", n_steps);
    visit("dt", dt);
    visit("gate", gate);
    visit("temperature", temperature);
    visit("alpha", alpha);
    visit("beta", beta);
    visit("bias", bias);
    visit("rotary", rotary);
    visit("rope_base", rope_base);
    visit("phase_gate", phase_gate);
    visit("adaptive_temperature", adaptive_temperature);
    visit("learn_coupling", learn_coupling);
    visit("coupling", coupling);
    visit("frozen_phases", frozen_phases);
    visit("position_phases", position_phases);
  }

  void validate() const {
    constexpr const char* where = "PhaseModulatedAttentionConfig";
    require(n_heads >= 1, where, "n_heads", "at least 1", n_heads);
    require(d_model >= 1 && d_model % n_heads == 0, where, "d_model", "a multiple of n_heads", d_model);
    require(dim_per_head() <= max_head_dim, where, "d_model / n_heads", max_head_dim, dim_per_head());
    require(d_coupling >= 0, where, "d_coupling", "at least 0", d_coupling);
    require(max_seq_len >= 1, where, "max_seq_len", "at least 1", max_seq_len);
    require(n_steps >= 0, where, "n_steps", "at least 0", n_steps);
    require(dt > 0 && std::isfinite(dt), where, "dt", "a positive number", dt);
    require(gate > 0 && gate < 1, where, "gate", "a number in (0, 1)", gate);
    require(temperature > 0 && std::isfinite(temperature), where, "temperature", "a positive number", temperature);
    require(alpha > -1 && std::isfinite(alpha), where, "alpha", "a number above -1", alpha);
    require(beta > -1 && std::isfinite(beta), where, "beta", "a number above -1", beta);
    require(dt * std::abs(coupling) <= largest_phase_step, where, "coupling", "at most 1000 radians in a step of dt",
            coupling);
    require(rotary == Rotary::none || dim_per_head() % 2 == 0, where, "d_model / n_heads with rotary positions",
            "an even number", dim_per_head());
    require(rope_base > 0, where, "rope_base", "a positive number", rope_base);
  }
};

}  // namespace rbar
