// Everything between embedding and head of the Coherence-Gated Transformer: the layers, the router that decides who
// goes on, and the gate between them (cgt_lanes.hpp). States h [B, T, D] are changed in place.
//   loss added to the task's: energy_weight · mean E₃ + Σ balance of the experts
#pragma once

#include "rbar/core/bulk.hpp"
#include "rbar/model/cgt_lanes.hpp"
#include "rbar/model/cgt_layer.hpp"
#include "rbar/sheaf/state_spread.hpp"

#include <array>
#include <string>
#include <utility>
#include <vector>

namespace rbar {

// Errors: shapes, more than max_seq_len tokens in a stream, states that are not finite.
template <class T>
struct CGTStack {
  using Scalar = T;
  static constexpr Index points = LaneRouter<T>::points;

  struct Cache {
    bool recompute = false;  // layer_caches.hpp; set by the caller
    double auxiliary_loss = 0;
    LaneSheet<T> sheet;
    LayerCaches<typename CGTLayer<T>::Cache> layers;
    std::vector<Tensor<T, 3>> inputs;  // [B, T, D] of the layers
    std::array<typename LaneRouter<T>::Cache, points> points_cache;
    std::array<Tensor<T, 3>, 2> change;  // [B, T, D] of the tokens in segments 1 and 2: what their gate scales
    typename LaneRouter<T>::Cache exit_cache;
    ContextMoments exit_moments;
    ExitMeasures<T> exit;
    mutable typename CGTLayer<T>::Scratch scratch;
    mutable Tensor<T, 3> dentry;   // [B, T, D] scratch of backward, as is the next
    mutable Tensor<T, 2> denergy;  // [B, T]
  };

  struct State {
    Index position = 0;    // tokens seen
    Tensor<T, 3> history;  // [B, room, D] the last state of each of them
    LaneSheet<T> sheet;    // of the last step
    std::vector<typename CGTLayer<T>::State> layers;
    std::array<typename LaneRouter<T>::State, points> points_state;
    std::vector<typename LaneRouter<T>::State> exit_states;  // of the layers above the reflex ones
    std::vector<ContextMoments> exit_moments;
    ExitMeasures<T> exit;
    std::array<Tensor<T, 3>, 2> change;
    typename CGTLayer<T>::Scratch scratch;
    std::vector<Index> positions;  // of the tokens that ask
    SparsitySummary sparsity;      // of the last step and what was escalated after it
  };

  CGTConfig config;
  LaneRouter<T> router;
  std::vector<CGTLayer<T>> layers;

  CGTStack() = default;
  CGTStack(const CGTConfig& config_, Rng& rng) : config(config_), router(config.lane_router(), rng) {
    for (Index l = 0; l < config.n_layers; ++l) layers.emplace_back(config, config.kind_of(l), rng);
  }

  // --- training -------------------------------------------------------------------------------------------------

  void forward(Tensor<T, 3>& h, const DropoutState& dropout, double pressure, Cache& cache) const {
    cache.layers.prepare(layers.size(), cache.recompute, /*kinds=*/3);
    cache.inputs.resize(layers.size());
    cache.auxiliary_loss = 0;
    cache.sheet.begin(config, router, pressure, h.dimension(0), h.dimension(1));
    walk_lanes(config, router, cache.sheet, TrainingPass{*this, h, dropout, pressure, cache});
    if (config.energy_weight == 0) return;
    double sum = 0;
    for (const T energy : elements(cache.sheet.energy[3])) sum += static_cast<double>(energy);
    cache.auxiliary_loss += config.energy_weight * sum / static_cast<double>(cache.sheet.size());
  }

  // dh: on entry the gradient of the final states, which are given too, on return that of the embeddings.
  void backward(Tensor<T, 3>& dh, ConstTensorView<T, 3> final_states, const DropoutState& dropout, const Cache& cache,
                CGTStack& grad) const {
    const Shape<2> per_token{cache.sheet.batch, cache.sheet.tokens};
    require(cache.inputs.size() == layers.size(), "CGTStack::backward", "layers of the cache", layers.size(),
            cache.inputs.size());
    require_shape("CGTStack::backward", "dh", shape_of(dh), Shape<3>{per_token[0], per_token[1], config.d_model});
    ensure_shape(cache.denergy, per_token);
    if (config.energy_weight > 0) {
      cache.denergy.setConstant(static_cast<T>(config.energy_weight / static_cast<double>(cache.sheet.size())));
      router.energies_backward(3, view(std::as_const(cache.denergy)), final_states, cache.points_cache[3], dh,
                               grad.router);
    }
    const bool by_embedding = config.router.route_at == RouteAt::embedding;
    if (by_embedding) cache.denergy.setZero();
    for (Index segment = 2; segment >= 1; --segment) {
      if (!by_embedding) cache.denergy.setZero();
      segment_backward(segment, dh, dropout, cache, grad);
    }
    for (Index l = config.reflex_end(); l-- > 0;) {
      const auto& filled = cache.layers.filled(
          at(l), kind_of(l), [&](auto& again) { layers[at(l)].fill(cache.inputs[at(l)], again, cache.scratch); });
      layers[at(l)].backward(cache.inputs[at(l)], dh, dropout, stream_of(l), filled, cache.scratch, grad.layers[at(l)]);
    }
    if (by_embedding && config.gate)
      router.energies_backward(0, view(std::as_const(cache.denergy)), view(cache.inputs[0]), cache.points_cache[0], dh,
                               grad.router);
  }

