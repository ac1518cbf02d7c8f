// Kuramoto attention: synchronising attention on the torus. A token's state is d angles, H heads of d_h, and attention
// moves them towards the circular mean of what they attend to,
//   score   β_h Σ_j a_tj b_uj cos(ψ_tj − ψ_uj),   ψ = θ + ω_j t        a gated cosine similarity; ω_j = base^(−k/d_h)
//   mean    C_t = Σ_u A_tu cos θ_u,  S_t = Σ_u A_tu sin θ_u            A = softmax over the past
//   step    θ ← θ + η ⊙ (cos θ_t ⊙ S_t − sin θ_t ⊙ C_t)              = θ + η Σ_u A_tu sin(θ_u − θ_t), the tangent part
// With q̃ = β[a cos ψ; a sin ψ], k̃ = [b cos ψ; b sin ψ], ṽ = [cos θ; sin θ] this is dot-product attention of heads twice
// as wide, and an elementwise step.
// Gates: a = W_a[cos θ; sin θ] + b_a (`query`), learned constants (`static`), or with a second map for b (`query_key`).
// η = 2σ(r) in (0, 2): for 0 < η < 2, moving one angle while the others hold never raises −Σ_u A_tu cos(θ_u − θ_t).
// Source: reimplementation from the abstract of "Kuramoto Attention: Synchronizing Self-Attention on the Torus", arXiv
// 2606.11585; drift, gates and η are this library's choice.
#pragma once

#include "rbar/attention/engine.hpp"
#include "rbar/attention/kv_cache.hpp"
#include "rbar/attention/masks.hpp"
#include "rbar/attention/scores.hpp"
#include "rbar/nn/linear.hpp"
#include "rbar/nn/rotary.hpp"
#include "rbar/simd/torus.hpp"

#include <cmath>
#include <string_view>
#include <utility>

namespace rbar {

enum class TorusGate { query, fixed /*static is a keyword*/, query_key };

inline constexpr TorusGate all_torus_gates[] = {TorusGate::query, TorusGate::fixed, TorusGate::query_key};
constexpr const char* name_of(TorusGate gate) {
  constexpr const char* names[] = {"query", "static", "query_key"};
  return names[static_cast<int>(gate)];
}
constexpr bool parse(std::string_view text, TorusGate& gate) {
  for (const TorusGate candidate : all_torus_gates)
    if (text == name_of(candidate)) return gate = candidate, true;
  return false;
}

struct KuramotoAttentionConfig {
  Index d_model = 128;  // angles of a token
  Index n_heads = 4;
  TorusGate gate = TorusGate::query;
  bool strict = false;        // a token does not attend to itself
  bool drift = true;          // ω_j t in the score; else it knows no positions
  double drift_base = 10000;  // of ω_j

  Index head_dim() const { return d_model / n_heads; }

  template <class Visit>
  void fields(Visit&& visit) {
    visit("d_model", d_model);
    visit("n_heads", n_heads);
    visit("gate", gate);
    visit("strict", strict);
    visit("drift", drift);
    visit("drift_base", drift_base);
  }
  void validate() const {
    constexpr const char* where = "KuramotoAttentionConfig";
    require(n_heads >= 1, where, "n_heads", "at least 1", n_heads);
    require(d_model >= 1 && d_model % n_heads == 0, where, "d_model", "a multiple of n_heads", d_model);
    require(2 * head_dim() <= detail::max_head_dim, where, "d_model / n_heads", "at most 128", head_dim());
    require(drift_base > 0 && std::isfinite(drift_base), where, "drift_base", "a positive number", drift_base);
  }
};

// Angles [batch, tokens, d_model] -> the same, not wrapped. Errors: other shapes; more tokens than a stream's limit.
template <class T>
struct KuramotoAttention {
  using Scalar = T;
  using Config = KuramotoAttentionConfig;

  // N = batch·tokens rows; phasors, queries, keys and means are [N, 2·d_model], head by head [cosines | sines].
  struct Cache {
    Tensor<T, 2> phasors, query, key, mean;
    Tensor<T, 2> query_gate, key_gate;  // [N, d_model]
    Tensor<T, 1> rate;                  // η [d_model]
    Tensor<T, 1> log_sum_exp;
    Shape<3> shape{};  // of the input
    RotaryTable<T> drift;
    // Scratch of backward.
    mutable Tensor<T, 2> dphasors, dquery, dkey, dvalue, dmean, dquery_gate, dkey_gate;
    mutable Tensor<T, 2> partial;  // [chunks, n_heads + d_model] of β and η

