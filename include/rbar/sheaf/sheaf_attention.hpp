// Sheaf attention (ADR-015): a token attends to those it agrees with. Restriction maps take both ends of an edge into
// one space, and the energy of their difference decides:
//   q = ρ_q(x),  k = ρ_k(x),  v = ρ_v(x),   split into heads of d features, q and k turned by rotary positions where
//   configured (a rotation of both spaces: norms stay);
//   o_i = Σ_j softmax_j(−β_h w_ij ‖q_i − k_j‖²) v_j  over the keys j that i may see,  w = 1 unless given;   y = W_o o +
//   b_o.
// β_h = softplus(b_h) is learned; it starts at 1/(2√d), where this is dot-product attention with a bias −‖k_j‖²/(2√d).
// Maps with weights are drawn apart: with ρ_q = ρ_k, as identities have it, a token's nearest key is its own, and every
// token attends to itself.
//
// With config.sparsity, rows skip blocks of keys by a bound on their energy (sparse_sheaf.hpp).
//
// It runs in the ways of MultiHeadAttention, with the same numbers in each: every token, routed queries, streams.
#pragma once

#include "rbar/attention/projected_attention.hpp"
#include "rbar/sheaf/sheaf_attention_config.hpp"
#include "rbar/sheaf/sheaf_score.hpp"
#include "rbar/sheaf/sparse_sheaf.hpp"

#include <cmath>
#include <optional>
#include <string_view>
#include <utility>

namespace rbar {

// [batch, tokens, d_model] -> the same. Errors: other shapes, no tokens, routed rows that are not ascending, edge
// weights that are negative or not finite, `step` without causality or beyond the limit of the cache.
template <class T>
struct SheafAttention {
  using Scalar = T;
  using Config = SheafAttentionConfig;
  static_assert(Config::max_head_dim == detail::max_head_dim);

  // What the score keeps from the forward pass. Rows are those of the view of queries or keys.
  struct Buffers {
    Tensor<T, 1> beta;                       // [heads]
    Tensor<T, 2> key_square_norm;            // [rows, kv_heads]
    Tensor<T, 2> query_square_norm;          // [rows, heads], with edge weights only
    Tensor<Index, 1> known;                  // [batch], keys of a stream whose norms are there
    BlockSparsePlan<T> plan;                 // who skips what, with config.sparsity only
    std::optional<SparsityConfig> sparsity;  // another one than the config's; holds for every pass until it is reset
    // Sums of the backward pass.
    mutable Tensor<double, 2> dlog_beta;  // [batch, heads]
    mutable Tensor<T, 2> dkey_square_norm, dquery_square_norm;
    mutable Tensor<T, 3> dedge_weight;  // [batch·kv_heads, tokens, tokens], with edge weights only
  };
  using Cache = AttentionCache<T, Buffers>;
  using State = AttentionState<T, Buffers>;

  Config config;
  RestrictionMap<T> rho_query, rho_key, rho_value;
  Linear<T> out_proj;
  Tensor<T, 1> beta;  // b [heads], raw: β = softplus(b)

  SheafAttention() = default;
  SheafAttention(const Config& config_, Rng& rng) : config(config_) {
    config.validate();
    const Index query_width = config.n_heads * config.dim_per_head();
    const Index key_width = config.kv_heads() * config.dim_per_head();
    const auto map = [&](Index width) {
      return RestrictionMap<T>::of_kind(config.map, config.d_model, width, config.map_rank, config.bias, rng);
    };
    rho_query = map(query_width);
    rho_key = map(key_width);
    rho_value = map(key_width);
    out_proj = Linear<T>(query_width, config.d_model, config.bias, rng);
    ensure_shape(beta, {config.n_heads});
    // The inverse of softplus.
    const double initial = config.initial_beta();
    beta.setConstant(static_cast<T>(initial > 30 ? initial : std::log(std::expm1(initial))));
  }

  void parameters(auto&& visit) {
    visit_layer(visit, "rho_query", rho_query);
    visit_layer(visit, "rho_key", rho_key);
    visit_layer(visit, "rho_value", rho_value);
    if (config.learn_beta) visit("beta", beta);
    visit_layer(visit, "out_proj", out_proj);
  }
  void buffers(auto&& visit) {
    if (!config.learn_beta) visit("beta", beta);
  }
  void linears(auto&& visit) {
    for (RestrictionMap<T>* map : {&rho_query, &rho_key, &rho_value}) map->linears(visit);
    out_proj.linears(visit);
  }

