// What a language model has around its layers: in front h₀ = E[token] + P[position], behind
// logits = head · norm(h_L), where head = E if the two are tied. A model whose attention knows the
// positions by itself (rotary) has no P.
#pragma once

#include "rbar/model/transformer_config.hpp"
#include "rbar/nn/embedding.hpp"
#include "rbar/nn/linear.hpp"
#include "rbar/nn/norm.hpp"

#include <algorithm>
#include <utility>

namespace rbar {

// The tokens of hidden [B, T, D] whose logits are wanted; where those are not all of them, a copy in `last` [B, 1, D].
template <class T>
ConstTensorView<T, 3> wanted_tokens(StepLogits wanted, const Tensor<T, 3>& hidden, Tensor<T, 3>& last) {
  const Index batch = hidden.dimension(0), tokens = hidden.dimension(1), dim = hidden.dimension(2);
  if (wanted == StepLogits::all || tokens <= 1) return view(hidden);
  ensure_shape(last, {batch, 1, dim});
  for (Index b = 0; b < batch; ++b) std::copy_n(&hidden(b, tokens - 1, 0), dim, &last(b, 0, 0));
  return view(std::as_const(last));
}

// Errors: a token outside the vocabulary, a position outside the table, other shapes.
template <class T, class Norm = LayerNorm<T>>
struct ModelEnds {
  using Scalar = T;

  struct Cache {
    Tensor<T, 3> normed;  // [B, T, D] norm(h_L)
    typename Norm::Cache norm;
    mutable Tensor<T, 3> dnormed;  // scratch of backward
    Tensor<T, 3> last;             // scratch of a stream [B, 1, D]
  };

  Embedding<T> token_embedding;     // [V, D]
  Embedding<T> position_embedding;  // [longest sequence, D], or no elements
  Norm final_norm;
  Linear<T> lm_head;  // [V, D], without weights where tied and not frozen

  ModelEnds() = default;
  // positions = 0: none are learned.
  ModelEnds(Index vocabulary, Index dim, Index positions, bool tied, Initialisation init, Norm norm, Rng& rng)
      : token_embedding(vocabulary, dim, rng), final_norm(std::move(norm)) {
    if (positions > 0) position_embedding = Embedding<T>(positions, dim, rng);
    if (!tied)
      lm_head = Linear<T>(dim, vocabulary, /*has_bias=*/false, rng);
    else if (init == Initialisation::cort_package)
      xavier_uniform(token_embedding.weight, rng);
  }

  Index vocabulary() const { return token_embedding.vocabulary(); }
  Index dim() const { return token_embedding.dim(); }
  bool learns_positions() const { return position_embedding.weight.size() > 0; }
  bool tied() const { return lm_head.weight.size() == 0; }

  void linears(auto&& visit) {
    if (tied() && !lm_head.is_frozen())
      visit(lm_head, token_embedding.weight);
    else
      visit(lm_head);
  }

  // tokens [B, T], the first of them at `first_position` -> hidden [B, T, D].
  void embed(ConstTensorView<Token, 2> tokens, Index first_position, Tensor<T, 3>& hidden) const {
    const Index batch = tokens.dimension(0), length = tokens.dimension(1), end = first_position + length;
    if (learns_positions() && end > position_embedding.vocabulary()) [[unlikely]]
      throw Error("embed", "tokens of a sequence",
                  "at most max_seq_len " + std::to_string(position_embedding.vocabulary()), std::to_string(end));
    ensure_shape(hidden, {batch, length, dim()});
    token_embedding.forward(elements(tokens), rows(hidden));
    if (!learns_positions()) return;
    const T* position = position_embedding.weight.data() + first_position * dim();
    parallel_for(batch * length, rows_per_chunk(), [&](Index begin, Index end) {
      for (Index row = begin; row < end; ++row) {
        const T* RBAR_RESTRICT from = position + row % length * dim();
        T* RBAR_RESTRICT to = hidden.data() + row * dim();
        for (Index i = 0; i < dim(); ++i) to[i] += from[i];
      }
    });
  }
  void embed_backward(ConstTensorView<T, 3> dhidden, ConstTensorView<Token, 2> tokens, ModelEnds& grad) const {
    token_embedding.backward(elements(tokens), rows(dhidden), grad.token_embedding);
    if (!learns_positions()) return;
    const Index per_sequence = dhidden.dimension(1) * dim();
    T* RBAR_RESTRICT to = grad.position_embedding.weight.data();
    parallel_for(dhidden.dimension(1), rows_per_chunk(), [&](Index begin, Index end) {
      for (Index b = 0; b < dhidden.dimension(0); ++b) {
        const T* from = dhidden.data() + b * per_sequence;
        for (Index i = begin * dim(); i < end * dim(); ++i) to[i] += from[i];
      }
    });
  }

