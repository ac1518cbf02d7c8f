// Multi-head attention (Vaswani et al., "Attention is all you need", 2017):
//   q = W_q x + b_q,  k = W_k x + b_k,  v = W_v x + b_v,   split into heads of d features, q and k turned by
//   rotary positions where configured;
//   o_i = Σ_j softmax_j(q_i·k_j / √d) v_j  over the keys j that i may see;   y = W_o o + b_o.
// Grouped keys and values: Ainslie et al., arXiv:2305.13245.
//
// Three ways to run it, with the same numbers: every token at once (`forward`), a routed subset of
// queries, packed (`forward_routed`: the other queries are never computed), and token by token with a
// cache of keys and values (`step`, `step_routed`).
#pragma once

#include "rbar/attention/engine.hpp"
#include "rbar/attention/heads_view.hpp"
#include "rbar/attention/kv_cache.hpp"
#include "rbar/attention/masks.hpp"
#include "rbar/attention/multi_head_attention_config.hpp"
#include "rbar/attention/routed_rows.hpp"
#include "rbar/attention/scores.hpp"
#include "rbar/nn/linear.hpp"
#include "rbar/nn/rotary.hpp"

#include <cmath>
#include <utility>

namespace rbar {

// [batch, tokens, d_model] -> the same. Errors: other shapes, routed rows that are not ascending, `step`
// without causality or beyond the limit of the cache.
template <class T>
struct MultiHeadAttention {
  using Scalar = T;
  using Config = MultiHeadAttentionConfig;

  // N rows of x, of which the first S are used by a routed pass.
  struct Cache {
    Tensor<T, 3> input;            // copy of x, for `backward`
    Tensor<T, 2> query, attended;  // [N, n_heads·d]
    Tensor<T, 2> key, value;       // [N, kv_heads·d]
    Tensor<T, 1> log_sum_exp;      // [N·n_heads]
    Tensor<T, 2> packed;           // [N, d_model], the routed rows of x
    Tensor<Index, 1> positions;    // [N], of the routed rows in their sequence
    RotaryTable<T> rotary;
    // Scratch of the backward pass.
    mutable Tensor<T, 2> dquery, dattended, dkey, dvalue, dpacked;
  };

  // A stream of tokens; `keys.limit` bounds its length.
  struct State {
    KeyValueCache<T> keys;
    Index position = 0;  // tokens seen
    Cache scratch;
  };

  Config config;
  Linear<T> q_proj, k_proj, v_proj, out_proj;

  MultiHeadAttention() = default;
  MultiHeadAttention(const Config& config_, Rng& rng) : config(config_) {
    config.validate();
    const Index query_width = config.n_heads * config.dim_per_head();
    const Index key_width = config.kv_heads() * config.dim_per_head();
    q_proj = Linear<T>(config.d_model, query_width, config.bias, rng);
    k_proj = Linear<T>(config.d_model, key_width, config.bias, rng);
    v_proj = Linear<T>(config.d_model, key_width, config.bias, rng);
    out_proj = Linear<T>(query_width, config.d_model, config.bias, rng);
  }

  void parameters(auto&& visit) {
    visit_layer(visit, "q_proj", q_proj);
    visit_layer(visit, "k_proj", k_proj);
    visit_layer(visit, "v_proj", v_proj);
    visit_layer(visit, "out_proj", out_proj);
  }

  // --- every token ------------------------------------------------------------------------------

  void forward(ConstTensorView<T, 3> x, Tensor<T, 3>& y, Cache& cache) const {
    require_shape("MultiHeadAttention::forward", "x", x, {-1, -1, config.d_model});
    const Index batch = x.dimension(0), tokens = x.dimension(1);
    ensure_shape(y, shape_of(x));
    ensure_shape(cache.input, shape_of(x));
    parallel_for(x.size(), 65536, [&](Index begin, Index end) {
      std::copy(x.data() + begin, x.data() + end, cache.input.data() + begin);
    });
    const auto position = [tokens](Index row) { return row % tokens; };
    allocate(cache, batch * tokens);
    project(rows(x), rows(x), tokens, position, position, cache);
    with_mask(0, nullptr, nullptr, [&](const auto& mask) {
      attend<T>(query_view(cache.query, batch, tokens), key_view(cache.key, batch, tokens),
                key_view(cache.value, batch, tokens), score(), mask, query_view(cache.attended, batch, tokens),
                cache.log_sum_exp.data());
    });
    out_proj.forward(rows(std::as_const(cache.attended)), rows(y));
  }

