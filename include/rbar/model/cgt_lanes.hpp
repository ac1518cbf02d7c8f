// Who goes how far up the stack: the walk of one pass through the lanes, the same for training and for streams.
//
//   every token:   h ← reflex layers(h)
//   those that go on at boundary 1:   h ← h + g·(standard layers(h) − h)
//   those of them that go on at boundary 2:   h ← h + g·(deep layers(h) − h),     g = E/(E + θ)
//
// E is the token's normalised energy at the boundary and θ its threshold there: a token that goes on has E >= θ, so
// g >= 1/2, and the task's loss reaches the router through g (after Raposo et al., "Mixture-of-Depths",
// arXiv:2404.02258). A token that stops keeps its last state, which later tokens go on to see as a key.
#pragma once

#include "rbar/attention/routed_rows.hpp"
#include "rbar/model/cgt_config.hpp"
#include "rbar/routing/lane_trace.hpp"

#include <algorithm>
#include <array>
#include <vector>

namespace rbar {

// A subset of the tokens of a pass, which owns its memory and keeps it.
struct TokenSet {
  std::vector<Index> rows, offsets;

  bool empty() const { return rows.empty(); }
  operator RoutedRows() const { return {rows.data(), offsets.data(), static_cast<Index>(offsets.size()) - 1}; }

  // The rows of [batch, tokens] with keep(row).
  template <class Keep>
  void select(Index batch, Index tokens, Keep&& keep) {
    rows.clear();
    rows.reserve(static_cast<std::size_t>(batch * tokens));
    offsets.assign(1, 0);
    for (Index b = 0; b < batch; ++b) {
      for (Index row = b * tokens; row < (b + 1) * tokens; ++row)
        if (keep(row)) rows.push_back(row);
      offsets.push_back(static_cast<Index>(rows.size()));
    }
  }
  // The rows of another set with keep(row).
  template <class Keep>
  void select(const TokenSet& from, Keep&& keep) {
    rows.clear();
    rows.reserve(from.rows.size());
    offsets.assign(1, 0);
    for (std::size_t b = 0; b + 1 < from.offsets.size(); ++b) {
      for (Index i = from.offsets[b]; i < from.offsets[b + 1]; ++i)
        if (const Index row = from.rows[static_cast<std::size_t>(i)]; keep(row)) rows.push_back(row);
      offsets.push_back(static_cast<Index>(rows.size()));
    }
  }
};

// What a pass over [batch, tokens] did with every token.
template <class T>
struct LaneSheet {
  static constexpr Index points = LaneRouter<T>::points;

  Index batch = 0, tokens = 0;
  CoherenceThresholds thresholds;           // in force: what decides
  CoherenceThresholds gate_thresholds;      // without pressure, which shall not weaken those that still go on
  std::array<Tensor<T, 2>, points> energy;  // [B, T] normalised, at the points that were measured
  std::vector<int> segment;                 // 0: reflex layers only, 1: standard too, 2: all
  std::vector<Index> layers_used;
  std::vector<ExitReason> exit;
  std::vector<bool> stopped;      // by early exit
  std::vector<TokenSet> active;   // of every layer above the reflex ones
  std::vector<TokenSet> leaving;  // those for which it was the last of its segment
  std::vector<EarlyExitState> exit_states;

  Index size() const { return batch * tokens; }

