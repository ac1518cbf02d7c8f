// The Coherence-Gated Transformer: a decoder in which every token goes as far up the stack as its sheaf energy, its
// disagreement with the tokens before it, demands.
//   h₀ = dropout(E[token] + P[position]),   h = stack(h₀),   logits = head · LN(h)
// Source: architecture decision record 015 (January 2026, never built); lanes that execute: cgt_lanes.hpp.
#pragma once

#include "rbar/model/cgt_stack.hpp"
#include "rbar/model/cgt_trace.hpp"
#include "rbar/model/cgt_verify.hpp"
#include "rbar/model/model_ends.hpp"

#include <string>
#include <utility>

namespace rbar {

// tokens [B, T] -> logits [B, T, V]. Errors: a token outside the vocabulary, no tokens or more than max_seq_len,
// gradients of another shape than the last forward pass, states that are not finite.
//   Rng rng(1);
//   CoherenceGatedTransformer<float> model(CGTConfig::small(), rng);
//   Tensor<float, 3> logits = model(tokens);
template <class T>
struct CoherenceGatedTransformer {
  using Scalar = T;
  using Config = CGTConfig;
  static constexpr const char* model_type = "cgt";  // in config.json

  struct Cache {
    DropoutState dropout;
    bool recompute = false;     // keep less, and compute it again in backward (layer_caches.hpp); set by the caller
    double pressure = 0;        // in [0, 1], set by the caller: more tokens stop early (routing/pressure.hpp)
    double auxiliary_loss = 0;  // energy regulariser and balance of experts, weighted
    Tensor<Token, 2> tokens;
    typename CGTStack<T>::Cache stack;
    Tensor<T, 3> hidden;  // [B, T, D] final states
    typename ModelEnds<T>::Cache ends;
    mutable Tensor<T, 3> dhidden;  // scratch of backward

    const LaneSheet<T>& sheet() const { return stack.sheet; }  // who went where
  };
  struct State {
    double pressure = 0;  // as in Cache
    typename CGTStack<T>::State stack;
    Tensor<T, 3> hidden;  // of the last step
    typename ModelEnds<T>::Cache ends;
    TokenSet failed;         // scratch of infer, as are the next
    Tensor<T, 2> escalated;  // [S, D]
    Tensor<T, 1> energy;     // [S]
    Tensor<T, 3> emitted;    // [1, E, D]

    const LaneSheet<T>& sheet() const { return stack.sheet; }
  };

  Config config;
  ModelEnds<T> ends;
  CGTStack<T> stack;

  CoherenceGatedTransformer() = default;
  CoherenceGatedTransformer(const Config& config_, Rng& rng) : config(config_) {
    config.validate();
    const Index positions = config.positions == Positions::learned ? config.max_seq_len : 0;
    ends = ModelEnds<T>(config.vocab_size, config.d_model, positions, config.tie_embeddings, config.init,
                        LayerNorm<T>(config.d_model, config.norm_eps), rng);
    stack = CGTStack<T>(config, rng);
  }

  // Every token's logits, in the lane it is routed to; what may be emitted is `infer`'s question.
  void forward(ConstTensorView<Token, 2> tokens, Tensor<T, 3>& logits, Cache& cache) const {
    require_length("CoherenceGatedTransformer::forward", tokens.dimension(1), tokens.dimension(1));
    ensure_shape(cache.tokens, shape_of(tokens));
    std::copy_n(tokens.data(), tokens.size(), cache.tokens.data());
    ends.embed(tokens, /*first_position=*/0, cache.hidden);
    dropout<T>(config.dropout, cache.dropout, /*stream=*/0, rows(cache.hidden));
    cache.stack.recompute = cache.recompute;
    stack.forward(cache.hidden, cache.dropout, cache.pressure, cache.stack);
    cache.auxiliary_loss = cache.stack.auxiliary_loss;
    ends.head(view(std::as_const(cache.hidden)), logits, cache.ends);
  }

  void backward(ConstTensorView<T, 3> dlogits, const Cache& cache, CoherenceGatedTransformer& grad) const {
    ends.head_backward(dlogits, view(cache.hidden), cache.ends, cache.dhidden, grad.ends);
    stack.backward(cache.dhidden, view(cache.hidden), cache.dropout, cache.stack, grad.stack);
    dropout<T>(config.dropout, cache.dropout, /*stream=*/0, rows(cache.dhidden));
    ends.embed_backward(view(std::as_const(cache.dhidden)), view(cache.tokens), grad.ends);
  }

  // The logits of the next tokens [B, new] of a stream: the numbers of `forward` on all tokens so far.
  void step(ConstTensorView<Token, 2> tokens, Tensor<T, 3>& logits, State& state,
            StepLogits wanted = StepLogits::all) const {
    advance("CoherenceGatedTransformer::step", tokens, state);
    ends.head(wanted, state.hidden, logits, state.ends);
  }

