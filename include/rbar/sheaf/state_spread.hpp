// How different the states of a token's context are, relative to their size:
//   spread_i = Σ_{j≤i} ‖h_j − h̄_i‖² / Σ_{j≤i} ‖h_j‖²   in [0, 1]
// 0 when all states are the same (collapse). An energy of 0 cannot tell that from agreement: its maps may send
// different states to the same point. A context of one token has nothing to differ from and gets 1.
#pragma once

#include "rbar/sheaf/token_energy.hpp"

namespace rbar {

// hidden [B, new, D], the next tokens of every sequence -> spread [B, new]. `moments` is the stream:
// default-constructed at its beginning, moved on by every call. Errors: no tokens, another batch or width, a NaN or an
// infinity.
template <class T>
void relative_spread(std::type_identity_t<ConstTensorView<T, 3>> hidden, ContextMoments& moments,
                     Tensor<T, 2>& spread) {
  constexpr const char* where = "relative_spread";
  const Index batch = hidden.dimension(0), tokens = hidden.dimension(1), dim = hidden.dimension(2);
  require(hidden.size() > 0, where, "hidden", "at least one token", hidden.size());
  require_finite(where, "hidden", std::span(hidden.data(), static_cast<std::size_t>(hidden.size())));
  if (moments.seen == 0) moments.start(batch, dim);
  require_shape(where, "moments.mean (of the first call)", moments.mean, {batch, dim});
  ensure_shape(spread, {batch, tokens});
  parallel_for(batch, 1, [&](Index begin, Index end) {
    for (Index b = begin; b < end; ++b) {
      double* const mean = moments.mean.data() + b * dim;
      double deviation = moments.square_deviation(b);
      for (Index i = 0; i < tokens; ++i) {
        const T* state = hidden.data() + (b * tokens + i) * dim;
        const double count = static_cast<double>(moments.seen + i + 1);
        detail::absorb_key(state, state, dim, 1 / count, mean, deviation);
        const double total = deviation + count * detail::square_norm(mean, dim);  // Σ‖h‖² = M + n‖h̄‖²
        const bool alone = moments.seen + i == 0;
        spread(b, i) = static_cast<T>(alone ? 1 + 0 * total : total > 0 ? deviation / total : 0 * total);
      }
      moments.square_deviation(b) = deviation;
    }
  });
  moments.seen += tokens;
  require_finite(where, "spread (of hidden)", std::span<const T>(elements(spread)));
}

}  // namespace rbar
