// How Kuramoto oscillators along a sequence are coupled and integrated.
#pragma once

#include "rbar/core/causality.hpp"
#include "rbar/core/error.hpp"
#include "rbar/core/tensor.hpp"
#include "rbar/simd/oscillator.hpp"

#include <cmath>
#include <string_view>

namespace rbar {

// The sign of the coupling: with K > 0 the phases attract each other, as Kuramoto wrote it (mean_j sin(θ_j − θ_i)), or
// repel each other, as the PhaseGPT package computes it (mean_j sin(θ_i − θ_j)).
enum class Coupling { attractive, reference };

inline constexpr Coupling all_couplings[] = {Coupling::attractive, Coupling::reference};
constexpr const char* name_of(Coupling coupling) {
  return coupling == Coupling::attractive ? "attractive" : "reference";
}
constexpr bool parse(std::string_view text, Coupling& coupling) {
  for (const Coupling candidate : all_couplings)
    if (text == name_of(candidate)) return coupling = candidate, true;
  return false;
}

enum class Integrator {
  euler,  // the package's
  rk4,    // four evaluations of the field a step, error O(dt⁴)
};

inline constexpr Integrator all_integrators[] = {Integrator::euler, Integrator::rk4};
constexpr const char* name_of(Integrator integrator) { return integrator == Integrator::euler ? "euler" : "rk4"; }
constexpr bool parse(std::string_view text, Integrator& integrator) {
  for (const Integrator candidate : all_integrators)
    if (text == name_of(candidate)) return integrator = candidate, true;
  return false;
}

// How far a phase may move in one evaluation, radians: beyond it a float's angle keeps no four decimals, and far beyond
// it (2²² turns) wrap_angle no longer finds the way back to [−π, π]. Anything above π is too coarse to be of use.
inline constexpr double largest_phase_step = 1000;

struct KuramotoConfig {
  Index n_heads = 8;
  Index n_oscillators = 32;  // of a head
  Index n_steps = 10;
  double dt = 0.1;
  Coupling coupling = Coupling::attractive;
  Causality causality = Causality::causal;  // reference: the mean field of all positions, the future included
  Integrator integrator = Integrator::euler;

  Index width() const { return n_heads * n_oscillators; }
  simd::OscillatorSteps steps() const { return {n_steps, dt, integrator == Integrator::rk4}; }

  template <class Visit>
  void fields(Visit&& visit) {
    visit("n_heads", n_heads);
    visit("n_oscillators", n_oscillators);
    visit("n_steps", n_steps);
    visit("dt", dt);
    visit("coupling", coupling);
    visit("causality", causality);
    visit("integrator", integrator);
  }

  void validate() const {
    constexpr const char* where = "KuramotoConfig";
    require(n_heads >= 1, where, "n_heads", "at least 1", n_heads);
    require(n_oscillators >= 1, where, "n_oscillators", "at least 1", n_oscillators);
    require(n_steps >= 0, where, "n_steps", "at least 0", n_steps);
    require(dt > 0 && std::isfinite(dt), where, "dt", "a positive number", dt);
  }
};

}  // namespace rbar
