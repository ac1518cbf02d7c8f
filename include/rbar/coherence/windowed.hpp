// Local coherence: per feature d, over a window W(t) of n_t tokens,
//   Z[t,d] = Σ_{k in W(t)} e^{iφ[k,d]},   R̄_local[t] = 1/D · Σ_d |Z[t,d]| / n_t,
// with tokens sliding in and out of Z, so that no cost depends on the window. Internals of phase_coherence.hpp.
//
// A task is one sequence × one block of features, and keeps the phasors of its window alone in a ring buffer.
#pragma once

#include "rbar/coherence/config.hpp"
#include "rbar/core/parallel.hpp"
#include "rbar/simd/window.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace rbar::detail {

static_assert(largest_coherence_window <= simd::largest_window);

// Windows over the tokens 0 … T−1. Causal: {t−w+1 … t} as far as it exists. Reference: {t−left … t+right}, numbers
// outside the sequence standing for its first or last token.
struct TokenWindows {
  Index tokens, window, left;
  bool replicate;

  TokenWindows(const CoherenceConfig& config, Index tokens_)
      : tokens(tokens_),
        window(config.window),
        left(config.window - 1),
        replicate(config.causality == Causality::reference) {
    if (replicate)
      left = (window - 1) / 2;
    else
      left = (window = std::min(window, tokens)) - 1;  // a longer causal window is the same one
  }
  Index clamp(Index token) const { return std::clamp(token, Index{0}, tokens - 1); }
  // Tokens in the window of `token`, padding included.
  Index count(Index token) const { return replicate ? window : std::min(token + 1, window); }
  Index slots() const { return std::min(window + simd::window_group, tokens); }  // tokens alive at once
};

inline Index feature_blocks(Index features) { return (features + simd::feature_block - 1) / simd::feature_block; }

// Elements of hidden that make a chunk worth a thread.
inline constexpr Index coherence_chunk = 16384;
inline Index rows_per_chunk(Index row_size) {
  return std::max(Index{1}, coherence_chunk / std::max(row_size, Index{1}));
}

// What a block of features contributes to a token.
struct BlockCoherence {
  double resultant;     // Σ_d |Z[t,d]| / n_t
  double cosine, sine;  // Σ_d e^{iφ[t,d]}
};

// Runs body(sequence, block, first feature, features) over all tasks.
template <class Body>
void for_feature_blocks(Index batch, Index tokens, Index features, Body&& body) {
  const Index blocks = feature_blocks(features);
  parallel_for(batch * blocks, rows_per_chunk(tokens * simd::feature_block), [&](Index begin, Index end) {
    for (Index task = begin; task < end; ++task) {
      const Index first = task % blocks * simd::feature_block;
      body(task / blocks, task % blocks, first, std::min(simd::feature_block, features - first));
    }
  });
}

// A task's window while tokens enter and leave.
template <class T>
struct MovingWindow {
  simd::WindowSums<T> sums;
  Index last_nan = -1;  // the last entry with a NaN, which makes the windows that hold it NaN

  // Σ_d |Z_d| of the window that ends at entry i.
  double checked(double resultant, Index i, Index window) const {
    return last_nan > i - window && last_nan >= 0 ? std::numeric_limits<double>::quiet_NaN() : resultant;
  }
};

// One task, causal: `count` new tokens after the `seen` that z and the ring know of. Forward is a step from nothing,
// so streaming has the bits of the whole sequence. ring: [slots, 2, feature_block], slots ≥ window + window_group or
// all tokens.
template <class T>
void windowed_step(const T* x, Index stride, Index features, Index seen, Index count, Index window, Index slots,
                   T* ring, MovingWindow<T>& z, BlockCoherence* out) {
  const auto row = [&](Index token) { return ring + token % slots * 2 * simd::feature_block; };
  for (Index begin = 0; begin < count; begin += simd::window_group) {
    const Index size = std::min(simd::window_group, count - begin);
    simd::WindowRows<T> rows;
    for (Index next = begin + simd::window_group; next < std::min(count, begin + 2 * simd::window_group); ++next)
      simd::prefetch_row(x + next * stride, features);
    for (Index k = 0; k < size; ++k) {
      const Index t = seen + begin + k;
      rows.entering[k] = row(t);
      rows.leaving[k] = t >= window ? row(t - window) : nullptr;
    }
    simd::PhaseSums sums[simd::window_group];
    double resultants[simd::window_group];
    simd::enter_window(x + begin * stride, stride, size, features, rows, sums);
    simd::slide_window(z.sums, rows, size, features, resultants);
    for (Index k = 0; k < size; ++k) {
      const Index t = seen + begin + k;
      if (std::isnan(sums[k].cosine)) z.last_nan = t;
      const double resultant = z.checked(resultants[k], t, window);
      out[begin + k] = {resultant / static_cast<double>(std::min(t + 1, window)), sums[k].cosine, sums[k].sine};
    }
  }
}

