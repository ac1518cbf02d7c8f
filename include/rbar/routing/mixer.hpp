// What coherent tokens get instead of attention: a gated mix with one neighbour.
//   m = g·u + (1 − g)·h,   b = c·m + (1 − c)·h = h + c·g·(u − h),   y = W_o b + b_o
// c = the token's routing score. Neighbour, gate g and proposal u are
//   causal     h_{t−1}:               g = σ(W_g [h_{t−1}; h_t] + b_g),     u = W₁ h_{t−1} + W₂ h_t
//   reference  pair (2t, 2t+1):       g = σ(W_g [h_even; h_odd] + b_g),    u = W₁ h_even, W₂ h_odd
//   not learnable, either neighbour:  g = |mean_D cos(φ_a − φ_b)|,         u = (h_a + h_b) / 2
// A token without a neighbour (t = 0, or the odd one out of the pairs) has g = 0, so m = h.
// The reference gate of an even token sees its successor: a leak. Source: the CoRT package 0.1.0.
#pragma once

#include "rbar/core/bulk.hpp"
#include "rbar/core/causality.hpp"
#include "rbar/nn/linear.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <span>
#include <vector>

namespace rbar {

struct MixerConfig {
  Index d_model = 0;
  bool learnable = true;
  Causality causality = Causality::causal;

  template <class Visit>
  void fields(Visit&& visit) {
    visit("d_model", d_model);
    visit("learnable", learnable);
    visit("causality", causality);
  }
  void validate() const { require(d_model >= 1, "MixerConfig", "d_model", "at least 1", d_model); }
};

// Mixes the tokens `selected` (ascending row numbers into [B·T]) of hidden [B, T, D]; y is compact,
// [selected, D]. Errors: shapes. Reference with T < 2 returns the tokens as they are.
template <class T>
struct CoherenceMixer {
  using Scalar = T;
  using Rows = std::span<const Index>;

  MixerConfig config;
  Linear<T> W1, W2;    // [D, D], no bias
  Linear<T> gate;      // [1, 2D]
  Linear<T> out_proj;  // [D, D]

  // Buffers have room for all N = B·T tokens, the first `selected` rows are used: how many tokens are
  // mixed changes from step to step.
  struct Cache {
    Tensor<T, 3> hidden;                     // [B, T, D] input, kept by the form that mixes all tokens
    std::vector<Index> every_row;            // 0 … N − 1, of the same form
    Tensor<T, 1> gate;                       // [N] g
    Tensor<T, 2> first, second;              // [N, D] what W₁ and W₂ see
    Tensor<T, 2> proposal;                   // [N, D] u
    Tensor<T, 2> blended;                    // [N, D] b
    mutable Tensor<T, 2> dblend, dproposal;  // [N, D] scratch of backward
    mutable Tensor<T, 1> dgate;              // [N] scratch of backward

    void swap_scratch(const Cache& other) const {
      std::swap(dblend, other.dblend);
      std::swap(dproposal, other.dproposal);
    }
  };
  // Streaming (causal): the last token seen.
  struct State {
    Tensor<T, 2> previous;  // [B, D], empty before the first token
  };

  CoherenceMixer() = default;
  CoherenceMixer(const MixerConfig& config_, Rng& rng) : config(config_) {
    config.validate();
    const Index dim = config.d_model;
    if (config.learnable) {
      W1 = Linear<T>(dim, dim, /*has_bias=*/false, rng);
      W2 = Linear<T>(dim, dim, /*has_bias=*/false, rng);
      gate = Linear<T>(2 * dim, 1, /*has_bias=*/true, rng);
    }
    out_proj = Linear<T>(dim, dim, /*has_bias=*/true, rng);
  }

  // coherence [B, T] is c, the routing score; without elements c = 1.
  void forward(ConstTensorView<T, 3> hidden, Rows selected, ConstTensorView<T, 2> coherence, MatrixView<T> y,
               Cache& cache) const {
    mix(Tokens(hidden, config.causality), selected, coherence, y, cache);
  }

