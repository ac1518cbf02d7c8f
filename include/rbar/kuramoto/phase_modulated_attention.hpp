// Phase-modulated attention (PMA). Every head of a token is an oscillator; the heads of one token are coupled, with a
// strength K that the state of the layers below sets, and what they settle on gates the scores:
//   K_i = 2σ(w·h_i + b)                                          h the state below (of a selective SSM)
//   φ⁰ = ω_h + (W_φ x_i)_h;  n times  φ_h += dt (ω_h + K_i (S cos φ_h − C sin φ_h)),   C, S = mean over the heads
//   P_ij = cos(φ_h,i − φ_pos,j)                                  φ_pos learned, one angle a position
//   τ_i = τ_base (1 + β Var_{j≤i} P_ij)(1 + α(1 − R_i)),         R_i = |mean over the heads of e^{iφ}|
//   o_i = Σ_j softmax_j(q_i·k_j / √d · (λ P_ij + 1 − λ) / τ_i) v_j,   λ = σ(l);   y = W_o o
// Without λ, α and β it is multi-head attention at the temperature τ_base.
// Source: reconstruction from the published equations of phase-modulated attention; no code of it can be obtained.
#pragma once

#include "rbar/attention/projected_attention.hpp"
#include "rbar/core/bulk.hpp"
#include "rbar/kuramoto/interventions.hpp"
#include "rbar/kuramoto/phase_modulated_attention_config.hpp"
#include "rbar/kuramoto/phase_passes.hpp"
#include "rbar/kuramoto/phase_score.hpp"
#include "rbar/kuramoto/phase_statistics.hpp"

#include <cmath>
#include <numbers>
#include <utility>

namespace rbar {

// x [batch, tokens, d_model] and h [batch, tokens, d_coupling] -> [batch, tokens, d_model]. Errors: other shapes, no
// tokens or more than max_seq_len, α or β at −1 or below (τ would not be positive), τ too small or large for T,
// dt·(|ω| + |K|) beyond largest_phase_step, a bad intervention.
template <class T>
struct PhaseModulatedAttention {
  using Scalar = T;
  using Config = PhaseModulatedAttentionConfig;
  static_assert(Config::max_head_dim == detail::max_head_dim);

  // N = batch·tokens rows. What the metrics read: phases, order_parameter, temperature, coupling.
  struct Cache {
    const PhaseIntervention* intervention = nullptr;  // the caller's; read by forward only

    AttentionCache<T> attention;
    Tensor<T, 2> state;                      // copy of h [N, d_coupling], where K is learned
    Tensor<T, 2> initial;                    // W_φ x [N, n_heads]
    Tensor<T, 2> phases, cosine, sine;       // φ after the last step, in [−π, π], its cosine and sine [N, n_heads]
    Tensor<T, 2> temperature;                // τ [N, n_heads]
    Tensor<T, 1> order_parameter, coupling;  // R of the phases, K [N]
    PositionPhases<T> positions;
    PhaseIntervention applied;  // in the last forward pass
    // Scratch of backward.
    mutable Tensor<T, 2> dinitial, dcoupling;  // [N, n_heads], [N, 1]
    mutable Tensor<T, 2> dscore;               // sums over the keys [N, n_heads·3]
    mutable Tensor<T, 2> dposition_phasor;     // sums over the queries [batch·n_heads, tokens·2]
    mutable Tensor<T, 2> dmean;                // of the positions' means [N, 4]
    mutable Tensor<double, 2> partial;         // [chunks, n_heads + 3]: ω, λ, α, β
    mutable Tensor<double, 2> position_sums;   // [6, tokens]: of the phasors, then of the means

    void swap_scratch(const Cache& other) const { attention.swap_scratch(other.attention); }
  };
  // A stream of tokens, at most max_seq_len of them.
  struct State {
    const PhaseIntervention* intervention = nullptr;  // the caller's, for the steps to come

    AttentionState<T> attention;
    PositionPhases<T> positions;
    Cache scratch;  // phases, order_parameter, temperature and coupling: the last step's tokens in their first rows
  };

  Config config;
  Linear<T> q_proj, k_proj, v_proj, out_proj;
  Linear<T> phase_map;           // W_φ [n_heads, d_model]
  Linear<T> coupling_map;        // w, b [1, d_coupling]
  Tensor<T, 1> frequency;        // ω [n_heads]
  Tensor<T, 1> position_phases;  // φ_pos [max_seq_len]
  Tensor<T, 1> gate_logit;       // l [1]
  Tensor<T, 1> alpha, beta;      // [1]

