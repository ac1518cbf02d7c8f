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
#include "rbar/kuramoto/head_oscillators.hpp"
#include "rbar/kuramoto/interventions.hpp"
#include "rbar/kuramoto/phase_modulated_attention_config.hpp"
#include "rbar/kuramoto/phase_score.hpp"
#include "rbar/kuramoto/phase_statistics.hpp"

#include <cmath>
#include <numbers>
#include <utility>

namespace rbar {

// x [batch, tokens, d_model] and h [batch, tokens, d_coupling] -> [batch, tokens, d_model]. Errors: other shapes, no
// tokens or more than max_seq_len, α or β at −1 or below (τ would not be positive), a bad intervention.
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
  };
  // A stream of tokens, at most max_seq_len of them.
  struct State {
    const PhaseIntervention* intervention = nullptr;  // the caller's, for the steps to come

    AttentionState<T> attention;
    PositionPhases<T> positions;
    Cache scratch;  // phases, order_parameter, temperature and coupling of the last step's tokens
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
      std::copy(state.data(), state.data() + state.size(), cache.state.data());
    }
    settle(x, state, /*first_position=*/0, cache.intervention, cache.positions, cache);
    passes(cache, cache.positions).forward(operation, x, y, cache.attention);
  }

  // dstate, like dx, is overwritten. What an intervention overrode in forward is a constant here.
  void backward(ConstTensorView<T, 3> dy, const Cache& cache, Tensor<T, 3>& dx, Tensor<T, 3>& dstate,
                PhaseModulatedAttention& grad) const {
    passes(cache, cache.positions).backward("PhaseModulatedAttention::backward", dy, cache.attention, dx, grad.maps());
    ensure_shape(dstate, {dy.dimension(0), dy.dimension(1), config.coupling_width()});
    backward_phases(cache, dx, dstate, grad);
  }

  // The next tokens [batch, new, ...] of a stream, with the numbers of `forward` on all tokens so far.
  void step(ConstTensorView<T, 3> x, ConstTensorView<T, 3> state, Tensor<T, 3>& y, State& stream) const {
    constexpr const char* operation = "PhaseModulatedAttention::step";
    require_inputs(operation, x, state, stream.attention.position);
    stream.positions.extend(phases_of_positions(), stream.attention.position + x.dimension(1), config.max_seq_len);
    settle(x, state, stream.attention.position, stream.intervention, stream.positions, stream.scratch);
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
    attend_backward<T>(view(cache.attention.query), view(cache.attention.key), constant(one), constant(zero),
                       constant(one), cache.attention.log_sum_exp.data(), kernel.score(), AttentionMask{},
                       view(cache.attention.dquery), view(cache.attention.dkey), dvalue,
                       kernel.gradient(batch, tokens));
    ensure_shape(entropy, {batch, heads, tokens});
    for (Index n = 0; n < batch * tokens; ++n)
      for (Index h = 0; h < heads; ++h)
        entropy(n / tokens, h, n % tokens) =
            cache.attention.log_sum_exp(n * heads + h) - mean_logit(cache, n, h, kernel.score().gate);
  }

 private:
  using Oscillators = HeadOscillators<T>;

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

  const T* phases_of_positions() const { return config.has_position_phases() ? position_phases.data() : nullptr; }

  void require_inputs(std::string_view operation, ConstTensorView<T, 3> x, ConstTensorView<T, 3> state,
                      Index first_position) const {
    require_shape(operation, "x", x, {-1, -1, config.d_model});
    require_shape(operation, "state", state, {x.dimension(0), x.dimension(1), config.coupling_width()});
    require(x.dimension(1) > 0, operation, "x", "at least one token", x.dimension(1));
    require(first_position + x.dimension(1) <= config.max_seq_len, operation, "tokens", config.max_seq_len,
            first_position + x.dimension(1));
  }

  // Memory of one block of tokens: everything [n_heads, columns], the record once a step.
  static constexpr Index columns = Oscillators::columns;
  struct Block {
    T *phases, *cosine, *sine, *dphases, *record, *work;
    alignas(64) T strength[columns], cosine_mean[columns], sine_mean[columns];  // K, and mean e^{iφ}
    alignas(64) T mean[4][columns];  // C₁, S₁, C₂, S₂ of its position

    explicit Block(const Oscillators& oscillators) {
      const Index size = oscillators.block_size();
      struct Blocks {};
      phases = simd::thread_scratch<T, Blocks>(4 * size + oscillators.record_size() + oscillators.work_size());
      cosine = phases + size;
      sine = cosine + size;
      dphases = sine + size;
      record = dphases + size;
      work = record + oscillators.record_size();
    }
    T order(Index c) const { return std::hypot(cosine_mean[c], sine_mean[c]); }
  };

  Oscillators oscillators() const {
    return {frequency.data(), config.n_heads, config.has_phase_map() ? config.n_steps : 0, config.dt};
  }
  Index blocks_per_chunk() const { return std::max<Index>(1, 128 / config.n_heads); }
  bool phases_learn(const Cache& cache) const { return config.has_oscillators() && !cache.applied.phase; }
  bool temperature_learns(const Cache& cache) const {
    return config.adaptive_temperature && !cache.applied.temperature;
  }
  PhaseTemperature<T> temperature_law() const {
    return {static_cast<T>(config.temperature), config.adaptive_temperature ? alpha(0) : T(0),
            config.adaptive_temperature ? beta(0) : T(0)};
  }
  T mean_logit(const Cache& cache, Index n, Index h, T lambda) const {
    const T* sums = &cache.dscore(n, 3 * h);
    return lambda * (cache.cosine(n, h) * sums[0] + cache.sine(n, h) * sums[1]) + (T(1) - lambda) * sums[2];
  }

  // Rows [first, first + count) of the cache from φ⁰ to what the score and the temperature read of them.
  void run(const Cache& cache, const PositionPhases<T>& positions, Index first, Index count, auto&& position,
           Block& block) const {
    const Index heads = config.n_heads, size = heads * columns;
    for (Index c = 0; c < columns; ++c) {
      block.strength[c] = c < count ? cache.coupling(first + c) : T(0);
      for (Index i = 0; i < 4; ++i) block.mean[i][c] = c < count ? positions.mean(position(first + c), i) : T(0);
      block.cosine_mean[c] = block.sine_mean[c] = 0;
    }
    if (cache.applied.phase || !config.has_oscillators()) {
      const double phase = std::remainder(cache.applied.phase.value_or(0.0), 2 * std::numbers::pi);
      std::fill_n(block.phases, size, static_cast<T>(phase));
    } else {
      for (Index h = 0; h < heads; ++h)
        for (Index c = 0; c < columns; ++c)
          block.phases[h * columns + c] =
              (config.has_phase_map() && c < count ? cache.initial(first + c, h) : T(0)) + frequency(h);
      oscillators().advance(block.strength, block.phases, block.record, block.work);
    }
    simd::write_angle_phasors(block.phases, size, block.cosine, block.sine);
    const T share = T(1) / static_cast<T>(heads);
    for (Index h = 0; h < heads; ++h)
      for (Index c = 0; c < columns; ++c) {
        block.cosine_mean[c] += share * block.cosine[h * columns + c];
        block.sine_mean[c] += share * block.sine[h * columns + c];
      }
  }

  // Phases, R, K and τ of every row of x and state, which start at `first_position`.
  void settle(ConstTensorView<T, 3> x, ConstTensorView<T, 3> state, Index first_position,
              const PhaseIntervention* intervention, const PositionPhases<T>& positions, Cache& cache) const {
    const Index tokens = x.dimension(1), count = x.dimension(0) * tokens, heads = config.n_heads;
    cache.applied = intervention ? *intervention : PhaseIntervention{};
    cache.applied.validate();
    const PhaseTemperature<T> law = temperature_law();
    require(law.alpha > -1, "PhaseModulatedAttention", "alpha", "above -1: a positive temperature", law.alpha);
    require(law.beta > -1, "PhaseModulatedAttention", "beta", "above -1: a positive temperature", law.beta);
    for (Tensor<T, 2>* tensor : {&cache.phases, &cache.cosine, &cache.sine, &cache.temperature})
      ensure_shape(*tensor, {count, heads});
    ensure_shape(cache.order_parameter, {count});
    ensure_shape(cache.coupling, {count});
    if (config.has_phase_map()) {
      ensure_shape(cache.initial, {count, heads});
      phase_map.forward(rows(x), rows(cache.initial));
    }
    if (cache.applied.coupling) {
      cache.coupling.setConstant(static_cast<T>(*cache.applied.coupling));
    } else if (config.has_coupling_map()) {
      coupling_map.forward(rows(state), MatrixView<T>(cache.coupling.data(), count, 1));
      for (T& strength : elements(cache.coupling)) strength = T(2) / (T(1) + std::exp(-strength));
    } else {
      cache.coupling.setConstant(static_cast<T>(config.has_phase_map() ? config.coupling : 0.0));
    }
    const auto position = [=](Index row) { return first_position + row % tokens; };
    parallel_for((count + columns - 1) / columns, blocks_per_chunk(), [&](Index begin, Index end) {
      Block block(oscillators());
      for (Index first = begin * columns; first < std::min(count, end * columns); first += columns) {
        const Index length = std::min(columns, count - first);
        run(cache, positions, first, length, position, block);
        for (Index c = 0; c < length; ++c) {
          const T order = block.order(c);
          const T read = cache.applied.order_parameter ? static_cast<T>(*cache.applied.order_parameter) : order;
          cache.order_parameter(first + c) = order;
          for (Index h = 0; h < heads; ++h) {
            const Index at = h * columns + c;
            const T variance = phase_variance(block.cosine[at], block.sine[at], block.mean[0][c], block.mean[1][c],
                                              block.mean[2][c], block.mean[3][c]);
            cache.phases(first + c, h) = block.phases[at];
            cache.cosine(first + c, h) = block.cosine[at];
            cache.sine(first + c, h) = block.sine[at];
            cache.temperature(first + c, h) = cache.applied.temperature ? static_cast<T>(*cache.applied.temperature)
                                                                        : law(std::max(T(0), variance), read);
          }
        }
      }
    });
  }

  // From the sums of the score to every parameter of the phases, to dx (added) and dstate (overwritten).
  void backward_phases(const Cache& cache, Tensor<T, 3>& dx, Tensor<T, 3>& dstate,
                       PhaseModulatedAttention& grad) const {
    const Index tokens = dx.dimension(1), count = dx.dimension(0) * tokens, heads = config.n_heads;
    const Index per_chunk = blocks_per_chunk(), blocks = (count + columns - 1) / columns;
    const bool coupling_learns = config.has_coupling_map() && phases_learn(cache) && !cache.applied.coupling;
    if (!coupling_learns) dstate.setZero();
    if (!config.has_oscillators()) return;
    ensure_shape(cache.dinitial, {count, heads});
    ensure_shape(cache.dcoupling, {count, 1});
    ensure_shape(cache.dmean, {count, 4});
    ensure_shape(cache.partial, {(blocks + per_chunk - 1) / per_chunk, heads + 3});
    cache.partial.setZero();
    parallel_for(blocks, per_chunk, [&](Index begin, Index end) {
      Block block(oscillators());
      for (Index first = begin * columns; first < std::min(count, end * columns); first += columns)
        backward_block(cache, first, std::min(columns, count - first), tokens, block,
                       &cache.partial(begin / per_chunk, 0));
    });
    const double lambda = cache.applied.gate.value_or(gate());
    for (Index chunk = 0; chunk < cache.partial.dimension(0); ++chunk) {
      const double* sums = &cache.partial(chunk, 0);
      for (Index h = 0; h < heads; ++h) grad.frequency(h) += static_cast<T>(sums[h]);
      if (config.phase_gate && !cache.applied.gate)
        grad.gate_logit(0) += static_cast<T>(sums[heads] * lambda * (1 - lambda));
      if (config.adaptive_temperature) {
        grad.alpha(0) += static_cast<T>(sums[heads + 1]);
        grad.beta(0) += static_cast<T>(sums[heads + 2]);
      }
    }
    if (config.has_phase_map() && phases_learn(cache))
      phase_map.backward(rows(std::as_const(cache.dinitial)), rows(cache.attention.input), rows(dx), grad.phase_map,
                         /*accumulate_dx=*/true);
    if (coupling_learns)
      coupling_map.backward(rows(std::as_const(cache.dcoupling)), rows(cache.state), rows(dstate), grad.coupling_map);
    if (config.has_position_phases()) backward_positions(cache, tokens, grad);
  }

  // Rows [first, first + count); sums: ω [n_heads], λ, α, β.
  void backward_block(const Cache& cache, Index first, Index count, Index tokens, Block& block, double* sums) const {
    const Index heads = config.n_heads;
    const T lambda = static_cast<T>(cache.applied.gate.value_or(gate()));
    const PhaseTemperature<T> law = temperature_law();
    run(
        cache, cache.positions, first, count, [=](Index row) { return row % tokens; }, block);
    std::fill_n(block.dphases, heads * columns, T(0));
    for (Index c = 0; c < count; ++c) {
      const Index n = first + c;
      T* dmean = &cache.dmean(n, 0);
      std::fill_n(dmean, 4, T(0));
      const T order = block.order(c);
      const T disorder = 1 - (cache.applied.order_parameter ? static_cast<T>(*cache.applied.order_parameter) : order);
      T dorder = 0;
      for (Index h = 0; h < heads; ++h) {
        const T cosine = block.cosine[h * columns + c], sine = block.sine[h * columns + c];
        const T* dscore = &cache.dscore(n, 3 * h);
        T& dphase = block.dphases[h * columns + c];
        dphase = lambda * (cosine * dscore[1] - sine * dscore[0]);
        sums[heads] += static_cast<double>(cosine * dscore[0] + sine * dscore[1] - dscore[2]);
        if (!temperature_learns(cache)) continue;
        const T c1 = block.mean[0][c], s1 = block.mean[1][c], c2 = block.mean[2][c], s2 = block.mean[3][c];
        const T raw = phase_variance(cosine, sine, c1, s1, c2, s2), variance = std::max(T(0), raw);
        const T dlaw = -mean_logit(cache, n, h, lambda) / cache.temperature(n, h) * law.base;
        const T spread = 1 + law.beta * variance, calm = 1 + law.alpha * disorder;
        sums[heads + 1] += static_cast<double>(dlaw * spread * disorder);
        sums[heads + 2] += static_cast<double>(dlaw * variance * calm);
        dorder -= dlaw * spread * law.alpha;
        if (raw > 0) dphase += phase_variance_backward(dlaw * law.beta * calm, cosine, sine, c1, s1, c2, s2, dmean);
      }
      if (cache.applied.order_parameter || order == 0) continue;
      // R = |C + iS|: ∂R/∂φ_h = (S cos φ_h − C sin φ_h)/(n_heads R), and 0 where R = 0 has none.
      const T factor = dorder / (static_cast<T>(heads) * order);
      for (Index h = 0; h < heads; ++h)
        block.dphases[h * columns + c] += factor * (block.sine_mean[c] * block.cosine[h * columns + c] -
                                                    block.cosine_mean[c] * block.sine[h * columns + c]);
    }
    if (!phases_learn(cache)) return;
    double dstrength[columns] = {};
    oscillators().backward(block.strength, block.record, block.dphases, sums, dstrength, block.work);
    for (Index c = 0; c < count; ++c) {
      for (Index h = 0; h < heads; ++h) {
        const T dphase = block.dphases[h * columns + c];
        cache.dinitial(first + c, h) = dphase;
        sums[h] += static_cast<double>(dphase);
      }
      cache.dcoupling(first + c, 0) =
          static_cast<T>(dstrength[c]) * block.strength[c] * (T(1) - T(0.5) * block.strength[c]);  // K = 2σ(·)
    }
  }

  void backward_positions(const Cache& cache, Index tokens, PhaseModulatedAttention& grad) const {
    ensure_shape(cache.position_sums, {6, tokens});
    cache.position_sums.setZero();
    double *dphasor = cache.position_sums.data(), *dmean = dphasor + 2 * tokens;
    for (Index set = 0; set < cache.dposition_phasor.dimension(0); ++set)
      for (Index i = 0; i < 2 * tokens; ++i) dphasor[i] += static_cast<double>(cache.dposition_phasor(set, i));
    for (Index n = 0; n < cache.dmean.dimension(0); ++n)
      for (Index i = 0; i < 4; ++i) dmean[4 * (n % tokens) + i] += static_cast<double>(cache.dmean(n, i));
    cache.positions.backward(dphasor, dmean, grad.position_phases.data());
  }
};

}  // namespace rbar
