// Sliding-window sums of phasors, for one block of features: tokens enter and leave one at a time, so the cost does not
// depend on the window.
//
// A float sum that is added to and subtracted from drifts (1e-3 after 65,536 tokens). Sums of phasors are therefore
// sums of integers, which are exact: a coordinate in [−1, 1] is a multiple of 2⁻²². Gradients have no such bounds; each
// of their sums is kept with its rounding error, by Knuth's two-sum, about as exact as double. Everything here is laid
// out in rows of `feature_block` elements, so only x itself has tails.
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

// The sums over a window of cos φ and of sin φ. In float as integers of 2⁻²²: high·2¹¹ + low with low in [0, 2¹¹),
// which holds windows of 2²⁰ tokens. Only gradient checks run in double, where a plain sum is good enough.
inline constexpr Index largest_window = Index{1} << 20;
template <class T>
struct WindowSums {
  alignas(64) T sum[2][feature_block] = {};
};
template <>
struct WindowSums<float> {
  alignas(64) std::int32_t high[2][feature_block] = {};
  alignas(64) std::int32_t low[2][feature_block] = {};
};

namespace detail {

// How a coordinate z is kept while its token is in the window. In float as 3 + z, which is in [2, 4]: there the bits of
// a float count 2⁻²² each.
RBAR_INLINE Batch<float> window_entry(const Batch<float>& z) { return z + broadcast(3.0f); }
RBAR_INLINE Batch<double> window_entry(const Batch<double>& z) { return z; }

// sums += entering − leaving, and the sum.
RBAR_INLINE Batch<float> slide_sum(WindowSums<float>& sums, Index which, Index i, const Batch<float>& entering,
                                   const Batch<float>& leaving) {
  using Integers = Batch<std::int32_t>;
  std::int32_t *high_at = sums.high[which] + i, *low_at = sums.low[which] + i;
  const Integers difference = Integers::load_aligned(low_at) + (to_bits(entering) - to_bits(leaving));
  const Integers high = Integers::load_aligned(high_at) + (difference >> 11), low = difference & Integers(2047);
  high.store_aligned(high_at);
  low.store_aligned(low_at);
  return multiply_add(xsimd::to_float(high), broadcast(0x1p-11f), xsimd::to_float(low) * broadcast(0x1p-22f));
}
RBAR_INLINE Batch<double> slide_sum(WindowSums<double>& sums, Index which, Index i, const Batch<double>& entering,
                                    const Batch<double>& leaving) {
  const Batch<double> sum = load(sums.sum[which] + i) + (entering - leaving);
  store(sums.sum[which] + i, sum);
  return sum;
}

}  // namespace detail

// The phasors of one token into a row of window entries, cosines | sines, and their sums over the features. A token
// with a NaN has NaN sums and an empty row, so that its phasors do not stay in the window's sums for ever.
template <class T>
RBAR_NOINLINE PhaseSums enter_window(const T* RBAR_RESTRICT x, Index features, T* RBAR_RESTRICT row) {
  PhaseSums total;
  Batch<T> cosine = zero<T>(), sine = zero<T>();
  detail::for_phasors(x, features, detail::SigmoidPhase{}, [&](Index i, Index n, const Phasor<T>& z) {
    store(row + i, detail::window_entry(z.cosine));
    store(row + feature_block + i, detail::window_entry(z.sine));
    if (n == lanes<T>) {
      cosine = cosine + z.cosine;
      sine = sine + z.sine;
    } else {
      alignas(64) T c[lanes<T>], s[lanes<T>];
      store(c, z.cosine);
      store(s, z.sine);
      for (Index j = 0; j < n; ++j) {
        total.cosine += static_cast<double>(c[j]);
        total.sine += static_cast<double>(s[j]);
      }
    }
  });
  total.cosine += static_cast<double>(reduce_add(cosine));
  total.sine += static_cast<double>(reduce_add(sine));
  if (total.cosine != total.cosine)
    for (Index i = 0; i < 2 * feature_block; i += lanes<T>) store(row + i, detail::window_entry(zero<T>()));
  return total;
}

// Moves the window by a token, `leaving` null where none leaves. Returns Σ over the block's features of the resultant
// length |Σ e^{iφ}| of the window (not yet divided by the count).
template <class T>
RBAR_NOINLINE double slide_window(WindowSums<T>& window, const T* entering, const T* leaving, Index features) {
  Batch<T> sum = zero<T>();
  double tail = 0;
  const Batch<T> nothing = detail::window_entry(zero<T>());
  detail::for_registers<T>(features, [&](Index i, Index n) {
    const auto coordinate = [&](Index which) {
      const Index at = which * feature_block + i;
      return detail::slide_sum(window, which, i, load(entering + at), leaving ? load(leaving + at) : nothing);
    };
    const Batch<T> c = coordinate(0), s = coordinate(1);
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

// --- backward -----------------------------------------------------------------------------------

// Phasors of one token into a row cos φ | sin φ | dφ/dx. Lanes past `features` are written too (as x = 0), so that
// nothing downstream reads what was never set.
template <class T>
RBAR_NOINLINE void enter_phasors(const T* RBAR_RESTRICT x, Index features, T* RBAR_RESTRICT row) {
  detail::for_phasors(x, features, detail::SigmoidPhase{}, [&](Index i, Index, const Phasor<T>& z) {
    store(row + i, z.cosine);
    store(row + feature_block + i, z.sine);
    store(row + 2 * feature_block + i, z.slope);
  });
}

// Gradient of weight·Σ|Σ e^{iφ}| with respect to every phase of the window: dφ = cos φ·a − sin φ·b with
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

}  // namespace rbar::simd