  // Between training steps: scales and thresholds learn from the last forward pass.
  void adapt(const Cache& cache) {
    const LaneSheet<T>& sheet = cache.sheet;
    const auto energies = [&](Index point) {
      return std::span<const T>(elements(sheet.energy[static_cast<std::size_t>(point)]));
    };
    Tensor<bool, 1> decided(sheet.size());
    // Those that came to the end of `segment`, where the point was that decided about them.
    const auto decided_after = [&](int segment) {
      for (Index row = 0; row < sheet.size(); ++row) {
        const bool left_early = segment == 1 && sheet.segment[at(row)] == 1 && sheet.stopped[at(row)];
        decided(row) = sheet.segment[at(row)] >= segment && !left_early;
      }
      return std::span<const bool>(elements(decided));
    };
    if (config.router.route_at == RouteAt::embedding) {
      router.adapt(0, energies(0));
      router.adapt(3, energies(3));
    } else {
      router.adapt(1, energies(1));
      router.adapt(2, energies(2), decided_after(1));
      router.adapt(3, energies(3), decided_after(2));
    }
  }

  // --- streaming ------------------------------------------------------------------------------------------------

  // The next tokens [B, new, D] of every sequence, with the numbers of `forward` on all tokens so far.
  void step(Tensor<T, 3>& h, double pressure, State& state) const {
    const Index batch = h.dimension(0), tokens = h.dimension(1);
    if (state.layers.empty()) {
      state.layers.resize(layers.size());
      for (auto& layer : state.layers) layer.keys.limit = config.max_seq_len;
      state.exit_states.resize(layers.size());
      state.exit_moments.resize(layers.size());
    }
    if (config.sparsity.enabled)
      for (Index l = config.reflex_end(); l < config.standard_end(); ++l)
        state.layers[at(l)].score.sparsity = pressed_sparsity(config.sparsity, pressure);
    state.sparsity = {};
    state.sheet.begin(config, router, pressure, batch, tokens);
    walk_lanes(config, router, state.sheet, StreamPass{*this, h, state});
    remember(h, state);
  }

  // Takes a few tokens of the last step through segment 1 or 2 as well, alone: as queries against keys as they stand.
  // What they offer to others, and what others are measured against, stays what it was. `h` are the states that `step`
  // returned -> escalated [S, D], the states of `tokens` afterwards, and their normalised final energies [S].
  void escalate(Index segment, const TokenSet& tokens, const Tensor<T, 3>& h, State& state, Tensor<T, 2>& escalated,
                Tensor<T, 1>& energy) const {
    const RoutedRows routed = tokens;
    const Index count = routed.count(), dim = h.dimension(2), first_position = state.position - h.dimension(1);
    ensure_rows(escalated, count, dim);
    if (energy.size() < count) ensure_shape(energy, {count});
    const MatrixView<T> rows_now = top_rows(escalated, count);
    gather_rows<T>(rows(h), routed, rows_now);
    for (Index l = segment_begin(segment); l < segment_end(segment); ++l)
      ask(l, routed, first_position, h, rows_now, state);
    if (config.gate)
      for (Index i = 0; i < count; ++i) {
        // It did not reach the threshold: its gate is that of a token which just does.
        const double threshold = threshold_of(state.sheet.gate_thresholds, segment);
        const T reached = std::max(energy_at(state.sheet, deciding_point(config, segment), routed.rows[i]),
                                   static_cast<T>(threshold));
        const T gate = gate_of(reached, threshold);
        const T* const entry = h.data() + routed.rows[i] * dim;
        T* const own = escalated.data() + i * dim;
        for (Index d = 0; d < dim; ++d) own[d] = entry[d] + gate * (own[d] - entry[d]);
      }
    router.remeasure(3, as_const(rows_now), routed.rows, state.points_state[3].energy.cache, energy.data());
  }

  void parameters(auto&& visit) {
    visit_layer(visit, "router", router);
    for (std::size_t l = 0; l < layers.size(); ++l) visit_layer(visit, "layers." + std::to_string(l), layers[l]);
  }
  void buffers(auto&& visit) { visit_buffers(visit, "router", router); }
  // What decides stays: the router.
  void linears(auto&& visit) {
    for (auto& layer : layers) layer.linears(visit);
  }