  // The next tokens [B, new] of a stream, verified (cgt_verify.hpp): the logits of a token are emitted if its final
  // energy is within the bound, in the lane it is routed to or one lane further, and refused otherwise. A token that is
  // emitted where it was routed has the logits of `step`.
  // Errors: also logits that are not finite.
  CGTOutput<T> infer(ConstTensorView<Token, 2> tokens, const InferOptions& options, State& state) const {
    constexpr const char* where = "CoherenceGatedTransformer::infer";
    options.validate();
    state.pressure = options.pressure;
    advance(where, tokens, state);
    const LaneSheet<T>& sheet = state.sheet();
    CGTOutput<T> output;
    output.begin(sheet.batch, sheet.tokens, std::min(sheet.thresholds.max, options.max_energy));
    verify(state, output);

    const std::span<const Index> rows_emitted = output.emitted_rows();
    const Index dim = config.d_model;
    ensure_shape(state.emitted, {1, output.emitted(), dim});
    for (std::size_t i = 0; i < rows_emitted.size(); ++i)
      std::copy_n(state.hidden.data() + rows_emitted[i] * dim, dim, state.emitted.data() + static_cast<Index>(i) * dim);
    ends.head(view(std::as_const(state.emitted)), output.emitted_logits(), state.ends);
    require_finite(where, "logits", std::span<const T>(elements(output.emitted_logits())));
    return output;
  }
  CGTOutput<T> infer(ConstTensorView<Token, 2> tokens, const InferOptions& options = {}) const {
    State state;
    return infer(tokens, options, state);
  }

  // What was done with one sequence, for reports and witnesses. Errors: those of infer.
  SequenceTrace trace(std::span<const Token> tokens, const InferOptions& options = {}) const {
    State state;
    const CGTOutput<T> output = infer(view(tokens.data(), 1, tokens.size()), options, state);
    return sequence_trace(output, stack, state.stack, options.pressure);
  }

  // Between training steps: the router's scales and thresholds learn from the last forward pass.
  void adapt(const Cache& cache) { stack.adapt(cache.stack); }

  Tensor<T, 3> operator()(ConstTensorView<Token, 2> tokens) const {
    Tensor<T, 3> logits;
    Cache cache;
    forward(tokens, logits, cache);
    return logits;
  }

  Index num_parameters() const { return count_parameters(*this); }

  void parameters(auto&& visit) {
    ends.parameters(visit);
    stack.parameters(visit);
  }
  void buffers(auto&& visit) { stack.buffers(visit); }

  // What inference may freeze: every matrix but those that decide who goes how far.
  void linears(auto&& visit) {
    ends.linears(visit);
    stack.linears(visit);
  }

 private:
  // state.hidden: the final states of the next tokens, each in its lane.
  void advance(std::string_view operation, ConstTensorView<Token, 2> tokens, State& state) const {
    require_length(operation, tokens.dimension(1), state.stack.position + tokens.dimension(1));
    ends.embed(tokens, state.stack.position, state.hidden);
    stack.step(state.hidden, state.pressure, state.stack);
  }

  // Judges every token, after those that failed have been taken one lane further. state.hidden then holds the states
  // that are emitted; the stream goes on with those of the routed lanes.
  void verify(State& state, CGTOutput<T>& output) const {
    const LaneSheet<T>& sheet = state.sheet();
    std::vector<TokenTrace> traces;
    for (Index row = 0; row < sheet.size(); ++row) traces.push_back(trace_of(config, stack.router, sheet, row));
    const Tensor<T, 3> routed = state.hidden;
    const Index segment_end[] = {config.reflex_end(), config.standard_end(), config.n_layers};
    for (Index segment = 1, from = 0; segment <= 2; ++segment) {
      const Index layers = segment_end[segment] - segment_end[segment - 1];
      if (layers == 0) continue;  // no lane: the next one is further up
      state.failed.select(sheet.batch, sheet.tokens, [&](Index row) {
        const auto n = static_cast<std::size_t>(row);
        return sheet.segment[n] >= from && sheet.segment[n] < segment && !(traces[n].energy_out <= output.bound());
      });
      from = segment;
      if (state.failed.empty()) continue;
      stack.escalate(segment, state.failed, routed, state.stack, state.escalated, state.energy);
      scatter_rows<T>(top_rows(std::as_const(state.escalated), static_cast<Index>(state.failed.rows.size())),
                      state.failed, rows(state.hidden));
      for (std::size_t i = 0; i < state.failed.rows.size(); ++i) {
        TokenTrace& trace = traces[static_cast<std::size_t>(state.failed.rows[i])];
        trace.energy_out = static_cast<double>(state.energy(static_cast<Index>(i)));
        trace.lane = segment == 1 ? ComputeLane::standard : last_lane(trace, sheet.thresholds);
        trace.escalated = true;
        trace.layers_used += layers;
      }
    }
    for (const TokenTrace& trace : traces) output.judge(trace);
  }

  // Of a token that the verification took through the deep layers.
  ComputeLane last_lane(const TokenTrace& trace, const CoherenceThresholds& in_force) const {
    if (config.router.route_at == RouteAt::boundaries) return stack.router.last_lane(trace.energy_out, in_force);
    return trace.routed == ComputeLane::escalate ? ComputeLane::escalate : ComputeLane::deep;
  }

  void require_length(std::string_view operation, Index fresh, Index length) const {
    require(fresh >= 1, operation, "tokens of a sequence", "at least 1", fresh);
    if (length > config.max_seq_len) [[unlikely]]
      throw Error(operation, "tokens of a sequence", "at most max_seq_len " + std::to_string(config.max_seq_len),
                  std::to_string(length));
  }
};

}  // namespace rbar