  PhaseModulatedAttention() = default;
  // φ_pos,j = 2πj/max_seq_len, ω ~ N(0, 0.1), W_φ like every linear map, w ~ N(0, 0.02) and b = 0: K is about 1.
  PhaseModulatedAttention(const Config& config_, Rng& rng) : config(config_) {
    config.validate();
    const auto constant = [](Tensor<T, 1>& tensor, double value) {
      ensure_shape(tensor, {1});
      tensor(0) = static_cast<T>(value);
    };
    for (Linear<T>* map : {&q_proj, &k_proj, &v_proj, &out_proj})
      *map = Linear<T>(config.d_model, config.d_model, config.bias, rng);
    if (config.has_oscillators()) {
      ensure_shape(frequency, {config.n_heads});
      normal(frequency, 0.1, rng);
    }
    if (config.has_phase_map()) phase_map = Linear<T>(config.d_model, config.n_heads, /*has_bias=*/false, rng);
    if (config.has_coupling_map()) {
      coupling_map = Linear<T>(config.coupling_width(), 1, /*has_bias=*/true, rng);
      normal(coupling_map.weight, 0.02, rng);
    }
    if (config.has_position_phases()) {
      ensure_shape(position_phases, {config.max_seq_len});
      for (Index j = 0; j < config.max_seq_len; ++j)
        position_phases(j) =
            static_cast<T>(2 * std::numbers::pi * static_cast<double>(j) / static_cast<double>(config.max_seq_len));
    }
    if (config.phase_gate) constant(gate_logit, std::log(config.gate / (1 - config.gate)));
    if (config.adaptive_temperature) {
      constant(alpha, config.alpha);
      constant(beta, config.beta);
    }
  }

  // The large maps, for inference; those of phases and coupling have a row a head at most.
  void linears(auto&& visit) {
    for (Linear<T>* map : {&q_proj, &k_proj, &v_proj, &out_proj}) visit(*map);
  }
  void parameters(auto&& visit) {
    visit_layer(visit, "q_proj", q_proj);
    visit_layer(visit, "k_proj", k_proj);
    visit_layer(visit, "v_proj", v_proj);
    visit_layer(visit, "out_proj", out_proj);
    if (config.has_phase_map()) visit_layer(visit, "phase_map", phase_map);
    if (config.has_coupling_map()) visit_layer(visit, "coupling_map", coupling_map);
    if (config.has_oscillators()) visit("frequency", frequency);
    if (config.has_position_phases()) visit("position_phases", position_phases);
    if (config.phase_gate) visit("gate_logit", gate_logit);
    if (config.adaptive_temperature) {
      visit("alpha", alpha);
      visit("beta", beta);
    }
  }

  // λ.
  double gate() const { return config.phase_gate ? 1 / (1 + std::exp(-static_cast<double>(gate_logit(0)))) : 0.0; }

  void forward(ConstTensorView<T, 3> x, ConstTensorView<T, 3> state, Tensor<T, 3>& y, Cache& cache) const {
    constexpr const char* operation = "PhaseModulatedAttention::forward";
    require_inputs(operation, x, state, /*first_position=*/0);
    cache.positions.count = 0;
    cache.positions.extend(phases_of_positions(), x.dimension(1), x.dimension(1));
    if (config.has_coupling_map()) {
      ensure_shape(cache.state, {x.dimension(0) * x.dimension(1), config.coupling_width()});
      bulk_copy(state.data(), state.size(), cache.state.data());
    }
    phases().make_room(x.dimension(0) * x.dimension(1), /*streaming=*/false, cache);
    phases().settle(x, state, /*first_position=*/0, cache.intervention, cache.positions, cache);
    passes(cache, cache.positions).forward(operation, x, y, cache.attention);
  }

  // dstate, like dx, is overwritten. What an intervention overrode in forward is a constant here.
  void backward(ConstTensorView<T, 3> dy, const Cache& cache, Tensor<T, 3>& dx, Tensor<T, 3>& dstate,
                PhaseModulatedAttention& grad) const {
    passes(cache, cache.positions).backward("PhaseModulatedAttention::backward", dy, cache.attention, dx, grad.maps());
    ensure_shape(dstate, {dy.dimension(0), dy.dimension(1), config.coupling_width()});
    phases().backward(cache, dx, dstate, grad);
  }

  // The next tokens [batch, new, ...] of a stream, with the numbers of `forward` on all tokens so far.
  void step(ConstTensorView<T, 3> x, ConstTensorView<T, 3> state, Tensor<T, 3>& y, State& stream) const {
    constexpr const char* operation = "PhaseModulatedAttention::step";
    require_inputs(operation, x, state, stream.attention.position);
    stream.positions.extend(phases_of_positions(), stream.attention.position + x.dimension(1), config.max_seq_len);
    phases().make_room(x.dimension(0) * x.dimension(1), /*streaming=*/true, stream.scratch);
    phases().settle(x, state, stream.attention.position, stream.intervention, stream.positions, stream.scratch);
    passes(stream.scratch, stream.positions).step(operation, x, y, stream.attention);
  }

