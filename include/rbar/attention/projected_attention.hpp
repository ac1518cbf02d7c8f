// What every attention between projected queries, keys and values does alike, whatever its score:
//   q = f_q(x),  k = f_k(x),  v = f_v(x),   split into heads of d features, q and k turned by rotary positions;
//   o_i = Σ_j softmax_j(score(q_i, k_j)) v_j  over the keys j that i may see;   y = W_o o + b_o.
// Rotary positions: Su et al., arXiv:2104.09864. Grouped keys and values: Ainslie et al., arXiv:2305.13245.
//
// Three ways to run it, with the same numbers: every token at once, a routed subset of queries, packed (the other
// queries are never computed), and token by token with a cache of keys and values. A layer (MultiHeadAttention,
// SheafAttention) is its maps, its config and a kernel:
//
//   struct MyKernel {
//     void attend(const AttentionMask&, const ForwardViews<T>&, Buffers&) const;
//     void attend_backward(const AttentionMask&, const detail::BackwardViews<T>&, const Buffers&) const;
//   };
#pragma once

#include "rbar/attention/engine.hpp"
#include "rbar/attention/heads_view.hpp"
#include "rbar/attention/kv_cache.hpp"
#include "rbar/attention/masks.hpp"
#include "rbar/attention/routed_rows.hpp"
#include "rbar/core/bulk.hpp"
#include "rbar/nn/linear.hpp"
#include "rbar/nn/rotary.hpp"

#include <algorithm>
#include <string_view>
#include <utility>

namespace rbar {

// For kernels that keep nothing between forward and backward.
struct NoBuffers {};

// N rows of x, of which the first S are used by a routed pass. Buffers: the kernel's own.
template <class T, class Buffers = NoBuffers>
struct AttentionCache {
  Tensor<T, 3> input;            // copy of x, for `backward`
  Tensor<T, 2> query, attended;  // [N, n_heads·d]
  Tensor<T, 2> key, value;       // [N, kv_heads·d]
  Tensor<T, 1> log_sum_exp;      // [N·n_heads]
  Tensor<T, 2> packed;           // [N, d_model], the routed rows of x
  Tensor<Index, 1> positions;    // [N], of the routed rows in their sequence
  RotaryTable<T> rotary;
  Buffers score;
  // Scratch of the backward pass.
  mutable Tensor<T, 2> dquery, dattended, dkey, dvalue, dpacked;

  void swap_scratch(const AttentionCache& other) const {
    std::swap(dquery, other.dquery);
    std::swap(dattended, other.dattended);
    std::swap(dkey, other.dkey);
    std::swap(dvalue, other.dvalue);
    std::swap(dpacked, other.dpacked);
  }
};

// A stream of tokens; `keys.limit` bounds its length. Nothing in `scratch` outlives a call: streams may share it.
template <class T, class Buffers = NoBuffers>
struct AttentionState {
  KeyValueCache<T> keys;
  Index position = 0;  // tokens seen
  Buffers score;       // what the kernel knows about the keys
  AttentionCache<T> scratch;
};

// The maps of a layer, or of its gradient.
template <class Map, class Out>
struct AttentionMaps {
  Map &query, &key, &value;  // d_model -> heads·d
  Out& out;                  // n_heads·d -> d_model
};

// What a kernel gets; the keys of a stream carry row_counts, and never change once they are there.
template <class T>
struct ForwardViews {
  HeadsView<const T> query, key, value;
  HeadsView<T> output;
  T* log_sum_exp;  // null in a stream
};

// x and y are [batch, tokens, d_model]. `operation` is the layer's function, for its errors: other shapes, routed rows
// that are not ascending, a stream without causality or beyond the limit of its cache.
template <class T, class Config, class Map, class Kernel>
struct AttentionPasses {
  const Config& config;
  AttentionMaps<const Map, const Linear<T>> maps;
  Kernel kernel;

  using Gradients = AttentionMaps<Map, Linear<T>>;

  // --- every token ------------------------------------------------------------------------------

