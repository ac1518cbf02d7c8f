// What every language model keeps, whatever it computes: a stream has the logits of the whole pass.
#pragma once

#include "rbar/core/parameters.hpp"
#include "support/differences.hpp"

#include <algorithm>

namespace test {

// max |stream − whole| / max |whole| of the logits, the tokens [B, T] given `chunk` at a time; NaN where the stream's
// count of tokens is not theirs at the end, or where the last tokens' logits alone have other bits than among all.
template <class Model>
double streaming_difference(const Model& model, const rbar::Tensor<rbar::Token, 2>& tokens, rbar::Index chunk) {
  using rbar::Index;
  const Index batch = tokens.dimension(0), length = tokens.dimension(1);
  const rbar::Tensor<typename Model::Scalar, 3> whole = model(tokens);
  const Index vocabulary = whole.dimension(2);
  double largest = 0, error = 0;
  for (const auto logit : rbar::elements(whole)) largest = larger(largest, std::abs(static_cast<double>(logit)));
  typename Model::State state, other_state;
  rbar::Tensor<typename Model::Scalar, 3> logits, last;
  bool same_last = true;
  for (Index first = 0; first < length; first += chunk) {
    const Index count = std::min(chunk, length - first);
    rbar::Tensor<rbar::Token, 2> part(batch, count);
    for (Index b = 0; b < batch; ++b) std::copy_n(&tokens(b, first), count, &part(b, 0));
    model.step(part, logits, state);
    model.step(part, last, other_state, rbar::StepLogits::last);
    same_last = same_last && last.size() == batch * vocabulary;
    for (Index b = 0; b < batch && same_last; ++b)
      same_last = std::equal(&last(b, 0, 0), &last(b, 0, 0) + vocabulary, &logits(b, count - 1, 0));
    for (Index b = 0; b < batch; ++b)
      for (Index i = 0; i < count * vocabulary; ++i)
        error = larger(error, std::abs(static_cast<double>((&logits(b, 0, 0))[i] - (&whole(b, first, 0))[i])));
  }
  return state.position == length && other_state.position == length && same_last
             ? error / largest
             : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace test