 private:
  static std::size_t at(Index i) { return static_cast<std::size_t>(i); }
  std::size_t kind_of(Index l) const { return static_cast<std::size_t>(layers[at(l)].kind); }
  // Stream 0 of dropout is the embedding's, each layer has two.
  static std::uint64_t stream_of(Index layer) { return 1 + 2 * static_cast<std::uint64_t>(layer); }

  Index segment_begin(Index segment) const { return segment == 1 ? config.reflex_end() : config.standard_end(); }
  Index segment_end(Index segment) const { return segment == 1 ? config.standard_end() : config.n_layers; }
  const TokenSet& active(const LaneSheet<T>& sheet, Index layer) const {
    return sheet.active[at(layer - config.reflex_end())];
  }
  const TokenSet& leaving(const LaneSheet<T>& sheet, Index layer) const {
    return sheet.leaving[at(layer - config.reflex_end())];
  }

  static void for_rows(const TokenSet& tokens, auto&& body) {
    parallel_for(static_cast<Index>(tokens.rows.size()), 16, [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i) body(tokens.rows[at(i)]);
    });
  }

  // The gate's two ends, the same in both passes.
  void enter_segment(const Tensor<T, 3>& h, const TokenSet& tokens, Tensor<T, 3>& change) const {
    if (!config.gate) return;
    ensure_shape(change, shape_of(h));
    const Index dim = h.dimension(2);
    for_rows(tokens, [&](Index row) { std::copy_n(h.data() + row * dim, dim, change.data() + row * dim); });
  }
  void leave_segment(Index segment, const TokenSet& tokens, const LaneSheet<T>& sheet, Tensor<T, 3>& h,
                     Tensor<T, 3>& change) const {
    if (!config.gate) return;
    const Index dim = h.dimension(2), point = deciding_point(config, segment);
    const double threshold = threshold_of(sheet.gate_thresholds, segment);
    for_rows(tokens, [&](Index row) {
      apply_gate(gate_of(energy_at(sheet, point, row), threshold), dim, h.data() + row * dim,
                 change.data() + row * dim);
    });
  }

  struct TrainingPass {
    const CGTStack& stack;
    Tensor<T, 3>& h;
    const DropoutState& dropout;
    double pressure;
    Cache& cache;

    ConstTensorView<T, 3> states() const { return view(std::as_const(h)); }
    void measure(Index point, Tensor<T, 2>& energy) {
      stack.router.energies(point, states(), energy, cache.points_cache[at(point)]);
    }
    const ExitMeasures<T>& measure_exit(Index) {
      stack.router.energies(1, states(), cache.exit.energy, cache.exit_cache);
      cache.exit_moments.seen = 0;
      relative_spread<T>(states(), cache.exit_moments, cache.exit.spread);
      return cache.exit;
    }
    void keep_input(Index l) {
      ensure_shape(cache.inputs[at(l)], shape_of(h));
      bulk_copy(h.data(), h.size(), cache.inputs[at(l)].data());
    }
    void reflex_layer(Index l) {
      keep_input(l);
      stack.layers[at(l)].forward(h, dropout, stream_of(l), cache.layers.fill(at(l), stack.kind_of(l)), cache.scratch);
    }
    void enter(Index segment, const TokenSet& tokens) { stack.enter_segment(h, tokens, cache.change[at(segment - 1)]); }
    void layer(Index l, const TokenSet& tokens) {
      keep_input(l);
      auto& layer_cache = cache.layers.fill(at(l), stack.kind_of(l));
      if (stack.config.sparsity.enabled && stack.layers[at(l)].kind == LayerKind::standard)
        layer_cache.attention.score.sparsity = pressed_sparsity(stack.config.sparsity, pressure);
      stack.layers[at(l)].forward_routed(h, tokens, dropout, stream_of(l), layer_cache, cache.scratch);
      cache.auxiliary_loss += CGTLayer<T>::auxiliary_loss(layer_cache);
    }
    void leave(Index segment, const TokenSet& tokens) {
      stack.leave_segment(segment, tokens, cache.sheet, h, cache.change[at(segment - 1)]);
    }
  };

  struct StreamPass {
    const CGTStack& stack;
    Tensor<T, 3>& h;
    State& state;

