// The oscillators of phase-modulated attention: the heads of one token, coupled to each other and to nothing else,
//   φ_h ← φ_h + dt (ω_h + K (S cos φ_h − C sin φ_h)),   C, S = mean over the heads of cos φ, sin φ,
// several tokens in a block, one a column. The kernels of oscillators along a sequence do it: there the copies of one
// oscillator are coupled over positions, all to all, which are the heads here. Their frequencies differ, so the drift
// dt·ω_h is a step of its own.
#pragma once

#include "rbar/core/tensor.hpp"
#include "rbar/simd/mean_field.hpp"

#include <algorithm>

namespace rbar {

template <class T>
struct HeadOscillators {
  static constexpr Index columns = simd::lanes<T>;  // tokens of a block

  const T* frequency;  // ω [heads]
  Index heads, steps;
  double step_size;

  Index block_size() const { return heads * columns; }
  Index record_size() const { return steps * field(no_coupling).evaluation_size(); }

  // Phases [heads, columns] in place, wrapped into [−π, π] at the end; strength: K [columns]. record: what backward
  // reads.
  void advance(const T* strength, T* phases, T* record) const {
    for (Index step = 0; step < steps; ++step) {
      simd::advance_all(field(strength), phases, record + step * field(strength).evaluation_size(), /*keep=*/true,
                        static_cast<T*>(nullptr));
      for (Index h = 0; h < heads; ++h)
        for (Index c = 0; c < columns; ++c) phases[h * columns + c] += drift(h);
    }
    for (Index i = 0; i < block_size(); i += simd::lanes<T>)
      simd::store(phases + i, simd::wrap_angle(simd::load(phases + i)));
  }

  // dphases: from those after the last step to those before the first. dfrequency [heads] and dstrength [columns] are
  // added to.
  void backward(const T* strength, const T* record, T* dphases, double* dfrequency, double* dstrength) const {
    const T dt = static_cast<T>(step_size);
    double at_rest_frequency[columns] = {};  // of a column, where only heads have one
    for (Index step = steps; step-- > 0;) {
      for (Index h = 0; h < heads; ++h) {
        T sum = 0;
        for (Index c = 0; c < columns; ++c) sum += dt * dphases[h * columns + c];
        dfrequency[h] += static_cast<double>(sum);
      }
      simd::advance_all_backward(field(strength), record + step * field(strength).evaluation_size(), dphases,
                                 at_rest_frequency, dstrength, static_cast<T*>(nullptr));
    }
  }

 private:
  alignas(64) static constexpr T no_coupling[static_cast<std::size_t>(columns)] = {};

  simd::MeanField<T> field(const T* strength) const {
    return {simd::zero<T>(),
            simd::load(strength),
            heads,
            /*across_lanes=*/false,
            {.steps = 1, .step_size = step_size, .runge_kutta = false}};
  }
  T drift(Index h) const { return static_cast<T>(step_size) * frequency[h]; }
};

}  // namespace rbar
