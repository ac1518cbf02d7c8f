// The one attention of this library, forward and backward:
//
//   o_i = Σ_j softmax_j(score(q_i·k_j))·v_j   over the keys j that the mask lets query i see
//
// Never a tokens × tokens matrix. What is inside the softmax is a score functor (scores.hpp), who sees whom a mask
// policy (masks.hpp); both are inlined. A new attention is a new functor, never a change here.
#pragma once

#include "rbar/attention/engine_backward.hpp"
#include "rbar/attention/engine_forward.hpp"
#include "rbar/core/parallel.hpp"

namespace rbar {

namespace detail {

template <class A, class B>
void require_same_sequences(std::string_view operation, std::string_view argument, const HeadsView<A>& view,
                            const HeadsView<B>& like, Index dim) {
  require_shape(operation, argument, Shape<3>{view.batch, view.heads, view.dim}, Shape<3>{like.batch, like.heads, dim});
  for (Index b = 0; b < like.batch; ++b)
    require(view.count(b) == like.count(b), operation, argument, "as many tokens as its counterpart", view.count(b));
}

template <class T>
void require_attention_shapes(std::string_view operation, const HeadsView<const T>& query,
                              const HeadsView<const T>& key, const HeadsView<const T>& value) {
  require(query.dim >= 1 && query.dim <= max_head_dim, operation, "query.dim", "1 to 256", query.dim);
  require(value.dim >= 1 && value.dim <= max_head_dim, operation, "value.dim", "1 to 256", value.dim);
  require(key.batch == query.batch, operation, "key.batch", query.batch, key.batch);
  require(key.dim == query.dim, operation, "key.dim", query.dim, key.dim);
  require(key.heads >= 1 && query.heads % key.heads == 0, operation, "key.heads", "a divisor of the query heads",
          key.heads);
  require_same_sequences(operation, "value", value, key, value.dim);
}

// Tiles of queries that share one copy of K and V (KeyRows), as long as there are jobs for all threads to the end.
template <class T>
Index tiles_per_job(const HeadsView<const T>& key, const HeadsView<const T>& value, Index sets, Index tiles) {
  if (!lies_apart(key) && !lies_apart(value)) return 1;
  return std::clamp<Index>(sets * tiles / tasks_for_threads(), 1, std::max<Index>(tiles, 1));
}

inline Index jobs_per_chunk(Index work) { return std::max<Index>(1, min_job_work / std::max<Index>(1, work)); }

}  // namespace detail

// output[b, i, h] for every query; log_sum_exp[row·heads + h] = log Σ_j e^{logit_ij} where not null (row: of the query
// view), which the backward pass needs. Query head h reads K/V head h / (query.heads / key.heads). A query that sees no
// key gives zeros and −∞. head_dim 1 to 256; the value's may differ. `output` must not overlap the inputs.
template <class T, class Score, class Mask>
void attend(std::type_identity_t<HeadsView<const T>> query, std::type_identity_t<HeadsView<const T>> key,
            std::type_identity_t<HeadsView<const T>> value, const Score& score, const Mask& mask, HeadsView<T> output,
            std::type_identity_t<T>* log_sum_exp = nullptr) {
  detail::require_attention_shapes("attend", query, key, value);
  detail::require_same_sequences("attend", "output", output, query, value.dim);
  const detail::Tiling tiling = detail::make_tiling(query, key, value.dim, mask);
  const Index head_sets = tiling.group / tiling.mixed_heads;
  const Index sets = query.batch * key.heads * head_sets;
  const Index job_tiles = detail::tiles_per_job(key, value, sets, tiling.tiles);
  const Index parts = (tiling.tiles + job_tiles - 1) / job_tiles;
  const Index work = job_tiles * tiling.queries * tiling.mixed_heads * key.tokens * (query.dim + value.dim);
  parallel_for(sets * parts, detail::jobs_per_chunk(work), [&](Index begin, Index end) {
    detail::ForwardTile<T, Score, Mask> worker(query, key, value, score, mask);
    for (Index job = begin; job < end; ++job) {
      // Of a causal mask, late and early parts in turn: then whoever takes neighbours has about as much as others.
      const Index set = job / parts, turn = job % parts, part = turn % 2 == 0 ? parts - 1 - turn / 2 : turn / 2;
      const Index first = part * job_tiles;
      worker.run(tiling, set / head_sets / key.heads, set / head_sets % key.heads, set % head_sets, first,
                 std::min(first + job_tiles, tiling.tiles), output, log_sum_exp);
    }
  });
}

// Gradients of Σ doutput∘output. dquery, dkey and dvalue are overwritten; the score functor's own gradients go to
// `gradient` (scores.hpp). output and log_sum_exp are those of attend. Parallel over (batch, K/V head); within one,
// tiles are added in a fixed order.
template <class T, class Score, class Mask, class ScoreGradient = NoScoreGradient>
void attend_backward(std::type_identity_t<HeadsView<const T>> query, std::type_identity_t<HeadsView<const T>> key,
                     std::type_identity_t<HeadsView<const T>> value, std::type_identity_t<HeadsView<const T>> output,
                     std::type_identity_t<HeadsView<const T>> doutput, const std::type_identity_t<T>* log_sum_exp,
                     const Score& score, const Mask& mask, HeadsView<T> dquery, std::type_identity_t<HeadsView<T>> dkey,
                     std::type_identity_t<HeadsView<T>> dvalue, ScoreGradient&& gradient = {}) {
  detail::require_attention_shapes("attend_backward", query, key, value);
  detail::require_same_sequences("attend_backward", "output", output, query, value.dim);
  detail::require_same_sequences("attend_backward", "doutput", doutput, query, value.dim);
  detail::require_same_sequences("attend_backward", "dquery", dquery, query, query.dim);
  detail::require_same_sequences("attend_backward", "dkey", dkey, key, key.dim);
  detail::require_same_sequences("attend_backward", "dvalue", dvalue, key, value.dim);
  require(log_sum_exp != nullptr || query.batch * query.tokens == 0, "attend_backward", "log_sum_exp",
          "what attend wrote", "null");
  const detail::BackwardViews<T> views{query, key, value, output, doutput, log_sum_exp, dquery, dkey, dvalue};
  const detail::Tiling tiling = detail::make_tiling(query, key, value.dim, mask);
  const Index jobs = query.batch * key.heads;
  const Index work = query.tokens * tiling.group * key.tokens * (query.dim + value.dim);
  parallel_for(jobs, detail::jobs_per_chunk(work), [&](Index begin, Index end) {
    detail::BackwardTile<T, Score, Mask, std::remove_reference_t<ScoreGradient>> worker(views, score, mask, gradient);
    for (Index job = begin; job < end; ++job) worker.run(tiling, job / key.heads, job % key.heads);
  });
}

}  // namespace rbar
