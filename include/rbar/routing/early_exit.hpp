// Energy-based early exit (ADR-015): a token stops climbing when its energy has stopped changing,
//   |E_l − E_{l−1}| / |E_{l−1}| < ε   for `patience` layers l ≥ min_layers in a row (layers count from 0),
// or when nothing is left to agree upon, E_l = 0 (up to zero_energy). The latter has two causes that must not be
// confused: the tokens agree (perfect coherence), or the states of all tokens have become the same (collapse).
#pragma once

#include "rbar/core/error.hpp"

#include <Eigen/Core>

#include <array>
#include <cmath>
#include <optional>

namespace rbar {

enum class ExitReason {
  max_layers_reached,  // of its lane
  energy_converged,    // |ΔE| / |E_prev| < ε for `patience` layers
  perfect_coherence,   // E is 0 and the states are not all the same
  collapsed,           // E is 0 because all states are the same: nothing was agreed upon
};

constexpr const char* name_of(ExitReason reason) {
  constexpr const char* names[] = {"max_layers_reached", "energy_converged", "perfect_coherence", "collapsed"};
  return names[static_cast<int>(reason)];
}

struct EarlyExitConfig {
  bool enabled = false;
  double epsilon = 0.1;            // ε, relative change of the energy; at 0 only no change at all is calm
  Eigen::Index patience = 1;       // layers in a row
  Eigen::Index min_layers = 1;     // index of the first layer that may end a token
  bool track_history = true;       // keep the last energies in the state; decides nothing
  double zero_energy = 1e-6;       // normalised energies up to here are 0
  double collapsed_spread = 1e-6;  // relative spread of the states (relative_spread) up to here is none

  template <class Visit>
  void fields(Visit&& visit) {
    visit("enabled", enabled);
    visit("epsilon", epsilon);
    visit("patience", patience);
    visit("min_layers", min_layers);
    visit("track_history", track_history);
    visit("zero_energy", zero_energy);
    visit("collapsed_spread", collapsed_spread);
  }

  void validate() const {
    constexpr const char* where = "EarlyExitConfig";
    require(epsilon >= 0 && epsilon < 1, where, "epsilon", "0 <= epsilon < 1", epsilon);
    require(patience >= 1, where, "patience", "at least 1", patience);
    require(min_layers >= 0, where, "min_layers", "at least 0", min_layers);
    require(zero_energy >= 0, where, "zero_energy", "at least 0", zero_energy);
    require(collapsed_spread >= 0, where, "collapsed_spread", "at least 0", collapsed_spread);
  }
};

// Of one token; trivially copyable. A default-constructed state is the beginning.
struct EarlyExitState {
  static constexpr Eigen::Index history_size = 16;

  double previous = 0;                            // E_{l−1}
  Eigen::Index layers = 0;                        // observed so far
  Eigen::Index calm = 0;                          // layers in a row below ε
  std::array<double, history_size> history = {};  // layer l at l % history_size, if tracked
};

// The energy (normalised, at least 0) of one token after `layer`: why it stops here, or nothing. Called for layers
// 0, 1, ... in turn. `spread` is the token's relative spread of the states (relative_spread in sheaf/token_energy.hpp);
// 1 where it is not known. A config that is not enabled never stops a token.
// Errors: an energy that is negative or not finite, a layer out of turn.
inline std::optional<ExitReason> observe(const EarlyExitConfig& config, EarlyExitState& state, Eigen::Index layer,
                                         double energy, double spread = 1) {
  require(std::isfinite(energy) && energy >= 0, "observe", "energy", "a finite number, at least 0", energy);
  require(layer == state.layers, "observe", "layer", state.layers, layer);
  // Written as a product: after E_{l−1} = 0 only 0 is no change.
  const double change = std::abs(energy - state.previous);
  const bool calm = layer > 0 && (change == 0 || change < config.epsilon * state.previous);
  state.calm = calm && layer >= config.min_layers ? state.calm + 1 : 0;
  state.previous = energy;
  if (config.track_history) state.history[static_cast<std::size_t>(layer % EarlyExitState::history_size)] = energy;
  ++state.layers;
  if (!config.enabled || layer < config.min_layers) return {};
  if (energy <= config.zero_energy)
    return spread <= config.collapsed_spread ? ExitReason::collapsed : ExitReason::perfect_coherence;
  if (state.calm >= config.patience) return ExitReason::energy_converged;
  return {};
}

}  // namespace rbar