  template <class Cache>
  void forward(std::string_view operation, ConstTensorView<T, 3> x, Tensor<T, 3>& y, Cache& cache) const {
    require_shape(operation, "x", x, {-1, -1, config.d_model});
    const Index batch = x.dimension(0), tokens = x.dimension(1);
    ensure_shape(y, shape_of(x));
    ensure_shape(cache.input, shape_of(x));
    bulk_copy(x.data(), x.size(), cache.input.data());
    const auto position = [tokens](Index row) { return row % tokens; };
    allocate(cache, batch * tokens);
    project_queries(rows(x), tokens, position, cache);
    project_keys(rows(x), tokens, position, cache);
    kernel.attend(mask(),
                  ForwardViews<T>{query_view(cache.query, batch, tokens), key_view(cache.key, batch, tokens),
                                  key_view(cache.value, batch, tokens), query_view(cache.attended, batch, tokens),
                                  cache.log_sum_exp.data()},
                  cache.score);
    maps.out.forward(rows(std::as_const(cache.attended)), rows(y));
  }

  template <class Cache>
  void backward(std::string_view operation, ConstTensorView<T, 3> dy, const Cache& cache, Tensor<T, 3>& dx,
                const Gradients& grad) const {
    require_shape(operation, "dy", shape_of(dy), shape_of(cache.input));
    const Index batch = dy.dimension(0), tokens = dy.dimension(1);
    ensure_shape(dx, shape_of(dy));
    allocate_backward(cache);
    maps.out.backward(rows(dy), rows(cache.attended), rows(cache.dattended), grad.out);
    kernel.attend_backward(
        mask(),
        detail::BackwardViews<T>{query_view(cache.query, batch, tokens), key_view(cache.key, batch, tokens),
                                 key_view(cache.value, batch, tokens), query_view(cache.attended, batch, tokens),
                                 query_view(cache.dattended, batch, tokens), cache.log_sum_exp.data(),
                                 query_view(cache.dquery, batch, tokens), key_view(cache.dkey, batch, tokens),
                                 key_view(cache.dvalue, batch, tokens)},
        cache.score);
    const auto position = [tokens](Index row) { return row % tokens; };
    project_backward(rows(cache.input), rows(cache.input), position, position, cache, rows(dx), rows(dx), grad);
  }

  // --- routed queries, y_selected [S, d_model] -----------------------------------------------------

  template <class Cache>
  void forward_routed(std::string_view operation, ConstTensorView<T, 3> x, const RoutedRows& routed,
                      KeyValues key_values, MatrixView<T> y_selected, Cache& cache) const {
    require_shape(operation, "x", x, {-1, -1, config.d_model});
    require_routed(operation, routed, x.dimension(0), x.dimension(1));
    const Index batch = x.dimension(0), tokens = x.dimension(1), selected = routed.count();
    require_shape(operation, "y_selected", y_selected, {selected, config.d_model});
    allocate(cache, batch * tokens);
    pack(x, routed, /*first_position=*/0, cache);
    const auto packed_position = [&](Index row) { return cache.positions(row); };
    const ConstMatrixView<T> packed = as_const(top_rows(cache.packed, selected));
    project_queries(packed, tokens, packed_position, cache);
    if (key_values == KeyValues::all)
      project_keys(
          rows(x), tokens, [tokens](Index row) { return row % tokens; }, cache);
    else
      project_keys(packed, tokens, packed_position, cache);
    kernel.attend(
        routed_mask(key_values, cache),
        ForwardViews<T>{routed_query_view(cache.query, routed), routed_key_view(cache.key, routed, key_values, tokens),
                        routed_key_view(cache.value, routed, key_values, tokens),
                        routed_query_view(cache.attended, routed), cache.log_sum_exp.data()},
        cache.score);
    maps.out.forward(as_const(top_rows(cache.attended, selected)), y_selected);
  }