  // Every token.
  void forward(ConstTensorView<T, 3> x, Tensor<T, 3>& y, Cache& cache) const {
    require_tokens("SheafAttention::forward", x);
    passes().forward("SheafAttention::forward", x, y, cache);
  }
  void backward(ConstTensorView<T, 3> dy, const Cache& cache, Tensor<T, 3>& dx, SheafAttention& grad) const {
    passes(&grad).backward("SheafAttention::backward", dy, cache, dx, grad.maps());
  }
  Tensor<T, 3> operator()(ConstTensorView<T, 3> x) const {
    Tensor<T, 3> y;
    Cache cache;
    forward(x, y, cache);
    return y;
  }

  // Every token, with a weight w_ij ≥ 0 for every edge: [batch or 1, tokens (queries), tokens (keys)]. The backward
  // pass overwrites dedge_weight, and takes a [tokens, tokens] of scratch for every sequence and K/V head.
  void forward_weighted(ConstTensorView<T, 3> x, ConstTensorView<T, 3> edge_weight, Tensor<T, 3>& y,
                        Cache& cache) const {
    constexpr const char* operation = "SheafAttention::forward_weighted";
    require_tokens(operation, x);
    weighted_passes(operation, edge_weight, x.dimension(0), x.dimension(1)).forward(operation, x, y, cache);
  }
  void backward_weighted(ConstTensorView<T, 3> dy, ConstTensorView<T, 3> edge_weight, const Cache& cache,
                         Tensor<T, 3>& dx, Tensor<T, 3>& dedge_weight, SheafAttention& grad) const {
    constexpr const char* operation = "SheafAttention::backward_weighted";
    weighted_passes(operation, edge_weight, dy.dimension(0), dy.dimension(1), &grad)
        .backward(operation, dy, cache, dx, grad.maps());
    ensure_shape(dedge_weight, shape_of(edge_weight));
    sum_edges(cache.score.dedge_weight, dedge_weight);
  }

  // Routed queries, y_selected [S, d_model]. dx accumulates: the tokens that were not routed have gradients from
  // elsewhere.
  void forward_routed(ConstTensorView<T, 3> x, const RoutedRows& routed, KeyValues key_values, MatrixView<T> y_selected,
                      Cache& cache) const {
    require_tokens("SheafAttention::forward_routed", x);
    passes().forward_routed("SheafAttention::forward_routed", x, routed, key_values, y_selected, cache);
  }
  void backward_routed(ConstMatrixView<T> dy_selected, ConstTensorView<T, 3> x, const RoutedRows& routed,
                       KeyValues key_values, const Cache& cache, Tensor<T, 3>& dx, SheafAttention& grad) const {
    passes(&grad).backward_routed("SheafAttention::backward_routed", dy_selected, x, routed, key_values, cache, dx,
                                  grad.maps());
  }

  // The next tokens [batch, new, d_model] of every sequence; with step_routed only the routed ones ask. One state must
  // keep to one kind of KeyValues.
  void step(ConstTensorView<T, 3> x, Tensor<T, 3>& y, State& state) const {
    passes().step("SheafAttention::step", x, y, state);
  }
  void step_routed(ConstTensorView<T, 3> x, const RoutedRows& routed, KeyValues key_values, MatrixView<T> y_selected,
                   State& state) const {
    passes().step_routed("SheafAttention::step_routed", x, routed, key_values, y_selected, state);
  }

  // A stream in pieces, for rows whose hidden state is known later than their neighbours'. First of all, how many
  // sequences there are.
  void open(Index batch, State& state) const { passes().open(batch, state); }
  // The next keys and values of one sequence: x_rows [n, d_model] at first_position, first_position + 1, ..., which
  // must come after all that it has. Leaves state.position alone.
  void append_keys(ConstMatrixView<T> x_rows, Index batch_entry, Index first_position, State& state) const {
    passes().append_keys("SheafAttention::append_keys", x_rows, batch_entry, first_position, state);
  }
  // Queries x_rows [S, d_model] at positions [S], ascending in each sequence, against the keys that are there and not
  // after them. Of `routed` only the offsets are read: rows [offsets[b], offsets[b+1]) belong to sequence b.
  void attend_cached(ConstMatrixView<T> x_rows, const RoutedRows& routed, const Index* positions, MatrixView<T> y_rows,
                     State& state) const {
    passes().attend_cached("SheafAttention::attend_cached", x_rows, routed, positions, y_rows, state);
  }

