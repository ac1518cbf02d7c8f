// N Kuramoto oscillators, each with a frequency of its own, that all feel one mean field: row i is an oscillator, not a
// position of a sequence (those are in oscillator.hpp, and so are the formulas). A stage of an integrator is one pass:
// the velocity where the phasors were taken last, the move, and the phasors there, summed for the next stage.
#pragma once

#include "rbar/simd/oscillator.hpp"

namespace rbar::simd {

// One stage, with v = ω + K(S cos θ − C sin θ) at the phasors:  moved += weight·v, then either on to the next stage's
// angles start + reach·v, or, at the last stage, to start = moved (wrapped).
template <class T>
struct EnsembleStage {
  T strength_cosine = 0, strength_sine = 0;  // K·C and K·S
  T weight = 0, reach = 0;                   // times dt
  bool last = true;
};

// The phasors of `angles` [count], and their sums.
template <class T>
RBAR_NOINLINE PhaseSums ensemble_phasors(const T* RBAR_RESTRICT angles, Index count, T* RBAR_RESTRICT cosine,
                                         T* RBAR_RESTRICT sine) {
  write_angle_phasors(angles, count, cosine, sine);
  return angle_sums(angles, count);
}

template <class T>
RBAR_NOINLINE PhaseSums ensemble_stage(const EnsembleStage<T>& stage, const T* RBAR_RESTRICT frequency, Index count,
                                       T* RBAR_RESTRICT start, T* RBAR_RESTRICT moved, T* RBAR_RESTRICT cosine,
                                       T* RBAR_RESTRICT sine) {
  const Batch<T> field_cosine = broadcast(stage.strength_cosine), field_sine = broadcast(stage.strength_sine);
  const Batch<T> weight = broadcast(stage.weight), reach = broadcast(stage.reach), one = broadcast(T(1));
  PhaseSums total;
  for (Index begin = 0; begin < count; begin += detail::sum_block) {
    Batch<T> cosines = zero<T>(), sines = zero<T>();
    const Index size = std::min(detail::sum_block, count - begin);
    detail::for_registers<T>(size, [&](Index offset, Index n) {
      const Index i = begin + offset;
      const auto at = [&](const T* data) { return detail::load_up_to(data + i, n); };
      const Phasor<T> before{at(cosine), at(sine), one};
      const Batch<T> velocity = detail::phase_velocity(before, field_cosine, field_sine, at(frequency), one);
      const Batch<T> goal = multiply_add(weight, velocity, at(moved));
      const Batch<T> next = wrap_angle(stage.last ? goal : multiply_add(reach, velocity, at(start)));
      detail::store_up_to(moved + i, stage.last ? next : goal, n);
      if (stage.last) detail::store_up_to(start + i, next, n);
      const Phasor<T> after = angle_phasor(next);
      detail::store_up_to(cosine + i, after.cosine, n);
      detail::store_up_to(sine + i, after.sine, n);
      // Read back, so that lanes beyond the end count nothing.
      cosines = cosines + (n == lanes<T> ? after.cosine : at(cosine));
      sines = sines + (n == lanes<T> ? after.sine : at(sine));
    });
    total.cosine += static_cast<double>(reduce_add(cosines));
    total.sine += static_cast<double>(reduce_add(sines));
  }
  return total;
}

}  // namespace rbar::simd
