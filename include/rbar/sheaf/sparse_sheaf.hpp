// Block-sparse sheaf attention: attend with a SheafScore, where a row skips the blocks of keys that its plan leaves
// out. The keys fall into two parts, attended apart and put together afterwards by their log-sum-exps:
//
//   near  the row's open chunk, in the keys' own order (causal rows only)
//   far   the closed chunks, bundled in blocks, of which a row sees those that block_bound.hpp chooses for it
//
//   y = (e^{l_near} y_near + e^{l_far} y_far)/(e^{l_near} + e^{l_far})
//
// Whatever a row sees, its bits depend on itself and on keys that came before it, and a stream gives the same.
// Given the choice, gradients are exact: each part's backward pass runs on the common log-sum-exp and output.
#pragma once

#include "rbar/attention/engine.hpp"
#include "rbar/sheaf/block_sparse_plan.hpp"
#include "rbar/sheaf/sheaf_score.hpp"
#include "rbar/sheaf/sparsity.hpp"

#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

namespace rbar {

namespace detail {

// [rows, heads·dim] as the view `like` lays its rows out.
template <class T, class Like>
HeadsView<T> rows_like(T* data, const HeadsView<Like>& like, Index dim) {
  HeadsView<T> view = heads_view(data, like.batch, like.tokens, like.heads, dim);
  view.row_offsets = like.row_offsets;
  return view;
}

// near ← near and far together, both of them softmax averages with their log-sum-exp.
template <class T>
void merge_far(const HeadsView<const T>& far, const T* far_log_sum_exp, const HeadsView<T>& near, T* near_log_sum_exp) {
  const Index chunk = std::max<Index>(1, 16384 / std::max<Index>(1, near.heads * near.dim));
  for (Index b = 0; b < near.batch; ++b)
    parallel_for(near.count(b), chunk, [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i)
        for (Index head = 0; head < near.heads; ++head) {
          const Index at = (near.first_row(b) + i) * near.heads + head;
          const T l_near = near_log_sum_exp[at], l_far = far_log_sum_exp[at];
          if (l_far == -std::numeric_limits<T>::infinity()) continue;
          const T largest = std::max(l_near, l_far);
          const T e_near = std::exp(l_near - largest), e_far = std::exp(l_far - largest), sum = e_near + e_far;
          const T share_near = e_near / sum, share_far = e_far / sum;
          T* RBAR_RESTRICT y = near.at(b, head, i);
          const T* RBAR_RESTRICT x = far.at(b, head, i);
          for (Index d = 0; d < near.dim; ++d) y[d] = share_near * y[d] + share_far * x[d];
          near_log_sum_exp[at] = largest + std::log(sum);
        }
    });
}

// to += from.
template <class T>
void add_heads(const HeadsView<const T>& from, const HeadsView<T>& to) {
  const Index chunk = std::max<Index>(1, 32768 / std::max<Index>(1, to.heads * to.dim));
  for (Index b = 0; b < to.batch; ++b)
    parallel_for(to.count(b), chunk, [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i)
        for (Index head = 0; head < to.heads; ++head) {
          const T* RBAR_RESTRICT x = from.at(b, head, i);
          T* RBAR_RESTRICT y = to.at(b, head, i);
          for (Index d = 0; d < to.dim; ++d) y[d] += x[d];
        }
    });
}

}  // namespace detail

