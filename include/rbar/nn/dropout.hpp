// Dropout (Srivastava et al., JMLR 15, 2014): an element is kept with probability 1 − p and then
// divided by that probability, so that the mean is preserved; outside training it is the identity.
// Element n's fate is a function of (seed, step, stream, n) alone: the backward pass draws the same
// mask again instead of reading a stored one, and threads do not change it.
#pragma once

#include "rbar/core/parallel.hpp"
#include "rbar/core/philox.hpp"
#include "rbar/core/tensor.hpp"
#include "rbar/simd/phase.hpp"

#include <algorithm>
#include <cstdint>

namespace rbar {

// Part of a model's cache. The trainer activates it and counts the steps.
struct DropoutState {
  bool active = false;
  std::uint64_t seed = 0, step = 0;
};

namespace detail {

// Fates are drawn with 16 bits: one Philox block of 128 bits decides eight elements.
inline constexpr Index dropout_elements_per_block = 8;
inline constexpr Index dropout_group = dropout_elements_per_block * static_cast<Index>(philox_batch);

// fates[8·i … 8·i + 7] are the halves of the four words of Philox block first + i.
inline void dropout_fates(std::uint64_t seed, std::uint64_t stream, std::uint64_t first, std::uint16_t* fates) {
  std::uint32_t words[4][philox_batch];
  philox_blocks(seed, stream, first, words);
  for (std::size_t i = 0; i < philox_batch; ++i)
    for (std::size_t w = 0; w < 4; ++w) {
      fates[8 * i + 2 * w] = static_cast<std::uint16_t>(words[w][i]);
      fates[8 * i + 2 * w + 1] = static_cast<std::uint16_t>(words[w][i] >> 16);
    }
}

inline bool dropout_applies(double probability, const DropoutState& state) {
  require(probability >= 0 && probability < 1, "dropout", "probability", "0 <= p < 1", probability);
  return state.active && probability > 0;
}

// body(first, count, factors) over all elements in groups; a factor is 0 or 1/(1 − p).
template <class T, class Body>
void for_each_dropped(double probability, const DropoutState& state, std::uint64_t stream, Index size, Body&& body) {
  // p in units of 2⁻¹⁶, at least one value kept; the scale uses the rounded p and is exactly unbiased.
  const auto dropped = static_cast<std::uint32_t>(std::min(probability * 65536 + 0.5, 65535.0));
  const T keep_scale = static_cast<T>(65536.0 / (65536.0 - dropped));
  parallel_for(size, 16 * dropout_group, [&](Index begin, Index end) {
    const auto threshold = dropped;  // copies, or every store could change what the capture refers to
    const T keep = keep_scale;
    alignas(64) std::uint16_t fates[static_cast<std::size_t>(dropout_group)];
    alignas(64) T factors[static_cast<std::size_t>(dropout_group)];
    for (Index first = begin; first < end; first += dropout_group) {
      dropout_fates(state.seed, (state.step << 16) ^ stream,
                    static_cast<std::uint64_t>(first / dropout_elements_per_block), fates);
      for (Index i = 0; i < dropout_group; ++i) factors[i] = fates[i] < threshold ? T(0) : keep;
      body(first, std::min(dropout_group, end - first), factors);
    }
  });
}

}  // namespace detail

// x ∘ mask/(1 − p) in place. Its own transpose: the backward pass is the same call on dx. Two places
// of a model must use two streams (below 65536, steps lie above). Errors: p outside [0, 1).
template <class T>
void dropout(double probability, const DropoutState& state, std::uint64_t stream, MatrixView<T> x) {
  if (!detail::dropout_applies(probability, state)) return;
  detail::for_each_dropped<T>(probability, state, stream, x.size(), [&](Index first, Index count, const T* factors) {
    T* RBAR_RESTRICT data = x.data() + first;
    for (Index i = 0; i < count; ++i) data[i] *= factors[i];
  });
}

// The residual branch in one pass: y = x + dropout(branch). Errors: different sizes.
template <class T>
void add_with_dropout(double probability, const DropoutState& state, std::uint64_t stream, ConstMatrixView<T> x,
                      ConstMatrixView<T> branch, MatrixView<T> y) {
  require_shape("add_with_dropout", "branch", branch, {x.rows(), x.cols()});
  require_shape("add_with_dropout", "y", y, {x.rows(), x.cols()});
  const T* from = x.data();
  const T* added = branch.data();
  T* to = y.data();
  if (detail::dropout_applies(probability, state)) {
    detail::for_each_dropped<T>(probability, state, stream, x.size(), [=](Index first, Index count, const T* factors) {
      for (Index n = first; n < first + count; ++n) to[n] = from[n] + added[n] * factors[n - first];
    });
  } else {
    parallel_for(x.size(), 16384, [=](Index begin, Index end) {
      simd::detail::for_registers<T>(end - begin, [=](Index i, Index count) {
        const Index n = begin + i;
        simd::detail::store_up_to(
            to + n, simd::detail::load_up_to(from + n, count) + simd::detail::load_up_to(added + n, count), count);
      });
    });
  }
}

}  // namespace rbar
