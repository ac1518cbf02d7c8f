// Depthwise causal convolution along a sequence with the SiLU that follows it, for one block of channels:
//   v_t = b + Σ_k w_k x_{t−(K−1)+k},   y_t = v_t σ(v_t),     K taps a channel, the last on the token itself
// (the short convolution of Mamba, arXiv:2312.00752, fig. 3).
#pragma once

#include "rbar/simd/math.hpp"
#include "rbar/simd/phase.hpp"

#include <algorithm>

namespace rbar::simd {

inline constexpr Index conv_channels = 64;  // of a block
inline constexpr Index max_conv_taps = 16;

// One block of channels of one sequence. x's rows before the first token are `history`'s K − 1, or zeros if null.
template <class T>
struct ConvBlock {
  Index tokens, channels, taps;  // channels <= conv_channels
  const T* weight;               // [channels, taps]
  const T* bias;                 // [channels]
  const T* input;                // x [tokens, ·]
  Index input_stride;
  const T* history;  // [taps − 1, ·]
  Index history_stride;
};

namespace detail {

template <class T>
struct ConvTaps {
  alignas(64) T weight[max_conv_taps][conv_channels] = {};
  alignas(64) T bias[conv_channels] = {};

  explicit ConvTaps(const ConvBlock<T>& block) {
    for (Index c = 0; c < block.channels; ++c) {
      for (Index k = 0; k < block.taps; ++k) weight[k][c] = block.weight[c * block.taps + k];
      bias[c] = block.bias[c];
    }
  }
};

// Rows x_{t−(K−1)} … x_t; null where there is none.
template <class T>
RBAR_INLINE void conv_rows(const ConvBlock<T>& block, Index t, const T* (&row)[max_conv_taps]) {
  for (Index k = 0; k < block.taps; ++k) {
    const Index from = t - (block.taps - 1) + k;
    row[k] = from >= 0       ? block.input + from * block.input_stride
             : block.history ? block.history + (from + block.taps - 1) * block.history_stride
                             : nullptr;
  }
}

template <class T>
RBAR_INLINE Batch<T> conv_at(const ConvTaps<T>& taps, const T* const (&row)[max_conv_taps], Index count, Index i,
                             Index n) {
  Batch<T> v = load(taps.bias + i);
  for (Index k = 0; k < count; ++k)
    if (row[k]) v = multiply_add(load(taps.weight[k] + i), load_up_to(row[k] + i, n), v);
  return v;
}

}  // namespace detail

template <class T>
RBAR_NOINLINE void causal_conv(const ConvBlock<T>& block, T* output, Index stride) {
  const detail::ConvTaps<T> taps(block);
  const T* row[max_conv_taps];
  for (Index t = 0; t < block.tokens; ++t) {
    detail::conv_rows(block, t, row);
    detail::for_registers<T>(block.channels, [&](Index i, Index n) {
      const Batch<T> v = detail::conv_at(taps, row, block.taps, i, n);
      detail::store_up_to(output + t * stride + i, v / (exp(-v) + broadcast(T(1))), n);
    });
  }
}

// Adds to dweight [channels, taps] and dbias [channels]; overwrites dinput, whose stride is the input's. No history.
template <class T>
RBAR_NOINLINE void causal_conv_backward(const ConvBlock<T>& block, const T* doutput, Index stride, T* dinput,
                                        T* dweight, T* dbias) {
  constexpr Index tokens_a_sum = 128;  // float sums start anew, which keeps them accurate over many tokens
  const detail::ConvTaps<T> taps(block);
  const Batch<T> one = broadcast(T(1));
  const Index count = block.taps;
  alignas(64) T weight_sum[max_conv_taps][conv_channels], bias_sum[conv_channels];
  alignas(64) T later[max_conv_taps][conv_channels] = {};  // dv of token t in row t % taps; zeros after the last
  const T* row[max_conv_taps];
  for (Index end = block.tokens; end > 0; end -= std::min(end, tokens_a_sum)) {
    std::fill_n(&weight_sum[0][0], count * conv_channels, T(0));
    std::fill_n(bias_sum, conv_channels, T(0));
    for (Index t = end - 1; t >= std::max<Index>(0, end - tokens_a_sum); --t) {
      detail::conv_rows(block, t, row);
      detail::for_registers<T>(block.channels, [&](Index i, Index n) {
        const Batch<T> v = detail::conv_at(taps, row, count, i, n), gate = one / (exp(-v) + one);
        const Batch<T> slope = gate * multiply_add(v, one - gate, one);
        const Batch<T> dv = slope * detail::load_up_to(doutput + t * stride + i, n);
        store(later[t % count] + i, dv);
        store(bias_sum + i, load(bias_sum + i) + dv);
        Batch<T> dx = zero<T>();
        for (Index k = 0; k < count; ++k) {
          T* sum = weight_sum[k] + i;
          if (row[k]) store(sum, multiply_add(dv, detail::load_up_to(row[k] + i, n), load(sum)));
          // x_t is tap k of token t + K − 1 − k.
          dx = multiply_add(load(taps.weight[k] + i), load(later[(t + count - 1 - k) % count] + i), dx);
        }
        detail::store_up_to(dinput + t * block.input_stride + i, dx, n);
      });
    }
    for (Index c = 0; c < block.channels; ++c) {
      for (Index k = 0; k < count; ++k) dweight[c * count + k] += weight_sum[k][c];
      dbias[c] += bias_sum[c];
    }
  }
}

}  // namespace rbar::simd