  Tensor<T, 3> operator()(ConstTensorView<T, 3> x, ConstTensorView<T, 3> state) const {
    Tensor<T, 3> y;
    Cache cache;
    forward(x, state, y, cache);
    return y;
  }

  // −Σ_j A_ij log A_ij of every row of the last forward pass, [batch, n_heads, tokens], in nats: log Σ_j e^{logit_ij}
  // less the mean logit, which the backward pass of a value that is 1 everywhere sums up. Spoils the cache's scratch.
  void attention_entropy(const Cache& cache, Tensor<T, 3>& entropy) const {
    const Index batch = cache.attention.input.dimension(0), tokens = cache.attention.input.dimension(1);
    const Index heads = config.n_heads, dim = config.dim_per_head();
    for (Tensor<T, 2>* scratch : {&cache.attention.dquery, &cache.attention.dkey, &cache.attention.dvalue})
      ensure_shape(*scratch, {batch * tokens, config.d_model});
    const T one = 1, zero = 0;
    const auto constant = [&](const T& value) {  // the same for every row
      return HeadsView<const T>{.data = &value, .batch = batch, .heads = heads, .tokens = tokens, .dim = 1};
    };
    const auto view = [&](auto& tensor) { return heads_view(tensor.data(), batch, tokens, heads, dim); };
    HeadsView<T> dvalue = view(cache.attention.dvalue);
    dvalue.dim = 1;
    const Kernel kernel{*this, cache, cache.positions};
    const PhaseScore<T> score = kernel.score();
    attend_backward<T>(view(cache.attention.query), view(cache.attention.key), constant(one), constant(zero),
                       constant(one), cache.attention.log_sum_exp.data(), score, AttentionMask{},
                       view(cache.attention.dquery), view(cache.attention.dkey), dvalue,
                       kernel.gradient(batch, tokens));
    ensure_shape(entropy, {batch, heads, tokens});
    for (Index n = 0; n < batch * tokens; ++n)
      for (Index h = 0; h < heads; ++h)
        entropy(n / tokens, h, n % tokens) =
            cache.attention.log_sum_exp(n * heads + h) -
            sum_of_logits(score.gate, cache.cosine(n, h), cache.sine(n, h), &cache.dscore(n, 3 * h));
  }

 private:
  struct Kernel {
    const PhaseModulatedAttention& layer;
    const Cache& rows;
    const PositionPhases<T>& positions;

    PhaseScore<T> score() const {
      const double lambda = rows.applied.gate.value_or(layer.gate());
      return {rows.cosine.data(),
              rows.sine.data(),
              rows.temperature.data(),
              positions.phasor.data(),
              layer.config.n_heads,
              static_cast<T>(lambda),
              1 / std::sqrt(static_cast<double>(layer.config.dim_per_head()))};
    }
    PhaseScoreGradient<T> gradient(Index batch, Index tokens) const {
      const Index heads = layer.config.n_heads;
      ensure_shape(rows.dscore, {batch * tokens, heads * 3});
      ensure_shape(rows.dposition_phasor, {batch * heads, tokens * 2});
      rows.dposition_phasor.setZero();
      return {rows.dscore.data(), rows.dposition_phasor.data(), heads, tokens};
    }
    void attend(const AttentionMask& mask, const ForwardViews<T>& views, NoBuffers&) const {
      rbar::attend<T>(views.query, views.key, views.value, score(), mask, views.output, views.log_sum_exp);
    }
    void attend_backward(const AttentionMask& mask, const detail::BackwardViews<T>& views, const NoBuffers&) const {
      rbar::attend_backward<T>(views.query, views.key, views.value, views.output, views.doutput, views.log_sum_exp,
                               score(), mask, views.dquery, views.dkey, views.dvalue,
                               gradient(views.query.batch, views.query.tokens));
    }
  };

  AttentionPasses<T, Config, Linear<T>, Kernel> passes(const Cache& rows, const PositionPhases<T>& positions) const {
    return {config, {q_proj, k_proj, v_proj, out_proj}, {*this, rows, positions}};
  }
  AttentionMaps<Linear<T>, Linear<T>> maps() { return {q_proj, k_proj, v_proj, out_proj}; }

  PhasePasses<PhaseModulatedAttention> phases() const { return {*this}; }
  const T* phases_of_positions() const { return config.has_position_phases() ? position_phases.data() : nullptr; }

  void require_inputs(std::string_view operation, ConstTensorView<T, 3> x, ConstTensorView<T, 3> state,
                      Index first_position) const {
    require_shape(operation, "x", x, {-1, -1, config.d_model});
    require_shape(operation, "state", state, {x.dimension(0), x.dimension(1), config.coupling_width()});
    require(x.dimension(1) > 0, operation, "x", "at least one token", x.dimension(1));
    require(first_position + x.dimension(1) <= config.max_seq_len, operation, "tokens", config.max_seq_len,
            first_position + x.dimension(1));
  }
};

}  // namespace rbar