  // dy [N, D] -> dhidden [B, T, D] and dcoherence [B, T], both accumulate; dcoherence is left alone
  // when `coherence` has no elements.
  void backward(ConstMatrixView<T> dy, ConstTensorView<T, 3> hidden, Rows selected, ConstTensorView<T, 2> coherence,
                const Cache& cache, Tensor<T, 3>& dhidden, Tensor<T, 2>& dcoherence, CoherenceMixer& grad) const {
    const Tokens tokens(hidden, config.causality);
    check("CoherenceMixer::backward", tokens, selected, coherence, dy);
    require_shape("CoherenceMixer::backward", "dhidden", dhidden, {tokens.batch, tokens.count, config.d_model});
    if (selected.empty()) return;
    const Index dim = config.d_model, count = static_cast<Index>(selected.size());
    if (tokens.alone()) {
      for_rows(count, [&](Index n) { row(dhidden, at(selected, n)) += dy.row(n); });
      return;
    }
    require_shape("CoherenceMixer::backward", "cache", cache.blended, {tokens.batch * tokens.count, dim});
    ensure_shape(cache.dblend, shape_of(cache.blended));
    ensure_shape(cache.dproposal, shape_of(cache.blended));
    ensure_shape(cache.dgate, shape_of(cache.gate));
    out_proj.backward(dy, top_rows(std::as_const(cache.blended), count), top_rows(cache.dblend, count), grad.out_proj);

    // b = h + s (u − h) with s = c·g: dh = (1 − s) db, du = s db, ds = db·(u − h).
    for_rows(count, [&](Index n) {
      const Index token = at(selected, n);
      const auto h = tokens.row(token), u = row(cache.proposal, n), db = row(std::as_const(cache.dblend), n);
      const T c = coherence.size() > 0 ? coherence.data()[token] : T(1), g = cache.gate(n);
      const T dscale = db.dot(u - h);
      cache.dgate(n) = tokens.has_partner(token) ? c * dscale : T(0);
      if (coherence.size() > 0) dcoherence.data()[token] += g * dscale;
      row(dhidden, token) += (T(1) - c * g) * db;
      row(cache.dproposal, n) = (c * g) * db;
    });
    config.learnable ? learned_backward(tokens, selected, cache, dhidden, grad)
                     : fixed_backward(tokens, selected, cache, dhidden);
  }

  // A stream's next tokens [B, new, D]: the same numbers as `forward`. Causal only.
  void step(ConstTensorView<T, 3> hidden, Rows selected, ConstTensorView<T, 2> coherence, MatrixView<T> y, State& state,
            Cache& cache) const {
    require(config.causality == Causality::causal, "CoherenceMixer::step", "causality", "causal", "reference");
    Tokens tokens(hidden, config.causality);
    if (state.previous.size() > 0) {
      require_shape("CoherenceMixer::step", "state", state.previous, {tokens.batch, config.d_model});
      tokens.carried = state.previous.data();
    }
    mix(tokens, selected, coherence, y, cache);
    ensure_shape(state.previous, {tokens.batch, config.d_model});
    for (Index b = 0; b < tokens.batch; ++b) row(state.previous, b) = tokens.row((b + 1) * tokens.count - 1);
  }

