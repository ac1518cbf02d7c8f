// Kuramoto oscillators along a sequence, a few registers of oscillators at a time. Column w of a block is one
// oscillator, row t its copy at position t; the copies of one oscillator are coupled by their mean field:
//   dθ_t/ds = ω + K·mean_j sin(θ_j − θ_t) = ω + K·(S cos θ_t − C sin θ_t),   C, S = mean_j cos θ_j, mean_j sin θ_j,
// j over the positions up to t (prefix means) or over all. O(tokens), never a pair (Kuramoto, "Chemical Oscillations,
// Waves, and Turbulence", 1984). A "stage" is one evaluation of the right side: one a step for Euler, four for RK4.
#pragma once

#include "rbar/simd/phase.hpp"

#include <algorithm>
#include <numbers>
#include <type_traits>

namespace rbar::simd {

// θ − 2π·round(θ/2π): into [−π, π] up to rounding. The derivative is 1 everywhere (the jump is a full turn). For angles
// of moderate size: a float of 1000 rad has lost all beyond 3e-5 before it comes here, and from 2²² turns on the
// rounding itself fails. Whoever lets angles grow bounds them (largest_phase_step).
RBAR_INLINE Batch<float> wrap_angle(const Batch<float>& theta) {
  const Batch<float> magic = broadcast(12582912.0f);  // 1.5·2²³: adding it rounds to an integer
  const Batch<float> turns = multiply_add(theta, broadcast(0.5f * std::numbers::inv_pi_v<float>), magic) - magic;
  // 2π = 6.28125 + 0.0019353072: the first part times a small integer is exact.
  const Batch<float> coarse = multiply_add(turns, broadcast(-6.28125f), theta);
  return multiply_add(turns, broadcast(-1.93530717958647692e-3f), coarse);
}
RBAR_INLINE Batch<double> wrap_angle(const Batch<double>& theta) {
  const Batch<double> turns = xsimd::nearbyint(theta * broadcast(0.5 * std::numbers::inv_pi));
  return theta - turns * broadcast(2 * std::numbers::pi);
}

// cos θ and −sin θ for θ = πt with t in [−1, 1], in half angles as in phase.hpp; float within 6e-7.
RBAR_INLINE Phasor<float> conjugate_phasor(const Batch<float>& t) {
  const detail::HalfAngle half = detail::half_angle(t);
  const Batch<float> product = half.sine * half.cosine;
  return {(half.cosine - half.sine) * (half.cosine + half.sine), product + product, broadcast(1.0f)};
}
RBAR_INLINE Phasor<double> conjugate_phasor(const Batch<double>& t) {
  const Batch<double> theta = t * broadcast(std::numbers::pi);
  return {xsimd::cos(theta), -xsimd::sin(theta), broadcast(1.0)};
}
// cos θ and sin θ.
template <class T>
RBAR_INLINE Phasor<T> half_turn_phasor(const Batch<T>& t) {
  const Phasor<T> z = conjugate_phasor(t);
  return {z.cosine, -z.sine, z.slope};
}
// t − 2·round(t/2): half turns into [−1, 1], exactly, for |t| below 2²². Adding the magic number rounds to an even one.
template <class T>
RBAR_INLINE Batch<T> wrap_half_turns(const Batch<T>& t) {
  const Batch<T> magic = broadcast(std::is_same_v<T, float> ? T(0x1.8p24) : T(0x1.8p53));
  return t - ((t + magic) - magic);
}

// cos θ and sin θ of a wrapped angle.
RBAR_INLINE Phasor<float> angle_phasor(const Batch<float>& theta) {
  return half_turn_phasor<float>(theta * broadcast(std::numbers::inv_pi_v<float>));
}
RBAR_INLINE Phasor<double> angle_phasor(const Batch<double>& theta) {
  return {xsimd::cos(theta), xsimd::sin(theta), broadcast(1.0)};
}

// θ = π·tanh(x), in place if need be, and its slope from θ: dθ/dx = π − θ²/π.
template <class T>
RBAR_NOINLINE void phases_from_features(const T* x, Index count, T* theta) {
  const Batch<T> pi = broadcast(std::numbers::pi_v<T>), two_pi = pi + pi, one = broadcast(T(1));
  detail::for_registers<T>(count, [&](Index i, Index n) {
    const Batch<T> v = detail::load_up_to(x + i, n);
    detail::store_up_to(theta + i, pi - two_pi / (exp(v + v) + one), n);  // tanh x = 1 − 2/(e^2x + 1)
  });
}
template <class T>
RBAR_NOINLINE void phases_from_features_backward(const T* RBAR_RESTRICT theta, Index count, T* RBAR_RESTRICT dtheta) {
  const Batch<T> pi = broadcast(std::numbers::pi_v<T>), minus_inverse = broadcast(-std::numbers::inv_pi_v<T>);
  detail::for_registers<T>(count, [&](Index i, Index n) {
    const Batch<T> v = detail::load_up_to(theta + i, n);
    detail::store_up_to(dtheta + i, detail::load_up_to(dtheta + i, n) * multiply_add(v * v, minus_inverse, pi), n);
  });
}

// cos θ and sin θ of wrapped angles, and dθ = cos θ·dsin − sin θ·dcos.
template <class T>
RBAR_NOINLINE void write_angle_phasors(const T* RBAR_RESTRICT theta, Index count, T* RBAR_RESTRICT cosine,
                                       T* RBAR_RESTRICT sine) {
  detail::for_registers<T>(count, [&](Index i, Index n) {
    const Phasor<T> z = angle_phasor(detail::load_up_to(theta + i, n));
    detail::store_up_to(cosine + i, z.cosine, n);
    detail::store_up_to(sine + i, z.sine, n);
  });
}
template <class T>
RBAR_NOINLINE void angle_phasors_backward(const T* RBAR_RESTRICT cosine, const T* RBAR_RESTRICT sine,
                                          const T* RBAR_RESTRICT dcosine, const T* RBAR_RESTRICT dsine, Index count,
                                          T* RBAR_RESTRICT dtheta) {
  detail::for_registers<T>(count, [&](Index i, Index n) {
    const auto at = [&](const T* data) { return detail::load_up_to(data + i, n); };
    detail::store_up_to(dtheta + i, at(cosine) * at(dsine) - at(sine) * at(dcosine), n);
  });
}

// Registers of oscillators that are advanced together: their chains of operations hide each other's latency.
inline constexpr Index oscillator_registers = 4;
template <class T>
inline constexpr Index oscillator_columns = oscillator_registers* lanes<T>;

// Sums over positions are made a stretch of positions at a time: `partial` of a stretch in order, and then folded into
// `base`, with `rest` for what that rounds off. So a sum over any number of positions is as exact as one over a
// stretch, where a plain running sum would drift (equal phases by 1e-4 rad after 16,000 positions) and stop growing at
// 2²⁴.
inline constexpr Index oscillator_stretch = 16;

// base + rest += partial, exactly but for the last bits of rest (Knuth's two-sum, "Seminumerical Algorithms", 4.2.2).
template <class T>
RBAR_INLINE void fold_sum(Batch<T>& base, Batch<T>& rest, const Batch<T>& partial) {
  const Batch<T> added = partial + rest, sum = base + added, taken = sum - base;
  rest = (base - (sum - taken)) + (added - taken);
  base = sum;
}
// The same for arrays; `folded` receives the new base, and partial becomes 0.
template <class T>
RBAR_NOINLINE void fold_sums(const T* base, T* RBAR_RESTRICT rest, T* RBAR_RESTRICT partial, Index count, T* folded) {
  for (Index i = 0; i < count; i += lanes<T>) {
    Batch<T> sum = load(base + i), rounded_off = load(rest + i);
    fold_sum<T>(sum, rounded_off, load(partial + i));
    store(folded + i, sum);
    store(rest + i, rounded_off);
    store(partial + i, zero<T>());
  }
}

// How the phases move: `steps` times by `step_size`.
struct OscillatorSteps {
  Index steps = 10;
  double step_size = 0.1;
  bool runge_kutta = false;  // four stages a step, else Euler's one

