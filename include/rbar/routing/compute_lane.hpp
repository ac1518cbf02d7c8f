// The four lanes of the Coherence-Gated Transformer (ADR-015) and the thresholds between them. An energy is always a
// normalised one here (EnergyScale): without a scale the record's .01/.1/1 send every token to the last lane.
#pragma once

#include "rbar/core/error.hpp"

#include <string_view>

namespace rbar {

enum class ComputeLane {
  reflex,    // the first layers: window attention, no feed-forward
  standard,  // up to the middle: sparse sheaf attention and feed-forward
  deep,      // all layers: full sheaf attention, mixture of experts
  escalate,  // all layers, and the token is reported as uncertain
};

inline constexpr ComputeLane all_compute_lanes[] = {ComputeLane::reflex, ComputeLane::standard, ComputeLane::deep,
                                                    ComputeLane::escalate};
constexpr const char* name_of(ComputeLane lane) {
  constexpr const char* names[] = {"reflex", "standard", "deep", "escalate"};
  return names[static_cast<int>(lane)];
}
constexpr bool parse(std::string_view text, ComputeLane& lane) {
  for (const ComputeLane candidate : all_compute_lanes)
    if (text == name_of(candidate)) return lane = candidate, true;
  return false;
}

// Normalised energies. `max` bounds what may be emitted at all (θ_max).
struct CoherenceThresholds {
  double reflex = 0.01, standard = 0.1, deep = 1, max = 10;

  // Errors: a threshold that is negative, not finite (max may be infinite) or not above the one before it.
  void validate() const {
    constexpr const char* where = "CoherenceThresholds";
    require(reflex >= 0, where, "reflex", "at least 0", reflex);
    require(standard >= reflex, where, "standard", "at least the threshold of reflex", standard);
    require(deep >= standard && deep <= 1e300, where, "deep", "finite, and at least the threshold of standard", deep);
    require(max >= deep, where, "max", "at least the threshold of deep", max);
  }
};

// E < θ_reflex: reflex; < θ_standard: standard; < θ_deep: deep; else escalate. Errors: an energy that is not finite.
inline ComputeLane lane_of(double energy, const CoherenceThresholds& thresholds) {
  require(energy - energy == 0, "lane_of", "energy", "a finite number", energy);
  return energy < thresholds.reflex     ? ComputeLane::reflex
         : energy < thresholds.standard ? ComputeLane::standard
         : energy < thresholds.deep     ? ComputeLane::deep
                                        : ComputeLane::escalate;
}

}  // namespace rbar