// The arguments of attend. Rows see prefixes of the keys (causal, by positions, or all of them), no windows.
template <class T>
void sparse_sheaf_attend(std::type_identity_t<HeadsView<const T>> query, std::type_identity_t<HeadsView<const T>> key,
                         std::type_identity_t<HeadsView<const T>> value, const SheafScore<T>& score,
                         const AttentionMask& mask, const SparsityConfig& config, HeadsView<T> output,
                         std::type_identity_t<T>* log_sum_exp /*may be null*/, BlockSparsePlan<T>& plan) {
  config.validate();
  require(mask.window == 0, "sparse_sheaf_attend", "mask.window", "0: blocks are for distant keys", mask.window);
  detail::require_attention_shapes("sparse_sheaf_attend", query, key, value);
  detail::require_same_sequences("sparse_sheaf_attend", "output", output, query, value.dim);
  const OpenChunkMask near{mask, config.chunk};
  plan.bundle(query, key, value, score, near, config);
  ensure_rows(plan.log_sum_exp, 2 * plan.rows, plan.heads);
  T* far_log_sum_exp = plan.log_sum_exp.data() + plan.rows * plan.heads;
  if (!log_sum_exp) log_sum_exp = plan.log_sum_exp.data();
  if (mask.causal) attend<T>(query, key, value, score, near, output, log_sum_exp);
  plan.choose(query, score, config, mask.causal ? log_sum_exp : nullptr);
  if (mask.causal && plan.closed_rows == 0) return;
  const SheafScore<T> far_score{score.beta, plan.key_square_norm.data(), score.kv_heads};
  if (!mask.causal)
    return attend<T>(query, plan.key_view(), plan.value_view(), far_score, plan.mask(), output, log_sum_exp);
  ensure_rows(plan.far_output, plan.rows, plan.heads * value.dim);
  const HeadsView<T> far = detail::rows_like(plan.far_output.data(), query, value.dim);
  attend<T>(query, plan.key_view(), plan.value_view(), far_score, plan.mask(), far, far_log_sum_exp);
  detail::merge_far<T>(far, far_log_sum_exp, output, log_sum_exp);
}

// The arguments of attend_backward; the plan is the one that sparse_sheaf_attend left, its choice held fixed.
template <class T>
void sparse_sheaf_attend_backward(std::type_identity_t<HeadsView<const T>> query,
                                  std::type_identity_t<HeadsView<const T>> key,
                                  std::type_identity_t<HeadsView<const T>> value,
                                  std::type_identity_t<HeadsView<const T>> output,
                                  std::type_identity_t<HeadsView<const T>> doutput,
                                  const std::type_identity_t<T>* log_sum_exp, const SheafScore<T>& score,
                                  const AttentionMask& mask, const BlockSparsePlan<T>& plan, HeadsView<T> dquery,
                                  std::type_identity_t<HeadsView<T>> dkey, std::type_identity_t<HeadsView<T>> dvalue,
                                  SheafScoreGradient<T> gradient) {
  const OpenChunkMask near{mask, plan.chunk};
  attend_backward<T>(query, key, value, output, doutput, log_sum_exp, score, near, dquery, dkey, dvalue, gradient);
  if (plan.closed_rows == 0) return;
  ensure_rows(plan.dquery, plan.rows, plan.heads * query.dim);
  ensure_rows(plan.dkey, plan.key.dimension(0), key.dim);
  ensure_rows(plan.dvalue, plan.value.dimension(0), value.dim);
  ensure_rows(plan.dkey_square_norm, plan.key_square_norm.dimension(0), key.heads);
  plan.dkey_square_norm.setZero();
  const HeadsView<T> far_dquery = detail::rows_like(plan.dquery.data(), query, query.dim);
  const HeadsView<T> far_dkey = plan.by_slot(plan.dkey), far_dvalue = plan.by_slot(plan.dvalue);
  const SheafScore<T> far_score{score.beta, plan.key_square_norm.data(), score.kv_heads};
  attend_backward<T>(
      query, plan.key_view(), plan.value_view(), output, doutput, log_sum_exp, far_score, plan.mask(), far_dquery,
      far_dkey, far_dvalue,
      SheafScoreGradient<T>{gradient.beta, plan.dkey_square_norm.data(), gradient.heads, gradient.kv_heads});
  detail::add_heads<T>(far_dquery, dquery);
  plan.for_each_bundled([&](Index b, Index head, Index j, Index slot) {
    for (const auto& [from, to] : {std::pair{far_dkey, dkey}, std::pair{far_dvalue, dvalue}}) {
      const T* RBAR_RESTRICT x = from.at(b, head, slot);
      T* RBAR_RESTRICT y = to.at(b, head, j);
      for (Index d = 0; d < to.dim; ++d) y[d] += x[d];
    }
    gradient.key_square_norm[(key.first_row(b) + j) * key.heads + head] +=
        plan.dkey_square_norm(b * plan.slots + slot, head);
  });
}

}  // namespace rbar
