// One layer of the Coherence-Gated Transformer, pre-norm, on the residual stream h. Only active tokens change; every
// token's state is a key:
//   m_i = h_i + dropout(Σ_{j≤i} A_ij ρ_v(LN₁h_j) W_o),     A = softmax_j(−β‖ρ_q LN₁h_i − ρ_k LN₁h_j‖²)
//   h_i ← m_i + dropout(block(LN₂m_i))                     for active i; block: feed-forward or mixture of experts
// A reflex layer has no block, and all tokens are active.
#pragma once

#include "rbar/core/bulk.hpp"
#include "rbar/model/cgt_config.hpp"
#include "rbar/model/layer_caches.hpp"
#include "rbar/nn/dropout.hpp"
#include "rbar/nn/feed_forward.hpp"
#include "rbar/nn/norm.hpp"
#include "rbar/nn/one_of.hpp"

#include <array>
#include <utility>

namespace rbar {

// States of a stream's tokens by position: those of earlier calls, then those of this one.
template <class T>
struct StateHistory {
  const Tensor<T, 3>& earlier;  // [B, room, D], of which the first `length` positions are filled
  const Tensor<T, 3>& latest;   // [B, new, D]
  Index length;

  const T* at(Index b, Index position) const {
    const Tensor<T, 3>& tensor = position < length ? earlier : latest;
    return &tensor(b, position < length ? position : position - length, 0);
  }
};

template <class T>
struct CGTLayer {
  using Scalar = T;
  using Block = OneOf<FeedForward<T>, MixtureOfExperts<T>>;

  // Of a training pass with S active tokens; packed buffers keep room for the most seen.
  struct Cache {
    Tensor<T, 3> normed;                 // [B, T, D] LN₁h
    Tensor<T, 2> middle, normed_middle;  // [S, D] m, LN₂m
    typename LayerNorm<T>::Cache norm1, norm2;
    typename SheafAttention<T>::Cache attention;
    typename Block::Cache block;

    void swap_scratch(const Cache& other) const {
      attention.swap_scratch(other.attention);
      rbar::swap_scratch(block, other.block);
    }
  };
  using State = typename SheafAttention<T>::State;
  // What the layers of a model use one after the other.
  struct Scratch {
    Tensor<T, 3> normed, dense;              // [B, T, D]
    Tensor<T, 2> rows, branch, normed_rows;  // [S, D]
    Tensor<T, 2> pending, normed_pending;    // of keys that are asked for the first time
    typename LayerNorm<T>::Cache norm;       // of a stream, as are the next
    AttentionCache<T> attention;
    std::array<typename Block::Cache, 3> block;  // of each kind of layer
  };

  LayerKind kind = LayerKind::reflex;
  double dropout_rate = 0;
  LayerNorm<T> norm1, norm2;
  SheafAttention<T> attention;
  Block block;

  CGTLayer() = default;
  CGTLayer(const CGTConfig& config, LayerKind kind_, Rng& rng)
      : kind(kind_),
        dropout_rate(config.dropout),
        norm1(config.d_model, config.norm_eps),
        attention(config.attention(kind_), rng) {
    if (kind == LayerKind::reflex) return;
    norm2 = LayerNorm<T>(config.d_model, config.norm_eps);
    if (kind == LayerKind::standard)
      block = FeedForward<T>(config.d_model, config.ff_width(), /*bias=*/true, rng);
    else
      block = MixtureOfExperts<T>(config.experts(), rng);
  }

  // Loss of the block itself (the experts' balance) in the last forward pass with this cache.
  static double auxiliary_loss(const Cache& cache) {
    return std::visit([](const auto& block_cache) { return auxiliary_loss_of(block_cache); }, cache.block);
  }

  // --- training: h [B, T, D] in place; dropout streams `stream` and `stream + 1`. fill: the cache that forward leaves,
  // without the new h. Backward needs the old one again ------------------------------------------------------------

  void forward(Tensor<T, 3>& h, const DropoutState& dropout, std::uint64_t stream, Cache& cache,
               Scratch& scratch) const {
    fill(h, cache, scratch);
    add_with_dropout<T>(dropout_rate, dropout, stream, rows(std::as_const(h)), rows(std::as_const(scratch.dense)),
                        rows(h));
  }

  void fill(const Tensor<T, 3>& h, Cache& cache, Scratch& scratch) const {
    normalise(h, cache);
    attention.forward(view(std::as_const(cache.normed)), scratch.dense, cache.attention);
  }