  void backward(ConstTensorView<T, 3> dy, const Cache& cache, Tensor<T, 3>& dx, MultiHeadAttention& grad) const {
    require_shape("MultiHeadAttention::backward", "dy", shape_of(dy), shape_of(cache.input));
    const Index batch = dy.dimension(0), tokens = dy.dimension(1);
    ensure_shape(dx, shape_of(dy));
    allocate_backward(cache);
    out_proj.backward(rows(dy), rows(cache.attended), rows(cache.dattended), grad.out_proj);
    with_mask(0, nullptr, nullptr, [&](const auto& mask) {
      attend_backward<T>(query_view(cache.query, batch, tokens), key_view(cache.key, batch, tokens),
                         key_view(cache.value, batch, tokens), query_view(cache.attended, batch, tokens),
                         query_view(std::as_const(cache.dattended), batch, tokens), cache.log_sum_exp.data(), score(),
                         mask, query_view(cache.dquery, batch, tokens), key_view(cache.dkey, batch, tokens),
                         key_view(cache.dvalue, batch, tokens));
    });
    const auto position = [tokens](Index row) { return row % tokens; };
    project_backward(rows(cache.input), rows(cache.input), position, position, cache, rows(dx), rows(dx), grad);
  }

  Tensor<T, 3> operator()(ConstTensorView<T, 3> x) const {
    Tensor<T, 3> y;
    Cache cache;
    forward(x, y, cache);
    return y;
  }

  // --- routed queries, y_selected [S, d_model] -----------------------------------------------------

  void forward_routed(ConstTensorView<T, 3> x, const RoutedRows& routed, KeyValues key_values, MatrixView<T> y_selected,
                      Cache& cache) const {
    require_shape("MultiHeadAttention::forward_routed", "x", x, {-1, -1, config.d_model});
    require_routed("MultiHeadAttention::forward_routed", routed, x.dimension(0), x.dimension(1));
    const Index batch = x.dimension(0), tokens = x.dimension(1), selected = routed.count();
    require_shape("MultiHeadAttention::forward_routed", "y_selected", y_selected, {selected, config.d_model});
    allocate(cache, batch * tokens);
    pack(x, routed, /*first_position=*/0, cache);
    const auto packed_position = [&](Index row) { return cache.positions(row); };
    const ConstMatrixView<T> packed = as_const(top(cache.packed, selected));
    if (key_values == KeyValues::all) {
      project(
          packed, rows(x), tokens, packed_position, [tokens](Index row) { return row % tokens; }, cache);
    } else {
      project(packed, packed, tokens, packed_position, packed_position, cache);
    }
    with_mask(0, cache.positions.data(), key_values == KeyValues::all ? nullptr : cache.positions.data(),
              [&](const auto& mask) {
                attend<T>(routed_query_view(cache.query, routed),
                          routed_key_view(cache.key, routed, key_values, tokens),
                          routed_key_view(cache.value, routed, key_values, tokens), score(), mask,
                          routed_query_view(cache.attended, routed), cache.log_sum_exp.data());
              });
    out_proj.forward(as_const(top(cache.attended, selected)), y_selected);
  }

  // dx accumulates: the tokens that were not routed have gradients from elsewhere.
  void backward_routed(ConstMatrixView<T> dy_selected, ConstTensorView<T, 3> x, const RoutedRows& routed,
                       KeyValues key_values, const Cache& cache, Tensor<T, 3>& dx, MultiHeadAttention& grad) const {
    const Index batch = x.dimension(0), tokens = x.dimension(1), selected = routed.count();
    require_routed("MultiHeadAttention::backward_routed", routed, batch, tokens);
    require_shape("MultiHeadAttention::backward_routed", "cache", cache.query,
                  {batch * tokens, config.n_heads * config.dim_per_head()});
    require_shape("MultiHeadAttention::backward_routed", "dy_selected", dy_selected, {selected, config.d_model});
    require_shape("MultiHeadAttention::backward_routed", "dx", shape_of(dx), shape_of(x));
    allocate_backward(cache);
    ensure_shape(cache.dpacked, shape_of(cache.packed));
    out_proj.backward(dy_selected, top(cache.attended, selected), top(cache.dattended, selected), grad.out_proj);
    with_mask(0, cache.positions.data(), key_values == KeyValues::all ? nullptr : cache.positions.data(),
              [&](const auto& mask) {
                attend_backward<T>(
                    routed_query_view(cache.query, routed), routed_key_view(cache.key, routed, key_values, tokens),
                    routed_key_view(cache.value, routed, key_values, tokens), routed_query_view(cache.attended, routed),
                    routed_query_view(std::as_const(cache.dattended), routed), cache.log_sum_exp.data(), score(), mask,
                    routed_query_view(cache.dquery, routed), routed_key_view(cache.dkey, routed, key_values, tokens),
                    routed_key_view(cache.dvalue, routed, key_values, tokens));
              });
    const auto packed_position = [&](Index row) { return cache.positions(row); };
    const ConstMatrixView<T> packed = top(cache.packed, selected);
    const MatrixView<T> dpacked = top(cache.dpacked, selected);
    if (key_values == KeyValues::all) {
      project_backward(
          packed, rows(x), packed_position, [tokens](Index row) { return row % tokens; }, cache, dpacked, rows(dx),
          grad);
    } else {
      project_backward(packed, packed, packed_position, packed_position, cache, dpacked, dpacked, grad);
    }
    scatter_add_rows(as_const(dpacked), routed, rows(dx));
  }