  // hidden [B, T, D] -> logits [B, T, V].
  void head(ConstTensorView<T, 3> hidden, Tensor<T, 3>& logits, Cache& cache) const {
    const Index count = rows(hidden).rows();
    ensure_shape(cache.normed, shape_of(hidden));
    ensure_shape(logits, {hidden.dimension(0), hidden.dimension(1), vocabulary()});
    final_norm.forward(rows(hidden), rows(cache.normed), cache.norm);
    if (lm_head.is_frozen()) return lm_head.forward(rows(std::as_const(cache.normed)), rows(logits));
    gemm(lm_head.products, Transpose::no, Transpose::yes, count, vocabulary(), dim(), cache.normed.data(), dim(),
         head_weight().data(), dim(), logits.data(), vocabulary());
  }
  // The same for the tokens of a stream that are asked for.
  void head(StepLogits wanted, const Tensor<T, 3>& hidden, Tensor<T, 3>& logits, Cache& cache) const {
    head(wanted_tokens(wanted, hidden, cache.last), logits, cache);
  }
  void head_backward(ConstTensorView<T, 3> dlogits, ConstTensorView<T, 3> hidden, const Cache& cache,
                     Tensor<T, 3>& dhidden, ModelEnds& grad) const {
    require_shape("head_backward", "dlogits", dlogits, {hidden.dimension(0), hidden.dimension(1), vocabulary()});
    require_shape("head_backward", "cache", shape_of(cache.normed), shape_of(hidden));
    lm_head.require_trainable("head_backward");
    const Index count = rows(hidden).rows();
    ensure_shape(cache.dnormed, shape_of(hidden));
    ensure_shape(dhidden, shape_of(hidden));
    Tensor<T, 2>& dhead = tied() ? grad.token_embedding.weight : grad.lm_head.weight;
    gemm(lm_head.products, Transpose::yes, Transpose::no, vocabulary(), dim(), count, dlogits.data(), vocabulary(),
         cache.normed.data(), dim(), dhead.data(), dim(), /*accumulate=*/true);
    gemm(lm_head.products, Transpose::no, Transpose::no, count, dim(), vocabulary(), dlogits.data(), vocabulary(),
         head_weight().data(), dim(), cache.dnormed.data(), dim());
    final_norm.backward(rows(std::as_const(cache.dnormed)), rows(hidden), cache.norm, rows(dhidden), grad.final_norm);
  }

  void parameters(auto&& visit) {
    visit_layer(visit, "token_embedding", token_embedding);
    if (learns_positions()) visit_layer(visit, "position_embedding", position_embedding);
    visit_layer(visit, "final_norm", final_norm);
    if (!tied()) visit_layer(visit, "lm_head", lm_head);
  }

 private:
  Index rows_per_chunk() const { return std::max<Index>(1, 8192 / dim()); }
  const Tensor<T, 2>& head_weight() const { return tied() ? token_embedding.weight : lm_head.weight; }
};

}  // namespace rbar
