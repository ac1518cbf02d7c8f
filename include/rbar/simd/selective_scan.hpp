// The selective scan of a state-space model, a few registers of channels at a time: each channel of a sequence drives
// S states of its own, which decay at a rate that the step size Δ_t, made from the token, scales,
//   Δ_t = softplus(r_t),   h_t = exp(Δ_t A)∘h_{t−1} + Δ_t u_t B_t,   y_t = C_t·h_t + D u_t,   out_t = y_t SiLU(z_t),
// with A = −exp(A_log) < 0 a channel and state, B_t and C_t [S] shared by all channels (Gu, Dao, "Mamba: Linear-Time
// Sequence Modeling with Selective State Spaces", arXiv:2312.00752, eq. 2 with the step-size rule of its §3.6).
//
// Lanes are channels: the recurrence, y's sum over the states and Δ's gradient are then vertical, and only the
// gradients of B and C, which sum over channels, cross lanes. Tokens go in chunks. Forward keeps the state at each
// chunk's border alone; backward runs a chunk's recurrence again, from the last chunk to the first. Within a chunk a
// group of states stays in registers over all tokens. A scan parallel in time would compute every exponential twice,
// and batch × channels is parallel enough.
#pragma once

#include "rbar/simd/math.hpp"
#include "rbar/simd/phase.hpp"
#include "rbar/simd/transpose.hpp"

#include <algorithm>
#include <numbers>

namespace rbar::simd {

inline constexpr Index scan_channels = 64;  // of a block: what one call works on, and the width of its scratch rows
inline constexpr Index scan_tokens = 32;    // of a chunk
inline constexpr Index scan_group = 4;      // states in registers together
static_assert(scan_channels % lanes<float> == 0 && scan_channels % lanes<double> == 0);

// softplus(r) = log(1 + e^r) and its slope σ(r), without overflow: max(r, 0) + log(1 + e), e = e^−|r|.
template <class T>
struct Softplus {
  Batch<T> value, slope;
};
RBAR_INLINE Softplus<float> softplus(const Batch<float>& r) {
  const Batch<float> one = broadcast(1.0f), e = exp(-xsimd::abs(r));
  // log(1 + e) = 2·artanh(s), s = e/(2 + e) in (0, ⅓]: an odd polynomial, relative error 5e-9 before rounding.
  const Batch<float> s = e / (e + broadcast(2.0f)), square = s * s;
  Batch<float> p = broadcast(0.1400599628686905f);
  p = multiply_add(p, square, broadcast(0.14000901579856873f));
  p = multiply_add(p, square, broadcast(0.2001076340675354f));
  p = multiply_add(p, square, broadcast(0.3333320915699005f));
  p = multiply_add(p, square, one);
  return {multiply_add(s + s, p, max(zero<float>(), r)), xsimd::select(r < zero<float>(), e, one) / (one + e)};
}
RBAR_INLINE Softplus<double> softplus(const Batch<double>& r) {
  const Batch<double> one = broadcast(1.0), e = exp(-xsimd::abs(r));
  return {max(zero<double>(), r) + xsimd::log1p(e), xsimd::select(r < zero<double>(), e, one) / (one + e)};
}

// One block of channels of one sequence. Pointers are to its first channel at the first token.
template <class T>
struct ScanBlock {
  Index tokens, channels, states;               // channels <= scan_channels
  const T* log_rate;                            // A_log [channels, states]
  const T* skip;                                // D [channels]
  const T* step;                                // r [tokens, ·]
  const T* input;                               // u [tokens, ·]
  const T* gate;                                // z [tokens, ·]
  const T* selection;                           // B | C [tokens, 2·states]
  Index stride, gate_stride, selection_stride;  // elements from token to token; `stride` of r, u, y and out
};
template <class T>
struct ScanGradient {
  T* step;       // dr, by the block's strides
  T* input;      // du; may be where dout is
  T* gate;       // dz
  T* selection;  // dB | dC of these channels [tokens, 2·states], dense
  T* log_rate;   // dA_log [states, scan_channels]
  T* skip;       // dD [scan_channels]
};

// A block's state is [states, scan_channels], channels padded with zeros.
inline Index scan_state_size(Index states) { return states * scan_channels; }
inline Index scan_chunks(Index tokens) { return (tokens + scan_tokens - 1) / scan_tokens; }

// Scratch of one call: rows of scan_channels, one a token of the chunk or one a state.
template <class T>
struct ScanScratch {
  T *rate, *carry, *drate;              // a state: A·log₂e; backward: exp(Δ A)∘dh of the next token, Σ da·a·Δ
  T *step, *drive, *output;             // a token: Δ, Δu and y
  T *slope, *doutput, *dstep, *ddrive;  // σ(r), dy, Σ da·a·A and Σ dh·B over the states
  T *kept_states, *decays, *lane_sums;  // a group of states in one register of channels, token by token