  // All tokens, c = 1: the contract of a layer.
  void forward(ConstTensorView<T, 3> hidden, Tensor<T, 3>& y, Cache& cache) const {
    ensure_shape(cache.hidden, shape_of(hidden));
    bulk_copy(hidden.data(), hidden.size(), cache.hidden.data());
    cache.every_row.resize(static_cast<std::size_t>(hidden.dimension(0) * hidden.dimension(1)));
    std::iota(cache.every_row.begin(), cache.every_row.end(), Index{0});
    ensure_shape(y, shape_of(hidden));
    forward(hidden, cache.every_row, no_coherence(), rows(y), cache);
  }
  void backward(ConstTensorView<T, 3> dy, const Cache& cache, Tensor<T, 3>& dx, CoherenceMixer& grad) const {
    require_shape("CoherenceMixer::backward", "dy", shape_of(dy), shape_of(cache.hidden));
    Tensor<T, 2> none;
    ensure_shape(dx, shape_of(cache.hidden));
    bulk_zero(dx.data(), dx.size());
    backward(rows(dy), view(cache.hidden), cache.every_row, no_coherence(), cache, dx, none, grad);
  }

  void parameters(auto&& visit) {
    if (config.learnable) {
      visit_layer(visit, "W1", W1);
      visit_layer(visit, "W2", W2);
      visit_layer(visit, "gate", gate);
    }
    visit_layer(visit, "out_proj", out_proj);
  }
  // The gate, one row, stays.
  void linears(auto&& visit) {
    if (config.learnable)
      for (Linear<T>* map : {&W1, &W2}) visit(*map);
    out_proj.linears(visit);
  }

 private:
  using RowView = Eigen::Map<Eigen::Matrix<T, 1, Eigen::Dynamic>>;
  using ConstRowView = Eigen::Map<const Eigen::Matrix<T, 1, Eigen::Dynamic>>;

  // Who mixes with whom.
  struct Tokens {
    const T* data;
    Index batch, count, dim;
    Causality causality;
    const T* carried = nullptr;  // [B, D] the tokens before the first ones, in a stream

    Tokens(ConstTensorView<T, 3> hidden, Causality causality_)
        : data(hidden.data()),
          batch(hidden.dimension(0)),
          count(hidden.dimension(1)),
          dim(hidden.dimension(2)),
          causality(causality_) {}

    bool alone() const { return causality == Causality::reference && count < 2; }
    bool leads(Index token) const { return causality == Causality::reference && token % count % 2 == 0; }
    bool has_partner(Index token) const { return partner(token) != nullptr; }
    ConstRowView row(Index token) const { return ConstRowView(data + token * dim, dim); }
    const T* partner(Index token) const {
      const Index t = token % count;
      if (leads(token)) return t + 1 < count ? data + (token + 1) * dim : nullptr;
      if (t > 0) return data + (token - 1) * dim;
      return carried ? carried + token / count * dim : nullptr;
    }
  };

  static ConstTensorView<T, 2> no_coherence() { return ConstTensorView<T, 2>(nullptr, 0, 0); }
  template <class Tensorial>
  static auto row(Tensorial& tensor, Index n) {
    const Index dim = tensor.dimension(Tensorial::NumDimensions - 1);
    using View = std::conditional_t<std::is_const_v<Tensorial>, ConstRowView, RowView>;
    return View(tensor.data() + n * dim, dim);
  }
  template <class Body>
  static void for_rows(Index count, Body&& body) {
    parallel_for(count, 32, [&](Index begin, Index end) {
      for (Index n = begin; n < end; ++n) body(n);
    });
  }
  ConstRowView gate_weight(bool second) const {
    return ConstRowView(gate.weight.data() + (second ? config.d_model : 0), config.d_model);
  }

  void check(std::string_view operation, const Tokens& tokens, Rows selected, ConstTensorView<T, 2> coherence,
             const auto& y) const {
    require(tokens.dim == config.d_model, operation, "hidden: features", config.d_model, tokens.dim);
    require_shape(operation, "rows", y, {static_cast<Index>(selected.size()), config.d_model});
    if (!selected.empty() && (selected.front() < 0 || selected.back() >= tokens.batch * tokens.count)) [[unlikely]]
      throw Error(operation, "selected", "ascending rows below " + std::to_string(tokens.batch * tokens.count),
                  std::to_string(selected.front()) + " … " + std::to_string(selected.back()));
    if (coherence.size() > 0) require_shape(operation, "coherence", coherence, {tokens.batch, tokens.count});
  }

