// Sliding-window sums of phasors, for one block of features: tokens enter and leave one at a time, so the cost does not
// depend on the window.
//
// A float sum that is added to and subtracted from drifts (1e-3 after 65,536 tokens). Each sum is therefore kept with
// its rounding error, by Knuth's two-sum: about as exact as double, at the price of a few additions on ports that the
// polynomials leave idle. Everything here is laid out in rows of `feature_block` elements, so only x itself has tails.
#pragma once

#include "rbar/simd/phase.hpp"

#include <cmath>

namespace rbar::simd {

inline constexpr Index feature_block = 64;
static_assert(feature_block % lanes<float> == 0 && feature_block % lanes<double> == 0);

// Two running sums of vectors (over cos φ and sin φ, or over two gradients) with their errors.
template <class T>
struct RunningPair {
  alignas(64) T sum[2][feature_block] = {};
  alignas(64) T error[2][feature_block] = {};
};

namespace detail {

// sum + error += x (Knuth, TAOCP vol. 2, 4.2.2: exact without a condition on the magnitudes).
template <class T>
RBAR_INLINE void two_sum(Batch<T>& sum, Batch<T>& error, const Batch<T>& x) {
  const Batch<T> total = sum + x;
  const Batch<T> part = total - sum;
  error = error + ((sum - (total - part)) + (x - part));
  sum = total;
}

template <class T>
RBAR_INLINE Batch<T> total(const RunningPair<T>& pair, Index which, Index i) {
  return load(pair.sum[which] + i) + load(pair.error[which] + i);
}

}  // namespace detail

// running += entering − leaving; either may be null.
template <class T>
RBAR_NOINLINE void slide(RunningPair<T>& running, const T* entering, const T* leaving, Index features) {
  for (Index which = 0; which < 2; ++which)
    for (Index i = 0; i < features; i += lanes<T>) {
      Batch<T> sum = load(running.sum[which] + i), error = load(running.error[which] + i);
      if (entering) detail::two_sum(sum, error, load(entering + which * feature_block + i));
      if (leaving) detail::two_sum(sum, error, Batch<T>(-load(leaving + which * feature_block + i)));
      store(running.sum[which] + i, sum);
      store(running.error[which] + i, error);
    }
}

// Phasors of one token into a row cos φ | sin φ, or cos φ | sin φ | dφ/dx with the slope. Lanes past `features` are
// written too (as x = 0), so that nothing downstream reads what was never set.
template <bool with_slope, class T>
RBAR_NOINLINE void enter_phasors(const T* RBAR_RESTRICT x, Index features, T* RBAR_RESTRICT row) {
  detail::for_registers<T>(features, [&](Index i, Index n) {
    const Phasor<T> z = sigmoid_phase(detail::load_up_to(x + i, n));
    store(row + i, z.cosine);
    store(row + feature_block + i, z.sine);
    if constexpr (with_slope) store(row + 2 * feature_block + i, z.slope);
  });
}

// Σ over the block's features of the resultant length |Σ e^{iφ}| of the window (not yet divided by the count).
template <class T>
RBAR_NOINLINE double resultant_sum(const RunningPair<T>& window, Index features) {
  Batch<T> sum = zero<T>();
  double tail = 0;
  detail::for_registers<T>(features, [&](Index i, Index n) {
    const Batch<T> c = detail::total(window, 0, i), s = detail::total(window, 1, i);
    const Batch<T> length = xsimd::sqrt(multiply_add(c, c, s * s));
    if (n == lanes<T>) {
      sum = sum + length;
    } else {
      alignas(64) T buffer[lanes<T>];
      store(buffer, length);
      for (Index j = 0; j < n; ++j) tail += static_cast<double>(buffer[j]);
    }
  });
  return static_cast<double>(reduce_add(sum)) + tail;
}

// Gradient of weight·resultant_sum with respect to every phase of the window: dφ = cos φ·a − sin φ·b with
// a = weight·S/|Z|, b = weight·C/|Z|, Z = C + iS; 0 where Z = 0. Writes a | b.
template <class T>
RBAR_NOINLINE void resultant_gradient(const RunningPair<T>& window, T weight, Index features, T* row) {
  const Batch<T> scale = broadcast(weight), nothing = zero<T>();
  for (Index i = 0; i < features; i += lanes<T>) {
    const Batch<T> c = detail::total(window, 0, i), s = detail::total(window, 1, i);
    const Batch<T> length = xsimd::sqrt(multiply_add(c, c, s * s));
    const Batch<T> factor = xsimd::select(length == nothing, nothing, Batch<T>(scale / length));
    store(row + i, s * factor);
    store(row + feature_block + i, c * factor);
  }
}

// dx += dφ/dx·(cos φ·(a + token_a) − sin φ·(b + token_b)) for the token of this ring row, with a and b summed over
// the windows that hold it and token_a, token_b from its own resultant over all features.
template <class T>
RBAR_NOINLINE void add_window_gradient(const T* row, const RunningPair<T>& gradient, T token_a, T token_b,
                                       Index features, T* dx) {
  detail::for_registers<T>(features, [&](Index i, Index n) {
    const Batch<T> a = detail::total(gradient, 0, i) + broadcast(token_a);
    const Batch<T> b = detail::total(gradient, 1, i) + broadcast(token_b);
    const Batch<T> dphi = load(row + i) * a - load(row + feature_block + i) * b;
    const Batch<T> slope = load(row + 2 * feature_block + i);
    detail::store_up_to(dx + i, multiply_add(dphi, slope, detail::load_up_to(dx + i, n)), n);
  });
}

// Σ cos φ and Σ sin φ over the features of a ring row.
template <class T>
RBAR_NOINLINE PhaseSums block_phase_sums(const T* row, Index features) {
  PhaseSums total;
  Batch<T> cosine = zero<T>(), sine = zero<T>();
  detail::for_registers<T>(features, [&](Index i, Index n) {
    cosine = cosine + detail::load_up_to(row + i, n);
    sine = sine + detail::load_up_to(row + feature_block + i, n);
  });
  total.cosine = static_cast<double>(reduce_add(cosine));
  total.sine = static_cast<double>(reduce_add(sine));
  return total;
}

}  // namespace rbar::simd