  // dx accumulates: the tokens that were not routed have gradients from elsewhere.
  template <class Cache>
  void backward_routed(std::string_view operation, ConstMatrixView<T> dy_selected, ConstTensorView<T, 3> x,
                       const RoutedRows& routed, KeyValues key_values, const Cache& cache, Tensor<T, 3>& dx,
                       const Gradients& grad) const {
    const Index batch = x.dimension(0), tokens = x.dimension(1), selected = routed.count();
    require_routed(operation, routed, batch, tokens);
    require_shape(operation, "cache", cache.query, {batch * tokens, config.n_heads * config.dim_per_head()});
    require_shape(operation, "dy_selected", dy_selected, {selected, config.d_model});
    require_shape(operation, "dx", shape_of(dx), shape_of(x));
    allocate_backward(cache);
    ensure_shape(cache.dpacked, shape_of(cache.packed));
    maps.out.backward(dy_selected, top_rows(cache.attended, selected), top_rows(cache.dattended, selected), grad.out);
    kernel.attend_backward(
        routed_mask(key_values, cache),
        detail::BackwardViews<T>{
            routed_query_view(cache.query, routed), routed_key_view(cache.key, routed, key_values, tokens),
            routed_key_view(cache.value, routed, key_values, tokens), routed_query_view(cache.attended, routed),
            routed_query_view(cache.dattended, routed), cache.log_sum_exp.data(),
            routed_query_view(cache.dquery, routed), routed_key_view(cache.dkey, routed, key_values, tokens),
            routed_key_view(cache.dvalue, routed, key_values, tokens)},
        cache.score);
    const auto packed_position = [&](Index row) { return cache.positions(row); };
    const ConstMatrixView<T> packed = top_rows(cache.packed, selected);
    const MatrixView<T> dpacked = top_rows(cache.dpacked, selected);
    if (key_values == KeyValues::all)
      project_backward(
          packed, rows(x), packed_position, [tokens](Index row) { return row % tokens; }, cache, dpacked, rows(dx),
          grad);
    else
      project_backward(packed, packed, packed_position, packed_position, cache, dpacked, dpacked, grad);
    scatter_add_rows(as_const(dpacked), routed, rows(dx));
  }

  // --- streaming -----------------------------------------------------------------------------------

  // The next tokens [batch, new, d_model] of every sequence.
  template <class State>
  void step(std::string_view operation, ConstTensorView<T, 3> x, Tensor<T, 3>& y, State& state) const {
    require_stream(operation, x);
    const Index batch = x.dimension(0), tokens = x.dimension(1);
    ensure_shape(y, shape_of(x));
    state.keys.reserve(batch, config.kv_heads(), config.dim_per_head(), tokens);
    append_all(x, state);
    AttentionMask visible = mask();
    visible.query_offset = state.position;
    ask(
        rows(x), [&](Index row) { return state.position + row % tokens; },
        [&](auto& tensor) { return query_view(tensor, batch, tokens); }, visible, rows(y), state);
    state.position += tokens;
  }

  // The next tokens, of which only the routed ones ask. One state must keep to one kind of KeyValues.
  template <class State>
  void step_routed(std::string_view operation, ConstTensorView<T, 3> x, const RoutedRows& routed, KeyValues key_values,
                   MatrixView<T> y_selected, State& state) const {
    require_stream(operation, x);
    require_routed(operation, routed, x.dimension(0), x.dimension(1));
    const Index tokens = x.dimension(1), selected = routed.count();
    require_shape(operation, "y_selected", y_selected, {selected, config.d_model});
    state.keys.reserve(x.dimension(0), config.kv_heads(), config.dim_per_head(), tokens);
    auto& scratch = state.scratch;
    pack(x, routed, state.position, scratch);
    const ConstMatrixView<T> packed = as_const(top_rows(scratch.packed, selected));
    if (key_values == KeyValues::all)
      append_all(x, state);
    else
      append(
          packed, [&](Index row) { return routed.rows[row] / tokens; },
          [&](Index row) { return scratch.positions(row); }, state);
    ask_at(packed, routed, scratch.positions.data(), y_selected, state);
    state.position += tokens;
  }

  // The same in pieces, for rows whose hidden state is known later than their neighbours'.
  // A fresh stream of `batch` sequences.
  template <class State>
  void open(Index batch, State& state) const {
    state.keys.reserve(batch, config.kv_heads(), config.dim_per_head(), 1);
  }