// One task, reference windows: entry i of the padded sequence is token i − left.
template <class T>
void windowed_reference(const T* x, Index stride, Index features, const TokenWindows& windows, T* ring,
                        BlockCoherence* out) {
  const Index w = windows.window;
  const auto row = [&](Index token) { return ring + windows.clamp(token) % windows.slots() * 2 * simd::feature_block; };
  MovingWindow<T> z;
  Index entered = 0, nan_token = -1;
  for (Index i = 0; i < windows.tokens + w - 1; ++i) {
    const Index token = i - windows.left, t = i - w + 1;
    const simd::WindowRows<T> rows{{row(token)}, {i >= w ? row(token - w) : nullptr}};
    if (windows.clamp(token) == entered) {
      simd::PhaseSums sums;
      simd::enter_window(x + entered * stride, stride, 1, features, rows, &sums);
      if (std::isnan(sums.cosine)) nan_token = entered;
      out[entered] = {0, sums.cosine, sums.sine};
      ++entered;
    }
    if (windows.clamp(token) == nan_token) z.last_nan = i;
    double resultant;
    simd::slide_window(z.sums, rows, 1, features, &resultant);
    if (t >= 0) out[t].resultant = z.checked(resultant, i, w) / static_cast<double>(w);
  }
}

// One task backward, last token first: token k is in the windows t = k … k+w−1 (k − right … k + left), so both Z and
// the sum of the windows' gradients slide backwards together, and each phasor is computed once.
//   phasors: [slots, 3, feature_block], gradients: [slots, 2, feature_block],
//   weight(t): ∂loss/∂|Z[t,·]|; token_gradient(k): what the token's own resultant adds (a, b).
template <class T, class Weight, class TokenGradient>
void windowed_backward(const T* x, Index stride, Index features, const TokenWindows& windows, T* phasors, T* gradients,
                       Weight&& weight, TokenGradient&& token_gradient, T* dx) {
  using namespace simd;
  const Index w = windows.window, left = windows.left, tokens = windows.tokens, slots = windows.slots();
  const auto phasor_row = [&](Index token) { return phasors + windows.clamp(token) % slots * 3 * feature_block; };
  const auto gradient_row = [&](Index t) { return gradients + t % slots * 2 * feature_block; };
  RunningPair<T> z, gradient;
  Index entered = tokens;
  const Index last = windows.replicate ? 1 - w : 0;
  for (Index t = tokens + w - 2; t >= last; --t) {
    // Z of window t is entries t … t+w−1 of the padded sequence (token = entry − left).
    if (t >= 0) {
      const bool enters = windows.replicate || t >= left, leaves = t + w <= tokens + w - 2;
      if (enters && windows.clamp(t - left) < entered) {
        entered = windows.clamp(t - left);
        enter_phasors(x + entered * stride, features, phasor_row(entered));
      }
      slide<T>(z, enters ? phasor_row(t - left) : nullptr, leaves ? phasor_row(t - left + w) : nullptr, features);
    }
    if (t >= tokens) continue;
    if (t >= 0) resultant_gradient(z, weight(t), features, gradient_row(t));
    slide<T>(gradient, t >= 0 ? gradient_row(t) : nullptr, t + w < tokens ? gradient_row(t + w) : nullptr, features);
    const Index token = t + w - 1 - left, k = windows.clamp(token);
    const auto [a, b] = token == k ? token_gradient(k) : std::pair<T, T>{};  // once a token
    add_window_gradient(phasor_row(k), gradient, a, b, features, dx + k * stride);
  }
}

}  // namespace rbar::detail