  Index stages() const { return runge_kutta ? 4 : 1; }
  Index evaluations() const { return steps * stages(); }
};

// One block of at most oscillator_columns<T> oscillators; ω and K are padded to that many (K = 0, ω = 0 beyond).
template <class T>
struct OscillatorBlock {
  const T* frequency;  // ω
  const T* strength;   // K, negative where the coupling repels
  OscillatorSteps steps;
};

namespace detail {

template <class T>
struct Columns {
  Batch<T> at[oscillator_registers];
};

template <class T>
RBAR_INLINE Columns<T> load_columns(const T* data, Index count) {
  Columns<T> columns;
  RBAR_UNROLL
  for (Index r = 0; r < oscillator_registers; ++r)
    columns.at[r] = load_up_to(data + r * lanes<T>, std::clamp<Index>(count - r * lanes<T>, 0, lanes<T>));
  return columns;
}
template <class T>
RBAR_INLINE void store_columns(T* data, const Columns<T>& columns, Index count) {
  RBAR_UNROLL
  for (Index r = 0; r < oscillator_registers; ++r)
    store_up_to(data + r * lanes<T>, columns.at[r], std::clamp<Index>(count - r * lanes<T>, 0, lanes<T>));
}

// Runge-Kutta's tableau: y_{i+1} = θ + reach·dt·k_i, and the weight of k_i in the step.
inline constexpr double rk_reach[4] = {0.5, 0.5, 1.0, 0.0};
inline constexpr double rk_weight[4] = {1.0 / 6, 1.0 / 3, 1.0 / 3, 1.0 / 6};

// ω + K·(S cos θ − C sin θ)/n.
template <class T>
RBAR_INLINE Batch<T> phase_velocity(const Phasor<T>& z, const Batch<T>& cosines, const Batch<T>& sines,
                                    const Batch<T>& frequency, const Batch<T>& strength_over_count) {
  return multiply_add(strength_over_count, sines * z.cosine - cosines * z.sine, frequency);
}

// One step of all registers of one position, whose angles and velocities are in half turns.
// field(stage, register, phasor) -> dθ/ds. Each part of the work is done for all registers before the next, so that
// their chains of operations run side by side.
template <class T, class Field>
RBAR_INLINE void oscillator_step(Columns<T>& theta, const OscillatorSteps& steps, Field&& field) {
  const Batch<T> dt = broadcast(static_cast<T>(steps.step_size));
  const auto velocities = [&](Index stage, const Columns<T>& y) RBAR_INLINE_LAMBDA {
    Columns<T> velocity;
    RBAR_UNROLL
    for (Index r = 0; r < oscillator_registers; ++r) velocity.at[r] = field(stage, r, half_turn_phasor<T>(y.at[r]));
    return velocity;
  };
  if (!steps.runge_kutta) {
    const Columns<T> velocity = velocities(0, theta);
    RBAR_UNROLL
    for (Index r = 0; r < oscillator_registers; ++r)
      theta.at[r] = wrap_half_turns<T>(multiply_add(dt, velocity.at[r], theta.at[r]));
    return;
  }
  Columns<T> y = theta, moved = theta;
  for (Index stage = 0; stage < 4; ++stage) {
    const Batch<T> reach = broadcast(static_cast<T>(rk_reach[stage] * steps.step_size));
    const Batch<T> weight = broadcast(static_cast<T>(rk_weight[stage] * steps.step_size));
    const Columns<T> velocity = velocities(stage, y);
    RBAR_UNROLL
    for (Index r = 0; r < oscillator_registers; ++r) {
      moved.at[r] = multiply_add(weight, velocity.at[r], moved.at[r]);
      y.at[r] = wrap_half_turns<T>(multiply_add(reach, velocity.at[r], theta.at[r]));
    }
  }
  RBAR_UNROLL
  for (Index r = 0; r < oscillator_registers; ++r) theta.at[r] = wrap_half_turns<T>(moved.at[r]);
}

}  // namespace detail

// Causal: position t meets the mean field of the positions up to t, so one pass over the tokens makes all steps. The
// tokens are of one stretch, `seen` positions from the start.
//   theta   [tokens, …] at `stride`, `columns` of them valid, advanced in place
//   base    [evaluations, 2, oscillator_columns] Σ cos and Σ sin of the positions before this stretch
//   partial like base: of those of this stretch so far, carried on
//   record  [tokens, evaluations, 4, oscillator_columns] cos θ, sin θ, Σ cos, Σ sin at every evaluation, or nullptr
template <class T>
RBAR_NOINLINE void advance_causal(const OscillatorBlock<T>& block, T* theta, Index stride, Index columns, Index tokens,
                                  Index seen, const T* RBAR_RESTRICT base, T* RBAR_RESTRICT partial,
                                  T* RBAR_RESTRICT record) {
  constexpr Index L = lanes<T>, width = oscillator_columns<T>;
  const OscillatorSteps steps = block.steps;
  // Within this loop angles are in half turns: wrapping one is exact and takes additions alone.
  const Batch<T> half_turns = broadcast(std::numbers::inv_pi_v<T>), radians = broadcast(std::numbers::pi_v<T>);
  detail::Columns<T> frequency = detail::load_columns(block.frequency, width);
  RBAR_UNROLL
  for (Batch<T>& f : frequency.at) f = f * half_turns;
  for (Index t = 0; t < tokens; ++t) {
    detail::Columns<T> pull = detail::load_columns(block.strength, width);  // K/n
    RBAR_UNROLL
    for (Batch<T>& p : pull.at) p = p * (half_turns * broadcast(T(1) / static_cast<T>(seen + t + 1)));
    detail::Columns<T> angle = detail::load_columns(theta + t * stride, columns);
    RBAR_UNROLL
    for (Batch<T>& a : angle.at) a = wrap_half_turns<T>(wrap_angle(a) * half_turns);
    for (Index step = 0; step < steps.steps; ++step)
      detail::oscillator_step<T>(angle, steps, [&](Index stage, Index r, const Phasor<T>& z) RBAR_INLINE_LAMBDA {
        const Index evaluation = step * steps.stages() + stage;
        const Index at = evaluation * 2 * width + r * L;
        const Batch<T> part_cosine = load(partial + at), part_sine = load(partial + at + width);
        store(partial + at, part_cosine + z.cosine);
        store(partial + at + width, part_sine + z.sine);
        // In this order one addition waits for the phasor, not two.
        const Batch<T> cosines = (load(base + at) + part_cosine) + z.cosine;
        const Batch<T> sines = (load(base + at + width) + part_sine) + z.sine;
        if (record) {
          T* to = record + (t * steps.evaluations() + evaluation) * 4 * width + r * L;
          store(to, z.cosine);
          store(to + width, z.sine);
          store(to + 2 * width, cosines);
          store(to + 3 * width, sines);
        }
        return detail::phase_velocity(z, cosines, sines, frequency.at[r], pull.at[r]);
      });
    RBAR_UNROLL
    for (Batch<T>& a : angle.at) a = a * radians;
    detail::store_columns(theta + t * stride, angle, columns);
  }
}

// The gradient of advance_causal, over the same tokens from the last to the first. With p_t = K·dvelocity_t/n_t, an
// evaluation at the angles y gives
//   dy_t = cos θ_t·Σ_{u≥t} p_u cos θ_u + sin θ_t·Σ_{u≥t} p_u sin θ_u − p_t(S_t sin θ_t + C_t cos θ_t),
// the first two through the sums of the positions from t on, which are carried along like those of the forward pass.
//   dtheta  [tokens, …] at `stride`: ∂L/∂(angles after the last step), becomes ∂L/∂(angles before the first)
//   record  what advance_causal wrote
//   base    [evaluations, 2, oscillator_columns] Σ p cos and Σ p sin of the positions after this stretch
//   partial like base: of those of this stretch, carried on
//   dfrequency, dstrength [oscillator_columns] += ∂L/∂ω, ∂L/∂K
template <class T>
RBAR_NOINLINE void advance_causal_backward(const OscillatorBlock<T>& block, const T* RBAR_RESTRICT record,
                                           T* RBAR_RESTRICT dtheta, Index stride, Index columns, Index tokens,
                                           Index seen, const T* RBAR_RESTRICT base, T* RBAR_RESTRICT partial,
                                           double* dfrequency, double* dstrength) {
  constexpr Index L = lanes<T>, width = oscillator_columns<T>;
  const OscillatorSteps steps = block.steps;
  const Batch<T> dt = broadcast(static_cast<T>(steps.step_size));
  detail::Columns<T> sum_frequency, sum_strength;
  RBAR_UNROLL
  for (Index r = 0; r < oscillator_registers; ++r) sum_frequency.at[r] = sum_strength.at[r] = zero<T>();
  for (Index t = tokens; t-- > 0;) {
    const Batch<T> inverse = broadcast(T(1) / static_cast<T>(seen + t + 1));
    detail::Columns<T> pull = detail::load_columns(block.strength, width);
    RBAR_UNROLL
    for (Batch<T>& p : pull.at) p = p * inverse;
    detail::Columns<T> dangle = detail::load_columns(dtheta + t * stride, columns);
    // dvelocity -> dy of one evaluation.
    const auto field_backward = [&](Index evaluation, Index r, const Batch<T>& dvelocity) RBAR_INLINE_LAMBDA {
      const T* from = record + (t * steps.evaluations() + evaluation) * 4 * width + r * L;
      const Index at = evaluation * 2 * width + r * L;
      const Batch<T> c = load(from), s = load(from + width);
      const Batch<T> cosines = load(from + 2 * width), sines = load(from + 3 * width);
      const Batch<T> p = dvelocity * pull.at[r];
      sum_frequency.at[r] = sum_frequency.at[r] + dvelocity;
      sum_strength.at[r] = multiply_add(dvelocity * inverse, sines * c - cosines * s, sum_strength.at[r]);
      const Batch<T> part_cosine = load(partial + at), part_sine = load(partial + at + width);
      store(partial + at, multiply_add(p, c, part_cosine));
      store(partial + at + width, multiply_add(p, s, part_sine));
      const Batch<T> later_cosine = multiply_add(p, c, load(base + at) + part_cosine);
      const Batch<T> later_sine = multiply_add(p, s, load(base + at + width) + part_sine);
      return multiply_add(c, later_cosine - p * cosines, s * (later_sine - p * sines));
    };
    for (Index step = steps.steps; step-- > 0;) {
      if (!steps.runge_kutta) {
        RBAR_UNROLL
        for (Index r = 0; r < oscillator_registers; ++r)
          dangle.at[r] = dangle.at[r] + field_backward(step, r, dt * dangle.at[r]);
        continue;
      }
      detail::Columns<T> dvelocity, dstart = dangle;
      for (Index stage = 4; stage-- > 0;) {
        const Batch<T> weight = broadcast(static_cast<T>(detail::rk_weight[stage])) * dt;
        const Batch<T> reach = broadcast(static_cast<T>(stage < 3 ? detail::rk_reach[stage] : 0.0)) * dt;
        RBAR_UNROLL
        for (Index r = 0; r < oscillator_registers; ++r) {
          // Velocity k enters the step and, but for the last, the next stage's angles; dvelocity holds those's
          // gradient.
          const Batch<T> from_step = weight * dangle.at[r];
          const Batch<T> dv = stage < 3 ? multiply_add(reach, dvelocity.at[r], from_step) : from_step;
          dvelocity.at[r] = field_backward(step * 4 + stage, r, dv);
          dstart.at[r] = dstart.at[r] + dvelocity.at[r];
        }
      }
      dangle = dstart;
    }
    detail::store_columns(dtheta + t * stride, dangle, columns);
  }
  alignas(64) T sum[L];
  RBAR_UNROLL
  for (Index r = 0; r < oscillator_registers; ++r) {
    store(sum, sum_frequency.at[r]);
    for (Index lane = 0; lane < L; ++lane) dfrequency[r * L + lane] += static_cast<double>(sum[lane]);
    store(sum, sum_strength.at[r]);
    for (Index lane = 0; lane < L; ++lane) dstrength[r * L + lane] += static_cast<double>(sum[lane]);
  }
}

}  // namespace rbar::simd