  void mix(const Tokens& tokens, Rows selected, ConstTensorView<T, 2> coherence, MatrixView<T> y, Cache& cache) const {
    check("CoherenceMixer::forward", tokens, selected, coherence, y);
    if (selected.empty()) return;
    const Index count = static_cast<Index>(selected.size()), dim = config.d_model;
    if (tokens.alone()) {
      for_rows(count, [&](Index n) { y.row(n) = tokens.row(at(selected, n)); });
      return;
    }
    const Index capacity = tokens.batch * tokens.count;
    ensure_shape(cache.gate, {capacity});
    ensure_shape(cache.proposal, {capacity, dim});
    ensure_shape(cache.blended, {capacity, dim});
    config.learnable ? learned_proposal(tokens, selected, cache) : fixed_proposal(tokens, selected, cache);
    for_rows(count, [&](Index n) {
      const Index token = at(selected, n);
      const T c = coherence.size() > 0 ? coherence.data()[token] : T(1);
      const auto h = tokens.row(token), u = row(std::as_const(cache.proposal), n);
      row(cache.blended, n) = h + (c * cache.gate(n)) * (u - h);
    });
    out_proj.forward(top_rows(std::as_const(cache.blended), count), y);
  }

  // --- learned: gate and proposal, and back ---

  void learned_proposal(const Tokens& tokens, Rows selected, Cache& cache) const {
    const Index count = static_cast<Index>(selected.size()), dim = config.d_model;
    ensure_shape(cache.first, shape_of(cache.proposal));
    ensure_shape(cache.second, shape_of(cache.proposal));
    for_rows(count, [&](Index n) {
      const Index token = at(selected, n);
      const auto own = tokens.row(token);
      const T* const neighbour = tokens.partner(token);
      const bool leads = tokens.leads(token);
      auto first = row(cache.first, n), second = row(cache.second, n);
      if (config.causality == Causality::causal) {
        second = own;
        if (neighbour)
          first = ConstRowView(neighbour, dim);
        else
          first.setZero();
      } else {  // W₁ is for the even token, W₂ for the odd one: zero switches the other off
        (leads ? first : second) = own;
        (leads ? second : first).setZero();
      }
      cache.gate(n) = T(0);
      if (!neighbour) return;
      const T logit =
          gate_weight(!leads).dot(own) + gate_weight(leads).dot(ConstRowView(neighbour, dim)) + gate.bias(0);
      cache.gate(n) = T(1) / (T(1) + std::exp(-logit));
    });
    W1.forward(top_rows(std::as_const(cache.first), count), top_rows(cache.proposal, count));
    W2.product(top_rows(std::as_const(cache.second), count), top_rows(cache.proposal, count), /*accumulate=*/true);
  }