    void swap_scratch(const Cache& other) const {
      std::swap(dphasors, other.dphasors);
      std::swap(dquery, other.dquery);
      std::swap(dkey, other.dkey);
      std::swap(dvalue, other.dvalue);
      std::swap(dmean, other.dmean);
      std::swap(dquery_gate, other.dquery_gate);
      std::swap(dkey_gate, other.dkey_gate);
    }
  };
  struct State {
    KeyValueCache<T> keys;
    Index position = 0;  // tokens seen
    Cache scratch;
  };

  Config config;
  Linear<T> query_gate_map, key_gate_map;  // [d_model, 2·d_model] with bias, where the gate has them
  Tensor<T, 2> fixed_gate;                 // [n_heads, head_dim], with TorusGate::fixed
  Tensor<T, 1> beta;                       // [n_heads]
  Tensor<T, 1> rate_logit;                 // r [d_model], η = 2σ(r)

  KuramotoAttention() = default;
  KuramotoAttention(const Config& config_, Rng& rng) : config(config_) {
    config.validate();
    const auto make_gate = [&] {
      Linear<T> map(2 * config.d_model, config.d_model, /*has_bias=*/true, rng);
      normal(map.weight, 0.02, rng);
      map.bias.setConstant(T(1));
      return map;
    };
    if (config.gate == TorusGate::fixed) {
      ensure_shape(fixed_gate, {config.n_heads, config.head_dim()});
      fixed_gate.setConstant(T(1));
    } else {
      query_gate_map = make_gate();
      if (config.gate == TorusGate::query_key) key_gate_map = make_gate();
    }
    ensure_shape(beta, {config.n_heads});
    beta.setConstant(static_cast<T>(1 / std::sqrt(static_cast<double>(config.head_dim()))));
    rate_logit = zeros<T, 1>({config.d_model});
  }

  void forward(ConstTensorView<T, 3> angles, Tensor<T, 3>& moved, Cache& cache) const {
    require_shape("KuramotoAttention::forward", "angles", angles, {-1, -1, config.d_model});
    const Index batch = angles.dimension(0), tokens = angles.dimension(1);
    ensure_shape(moved, shape_of(angles));
    prepare(angles, /*first_position=*/0, /*room=*/tokens, cache);
    attend<T>(heads_of(cache.query, batch, tokens), heads_of(cache.key, batch, tokens),
              heads_of(cache.phasors, batch, tokens), DotProductScore{}, CausalMask{config.strict ? -1 : 0},
              heads_of(cache.mean, batch, tokens), cache.log_sum_exp.data());
    move(angles, cache, moved);
  }