 private:
  static void require_tokens(std::string_view operation, ConstTensorView<T, 3> x) {
    require(x.dimension(1) > 0, operation, "x", "at least one token", x.dimension(1));
  }

  // β and the norms of the keys; of a stream's, those that are new.
  void prepare(const HeadsView<const T>& key, Buffers& buffers) const {
    ensure_shape(buffers.beta, shape_of(beta));
    for (Index h = 0; h < beta.size(); ++h) buffers.beta(h) = static_cast<T>(softplus(static_cast<double>(beta(h))));
    const Index rows = key.row_offsets ? key.row_offsets[key.batch] : key.batch * key.tokens;
    if (!key.row_counts) {
      buffers.plan.clear();
      ensure_rows(buffers.key_square_norm, rows, key.heads);
      square_norms(key, buffers.key_square_norm.data());
      return;
    }
    if (buffers.key_square_norm.dimension(0) != rows) {  // a larger cache: rows have moved
      ensure_shape(buffers.key_square_norm, {rows, key.heads});
      ensure_shape(buffers.known, {key.batch});
      buffers.known.setZero();
    }
    for (Index b = 0; b < key.batch; ++b) {
      square_norms(key, b, buffers.known(b), buffers.key_square_norm.data());
      buffers.known(b) = key.count(b);
    }
  }

  // The sums of a backward pass, at 0.
  void clear(const HeadsView<const T>& key, const Buffers& buffers) const {
    ensure_shape(buffers.dlog_beta, {key.batch, config.n_heads});
    ensure_shape(buffers.dkey_square_norm, shape_of(buffers.key_square_norm));
    buffers.dlog_beta.setZero();
    buffers.dkey_square_norm.setZero();
  }
  // What the sums mean for the keys and for b: dβ/db is the logistic function. For b → −∞ it is β that remains.
  void finish(const detail::BackwardViews<T>& views, const Buffers& buffers, SheafAttention& grad) const {
    square_norms_backward(views.key, buffers.dkey_square_norm.data(), views.dkey);
    for (Index h = 0; h < config.n_heads; ++h) {
      double sum = 0;
      for (Index b = 0; b < buffers.dlog_beta.dimension(0); ++b) sum += buffers.dlog_beta(b, h);
      const double b = static_cast<double>(beta(h));
      grad.beta(h) += static_cast<T>(b < -30 ? sum : sum / (1 + std::exp(-b)) / softplus(b));
    }
  }

  const SparsityConfig& sparsity_of(const Buffers& buffers) const {
    return buffers.sparsity ? *buffers.sparsity : config.sparsity;
  }

  struct Kernel {
    const SheafAttention& layer;
    SheafAttention* grad;

    void attend(const AttentionMask& mask, const ForwardViews<T>& views, Buffers& buffers) const {
      const auto& [query, key, value, output, log_sum_exp] = views;
      const SparsityConfig& sparsity = layer.sparsity_of(buffers);
      layer.prepare(key, buffers);
      if (sparsity.enabled)
        sparse_sheaf_attend<T>(query, key, value, score(buffers), mask, sparsity, output, log_sum_exp, buffers.plan);
      else
        rbar::attend<T>(query, key, value, score(buffers), mask, output, log_sum_exp);
    }
    void attend_backward(const AttentionMask& mask, const detail::BackwardViews<T>& views,
                         const Buffers& buffers) const {
      const auto& [query, key, value, output, doutput, log_sum_exp, dquery, dkey, dvalue] = views;
      layer.clear(key, buffers);
      const SheafScoreGradient<T> sums{buffers.dlog_beta.data(), buffers.dkey_square_norm.data(), query.heads,
                                       key.heads};
      if (layer.sparsity_of(buffers).enabled)
        sparse_sheaf_attend_backward<T>(query, key, value, output, doutput, log_sum_exp, score(buffers), mask,
                                        buffers.plan, dquery, dkey, dvalue, sums);
      else
        rbar::attend_backward<T>(query, key, value, output, doutput, log_sum_exp, score(buffers), mask, dquery, dkey,
                                 dvalue, SheafScoreGradient<T>(sums));
      layer.finish(views, buffers, *grad);
    }
    SheafScore<T> score(const Buffers& buffers) const {
      return {buffers.beta.data(), buffers.key_square_norm.data(), layer.config.kv_heads()};
    }
  };