  void learned_backward(const Tokens& tokens, Rows selected, const Cache& cache, Tensor<T, 3>& dhidden,
                        CoherenceMixer& grad) const {
    const Index count = static_cast<Index>(selected.size()), dim = config.d_model;
    for_rows(count, [&](Index n) { cache.dgate(n) *= cache.gate(n) * (T(1) - cache.gate(n)); });
    for (Index n = 0; n < count; ++n) grad.gate.bias(0) += cache.dgate(n);
    parallel_for(dim, 64, [&](Index begin, Index end) {
      for (Index n = 0; n < count; ++n) {
        const Index token = at(selected, n);
        const T* const neighbour = tokens.partner(token);
        if (!neighbour) continue;
        const T* const own = tokens.row(token).data();
        T* const dweight = grad.gate.weight.data();
        const Index own_at = tokens.leads(token) ? 0 : dim, neighbour_at = dim - own_at;
        for (Index d = begin; d < end; ++d) {
          dweight[own_at + d] += cache.dgate(n) * own[d];
          dweight[neighbour_at + d] += cache.dgate(n) * neighbour[d];
        }
      }
    });
    // Two tokens may share a neighbour's row, never their own: own rows and neighbours' rows are
    // written in separate passes, each of which meets a row once.
    W1.backward(top_rows(std::as_const(cache.dproposal), count), top_rows(cache.first, count),
                top_rows(cache.dblend, count), grad.W1);
    for_rows(count, [&](Index n) {
      const Index token = at(selected, n);
      const bool leads = tokens.leads(token);
      if (leads) row(dhidden, token) += row(cache.dblend, n);
      row(dhidden, token) += cache.dgate(n) * gate_weight(!leads);
    });
    for_rows(count, [&](Index n) {
      const Index token = at(selected, n);
      if (!tokens.has_partner(token)) return;
      const bool leads = tokens.leads(token);
      auto dneighbour = row(dhidden, leads ? token + 1 : token - 1);
      if (config.causality == Causality::causal) dneighbour += row(cache.dblend, n);
      dneighbour += cache.dgate(n) * gate_weight(leads);
    });
    W2.backward(top_rows(std::as_const(cache.dproposal), count), top_rows(cache.second, count),
                top_rows(cache.dblend, count), grad.W2);
    for_rows(count, [&](Index n) {
      if (!tokens.leads(at(selected, n))) row(dhidden, at(selected, n)) += row(cache.dblend, n);
    });
  }

  // --- not learnable: the mean of the two, as far as their phases agree ---

  static T phase(T x) { return T(2) * std::numbers::pi_v<T> / (T(1) + std::exp(-x)); }

  static T mean_phase_cosine(ConstRowView a, ConstRowView b) {
    T sum = 0;
    for (Index d = 0; d < a.size(); ++d) sum += std::cos(phase(a(d)) - phase(b(d)));
    return sum / static_cast<T>(a.size());
  }

  void fixed_proposal(const Tokens& tokens, Rows selected, Cache& cache) const {
    for_rows(static_cast<Index>(selected.size()), [&](Index n) {
      const auto own = tokens.row(at(selected, n));
      const T* const neighbour = tokens.partner(at(selected, n));
      const ConstRowView other(neighbour ? neighbour : own.data(), config.d_model);
      row(cache.proposal, n) = (own + other) / T(2);
      cache.gate(n) = neighbour ? std::abs(mean_phase_cosine(own, other)) : T(0);
    });
  }

  void fixed_backward(const Tokens& tokens, Rows selected, const Cache& cache, Tensor<T, 3>& dhidden) const {
    // ∂ cos(φ_own − φ_other)/∂φ_own = −sin(φ_own − φ_other), and φ' = φ (1 − σ). A pair's cosine is even in
    // the difference, so the pass over neighbours is the same with the two exchanged.
    for (const bool to_neighbour : {false, true})
      for_rows(static_cast<Index>(selected.size()), [&](Index n) {
        const Index token = at(selected, n);
        if (!tokens.has_partner(token)) return;
        const Index partner = tokens.leads(token) ? token + 1 : token - 1;
        const auto own = tokens.row(to_neighbour ? partner : token), other = tokens.row(to_neighbour ? token : partner);
        const T sign = mean_phase_cosine(own, other) < 0 ? T(-1) : T(1);
        const T dmean = sign * cache.dgate(n) / static_cast<T>(config.d_model);
        auto down = row(dhidden, to_neighbour ? partner : token);
        for (Index d = 0; d < config.d_model; ++d) {
          const T angle = phase(own(d)), slope = angle * (T(1) - angle / (T(2) * std::numbers::pi_v<T>));
          down(d) += cache.dproposal(n, d) / T(2) - dmean * std::sin(angle - phase(other(d))) * slope;
        }
      });
  }

  static Index at(Rows selected, Index n) { return selected[static_cast<std::size_t>(n)]; }
};

}  // namespace rbar