  // --- streaming -----------------------------------------------------------------------------------

  // The next tokens [batch, new, d_model] of every sequence.
  void step(ConstTensorView<T, 3> x, Tensor<T, 3>& y, State& state) const {
    require_shape("MultiHeadAttention::step", "x", x, {-1, -1, config.d_model});
    require(config.causal, "MultiHeadAttention::step", "config.causal", true, config.causal);
    const Index batch = x.dimension(0), tokens = x.dimension(1);
    Cache& scratch = state.scratch;
    ensure_shape(y, shape_of(x));
    state.keys.reserve(batch, config.kv_heads() * config.dim_per_head(), tokens);
    allocate(scratch, batch * tokens);
    const auto position = [&](Index row) { return state.position + row % tokens; };
    project(rows(x), rows(x), state.position + tokens, position, position, scratch);
    for (Index row = 0; row < batch * tokens; ++row)
      state.keys.append(row / tokens, &scratch.key(row, 0), &scratch.value(row, 0), position(row));
    with_mask(state.position, nullptr, nullptr, [&](const auto& mask) {
      attend<T>(query_view(std::as_const(scratch.query), batch, tokens), state.keys.key_view(config.kv_heads()),
                state.keys.value_view(config.kv_heads()), score(), mask, query_view(scratch.attended, batch, tokens),
                static_cast<T*>(nullptr));
    });
    out_proj.forward(rows(std::as_const(scratch.attended)), rows(y));
    state.position += tokens;
  }

  // The next tokens, of which only the routed ones ask. One state must keep to one kind of KeyValues.
  void step_routed(ConstTensorView<T, 3> x, const RoutedRows& routed, KeyValues key_values, MatrixView<T> y_selected,
                   State& state) const {
    require_shape("MultiHeadAttention::step_routed", "x", x, {-1, -1, config.d_model});
    require(config.causal, "MultiHeadAttention::step_routed", "config.causal", true, config.causal);
    require_routed("MultiHeadAttention::step_routed", routed, x.dimension(0), x.dimension(1));
    const Index batch = x.dimension(0), tokens = x.dimension(1), selected = routed.count();
    require_shape("MultiHeadAttention::step_routed", "y_selected", y_selected, {selected, config.d_model});
    Cache& scratch = state.scratch;
    state.keys.reserve(batch, config.kv_heads() * config.dim_per_head(), tokens);
    allocate(scratch, batch * tokens);
    pack(x, routed, state.position, scratch);
    const auto packed_position = [&](Index row) { return scratch.positions(row); };
    const auto position = [&](Index row) { return state.position + row % tokens; };
    const ConstMatrixView<T> packed = as_const(top(scratch.packed, selected));
    if (key_values == KeyValues::all) {
      project(packed, rows(x), state.position + tokens, packed_position, position, scratch);
      for (Index row = 0; row < batch * tokens; ++row)
        state.keys.append(row / tokens, &scratch.key(row, 0), &scratch.value(row, 0), position(row));
    } else {
      project(packed, packed, state.position + tokens, packed_position, packed_position, scratch);
      for (Index row = 0; row < selected; ++row)
        state.keys.append(routed.rows[row] / tokens, &scratch.key(row, 0), &scratch.value(row, 0),
                          packed_position(row));
    }
    with_mask(0, scratch.positions.data(), state.keys.positions.data(), [&](const auto& mask) {
      attend<T>(routed_query_view(std::as_const(scratch.query), routed), state.keys.key_view(config.kv_heads()),
                state.keys.value_view(config.kv_heads()), score(), mask, routed_query_view(scratch.attended, routed),
                static_cast<T*>(nullptr));
    });
    out_proj.forward(as_const(top(scratch.attended, selected)), y_selected);
    state.position += tokens;
  }

 private:
  DotProductScore score() const { return {1.0 / std::sqrt(static_cast<double>(config.dim_per_head()))}; }

  // Calls body with the mask of this pass: by absolute positions where queries are a subset.
  template <class Body>
  void with_mask(Index query_offset, const Index* query_positions, const Index* key_positions, Body&& body) const {
    if (!config.causal)
      body(FullMask{});
    else if (query_positions)
      body(PositionMask{query_positions, key_positions, config.window});
    else if (config.window > 0)
      body(WindowMask{config.window, query_offset});
    else
      body(CausalMask{query_offset});
  }

