// Kuramoto oscillators that are all coupled to each other: each of n meets the mean field of all n,
//   dθ_i/ds = ω + K·mean_j sin(θ_j − θ_i) = ω + K·(S cos θ_i − C sin θ_i)/n,   C, S = Σ_j cos θ_j, Σ_j sin θ_j.
// One pass over the phases makes an evaluation of the right side: it moves every phase by the field of the phasors that
// the pass before has left, and sums the phasors of the phases moved (Kuramoto, "Chemical Oscillations, Waves, and
// Turbulence", 1984).
#pragma once

#include "rbar/simd/oscillator.hpp"

#include <algorithm>
#include <numbers>

namespace rbar::simd {

// n oscillators as rows of one register. Either a row is an oscillator, and each lane a system of its own with its own
// ω and K; or the lanes are coupled as well (`across_lanes`): the registers hold the n oscillators of one system one
// after the other, the lanes from n on without effect, and the lanes of ω and K are equal.
template <class T>
struct MeanField {
  Batch<T> frequency, strength;  // ω and K, negative where the coupling repels
  Index count;                   // n, at least 1
  bool across_lanes;
  OscillatorSteps steps;

  Index size() const { return across_lanes ? (count + lanes<T> - 1) / lanes<T> * lanes<T> : count * lanes<T>; }
  // Of the record of one evaluation: cos θ and −sin θ [rows, lanes] each, and then their sums.
  Index evaluation_size() const { return 2 * size() + 4 * lanes<T>; }
  Index work_size() const { return steps.runge_kutta ? 2 * size() : 0; }
};

namespace detail {

// A sum over any number of rows in registers: terms are added to `partial`, and folded after each stretch.
template <class T>
struct LongSum {
  Batch<T> base = zero<T>(), rest = zero<T>(), partial = zero<T>();