  void backward(ConstTensorView<T, 3> dmoved, const Cache& cache, Tensor<T, 3>& dangles,
                KuramotoAttention& grad) const {
    require_shape("KuramotoAttention::backward", "dmoved", shape_of(dmoved), cache.shape);
    const Index batch = cache.shape[0], tokens = cache.shape[1], count = batch * tokens;
    const Index dim = config.head_dim(), heads = config.n_heads, d = config.d_model;
    ensure_shape(dangles, shape_of(dmoved));
    for (Tensor<T, 2>* tensor : {&cache.dphasors, &cache.dquery, &cache.dkey, &cache.dvalue, &cache.dmean})
      ensure_shape(*tensor, {count, 2 * d});
    ensure_shape(cache.dquery_gate, {count, d});
    if (config.gate == TorusGate::query_key) ensure_shape(cache.dkey_gate, {count, d});
    const Index chunk = rows_per_chunk(), chunks = (count + chunk - 1) / chunk;
    ensure_shape(cache.partial, {chunks, heads + d});
    cache.partial.setZero();
    parallel_for(count, chunk, [&](Index begin, Index end) {
      for (Index n = begin; n < end; ++n)
        simd::torus_step_backward(dmoved.data() + n * d, row(cache.phasors, n), row(cache.mean, n), cache.rate.data(),
                                  heads, dim, row(cache.dmean, n), row(cache.dphasors, n),
                                  &cache.partial(begin / chunk, heads));
    });
    attend_backward<T>(heads_of(cache.query, batch, tokens), heads_of(cache.key, batch, tokens),
                       heads_of(cache.phasors, batch, tokens), heads_of(cache.mean, batch, tokens),
                       heads_of(std::as_const(cache.dmean), batch, tokens), cache.log_sum_exp.data(), DotProductScore{},
                       CausalMask{config.strict ? -1 : 0}, heads_of(cache.dquery, batch, tokens),
                       heads_of(cache.dkey, batch, tokens), heads_of(cache.dvalue, batch, tokens));
    parallel_for(count, chunk, [&](Index begin, Index end) {
      for (Index n = begin; n < end; ++n) {
        const Index position = n % tokens;
        T* dphasors = row(cache.dphasors, n);
        const T* dvalue = row(cache.dvalue, n);
        for (Index i = 0; i < 2 * d; ++i) dphasors[i] += dvalue[i];
        simd::torus_gate_backward(row(cache.phasors, n), drift_cosine(cache, position), drift_sine(cache, position),
                                  query_gate(cache, n), beta.data(), row(cache.dquery, n), heads, dim, dphasors,
                                  row(cache.dquery_gate, n), &cache.partial(begin / chunk, 0));
        simd::torus_gate_backward<T>(row(cache.phasors, n), drift_cosine(cache, position), drift_sine(cache, position),
                                     key_gate(cache, n), nullptr, row(cache.dkey, n), heads, dim, dphasors,
                                     row(cache.dkey_gate, n), nullptr);
      }
    });
    for (Index c = 0; c < chunks; ++c) {
      for (Index h = 0; h < heads; ++h) grad.beta(h) += cache.partial(c, h);
      for (Index i = 0; i < d; ++i)  // ∂η/∂r = η(1 − η/2)
        grad.rate_logit(i) += cache.partial(c, heads + i) * cache.rate(i) * (T(1) - T(0.5) * cache.rate(i));
    }
    if (config.gate == TorusGate::fixed) {
      detail::add_column_sums<T>(rows(std::as_const(cache.dquery_gate)), grad.fixed_gate.data());
    } else {
      query_gate_map.backward(rows(std::as_const(cache.dquery_gate)), rows(cache.phasors), rows(cache.dphasors),
                              grad.query_gate_map, /*accumulate_dx=*/true);
      if (config.gate == TorusGate::query_key)
        key_gate_map.backward(rows(std::as_const(cache.dkey_gate)), rows(cache.phasors), rows(cache.dphasors),
                              grad.key_gate_map, /*accumulate_dx=*/true);
    }
    parallel_for(count, chunk, [&](Index begin, Index end) {
      std::copy(dmoved.data() + begin * d, dmoved.data() + end * d, dangles.data() + begin * d);
      for (Index n = begin; n < end; ++n)
        simd::torus_phasors_backward(row(cache.phasors, n), row(cache.dphasors, n), heads, dim, dangles.data() + n * d);
    });
  }

  // The next tokens [batch, new, d_model] of a stream, with the numbers of `forward` on all tokens so far.
  void step(ConstTensorView<T, 3> angles, Tensor<T, 3>& moved, State& state) const {
    require_shape("KuramotoAttention::step", "angles", angles, {-1, -1, config.d_model});
    const Index batch = angles.dimension(0), tokens = angles.dimension(1);
    ensure_shape(moved, shape_of(angles));
    state.keys.reserve(batch, config.n_heads, 2 * config.d_model / config.n_heads, tokens);
    if (tokens == 0) return;
    Cache& scratch = state.scratch;
    prepare(angles, state.position, state.keys.capacity(), scratch);
    for (Index b = 0; b < batch; ++b)
      state.keys.append(b, ConstMatrixView<T>(row(scratch.key, b * tokens), tokens, 2 * config.d_model),
                        ConstMatrixView<T>(row(scratch.phasors, b * tokens), tokens, 2 * config.d_model),
                        [&](Index token) { return state.position + token; });
    attend<T>(heads_of(std::as_const(scratch.query), batch, tokens), state.keys.key_view(), state.keys.value_view(),
              DotProductScore{}, CausalMask{state.position - (config.strict ? 1 : 0)},
              heads_of(scratch.mean, batch, tokens), static_cast<T*>(nullptr));
    move(angles, scratch, moved);
    state.position += tokens;
  }

  Tensor<T, 3> operator()(ConstTensorView<T, 3> angles) const {
    Tensor<T, 3> moved;
    Cache cache;
    forward(angles, moved, cache);
    return moved;
  }