  void backward(const Tensor<T, 3>& h, Tensor<T, 3>& dh, const DropoutState& dropout_state, std::uint64_t stream,
                const Cache& cache, Scratch& scratch, CGTLayer& grad) const {
    ensure_shape(scratch.dense, shape_of(dh));
    bulk_copy(dh.data(), dh.size(), scratch.dense.data());
    dropout<T>(dropout_rate, dropout_state, stream, rows(scratch.dense));
    attention.backward(view(std::as_const(scratch.dense)), cache.attention, scratch.normed, grad.attention);
    norm1.backward(rows(std::as_const(scratch.normed)), rows(h), cache.norm1, rows(dh), grad.norm1,
                   /*accumulate_dx=*/true);
  }

  void forward_routed(Tensor<T, 3>& h, const RoutedRows& active, const DropoutState& dropout, std::uint64_t stream,
                      Cache& cache, Scratch& scratch) const {
    const Index count = active.count();
    const MatrixView<T> branch = to_block(h, active, dropout, stream, cache, scratch);
    block.forward(top_rows(std::as_const(cache.normed_middle), count), branch, cache.block);
    add_with_dropout<T>(dropout_rate, dropout, stream + 1, top_rows(std::as_const(cache.middle), count),
                        as_const(branch), branch);
    scatter_rows<T>(as_const(branch), active, rows(h));
  }

  void fill_routed(const Tensor<T, 3>& h, const RoutedRows& active, const DropoutState& dropout, std::uint64_t stream,
                   Cache& cache, Scratch& scratch) const {
    to_block(h, active, dropout, stream, cache, scratch);
    block.fill(top_rows(std::as_const(cache.normed_middle), active.count()), cache.block);
  }

  // dh: on entry the gradient of the new h, on return that of the old one.
  void backward_routed(const Tensor<T, 3>& h, Tensor<T, 3>& dh, const RoutedRows& active,
                       const DropoutState& dropout_state, std::uint64_t stream, const Cache& cache, Scratch& scratch,
                       CGTLayer& grad) const {
    const Index count = active.count(), dim = dh.dimension(2);
    for (Tensor<T, 2>* tensor : {&scratch.rows, &scratch.branch, &scratch.normed_rows})
      ensure_rows(*tensor, count, dim);
    const MatrixView<T> dmiddle = top_rows(scratch.rows, count), dbranch = top_rows(scratch.branch, count);
    const MatrixView<T> dnormed_middle = top_rows(scratch.normed_rows, count);
    const auto branch_gradient = [&](std::uint64_t branch_stream) {
      bulk_copy(dmiddle.data(), dmiddle.size(), scratch.branch.data());
      dropout<T>(dropout_rate, dropout_state, branch_stream, dbranch);
      return as_const(dbranch);
    };
    gather_rows<T>(rows(std::as_const(dh)), active, dmiddle);
    block.backward(branch_gradient(stream + 1), top_rows(cache.normed_middle, count), cache.block, dnormed_middle,
                   grad.block);
    norm2.backward(as_const(dnormed_middle), top_rows(cache.middle, count), cache.norm2, dmiddle, grad.norm2,
                   /*accumulate_dx=*/true);
    ensure_shape(scratch.normed, shape_of(dh));
    bulk_zero(scratch.normed.data(), scratch.normed.size());
    attention.backward_routed(branch_gradient(stream), view(cache.normed), active, KeyValues::all, cache.attention,
                              scratch.normed, grad.attention);
    scatter_rows<T>(as_const(dmiddle), active, rows(dh));
    // Keys of all tokens, active or not.
    norm1.backward(rows(std::as_const(scratch.normed)), rows(h), cache.norm1, rows(dh), grad.norm1,
                   /*accumulate_dx=*/true);
  }

  // --- streaming -----------------------------------------------------------------------------------------------

  // The next tokens [B, new, D] of a reflex layer, in place.
  void step(Tensor<T, 3>& h, State& state, Scratch& scratch) const {
    ensure_shape(scratch.normed, shape_of(h));
    norm1.forward(rows(std::as_const(h)), rows(scratch.normed), scratch.norm);
    std::swap(state.scratch, scratch.attention);  // one for all layers: a stream keeps its keys and values only
    attention.step(view(std::as_const(scratch.normed)), scratch.dense, state);
    std::swap(state.scratch, scratch.attention);
    add_with_dropout<T>(0, {}, 0, rows(std::as_const(h)), rows(std::as_const(scratch.dense)), rows(h));
  }