  // Keys and values of the rows [n, d_model] of sequence `batch_entry`, at first_position and the positions after it,
  // which must come after all that the sequence has.
  template <class State>
  void append_keys(std::string_view operation, ConstMatrixView<T> x_rows, Index batch_entry, Index first_position,
                   State& state) const {
    require_shape(operation, "x_rows", x_rows, {-1, config.d_model});
    require(batch_entry >= 0 && batch_entry < state.keys.batch(), operation, "batch_entry",
            "a sequence of the stream, once open() or step() has told how many there are", batch_entry);
    const Index length = state.keys.lengths(batch_entry);
    const Index free_position = length == 0 ? 0 : state.keys.positions(batch_entry, length - 1) + 1;
    require(first_position >= free_position, operation, "first_position", free_position, first_position);
    state.keys.reserve_in(batch_entry, x_rows.rows());
    append(
        x_rows, [=](Index) { return batch_entry; }, [=](Index row) { return first_position + row; }, state);
  }

  // Queries x_rows [S, d_model] at the given positions [S] against the keys that are there. Of `routed` only the
  // offsets are read: rows [offsets[b], offsets[b+1]) belong to sequence b.
  template <class State>
  void attend_cached(std::string_view operation, ConstMatrixView<T> x_rows, const RoutedRows& routed,
                     const Index* positions, MatrixView<T> y_rows, State& state) const {
    require(config.causal, operation, "config.causal", true, config.causal);
    require(routed.batch == state.keys.batch(), operation, "routed sequences", state.keys.batch(), routed.batch);
    require_shape(operation, "x_rows", x_rows, {routed.count(), config.d_model});
    require_shape(operation, "y_rows", y_rows, {routed.count(), config.d_model});
    ask_at(x_rows, routed, positions, y_rows, state);
  }

 private:
  Index query_width() const { return config.n_heads * config.dim_per_head(); }
  Index key_width() const { return config.kv_heads() * config.dim_per_head(); }

  AttentionMask mask() const { return {config.causal, config.window, 0, nullptr, nullptr}; }
  template <class Cache>
  AttentionMask routed_mask(KeyValues key_values, const Cache& cache) const {
    const Index* positions = cache.positions.data();
    return {config.causal, config.window, 0, positions, key_values == KeyValues::all ? nullptr : positions};
  }

