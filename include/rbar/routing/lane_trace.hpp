// What a Coherence-Gated Transformer did with one sequence: the record that witness, report and metrics are made of.
#pragma once

#include "rbar/core/tensor.hpp"
#include "rbar/routing/compute_lane.hpp"
#include "rbar/routing/early_exit.hpp"
#include "rbar/sheaf/spectral_summary.hpp"

#include <vector>

namespace rbar {

struct TokenTrace {
  ComputeLane routed = ComputeLane::reflex;  // where its energy sent it
  ComputeLane lane = ComputeLane::reflex;    // where it ended, after early exit and the verification
  double energy_in = 0;                      // normalised, at the last routing decision
  double energy_out = 0;                     // normalised, of the final state
  Index layers_used = 0;
  ExitReason exit = ExitReason::max_layers_reached;
  bool emitted = true;     // false: refused, energy_out is above θ_max in every lane tried
  bool escalated = false;  // taken one lane further by the verification
};

// Two tokens that disagree: E_ij = ‖ρ_q h_i − ρ_k h_j‖², normalised, key <= query.
struct ResidualPair {
  Index query = 0, key = 0;
  double energy = 0;
};

struct SequenceTrace {
  std::vector<TokenTrace> tokens;
  std::vector<ResidualPair> top_residuals;  // largest first
  std::vector<double> residuals;            // E_ij of all pairs [tokens, tokens], 0 above the diagonal; may be empty
  Index blocks_visited = 0, blocks_skipped = 0;  // of the sparse attention, all layers and heads
  double skipped_mass = 0;                       // largest Δ achieved over rows and heads
  std::vector<SpectralSummary> spectra;          // at embedding and lane boundaries; may be empty
  CoherenceThresholds thresholds;                // in force
  double pressure = 0;
};

}  // namespace rbar