  struct WeightedKernel {
    const SheafAttention& layer;
    SheafAttention* grad;
    EdgeWeights<T> edges;

    void attend(const AttentionMask& mask, const ForwardViews<T>& views, Buffers& buffers) const {
      require(!layer.sparsity_of(buffers).enabled, "SheafAttention::forward_weighted", "sparsity.enabled",
              "false: blocks are bounded without edge weights", true);
      layer.prepare(views.key, buffers);
      ensure_shape(buffers.query_square_norm, {views.query.batch * views.query.tokens, views.query.heads});
      square_norms(views.query, buffers.query_square_norm.data());
      rbar::attend<T>(views.query, views.key, views.value, score(buffers), mask, views.output, views.log_sum_exp);
    }
    void attend_backward(const AttentionMask& mask, const detail::BackwardViews<T>& views,
                         const Buffers& buffers) const {
      layer.clear(views.key, buffers);
      ensure_shape(buffers.dquery_square_norm, shape_of(buffers.query_square_norm));
      ensure_shape(buffers.dedge_weight, {views.key.batch * views.key.heads, edges.tokens, edges.tokens});
      buffers.dedge_weight.setZero();
      rbar::attend_backward<T>(views.query, views.key, views.value, views.output, views.doutput, views.log_sum_exp,
                               score(buffers), mask, views.dquery, views.dkey, views.dvalue,
                               SheafEdgeGradient<T>{buffers.dlog_beta.data(), buffers.dquery_square_norm.data(),
                                                    buffers.dkey_square_norm.data(), buffers.dedge_weight.data(),
                                                    views.query.heads, views.key.heads, edges.tokens});
      square_norms_backward(views.query, buffers.dquery_square_norm.data(), views.dquery);
      layer.finish(views, buffers, *grad);
    }
    SheafEdgeScore<T> score(const Buffers& buffers) const {
      return {buffers.beta.data(),  buffers.query_square_norm.data(), buffers.key_square_norm.data(),
              layer.config.n_heads, layer.config.kv_heads(),          edges};
    }
  };

  AttentionMaps<const RestrictionMap<T>, const Linear<T>> maps() const {
    return {rho_query, rho_key, rho_value, out_proj};
  }
  AttentionMaps<RestrictionMap<T>, Linear<T>> maps() { return {rho_query, rho_key, rho_value, out_proj}; }
  AttentionPasses<T, Config, RestrictionMap<T>, Kernel> passes(SheafAttention* grad = nullptr) const {
    return {config, maps(), {*this, grad}};
  }
  AttentionPasses<T, Config, RestrictionMap<T>, WeightedKernel> weighted_passes(std::string_view operation,
                                                                                ConstTensorView<T, 3> edge_weight,
                                                                                Index batch, Index tokens,
                                                                                SheafAttention* grad = nullptr) const {
    const bool shared = edge_weight.dimension(0) == 1;
    require_shape(operation, "edge_weight", edge_weight, {shared ? 1 : batch, tokens, tokens});
    require_finite(operation, "edge_weight", elements(edge_weight));
    for (const T weight : elements(edge_weight)) require(weight >= 0, operation, "edge_weight", "at least 0", weight);
    return {config, maps(), {*this, grad, {edge_weight.data(), tokens, shared ? 0 : tokens * tokens}}};
  }

  // The partial sums of every (batch, kv head) become those of a sequence, or of all of them.
  static void sum_edges(const Tensor<T, 3>& partial, Tensor<T, 3>& total) {
    const Index size = total.dimension(1) * total.dimension(2);
    const Index parts = partial.dimension(0) / std::max<Index>(1, total.dimension(0));
    parallel_for(total.size(), 65536, [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i) {
        T sum = 0;
        for (Index p = 0; p < parts; ++p) sum += partial.data()[(i / size * parts + p) * size + i % size];
        total.data()[i] = sum;
      }
    });
  }

  static double softplus(double b) { return b > 30 ? b : std::log1p(std::exp(b)); }
};

}  // namespace rbar