    ConstTensorView<T, 3> states() const { return view(std::as_const(h)); }
    void measure(Index point, Tensor<T, 2>& energy) {
      stack.router.energies_step(point, states(), energy, state.points_state[at(point)]);
    }
    const ExitMeasures<T>& measure_exit(Index l) {
      stack.router.energies_step(1, states(), state.exit.energy, state.exit_states[at(l)]);
      relative_spread<T>(states(), state.exit_moments[at(l)], state.exit.spread);
      return state.exit;
    }
    void reflex_layer(Index l) { stack.layers[at(l)].step(h, state.layers[at(l)], state.scratch); }
    void enter(Index segment, const TokenSet& tokens) { stack.enter_segment(h, tokens, state.change[at(segment - 1)]); }
    void layer(Index l, const TokenSet& tokens) {
      const RoutedRows routed = tokens;
      ensure_rows(state.scratch.rows, routed.count(), h.dimension(2));
      const MatrixView<T> packed = top_rows(state.scratch.rows, routed.count());
      gather_rows<T>(rows(std::as_const(h)), routed, packed);
      stack.ask(l, routed, state.position, h, packed, state);
      scatter_rows<T>(as_const(packed), routed, rows(h));
    }
    void leave(Index segment, const TokenSet& tokens) {
      stack.leave_segment(segment, tokens, state.sheet, h, state.change[at(segment - 1)]);
    }
  };

  // dh: from the gradient of the states after the segment to that of the states before it; adds ∂L/∂E of the deciding
  // energies to cache.denergy.
  void segment_backward(Index segment, Tensor<T, 3>& dh, const DropoutState& dropout, const Cache& cache,
                        CGTStack& grad) const {
    const Index first = segment_begin(segment), end = segment_end(segment), dim = dh.dimension(2);
    if (first == end || active(cache.sheet, first).empty()) return;
    const Index point = deciding_point(config, segment);
    const double threshold = threshold_of(cache.sheet.gate_thresholds, segment);
    ensure_shape(cache.dentry, shape_of(dh));
    for (Index l = end; l-- > first;) {
      if (config.gate)
        for_rows(leaving(cache.sheet, l), [&](Index row) {
          const T energy = energy_at(cache.sheet, point, row);
          const T dgate =
              gate_backward(gate_of(energy, threshold), dim, cache.change[at(segment - 1)].data() + row * dim,
                            dh.data() + row * dim, cache.dentry.data() + row * dim);
          cache.denergy.data()[row] += dgate * gate_slope(energy, threshold);
        });
      const TokenSet& tokens = active(cache.sheet, l);
      if (tokens.empty()) continue;
      const auto& filled = cache.layers.filled(at(l), kind_of(l), [&](auto& again) {
        layers[at(l)].fill_routed(cache.inputs[at(l)], tokens, dropout, stream_of(l), again, cache.scratch);
      });
      layers[at(l)].backward_routed(cache.inputs[at(l)], dh, tokens, dropout, stream_of(l), filled, cache.scratch,
                                    grad.layers[at(l)]);
    }
    if (!config.gate) return;
    for (const Index row : active(cache.sheet, first).rows)
      for (Index d = 0; d < dim; ++d) dh.data()[row * dim + d] += cache.dentry.data()[row * dim + d];
    if (config.router.route_at == RouteAt::boundaries)
      router.energies_backward(segment, view(std::as_const(cache.denergy)), view(cache.inputs[at(first)]),
                               cache.points_cache[at(segment)], dh, grad.router);
  }

  // Layer l for a few tokens of the latest ones of a stream, whose states are `asking` [S, D]; keys are those of h and
  // of the history.
  void ask(Index l, const RoutedRows& routed, Index first_position, const Tensor<T, 3>& h, MatrixView<T> asking,
           State& state) const {
    state.positions.resize(at(routed.count()));
    for (Index i = 0; i < routed.count(); ++i)
      state.positions[at(i)] = first_position + routed.rows[i] % h.dimension(1);
    layers[at(l)].step_routed(asking, routed, state.positions.data(), {state.history, h, first_position},
                              state.layers[at(l)], state.scratch);
    if (!config.attention(config.kind_of(l)).sparsity.enabled) return;
    const SparsitySummary summary = state.layers[at(l)].score.plan.summary();
    state.sparsity.visible_blocks += summary.visible_blocks;
    state.sparsity.skipped_blocks += summary.skipped_blocks;
    state.sparsity.largest_share_bound = std::max(state.sparsity.largest_share_bound, summary.largest_share_bound);
  }

  void remember(const Tensor<T, 3>& h, State& state) const {
    const Index batch = h.dimension(0), tokens = h.dimension(1), dim = h.dimension(2);
    const Index end = state.position + tokens, room = state.history.dimension(1);
    if (end > room) {
      Tensor<T, 3> larger(batch, std::min(std::max<Index>({end, 2 * room, 64}), config.max_seq_len), dim);
      for (Index b = 0; state.position > 0 && b < batch; ++b)
        bulk_copy(&state.history(b, 0, 0), state.position * dim, &larger(b, 0, 0));
      state.history = std::move(larger);
    }
    for (Index b = 0; b < batch; ++b) bulk_copy(&h(b, 0, 0), tokens * dim, &state.history(b, state.position, 0));
    state.position = end;
  }
};

}  // namespace rbar