  static Index size(Index states) { return 3 * scan_state_size(states) + 7 * token_rows + 4 * group_rows + group_row; }
  ScanScratch(T* memory, Index states) {
    const auto take = [&](Index count) {
      memory += count;
      return memory - count;
    };
    for (T** part : {&rate, &carry, &drate}) *part = take(scan_state_size(states));
    for (T** part : {&step, &drive, &output, &slope, &doutput, &dstep, &ddrive}) *part = take(token_rows);
    kept_states = take(group_rows + group_row);
    decays = take(group_rows);
    lane_sums = take(2 * group_rows);
  }

 private:
  static constexpr Index group_row = scan_group * lanes<T>;
  static constexpr Index token_rows = scan_tokens * scan_channels, group_rows = scan_tokens * group_row;
};

namespace detail {

// rate = −exp(A_log)·log₂e, transposed; zero beyond the channels.
template <class T>
RBAR_NOINLINE void scan_rates(const ScanBlock<T>& block, T* rate) {
  std::fill_n(rate, scan_state_size(block.states), T(0));
  const Batch<T> scale = broadcast(-std::numbers::log2e_v<T>);
  alignas(64) T buffer[lanes<T>];
  for (Index c = 0; c < block.channels; ++c)
    for_registers<T>(block.states, [&](Index s, Index n) {
      store(buffer, scale * exp(load_up_to(block.log_rate + c * block.states + s, n)));
      for (Index i = 0; i < n; ++i) rate[(s + i) * scan_channels + c] = buffer[i];
    });
}

// body(register's first channel, how many it has) over the block's registers; all of them lie in padded rows.
template <class T, class Body>
RBAR_INLINE void for_scan_registers(Index channels, Body&& body) {
  for (Index i = 0; i < channels; i += lanes<T>) body(i, std::min(channels - i, lanes<T>));
}

// body<group>(first state) over all states: whole groups, then one at a time.
template <class Body>
RBAR_INLINE void for_state_groups(Index states, Body&& body) {
  Index s = 0;
  for (; s + scan_group <= states; s += scan_group) body.template operator()<scan_group>(s);
  for (; s < states; ++s) body.template operator()<1>(s);
}

// A group of states through a chunk, y += C·h; `channel` is a register's first. B and C of the first token at `b`, `c`.
template <Index group, class T>
RBAR_NOINLINE void scan_states(const ScanScratch<T>& scratch, Index tokens, Index channel, Index first, const T* b,
                               const T* c, Index stride, T* state) {
  Batch<T> rate[group], h[group];
  RBAR_UNROLL
  for (Index s = 0; s < group; ++s) {
    rate[s] = load(scratch.rate + (first + s) * scan_channels + channel);
    h[s] = load(state + (first + s) * scan_channels + channel);
  }
  b += first, c += first;
  for (Index t = 0; t < tokens; ++t, b += stride, c += stride) {
    const Index at = t * scan_channels + channel;
    const Batch<T> step = load(scratch.step + at), drive = load(scratch.drive + at);
    Batch<T> y = load(scratch.output + at);
    Batch<T> a[group];
    RBAR_UNROLL
    for (Index s = 0; s < group; ++s) a[s] = step * rate[s];
    decay_together(a);
    RBAR_UNROLL
    for (Index s = 0; s < group; ++s) {
      h[s] = multiply_add(a[s], h[s], drive * broadcast(b[s]));
      y = multiply_add(broadcast(c[s]), h[s], y);
    }
    store(scratch.output + at, y);
  }
  RBAR_UNROLL
  for (Index s = 0; s < group; ++s) store(state + (first + s) * scan_channels + channel, h[s]);
}

// The same once more, keeping every state and decay.
template <Index group, class T>
RBAR_NOINLINE void scan_states_again(const ScanScratch<T>& scratch, Index tokens, Index channel, Index first,
                                     const T* b, const T* c, Index stride, const T* border) {
  constexpr Index L = lanes<T>;
  Batch<T> rate[group], h[group];
  RBAR_UNROLL
  for (Index s = 0; s < group; ++s) {
    rate[s] = load(scratch.rate + (first + s) * scan_channels + channel);
    h[s] = load(border + (first + s) * scan_channels + channel);
    store(scratch.kept_states + s * L, h[s]);
  }
  b += first, c += first;
  for (Index t = 0; t < tokens; ++t, b += stride, c += stride) {
    const Index at = t * scan_channels + channel;
    const Batch<T> step = load(scratch.step + at), drive = load(scratch.drive + at);
    Batch<T> y = load(scratch.output + at);
    Batch<T> a[group];
    RBAR_UNROLL
    for (Index s = 0; s < group; ++s) a[s] = step * rate[s];
    decay_together(a);
    RBAR_UNROLL
    for (Index s = 0; s < group; ++s) {
      store(scratch.decays + (t * group + s) * L, a[s]);
      h[s] = multiply_add(a[s], h[s], drive * broadcast(b[s]));
      store(scratch.kept_states + ((t + 1) * group + s) * L, h[s]);
      y = multiply_add(broadcast(c[s]), h[s], y);
    }
    store(scratch.output + at, y);
  }
}

// With g_t = dh_t = C_t dy_t + a_{t+1} g_{t+1}:
//   dC_t += dy_t h_t,   dB_t += g_t Δ_t u_t   (left lane by lane)      d(Δu)_t += g_t·B_t
//   d(Δ_t A) = g_t a_t h_{t−1}:   dA += d(Δ_t A) Δ_t,   dΔ_t += d(Δ_t A)·A
template <Index group, bool first_register, class T>
RBAR_NOINLINE void scan_states_backward(const ScanScratch<T>& scratch, Index tokens, Index channel, Index first,
                                        const T* b, const T* c, Index stride) {
  constexpr Index L = lanes<T>;
  Batch<T> rate[group], h[group], carry[group], drate[group];
  RBAR_UNROLL
  for (Index s = 0; s < group; ++s) {
    rate[s] = load(scratch.rate + (first + s) * scan_channels + channel);
    carry[s] = load(scratch.carry + (first + s) * scan_channels + channel);
    h[s] = load(scratch.kept_states + (tokens * group + s) * L);
    drate[s] = zero<T>();
  }
  b += first, c += first;
  const auto add = [](T* sum, const Batch<T>& x, const Batch<T>& y) {
    store(sum, first_register ? x * y : multiply_add(x, y, load(sum)));
  };
  for (Index t = tokens - 1; t >= 0; --t) {
    const Index at = t * scan_channels + channel;
    const Batch<T> step = load(scratch.step + at), drive = load(scratch.drive + at), dy = load(scratch.doutput + at);
    Batch<T> dstep = load(scratch.dstep + at), ddrive = load(scratch.ddrive + at);
    RBAR_UNROLL
    for (Index s = 0; s < group; ++s) {
      const Batch<T> g = multiply_add(dy, broadcast(c[t * stride + s]), carry[s]);
      T* sums = scratch.lane_sums + (2 * t * group + s) * L;
      add(sums, g, drive);
      add(sums + group * L, dy, h[s]);
      ddrive = multiply_add(g, broadcast(b[t * stride + s]), ddrive);
      carry[s] = g * load(scratch.decays + (t * group + s) * L);
      h[s] = load(scratch.kept_states + (t * group + s) * L);
      const Batch<T> dexponent = carry[s] * h[s];
      drate[s] = multiply_add(dexponent, step, drate[s]);
      dstep = multiply_add(dexponent, rate[s], dstep);
    }
    store(scratch.dstep + at, dstep);
    store(scratch.ddrive + at, ddrive);
  }
  RBAR_UNROLL
  for (Index s = 0; s < group; ++s) {
    T* total = scratch.drate + (first + s) * scan_channels + channel;
    store(total, load(total) + drate[s]);
    store(scratch.carry + (first + s) * scan_channels + channel, carry[s]);
  }
}

// sums[i] = Σ over the lanes of register i of `data`, for as many registers as there are lanes. Each round interleaves
// pairs of registers and adds, so that a register holds the partial sums of twice as many.
template <class T>
RBAR_INLINE Batch<T> sum_lanes(const T* data, Index count) {
  Batch<T> v[lanes<T>];
  for (Index i = 0; i < lanes<T>; ++i) v[i] = i < count ? load(data + i * lanes<T>) : zero<T>();
  for (Index width = lanes<T> / 2; width > 0; width /= 2)
    for (Index i = 0; i < width; ++i)
      v[i] = zip_registers<false>(v[i], v[i + width]) + zip_registers<true>(v[i], v[i + width]);
  return v[0];
}

// Lane sums of a group to dB | dC of its states.
template <Index group, class T>
RBAR_NOINLINE void scan_selection_gradient(const T* lane_sums, Index tokens, Index first, Index states, T* dselection) {
  alignas(64) T sums[lanes<T>];
  const Index count = 2 * group * tokens;
  for (Index begin = 0; begin < count; begin += lanes<T>) {
    const Index n = std::min(lanes<T>, count - begin);
    store(sums, sum_lanes(lane_sums + begin * lanes<T>, n));
    for (Index i = 0; i < n; ++i) {
      const Index t = (begin + i) / (2 * group), which = (begin + i) / group % 2, s = (begin + i) % group;
      dselection[t * 2 * states + which * states + first + s] = sums[i];
    }
  }
}

}  // namespace detail

// `state` [scan_state_size] is the state before the first token, and then the one after the last. `borders`
// [scan_chunks, scan_state_size] receives the state before each chunk, if not null. Each token's numbers depend on it
// and the state before it alone, not on the chunks.
template <class T>
void selective_scan(const ScanBlock<T>& block, T* state, T* borders, T* out, T* memory) {
  const ScanScratch<T> scratch(memory, block.states);
  const Index size = scan_state_size(block.states);
  detail::scan_rates(block, scratch.rate);
  for (Index begin = 0; begin < block.tokens; begin += scan_tokens) {
    const Index tokens = std::min(scan_tokens, block.tokens - begin);
    if (borders) std::copy_n(state, size, borders + begin / scan_tokens * size);
    for (Index t = 0; t < tokens; ++t) {
      prefetch_row(block.gate + (begin + t) * block.gate_stride, block.channels);
      if (const Index next = begin + t + scan_tokens; next < block.tokens) {
        prefetch_row(block.step + next * block.stride, block.channels);
        prefetch_row(block.input + next * block.stride, block.channels);
      }
      detail::for_scan_registers<T>(block.channels, [&](Index i, Index n) {
        const Index at = (begin + t) * block.stride + i, row = t * scan_channels + i;
        const Batch<T> step = softplus(detail::load_up_to(block.step + at, n)).value;
        const Batch<T> input = detail::load_up_to(block.input + at, n);
        store(scratch.step + row, step);
        store(scratch.drive + row, step * input);
        store(scratch.output + row, input * detail::load_up_to(block.skip + i, n));
      });
    }
    const T *b = block.selection + begin * block.selection_stride, *c = b + block.states;
    detail::for_scan_registers<T>(block.channels, [&](Index i, Index) {
      detail::for_state_groups(block.states, [&]<Index group>(Index first) {
        detail::scan_states<group>(scratch, tokens, i, first, b, c, block.selection_stride, state);
      });
    });
    for (Index t = 0; t < tokens; ++t)
      detail::for_scan_registers<T>(block.channels, [&](Index i, Index n) {
        const Batch<T> y = load(scratch.output + t * scan_channels + i);
        const Batch<T> z = detail::load_up_to(block.gate + (begin + t) * block.gate_stride + i, n);
        const Batch<T> silu = z / (exp(-z) + broadcast(T(1)));
        detail::store_up_to(out + (begin + t) * block.stride + i, y * silu, n);
      });
  }
}

// From the forward pass's `borders` and dout. Overwrites all of `grad`, and `out` with the forward pass's output.
template <class T>
void selective_scan_backward(const ScanBlock<T>& block, const T* borders, const T* dout, T* out,
                             const ScanGradient<T>& grad, T* memory) {
  const ScanScratch<T> scratch(memory, block.states);
  const Index size = scan_state_size(block.states);
  const Batch<T> one = broadcast(T(1));
  detail::scan_rates(block, scratch.rate);
  std::fill_n(scratch.carry, size, T(0));
  std::fill_n(scratch.drate, size, T(0));
  std::fill_n(grad.skip, scan_channels, T(0));
  for (Index chunk = scan_chunks(block.tokens) - 1; chunk >= 0; --chunk) {
    const Index begin = chunk * scan_tokens, tokens = std::min(scan_tokens, block.tokens - begin);
    for (Index t = 0; t < tokens; ++t)
      detail::for_scan_registers<T>(block.channels, [&](Index i, Index n) {
        const Index at = (begin + t) * block.stride + i, row = t * scan_channels + i;
        const Softplus<T> step = softplus(detail::load_up_to(block.step + at, n));
        const Batch<T> input = detail::load_up_to(block.input + at, n);
        const Batch<T> z = detail::load_up_to(block.gate + (begin + t) * block.gate_stride + i, n);
        store(scratch.step + row, step.value);
        store(scratch.slope + row, step.slope);
        store(scratch.drive + row, step.value * input);
        store(scratch.output + row, input * detail::load_up_to(block.skip + i, n));
        store(scratch.doutput + row, detail::load_up_to(dout + at, n) * (z / (exp(-z) + one)));
        store(scratch.dstep + row, zero<T>());
        store(scratch.ddrive + row, zero<T>());
      });
    const T *b = block.selection + begin * block.selection_stride, *c = b + block.states;
    detail::for_state_groups(block.states, [&]<Index group>(Index first) {
      detail::for_scan_registers<T>(block.channels, [&](Index i, Index) {
        detail::scan_states_again<group>(scratch, tokens, i, first, b, c, block.selection_stride,
                                         borders + chunk * size);
        if (i == 0)
          detail::scan_states_backward<group, true>(scratch, tokens, i, first, b, c, block.selection_stride);
        else
          detail::scan_states_backward<group, false>(scratch, tokens, i, first, b, c, block.selection_stride);
      });
      detail::scan_selection_gradient<group>(scratch.lane_sums, tokens, first, block.states,
                                             grad.selection + begin * 2 * block.states);
    });
    detail::for_scan_registers<T>(block.channels, [&](Index i, Index n) {
      const Batch<T> skip = detail::load_up_to(block.skip + i, n);
      const Batch<T> ln2 = broadcast(std::numbers::ln2_v<T>);  // rate is A·log₂e
      Batch<T> dskip = zero<T>();
      for (Index t = 0; t < tokens; ++t) {
        const Index at = (begin + t) * block.stride + i, gate_at = (begin + t) * block.gate_stride + i;
        const Index row = t * scan_channels + i;
        const Batch<T> z = detail::load_up_to(block.gate + gate_at, n), sigmoid = one / (exp(-z) + one);
        const Batch<T> y = load(scratch.output + row), dgate = y * detail::load_up_to(dout + at, n);
        detail::store_up_to(grad.gate + gate_at, dgate * (sigmoid * multiply_add(z, one - sigmoid, one)), n);
        detail::store_up_to(out + at, y * (z * sigmoid), n);
        const Batch<T> input = detail::load_up_to(block.input + at, n), dy = load(scratch.doutput + row);
        const Batch<T> ddrive = load(scratch.ddrive + row);
        const Batch<T> dstep = multiply_add(ddrive, input, ln2 * load(scratch.dstep + row));
        detail::store_up_to(grad.step + at, dstep * load(scratch.slope + row), n);
        detail::store_up_to(grad.input + at, multiply_add(ddrive, load(scratch.step + row), dy * skip), n);
        dskip = multiply_add(dy, input, dskip);
      }
      store(grad.skip + i, load(grad.skip + i) + dskip);
    });
  }
  for (Index i = 0; i < size; ++i) grad.log_rate[i] = scratch.drate[i] * scratch.rate[i] * std::numbers::ln2_v<T>;
}

}  // namespace rbar::simd