  void require_stream(std::string_view operation, ConstTensorView<T, 3> x) const {
    require_shape(operation, "x", x, {-1, -1, config.d_model});
    require(config.causal, operation, "config.causal", true, config.causal);
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

  template <class Cache>
  void allocate(Cache& cache, Index count) const {
    ensure_shape(cache.query, {count, query_width()});
    ensure_shape(cache.attended, {count, query_width()});
    ensure_shape(cache.key, {count, key_width()});
    ensure_shape(cache.value, {count, key_width()});
    ensure_shape(cache.log_sum_exp, {count * config.n_heads});
  }
  template <class Cache>
  void allocate_backward(const Cache& cache) const {
    ensure_shape(cache.dquery, shape_of(cache.query));
    ensure_shape(cache.dattended, shape_of(cache.query));
    ensure_shape(cache.dkey, shape_of(cache.key));
    ensure_shape(cache.dvalue, shape_of(cache.key));
  }
  // Buffers have room for every row: how many are routed changes from step to step.
  template <class Cache>
  void pack(ConstTensorView<T, 3> x, const RoutedRows& routed, Index first_position, Cache& cache) const {
    const Index tokens = x.dimension(1), all = x.dimension(0) * tokens;
    ensure_shape(cache.packed, {all, config.d_model});
    ensure_shape(cache.positions, {all});
    gather_rows<T>(rows(x), routed, top_rows(cache.packed, routed.count()));
    for (Index i = 0; i < routed.count(); ++i) cache.positions(i) = first_position + routed.rows[i] % tokens;
  }

  template <class Cache>
  void project_queries(ConstMatrixView<T> x_rows, Index positions, auto&& position, Cache& cache) const {
    const MatrixView<T> query = top_rows(cache.query, x_rows.rows());
    maps.query.forward(x_rows, query);
    rotate(query, positions, position, cache);
  }
  template <class Cache>
  void project_keys(ConstMatrixView<T> x_rows, Index positions, auto&& position, Cache& cache) const {
    const MatrixView<T> key = top_rows(cache.key, x_rows.rows());
    maps.key.forward(x_rows, key);
    maps.value.forward(x_rows, top_rows(cache.value, x_rows.rows()));
    rotate(key, positions, position, cache);
  }
  // All positions are below `positions`.
  template <class Cache>
  void rotate(MatrixView<T> x, Index positions, auto&& position, Cache& cache) const {
    if (config.rotary == Rotary::none) return;
    // A stream asks for one position more each time: make the table grow by doubling.
    const Index there = cache.rotary.positions();
    cache.rotary.ensure(positions <= there ? there : std::max(positions, 2 * there), config.dim_per_head(),
                        config.rope_base);
    rotary_forward(config.rotary, cache.rotary, x, position);
  }

  // dx_query is overwritten, dx_key accumulates: the two may be the same matrix.
  template <class Cache>
  void project_backward(ConstMatrixView<T> query_rows, ConstMatrixView<T> key_rows, auto&& query_position,
                        auto&& key_position, const Cache& cache, MatrixView<T> dx_query, MatrixView<T> dx_key,
                        const Gradients& grad) const {
    const MatrixView<T> dquery = top_rows(cache.dquery, query_rows.rows());
    const MatrixView<T> dkey = top_rows(cache.dkey, key_rows.rows());
    const MatrixView<T> dvalue = top_rows(cache.dvalue, key_rows.rows());
    rotary_backward(config.rotary, cache.rotary, dquery, query_position);
    rotary_backward(config.rotary, cache.rotary, dkey, key_position);
    maps.query.backward(as_const(dquery), query_rows, dx_query, grad.query);
    maps.key.backward(as_const(dkey), key_rows, dx_key, grad.key, /*accumulate_dx=*/true);
    maps.value.backward(as_const(dvalue), key_rows, dx_key, grad.value, /*accumulate_dx=*/true);
  }

  // Row r belongs to sequence sequence(r), at position(r); the rows of a sequence follow each other, and the cache has
  // room.
  template <class State>
  void append(ConstMatrixView<T> x_rows, auto&& sequence, auto&& position, State& state) const {
    const Index count = x_rows.rows();
    if (count == 0) return;
    auto& scratch = state.scratch;
    ensure_rows(scratch.key, count, key_width());
    ensure_rows(scratch.value, count, key_width());
    Index positions = 0;
    for (Index row = 0; row < count; ++row) positions = std::max(positions, position(row) + 1);
    project_keys(x_rows, positions, position, scratch);
    for (Index first = 0, end; first < count; first = end) {
      for (end = first + 1; end < count && sequence(end) == sequence(first);) ++end;
      const auto of_sequence = [&](const Tensor<T, 2>& tensor) {
        return ConstMatrixView<T>(&tensor(first, 0), end - first, key_width());
      };
      state.keys.append(sequence(first), of_sequence(scratch.key), of_sequence(scratch.value),
                        [&](Index row) { return position(first + row); });
    }
  }
  template <class State>
  void append_all(ConstTensorView<T, 3> x, State& state) const {
    const Index tokens = x.dimension(1);
    append(
        rows(x), [=](Index row) { return row / tokens; }, [&](Index row) { return state.position + row % tokens; },
        state);
  }

  // Queries against the keys of the stream; view(tensor) divides the rows among the sequences.
  template <class State>
  void ask(ConstMatrixView<T> x_rows, auto&& position, auto&& view, const AttentionMask& visible, MatrixView<T> y_rows,
           State& state) const {
    const Index count = x_rows.rows();
    if (count == 0) return;
    auto& scratch = state.scratch;
    ensure_rows(scratch.query, count, query_width());
    ensure_rows(scratch.attended, count, query_width());
    Index positions = 0;
    for (Index row = 0; row < count; ++row) positions = std::max(positions, position(row) + 1);
    project_queries(x_rows, positions, position, scratch);
    kernel.attend(visible,
                  ForwardViews<T>{view(scratch.query), state.keys.key_view(), state.keys.value_view(),
                                  view(scratch.attended), nullptr},
                  state.score);
    maps.out.forward(as_const(top_rows(scratch.attended, count)), y_rows);
  }
  template <class State>
  void ask_at(ConstMatrixView<T> x_rows, const RoutedRows& routed, const Index* positions, MatrixView<T> y_rows,
              State& state) const {
    ask(
        x_rows, [=](Index row) { return positions[row]; },
        [&](auto& tensor) { return routed_query_view(tensor, routed); },
        AttentionMask{config.causal, config.window, 0, positions, state.keys.positions.data()}, y_rows, state);
  }
};

}  // namespace rbar