  void parameters(auto&& visit) {
    if (config.gate == TorusGate::fixed)
      visit("fixed_gate", fixed_gate);
    else
      visit_layer(visit, "query_gate", query_gate_map);
    if (config.gate == TorusGate::query_key) visit_layer(visit, "key_gate", key_gate_map);
    visit("beta", beta);
    visit("rate_logit", rate_logit);
  }
  void linears(auto&& visit) {
    if (config.gate != TorusGate::fixed) query_gate_map.linears(visit);
    if (config.gate == TorusGate::query_key) key_gate_map.linears(visit);
  }

 private:
  Index rows_per_chunk() const { return std::max<Index>(1, 8192 / config.d_model); }
  auto heads_of(auto& tensor, Index batch, Index tokens) const {
    return heads_view(tensor.data(), batch, tokens, config.n_heads, 2 * config.head_dim());
  }
  static auto row(auto& tensor, Index n) { return tensor.data() + n * tensor.dimension(1); }

  const T* query_gate(const Cache& cache, Index n) const {
    return config.gate == TorusGate::fixed ? fixed_gate.data() : row(cache.query_gate, n);
  }
  const T* key_gate(const Cache& cache, Index n) const {
    return config.gate == TorusGate::query_key ? row(cache.key_gate, n) : nullptr;
  }
  // Position 0 turns nothing: what all positions have without drift.
  const T* drift_cosine(const Cache& cache, Index position) const {
    return row(cache.drift.cosine, config.drift ? position : 0);
  }
  const T* drift_sine(const Cache& cache, Index position) const {
    return row(cache.drift.sine, config.drift ? position : 0);
  }

  // Phasors, gates, queries and keys of the tokens from `first_position` on. `room`: positions that the table of drifts
  // should reach, so that a stream does not make it anew for every token.
  void prepare(ConstTensorView<T, 3> angles, Index first_position, Index room, Cache& cache) const {
    const Index tokens = angles.dimension(1), count = angles.dimension(0) * tokens, d = config.d_model;
    const Index dim = config.head_dim(), heads = config.n_heads;
    cache.shape = shape_of(angles);
    for (Tensor<T, 2>* tensor : {&cache.phasors, &cache.query, &cache.key, &cache.mean})
      ensure_shape(*tensor, {count, 2 * d});
    ensure_shape(cache.log_sum_exp, {count * heads});
    ensure_shape(cache.rate, {d});
    for (Index i = 0; i < d; ++i) cache.rate(i) = T(2) / (T(1) + std::exp(-rate_logit(i)));
    // Rotary's table for heads of 2·d_h features: one frequency base^(−k/d_h) for each of d_h angles.
    cache.drift.ensure(std::max<Index>(1, config.drift ? room : 1), 2 * dim, config.drift_base);
    const Index chunk = rows_per_chunk();
    parallel_for(count, chunk, [&](Index begin, Index end) {
      for (Index n = begin; n < end; ++n) simd::torus_phasors(angles.data() + n * d, heads, dim, row(cache.phasors, n));
    });
    if (config.gate != TorusGate::fixed) {
      ensure_shape(cache.query_gate, {count, d});
      query_gate_map.forward(rows(std::as_const(cache.phasors)), rows(cache.query_gate));
    }
    if (config.gate == TorusGate::query_key) {
      ensure_shape(cache.key_gate, {count, d});
      key_gate_map.forward(rows(std::as_const(cache.phasors)), rows(cache.key_gate));
    }
    parallel_for(count, chunk, [&](Index begin, Index end) {
      for (Index n = begin; n < end; ++n) {
        const Index position = first_position + n % tokens;
        const T *cosine = drift_cosine(cache, position), *sine = drift_sine(cache, position);
        simd::torus_gate(row(cache.phasors, n), cosine, sine, query_gate(cache, n), beta.data(), heads, dim,
                         row(cache.query, n));
        simd::torus_gate<T>(row(cache.phasors, n), cosine, sine, key_gate(cache, n), nullptr, heads, dim,
                            row(cache.key, n));
      }
    });
  }

  void move(ConstTensorView<T, 3> angles, const Cache& cache, Tensor<T, 3>& moved) const {
    const Index d = config.d_model;
    parallel_for(rows(angles).rows(), rows_per_chunk(), [&](Index begin, Index end) {
      for (Index n = begin; n < end; ++n)
        simd::torus_step(angles.data() + n * d, row(cache.phasors, n), row(cache.mean, n), cache.rate.data(),
                         config.n_heads, config.head_dim(), moved.data() + n * d);
    });
  }
};

}  // namespace rbar
