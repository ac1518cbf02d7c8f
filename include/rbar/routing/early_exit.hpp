// Energy-based early exit (ADR-015): a token stops when its energy has stopped changing.
#pragma once

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

}  // namespace rbar