  void begin(const CGTConfig& config, const LaneRouter<T>& router, double pressure, Index batch_, Index tokens_) {
    batch = batch_;
    tokens = tokens_;
    thresholds = router.thresholds_in_force(pressure);
    gate_thresholds = router.thresholds_in_force();
    const auto count = static_cast<std::size_t>(size());
    const auto routed_layers = static_cast<std::size_t>(config.n_layers - config.reflex_end());
    segment.assign(count, 0);
    layers_used.assign(count, config.reflex_end());
    exit.assign(count, ExitReason::max_layers_reached);
    stopped.assign(count, false);
    active.resize(routed_layers);
    leaving.resize(routed_layers);
    if (config.early_exit.enabled) exit_states.assign(count, {});
  }
};

// E at the router's point `point` of the token in `row`.
template <class T>
T energy_at(const LaneSheet<T>& sheet, Index point, Index row) {
  return sheet.energy[static_cast<std::size_t>(point)].data()[row];
}

// The threshold below which a token stops before segment 1 or 2.
inline double threshold_of(const CoherenceThresholds& thresholds, Index segment) {
  return segment == 1 ? thresholds.reflex : thresholds.standard;
}

// The point whose energy decides about entering segment 1 or 2.
inline Index deciding_point(const CGTConfig& config, Index segment) {
  return config.router.route_at == RouteAt::embedding ? 0 : segment;
}

// The lane that a token's energies sent it to. Escalate: as far as Deep, but its energy is still above θ_deep.
template <class T>
ComputeLane routed_lane(const CGTConfig& config, const LaneRouter<T>& router, const LaneSheet<T>& sheet, Index row) {
  if (config.router.route_at == RouteAt::embedding)
    return router.lane(static_cast<double>(energy_at(sheet, 0, row)), sheet.thresholds);
  const int segment = sheet.segment[static_cast<std::size_t>(row)];
  if (segment < 2) return segment == 0 ? ComputeLane::reflex : ComputeLane::standard;
  return router.last_lane(static_cast<double>(energy_at(sheet, 3, row)), sheet.thresholds);
}

// What is reported of the token in `row`.
template <class T>
TokenTrace trace_of(const CGTConfig& config, const LaneRouter<T>& router, const LaneSheet<T>& sheet, Index row) {
  const auto n = static_cast<std::size_t>(row);
  TokenTrace trace;
  trace.routed = trace.lane = routed_lane(config, router, sheet, row);
  if (sheet.segment[n] < 2) trace.lane = sheet.segment[n] == 0 ? ComputeLane::reflex : ComputeLane::standard;
  // The last decision was that at the boundary where it stopped, or at the last one.
  const Index boundary = std::min<Index>(sheet.segment[n] + (sheet.stopped[n] ? 0 : 1), 2);
  trace.energy_in = static_cast<double>(energy_at(sheet, deciding_point(config, boundary), row));
  trace.energy_out = static_cast<double>(energy_at(sheet, 3, row));
  trace.layers_used = sheet.layers_used[n];
  trace.exit = sheet.exit[n];
  return trace;
}

// Energies after a layer and the spread of the states, [B, T]: what early exit looks at.
template <class T>
struct ExitMeasures {
  Tensor<T, 2> energy, spread;
};

// Asks early exit about every token that is active in this layer. Layers count from the first above the reflex ones.
template <class T, class Pass>
void observe_exits(const CGTConfig& config, Index layer, LaneSheet<T>& sheet, Pass& pass) {
  const Index number = layer - config.reflex_end();
  const ExitMeasures<T>& measures = pass.measure_exit(layer);
  for (const Index row : sheet.active[static_cast<std::size_t>(number)].rows) {
    const auto n = static_cast<std::size_t>(row);
    const auto reason =
        observe(config.early_exit, sheet.exit_states[n], number, static_cast<double>(measures.energy.data()[row]),
                static_cast<double>(measures.spread.data()[row]));
    if (!reason) continue;
    sheet.stopped[n] = true;
    sheet.exit[n] = *reason;
  }
}

// Walks all tokens of a pass through the layers. The pass holds their states and does the work:
//   void measure(Index point, Tensor<T, 2>& energy);          normalised energies of the states as they are
//   const ExitMeasures<T>& measure_exit(Index layer);         the same after a layer, where early exit is enabled
//   void reflex_layer(Index layer);                           all tokens
//   void enter(Index segment, const TokenSet&);               states to be gated later
//   void layer(Index layer, const TokenSet& active);          these tokens' states; the others' are keys
//   void leave(Index segment, const TokenSet&);               their states are final in this segment: gate
// Every decision about a token depends on its own past only.
template <class T, class Pass>
void walk_lanes(const CGTConfig& config, const LaneRouter<T>& router, LaneSheet<T>& sheet, Pass&& pass) {
  const Index segment_end[] = {config.reflex_end(), config.standard_end(), config.n_layers};
  const bool by_embedding = config.router.route_at == RouteAt::embedding;
  if (by_embedding) pass.measure(0, sheet.energy[0]);
  for (Index l = 0; l < segment_end[0]; ++l) pass.reflex_layer(l);

  for (Index segment = 1; segment <= 2; ++segment) {
    const Index point = deciding_point(config, segment), first = segment_end[segment - 1], end = segment_end[segment];
    if (!by_embedding) pass.measure(point, sheet.energy[static_cast<std::size_t>(point)]);
    for (Index row = 0; row < sheet.size(); ++row) {
      const auto n = static_cast<std::size_t>(row);
      if (sheet.segment[n] == segment - 1 && !sheet.stopped[n] &&
          router.continues(segment, static_cast<double>(energy_at(sheet, point, row)), sheet.thresholds))
        sheet.segment[n] = static_cast<int>(segment);
    }
    for (Index l = first; l < end; ++l) {
      TokenSet& active = sheet.active[static_cast<std::size_t>(l - segment_end[0])];
      const auto stopped = [&](Index row) { return bool{sheet.stopped[static_cast<std::size_t>(row)]}; };
      if (l == first) {
        active.select(sheet.batch, sheet.tokens,
                      [&](Index row) { return sheet.segment[static_cast<std::size_t>(row)] == segment; });
        pass.enter(segment, active);
      } else {
        active.select(sheet.active[static_cast<std::size_t>(l - 1 - segment_end[0])],
                      [&](Index row) { return !stopped(row); });
      }
      if (!active.empty()) pass.layer(l, active);
      for (const Index row : active.rows) ++sheet.layers_used[static_cast<std::size_t>(row)];
      if (config.early_exit.enabled) observe_exits(config, l, sheet, pass);
      TokenSet& leaving = sheet.leaving[static_cast<std::size_t>(l - segment_end[0])];
      leaving.select(active, [&](Index row) { return l + 1 == end || stopped(row); });
      pass.leave(segment, leaving);
    }
  }
  pass.measure(3, sheet.energy[3]);
}

// --- the gate ---------------------------------------------------------------------------------------------------

// g = E/(E + θ), and 1 where both are 0.
template <class T>
T gate_of(T energy, double threshold) {
  const T sum = energy + static_cast<T>(threshold);
  return sum > 0 ? energy / sum : T(1);
}
// ∂g/∂E = θ/(E + θ)², divided twice: the square of a small sum would be 0.
template <class T>
T gate_slope(T energy, double threshold) {
  const T sum = energy + static_cast<T>(threshold);
  return sum > 0 ? static_cast<T>(threshold) / sum / sum : T(0);
}

// h = entry + g·(h − entry), and entry becomes the change h − entry. Rows of [N, D].
template <class T>
void apply_gate(T gate, Index dim, T* h, T* entry) {
  for (Index d = 0; d < dim; ++d) {
    const T change = h[d] - entry[d];
    h[d] = entry[d] + gate * change;
    entry[d] = change;
  }
}

// dh, the gradient of the gated state, becomes that of the state before the gate; dentry = (1 − g)·dh. Returns ∂L/∂g.
template <class T>
T gate_backward(T gate, Index dim, const T* change, T* dh, T* dentry) {
  T dgate = 0;
  for (Index d = 0; d < dim; ++d) {
    dgate += dh[d] * change[d];
    dentry[d] = (T(1) - gate) * dh[d];
    dh[d] *= gate;
  }
  return dgate;
}

}  // namespace rbar
