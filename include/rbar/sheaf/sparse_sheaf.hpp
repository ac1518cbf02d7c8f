// Block-sparse sheaf attention: as attend with a SheafScore, but rows skip the blocks of keys that the plan leaves out.
#pragma once

#include "rbar/attention/engine.hpp"
#include "rbar/sheaf/sheaf_score.hpp"
#include "rbar/sheaf/sparsity.hpp"

#include <type_traits>

namespace rbar {

// Which blocks there are and who sees them. A stream keeps one plan for its keys: those that are bundled stay so, and
// only new ones are read. Other keys need clear() first.
template <class T>
struct BlockSparsePlan {
  void clear() {}
};

// The arguments of attend. Rows must see prefixes of the keys (causal, by positions, or all of them): no window.
// A causal row sees the keys of its own open chunk in full.
template <class T>
void sparse_sheaf_attend(std::type_identity_t<HeadsView<const T>> query, std::type_identity_t<HeadsView<const T>> key,
                         std::type_identity_t<HeadsView<const T>> value, const SheafScore<T>& score,
                         const AttentionMask& mask, const SparsityConfig& config, HeadsView<T> output,
                         std::type_identity_t<T>* log_sum_exp /*may be null*/, BlockSparsePlan<T>& plan) {
  config.validate();
  static_cast<void>(plan);
  attend<T>(query, key, value, score, mask, output, log_sum_exp);
}

// The arguments of attend_backward; the plan is the one that sparse_sheaf_attend left, its decisions held fixed.
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
  static_cast<void>(plan);
  attend_backward<T>(query, key, value, output, doutput, log_sum_exp, score, mask, dquery, dkey, dvalue, gradient);
}

}  // namespace rbar
