// Sliding-window sums of phasors, for one block of features: tokens enter and leave one at a time, so the cost does not
// depend on the window.
//
// A float sum that is added to and subtracted from drifts (1e-3 after 65,536 tokens). Sums of phasors are therefore
// sums of integers, which are exact: a coordinate in [−1, 1] is a multiple of 2⁻²². Gradients have no such bounds; each
// of their sums is kept with its rounding error, by Knuth's two-sum, about as exact as double. Everything here is laid
// out in rows of `feature_block` elements, so only x itself has tails.
#pragma once

#include "rbar/simd/phase.hpp"

#include <array>

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

// One register of the sums, while tokens pass.
template <class T>
struct SlidingSum {
  Batch<T> sum;
  SlidingSum(const WindowSums<T>& sums, Index which, Index i) : sum(load(sums.sum[which] + i)) {}
  RBAR_INLINE void keep(WindowSums<T>& sums, Index which, Index i) const { store(sums.sum[which] + i, sum); }
  RBAR_INLINE Batch<T> slide(const Batch<T>& entering, const Batch<T>& leaving) {
    return sum = sum + (entering - leaving);
  }
};
template <>
struct SlidingSum<float> {
  using Integers = Batch<std::int32_t>;
  Integers high, low;
  SlidingSum(const WindowSums<float>& sums, Index which, Index i)
      : high(Integers::load_aligned(sums.high[which] + i)), low(Integers::load_aligned(sums.low[which] + i)) {}
  RBAR_INLINE void keep(WindowSums<float>& sums, Index which, Index i) const {
    high.store_aligned(sums.high[which] + i);
    low.store_aligned(sums.low[which] + i);
  }
  RBAR_INLINE Batch<float> slide(const Batch<float>& entering, const Batch<float>& leaving) {
    const Integers sum = low + (to_bits(entering) - to_bits(leaving));
    high = high + (sum >> 11);
    low = sum & Integers(2047);
    return multiply_add(xsimd::to_float(high), broadcast(0x1p-11f), xsimd::to_float(low) * broadcast(0x1p-22f));
  }
};

}  // namespace detail

template <class T>
inline constexpr std::array<T, lanes<T>> lane_ones = [] {
  std::array<T, lanes<T>> ones{};
  ones.fill(T(1));
  return ones;
}();

// Tokens pass in groups: each part of the work is then long enough to keep a core busy.
inline constexpr Index window_group = 8;

// Rows of a ring that a group enters and leaves; a leaving row is null where nothing leaves.
template <class T>
struct WindowRows {
  T* entering[window_group];
  const T* leaving[window_group];
};

// The phasors of `count` <= window_group tokens into their entering rows, cosines | sines, and each token's sums over
// the features. A token with a NaN has NaN sums and an empty row, so that it does not stay in the window's sums for
// ever.
template <class T>
RBAR_NOINLINE void enter_window(const T* RBAR_RESTRICT x, Index stride, Index count, Index features,
                                const WindowRows<T>& rows, PhaseSums* sums) {
  alignas(64) T prepared[window_group][feature_block];
  const detail::SigmoidPhase phase;
  for (Index k = 0; k < count; ++k) phase.prepare(x + k * stride, features, prepared[k]);
  for (Index k = 0; k < count; ++k) {
    T* row = rows.entering[k];
    Batch<T> cosine = zero<T>(), sine = zero<T>();
    PhaseSums tail;
    detail::for_registers<T>(features, [&](Index i, Index n) {
      const Phasor<T> z = phase.template phasor<T>(detail::load_up_to(prepared[k] + i, n));
      store(row + i, detail::window_entry(z.cosine));
      store(row + feature_block + i, detail::window_entry(z.sine));
      if (n == lanes<T>) {
        cosine = cosine + z.cosine;
        sine = sine + z.sine;
        return;
      }
      alignas(64) T c[lanes<T>], s[lanes<T>];
      store(c, z.cosine);
      store(s, z.sine);
      for (Index j = 0; j < n; ++j) {
        tail.cosine += static_cast<double>(c[j]);
        tail.sine += static_cast<double>(s[j]);
      }
    });
    sums[k].cosine = tail.cosine + static_cast<double>(reduce_add(cosine));
    sums[k].sine = tail.sine + static_cast<double>(reduce_add(sine));
    if (sums[k].cosine != sums[k].cosine)
      for (Index i = 0; i < 2 * feature_block; i += lanes<T>) store(row + i, detail::window_entry(zero<T>()));
  }
}

// Moves the window over the group's tokens. resultant[k] is Σ over the block's features of the length |Σ e^{iφ}| of
// token k's window (not yet divided by the count).
template <class T>
RBAR_NOINLINE void slide_window(WindowSums<T>& window, const WindowRows<T>& rows, Index count, Index features,
                                double* resultant) {
  constexpr Index L = lanes<T>;
  alignas(64) T lengths[window_group][L] = {}, outside[L];
  store(outside, detail::window_entry(zero<T>()));
  detail::for_registers<T>(features, [&](Index i, Index n) {
    detail::SlidingSum<T> cosine(window, 0, i), sine(window, 1, i);
    // Lanes past the features would count as x = 0.
    const Batch<T> counts = n == L ? broadcast(T(1)) : load_partial(lane_ones<T>.data(), n);
    for (Index k = 0; k < count; ++k) {
      const T *in = rows.entering[k] + i, *out = rows.leaving[k];
      const Batch<T> c = cosine.slide(load(in), load(out ? out + i : outside));
      const Batch<T> s = sine.slide(load(in + feature_block), load(out ? out + feature_block + i : outside));
      const Batch<T> length = xsimd::sqrt(multiply_add(c, c, s * s));
      store(lengths[k], multiply_add(counts, length, load(lengths[k])));
    }
    cosine.keep(window, 0, i);
    sine.keep(window, 1, i);
  });
  for (Index k = 0; k < count; ++k) resultant[k] = static_cast<double>(reduce_add(load(lengths[k])));
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