  // The states h [S, D] of the tokens that ask, at these positions, in place. A key is computed when it is first asked
  // for: the states of tokens that stopped below wait in the history until then.
  void step_routed(MatrixView<T> h, const RoutedRows& asking, const Index* positions, const StateHistory<T>& history,
                   State& state, Scratch& scratch) const {
    const Index count = h.rows(), dim = h.cols();
    std::swap(state.scratch, scratch.attention);
    append_pending(asking, positions, history, dim, state, scratch);
    ensure_rows(scratch.branch, count, dim);
    ensure_rows(scratch.normed_rows, count, dim);
    const MatrixView<T> branch = top_rows(scratch.branch, count), normed = top_rows(scratch.normed_rows, count);
    norm1.forward(as_const(h), normed, scratch.norm);
    attention.attend_cached(as_const(normed), asking, positions, branch, state);
    std::swap(state.scratch, scratch.attention);
    add_with_dropout<T>(0, {}, 0, as_const(h), as_const(branch), h);
    norm2.forward(as_const(h), normed, scratch.norm);
    block.forward(as_const(normed), branch, scratch.block[static_cast<std::size_t>(kind)]);
    add_with_dropout<T>(0, {}, 0, as_const(h), as_const(branch), h);
  }

  void parameters(auto&& visit) {
    visit_layer(visit, "norm1", norm1);
    visit_layer(visit, "attention", attention);
    if (kind == LayerKind::reflex) return;
    visit_layer(visit, "norm2", norm2);
    visit_layer(visit, kind == LayerKind::standard ? "feed_forward" : "experts", block);
  }
  void linears(auto&& visit) {
    attention.linears(visit);
    if (kind != LayerKind::reflex) block.linears(visit);
  }

 private:
  void normalise(const Tensor<T, 3>& h, Cache& cache) const {
    ensure_shape(cache.normed, shape_of(h));
    norm1.forward(rows(h), rows(cache.normed), cache.norm1);
  }

  // Everything before the block, whose output has room in what is returned.
  MatrixView<T> to_block(const Tensor<T, 3>& h, const RoutedRows& active, const DropoutState& dropout,
                         std::uint64_t stream, Cache& cache, Scratch& scratch) const {
    const Index count = active.count(), dim = h.dimension(2);
    normalise(h, cache);
    for (Tensor<T, 2>* tensor : {&scratch.branch, &cache.middle, &cache.normed_middle})
      ensure_rows(*tensor, count, dim);
    const MatrixView<T> branch = top_rows(scratch.branch, count), middle = top_rows(cache.middle, count);
    const MatrixView<T> normed_middle = top_rows(cache.normed_middle, count);
    attention.forward_routed(view(std::as_const(cache.normed)), active, KeyValues::all, branch, cache.attention);
    gather_rows<T>(rows(h), active, middle);
    add_with_dropout<T>(dropout_rate, dropout, stream, as_const(middle), as_const(branch), middle);
    norm2.forward(as_const(middle), normed_middle, cache.norm2);
    return branch;
  }

  // Keys of every position up to the last that asks, in each sequence.
  void append_pending(const RoutedRows& asking, const Index* positions, const StateHistory<T>& history, Index dim,
                      State& state, Scratch& scratch) const {
    if (state.keys.keys.size() == 0) attention.open(asking.batch, state);
    for (Index b = 0; b < asking.batch; ++b) {
      if (asking.offsets[b] == asking.offsets[b + 1]) continue;
      const Index first = state.keys.lengths(b), count = positions[asking.offsets[b + 1] - 1] + 1 - first;
      if (count <= 0) continue;
      ensure_rows(scratch.pending, count, dim);
      ensure_rows(scratch.normed_pending, count, dim);
      for (Index i = 0; i < count; ++i) std::copy_n(history.at(b, first + i), dim, scratch.pending.data() + i * dim);
      norm1.forward(top_rows(std::as_const(scratch.pending), count), top_rows(scratch.normed_pending, count),
                    scratch.norm);
      attention.append_keys(top_rows(std::as_const(scratch.normed_pending), count), b, first, state);
    }
  }
};

}  // namespace rbar