  RBAR_INLINE void fold() {
    fold_sum(base, rest, partial);
    partial = zero<T>();
  }
  RBAR_INLINE void add(const Batch<T>& term) {
    partial = term;
    fold();
  }
  // The sum in every lane, of all lanes if across_lanes, and what that rounds off: [2, lanes].
  RBAR_INLINE void store_total(bool across_lanes, T* to) const {
    constexpr Index L = lanes<T>;
    store(to, base);
    store(to + L, rest);
    if (!across_lanes) return;
    double sum[L];
    for (Index lane = 0; lane < L; ++lane)
      sum[lane] = static_cast<double>(to[lane]) + static_cast<double>(to[L + lane]);
    for (Index half = L / 2; half > 0; half /= 2)
      for (Index lane = 0; lane < half; ++lane) sum[lane] += sum[half + lane];
    const T rounded = static_cast<T>(sum[0]);
    store(to, broadcast(rounded));
    store(to + L, broadcast(static_cast<T>(sum[0] - static_cast<double>(rounded))));
  }
};

// body(offset) for all rows, and after_stretch() after every oscillator_stretch of them.
template <class T, class Body, class Fold>
RBAR_INLINE void for_stretches(Index begin, Index size, Body&& body, Fold&& after_stretch) {
  while (begin < size) {
    const Index end = std::min(size, begin + oscillator_stretch * lanes<T>);
    for (; begin < end; begin += lanes<T>) body(begin);
    after_stretch();
  }
}

// Writes the phasors of angle(offset), which are half turns in [−1, 1], and their sums.
template <class T, class Angle>
RBAR_INLINE void record_phasors(const MeanField<T>& field, T* record, Angle&& angle) {
  constexpr Index L = lanes<T>;
  const Index size = field.size(), tail = field.across_lanes ? field.count % L : 0;
  T *cosine = record, *sine = record + size;
  LongSum<T> cosines, sines;
  const auto add = [&cosines, &sines, cosine, sine](Index i, const Batch<T>& c, const Batch<T>& s) {
    store(cosine + i, c);
    store(sine + i, s);
    cosines.partial = cosines.partial + c;
    sines.partial = sines.partial + s;
  };
  const auto fold = [&] { cosines.fold(), sines.fold(); };
  for_stretches<T>(
      0, tail == 0 ? size : size - L,
      [&](Index i) {
        const Phasor<T> z = conjugate_phasor(angle(i));
        add(i, z.cosine, z.sine);
      },
      fold);
  if (tail > 0) {
    alignas(64) T valid[L] = {};
    std::fill_n(valid, tail, T(1));
    const Phasor<T> z = conjugate_phasor(angle(size - L));
    add(size - L, z.cosine * load(valid), z.sine * load(valid));
    fold();
  }
  cosines.store_total(field.across_lanes, record + 2 * size);
  sines.store_total(field.across_lanes, record + 2 * size + 2 * L);
}

}  // namespace detail

// All steps, in place.
//   theta   [rows, lanes] angles in radians, in [−π, π] afterwards
//   record  what advance_all_backward reads [evaluations, evaluation_size]; without `keep` one evaluation_size
//   work    [work_size]
template <class T>
RBAR_NOINLINE void advance_all(const MeanField<T>& field, T* theta, T* record, bool keep, T* work) {
  constexpr Index L = lanes<T>;
  const OscillatorSteps steps = field.steps;
  const Index size = field.size(), evaluations = steps.evaluations();
  const Batch<T> half_turns = broadcast(std::numbers::inv_pi_v<T>), radians = broadcast(std::numbers::pi_v<T>);
  // In half turns wrapping is exact and takes additions alone.
  const auto initial = [=](Index i) {
    const Batch<T> angle = wrap_half_turns<T>(wrap_angle(load(theta + i)) * half_turns);
    store(theta + i, angle);
    return angle;
  };
  if (evaluations == 0)
    for (Index i = 0; i < size; i += L) initial(i);
  else
    detail::record_phasors(field, record, initial);
  for (Index evaluation = 0; evaluation < evaluations; ++evaluation) {
    const T *cosine = record, *sine = record + size;
    // velocity = ω + a cos θ + b (−sin θ)
    const Batch<T> pull = field.strength * half_turns * broadcast(T(1) / static_cast<T>(field.count));
    const Batch<T> a = -(pull * load(record + 2 * size + 2 * L)), b = pull * load(record + 2 * size);
    const Batch<T> frequency = field.frequency * half_turns;
    if (keep) record += field.evaluation_size();
    const auto proceed = [&](auto&& next) {
      if (evaluation + 1 < evaluations)
        detail::record_phasors(field, record, next);
      else
        for (Index i = 0; i < size; i += L) next(i);
    };
    if (!steps.runge_kutta) {
      const Batch<T> dt = broadcast(static_cast<T>(steps.step_size));
      const Batch<T> by_cosine = dt * a, by_sine = dt * b, drift = dt * frequency;
      proceed([=](Index i) {
        const Batch<T> turn = multiply_add(by_sine, load(sine + i), multiply_add(by_cosine, load(cosine + i), drift));
        const Batch<T> angle = wrap_half_turns<T>(load(theta + i) + turn);
        store(theta + i, angle);
        return angle;
      });
      continue;
    }
    const Index stage = evaluation % 4;
    const Batch<T> reach = broadcast(static_cast<T>(detail::rk_reach[stage] * steps.step_size));
    const Batch<T> weight = broadcast(static_cast<T>(detail::rk_weight[stage] * steps.step_size));
    T* moved = work;
    proceed([=](Index i) {
      const Batch<T> velocity = multiply_add(b, load(sine + i), multiply_add(a, load(cosine + i), frequency));
      const Batch<T> after = multiply_add(weight, velocity, load((stage == 0 ? theta : moved) + i));
      if (stage < 3) {
        store(moved + i, after);
        return Batch<T>(wrap_half_turns<T>(multiply_add(reach, velocity, load(theta + i))));
      }
      const Batch<T> angle = wrap_half_turns<T>(after);
      store(theta + i, angle);
      return angle;
    });
  }
  for (Index i = 0; i < size; i += L) store(theta + i, load(theta + i) * radians);
}

// The gradient of advance_all. With p_i = K·dvelocity_i/n, an evaluation at the angles y gives
//   dy_i = cos θ_i·(Σ_j p_j cos θ_j − p_i C) + sin θ_i·(Σ_j p_j sin θ_j − p_i S),
// in one pass that also sums what the evaluation before it needs.
//   dtheta  [rows, lanes] ∂L/∂(angles after the last step), becomes ∂L/∂(angles before the first); lanes without
//           effect hold 0
//   record  what advance_all kept
//   dfrequency, dstrength [lanes] += ∂L/∂ω, ∂L/∂K; across lanes, the first alone
//   work    [work_size]
template <class T>
RBAR_NOINLINE void advance_all_backward(const MeanField<T>& field, const T* record, T* dtheta, double* dfrequency,
                                        double* dstrength, T* work) {
  constexpr Index L = lanes<T>;
  const OscillatorSteps steps = field.steps;
  const Index size = field.size(), evaluations = steps.evaluations();
  const Batch<T> dt = broadcast(static_cast<T>(steps.step_size)),
                 inverse = broadcast(T(1) / static_cast<T>(field.count));
  detail::LongSum<T> sum_frequency;
  // Runge-Kutta: ∂L/∂velocity of a stage, and ∂L/∂(angles before the step) as far as it is known.
  T* const dvelocity = steps.runge_kutta ? work : dtheta;
  T* const dstart = steps.runge_kutta ? work + size : nullptr;
  const Batch<T> unit = steps.runge_kutta ? broadcast(T(1)) : dt;  // of what lies in dvelocity
  Batch<T> sum_velocity;                                           // Σ dvelocity
  alignas(64) T sum_cosine[2 * L], sum_sine[2 * L];                // Σ dvelocity cos θ, −Σ dvelocity sin θ
  // Sums of dv(offset) with the phasors at `from`.
  const auto sum_up = [&](const T* from, auto&& dv) {
    detail::LongSum<T> plain, with_cosine, with_sine;
    detail::for_stretches<T>(
        0, size,
        [&](Index i) {
          const Batch<T> d = dv(i);
          plain.partial = plain.partial + d;
          with_cosine.partial = multiply_add(d, load(from + i), with_cosine.partial);
          with_sine.partial = multiply_add(d, load(from + size + i), with_sine.partial);
        },
        [&] { plain.fold(), with_cosine.fold(), with_sine.fold(); });
    sum_velocity = plain.base;
    with_cosine.store_total(field.across_lanes, sum_cosine);
    with_sine.store_total(field.across_lanes, sum_sine);
  };
  const auto weight = [&](Index stage) { return broadcast(static_cast<T>(detail::rk_weight[stage])) * dt; };
  if (evaluations == 0) return;
  record += (evaluations - 1) * field.evaluation_size();
  if (steps.runge_kutta) {
    const Batch<T> last = weight(3);
    sum_up(record, [=](Index i) {
      const Batch<T> d = last * load(dtheta + i);
      store(dvelocity + i, d);
      store(dstart + i, load(dtheta + i));
      return d;
    });
  } else {
    sum_up(record, [=](Index i) { return load(dtheta + i); });
  }
  for (Index evaluation = evaluations; evaluation-- > 0;) {
    const T *cosine = record, *sine = record + size;
    const T *cosines = record + 2 * size, *sines = cosines + 2 * L;
    sum_frequency.add(unit * sum_velocity);
    // Of nearly equal phases the two products nearly cancel.
    const double share = (steps.runge_kutta ? 1.0 : steps.step_size) / static_cast<double>(field.count);
    const auto exact = [](const T* sum, Index lane) {
      return static_cast<double>(sum[lane]) + static_cast<double>(sum[L + lane]);
    };
    for (Index lane = 0; lane < (field.across_lanes ? 1 : L); ++lane)
      dstrength[lane] +=
          share * (exact(cosines, lane) * exact(sum_sine, lane) - exact(sines, lane) * exact(sum_cosine, lane));
    const Batch<T> pull = field.strength * inverse * unit;
    const Batch<T> from_cosine = pull * load(sum_cosine), from_sine = pull * load(sum_sine);
    const Batch<T> minus_cosines = -(pull * load(cosines)), minus_sines = -(pull * load(sines));
    // dy added to `to`, of what lies in dvelocity.
    const auto add_field = [=](Index i, const Batch<T>& d, const Batch<T>& to) {
      return multiply_add(load(cosine + i), multiply_add(d, minus_cosines, from_cosine),
                          multiply_add(load(sine + i), multiply_add(d, minus_sines, from_sine), to));
    };
    if (evaluation > 0) record -= field.evaluation_size();
    const auto proceed = [&](auto&& next) {
      if (evaluation > 0)
        sum_up(record, next);
      else
        for (Index i = 0; i < size; i += L) next(i);
    };
    if (!steps.runge_kutta) {
      proceed([=](Index i) {
        const Batch<T> d = load(dtheta + i), before = add_field(i, d, d);
        store(dtheta + i, before);
        return before;
      });
      continue;
    }
    const Index stage = evaluation % 4;
    const Batch<T> earlier = weight(stage == 0 ? 3 : stage - 1);
    // y_stage = θ + reach·dt·k_{stage−1}.
    const Batch<T> reach = broadcast(stage > 0 ? static_cast<T>(detail::rk_reach[stage - 1]) : T(0)) * dt;
    proceed([=](Index i) {
      const Batch<T> dy = add_field(i, load(dvelocity + i), zero<T>()), start = load(dstart + i) + dy;
      store(dstart + i, start);
      if (stage == 0) store(dtheta + i, start);
      const Batch<T> d = multiply_add(reach, dy, earlier * load(dtheta + i));
      store(dvelocity + i, d);
      return d;
    });
  }
  alignas(64) T of_frequency[L];
  store(of_frequency, sum_frequency.base);
  for (Index lane = 0; lane < L; ++lane)
    dfrequency[field.across_lanes ? 0 : lane] += static_cast<double>(of_frequency[lane]);
}

}  // namespace rbar::simd