  // The first `count` rows.
  static MatrixView<T> top(Tensor<T, 2>& tensor, Index count) {
    return MatrixView<T>(tensor.data(), count, tensor.dimension(1));
  }
  static ConstMatrixView<T> top(const Tensor<T, 2>& tensor, Index count) {
    return ConstMatrixView<T>(tensor.data(), count, tensor.dimension(1));
  }

  auto query_view(auto& tensor, Index batch, Index tokens) const {
    return heads_view(tensor.data(), batch, tokens, config.n_heads, config.dim_per_head());
  }
  auto key_view(auto& tensor, Index batch, Index tokens) const {
    return heads_view(tensor.data(), batch, tokens, config.kv_heads(), config.dim_per_head());
  }
  auto routed_query_view(auto& tensor, const RoutedRows& routed) const {
    return ragged_heads_view(tensor.data(), routed.batch, routed.offsets, config.n_heads, config.dim_per_head());
  }
  auto routed_key_view(auto& tensor, const RoutedRows& routed, KeyValues key_values, Index tokens) const {
    if (key_values == KeyValues::all) return key_view(tensor, routed.batch, tokens);
    return ragged_heads_view(tensor.data(), routed.batch, routed.offsets, config.kv_heads(), config.dim_per_head());
  }

  void allocate(Cache& cache, Index count) const {
    const Index query_width = config.n_heads * config.dim_per_head();
    const Index key_width = config.kv_heads() * config.dim_per_head();
    ensure_shape(cache.query, {count, query_width});
    ensure_shape(cache.attended, {count, query_width});
    ensure_shape(cache.key, {count, key_width});
    ensure_shape(cache.value, {count, key_width});
    ensure_shape(cache.log_sum_exp, {count * config.n_heads});
  }
  void allocate_backward(const Cache& cache) const {
    ensure_shape(cache.dquery, shape_of(cache.query));
    ensure_shape(cache.dattended, shape_of(cache.query));
    ensure_shape(cache.dkey, shape_of(cache.key));
    ensure_shape(cache.dvalue, shape_of(cache.key));
  }

  // Buffers have room for every row: how many are routed changes from step to step.
  void pack(ConstTensorView<T, 3> x, const RoutedRows& routed, Index first_position, Cache& cache) const {
    const Index tokens = x.dimension(1), all = x.dimension(0) * tokens;
    ensure_shape(cache.packed, {all, config.d_model});
    ensure_shape(cache.positions, {all});
    gather_rows<T>(rows(x), routed, top(cache.packed, routed.count()));
    for (Index i = 0; i < routed.count(); ++i) cache.positions(i) = first_position + routed.rows[i] % tokens;
  }

  void project(ConstMatrixView<T> query_rows, ConstMatrixView<T> key_rows, Index positions, auto&& query_position,
               auto&& key_position, Cache& cache) const {
    const MatrixView<T> query = top(cache.query, query_rows.rows()), key = top(cache.key, key_rows.rows());
    q_proj.forward(query_rows, query);
    k_proj.forward(key_rows, key);
    v_proj.forward(key_rows, top(cache.value, key_rows.rows()));
    if (config.rotary == Rotary::none) return;
    // A stream asks for one position more each time: make the table grow by doubling.
    if (cache.rotary.positions() < positions)
      cache.rotary.ensure(std::max(positions, 2 * cache.rotary.positions()), config.dim_per_head(), config.rope_base);
    rotary_forward(config.rotary, cache.rotary, query, query_position);
    rotary_forward(config.rotary, cache.rotary, key, key_position);
  }

  // dx_query is overwritten, dx_key accumulates: the two may be the same matrix.
  void project_backward(ConstMatrixView<T> query_rows, ConstMatrixView<T> key_rows, auto&& query_position,
                        auto&& key_position, const Cache& cache, MatrixView<T> dx_query, MatrixView<T> dx_key,
                        MultiHeadAttention& grad) const {
    const MatrixView<T> dquery = top(cache.dquery, query_rows.rows()), dkey = top(cache.dkey, key_rows.rows());
    const MatrixView<T> dvalue = top(cache.dvalue, key_rows.rows());
    rotary_backward(config.rotary, cache.rotary, dquery, query_position);
    rotary_backward(config.rotary, cache.rotary, dkey, key_position);
    q_proj.backward(as_const(dquery), query_rows, dx_query, grad.q_proj);
    k_proj.backward(as_const(dkey), key_rows, dx_key, grad.k_proj, /*accumulate_dx=*/true);
    v_proj.backward(as_const(dvalue), key_rows, dx_key, grad.v_proj, /*accumulate_dx=*/true);
  }
};

}  // namespace rbar
