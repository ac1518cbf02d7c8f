// Rows of angles for attention on the torus. A row of phasors is head by head [cos θ (d_h) | sin θ (d_h)], so that it
// is at once a value of the attention and an input of the maps.
#pragma once

#include "rbar/simd/oscillator.hpp"

namespace rbar::simd {

// phasors [heads, 2, dim] of angles [heads, dim], of any moderate size.
template <class T>
RBAR_NOINLINE void torus_phasors(const T* RBAR_RESTRICT angles, Index heads, Index dim, T* RBAR_RESTRICT phasors) {
  for (Index h = 0; h < heads; ++h) {
    T *cosine = phasors + 2 * h * dim, *sine = cosine + dim;
    detail::for_registers<T>(dim, [&](Index i, Index n) {
      const Phasor<T> z = angle_phasor(wrap_angle(detail::load_up_to(angles + h * dim + i, n)));
      detail::store_up_to(cosine + i, z.cosine, n);
      detail::store_up_to(sine + i, z.sine, n);
    });
  }
}
// dangles += cos θ·dsin − sin θ·dcos.
template <class T>
RBAR_NOINLINE void torus_phasors_backward(const T* RBAR_RESTRICT phasors, const T* RBAR_RESTRICT dphasors, Index heads,
                                          Index dim, T* RBAR_RESTRICT dangles) {
  for (Index h = 0; h < heads; ++h) {
    const T *cosine = phasors + 2 * h * dim, *sine = cosine + dim;
    const T *dcosine = dphasors + 2 * h * dim, *dsine = dcosine + dim;
    for (Index i = 0; i < dim; ++i) dangles[h * dim + i] += cosine[i] * dsine[i] - sine[i] * dcosine[i];
  }
}

// rotated = gate ∘ e^{i(θ + drift)}: each phasor turned by the drift of its coordinate (drift_cosine, drift_sine [dim],
// the same for every head) and scaled by scale[h]·gate (gate [heads, dim] or null: 1).
template <class T>
RBAR_NOINLINE void torus_gate(const T* RBAR_RESTRICT phasors, const T* RBAR_RESTRICT drift_cosine,
                              const T* RBAR_RESTRICT drift_sine, const T* RBAR_RESTRICT gate, const T* scale,
                              Index heads, Index dim, T* RBAR_RESTRICT rotated) {
  for (Index h = 0; h < heads; ++h) {
    const T *c = phasors + 2 * h * dim, *s = c + dim, *g = gate ? gate + h * dim : nullptr;
    T *to_c = rotated + 2 * h * dim, *to_s = to_c + dim;
    const T factor = scale ? scale[h] : T(1);
    for (Index i = 0; i < dim; ++i) {
      const T size = g ? factor * g[i] : factor;
      to_c[i] = size * (c[i] * drift_cosine[i] - s[i] * drift_sine[i]);
      to_s[i] = size * (c[i] * drift_sine[i] + s[i] * drift_cosine[i]);
    }
  }
}
// dphasors += the gradient of torus_gate, dgate (not null where gate is not) = ∂L/∂gate, dscale[h] += ∂L/∂scale
// (where not null).
template <class T>
RBAR_NOINLINE void torus_gate_backward(const T* RBAR_RESTRICT phasors, const T* RBAR_RESTRICT drift_cosine,
                                       const T* RBAR_RESTRICT drift_sine, const T* RBAR_RESTRICT gate, const T* scale,
                                       const T* RBAR_RESTRICT drotated, Index heads, Index dim,
                                       T* RBAR_RESTRICT dphasors, T* RBAR_RESTRICT dgate, T* dscale) {
  for (Index h = 0; h < heads; ++h) {
    const T *cosine = phasors + 2 * h * dim, *dcosine = drotated + 2 * h * dim;
    T* to = dphasors + 2 * h * dim;
    const Batch<T> factor = broadcast(scale ? scale[h] : T(1));
    Batch<T> sum = zero<T>();
    detail::for_registers<T>(dim, [&](Index i, Index n) {
      const auto at = [n](const T* data) { return detail::load_up_to(data, n); };
      const Batch<T> c = at(cosine + i), s = at(cosine + dim + i), d_c = at(dcosine + i), d_s = at(dcosine + dim + i);
      const Batch<T> turn_c = at(drift_cosine + i), turn_s = at(drift_sine + i);
      const Batch<T> turned_c = multiply_add(d_c, turn_c, d_s * turn_s);  // turned back
      const Batch<T> turned_s = d_s * turn_c - d_c * turn_s;
      const Batch<T> along = multiply_add(turned_c, c, turned_s * s);
      const Batch<T> g = gate ? at(gate + h * dim + i) : broadcast(T(1)), size = factor * g;
      detail::store_up_to(to + i, multiply_add(size, turned_c, at(to + i)), n);
      detail::store_up_to(to + dim + i, multiply_add(size, turned_s, at(to + dim + i)), n);
      if (gate) detail::store_up_to(dgate + h * dim + i, factor * along, n);
      sum = multiply_add(g, along, sum);
    });
    if (dscale) dscale[h] += reduce_add(sum);
  }
}

// The tangent step: moved = θ + η(cos θ·S − sin θ·C), mean = [C | S] head by head.
template <class T>
RBAR_NOINLINE void torus_step(const T* RBAR_RESTRICT angles, const T* RBAR_RESTRICT phasors,
                              const T* RBAR_RESTRICT mean, const T* RBAR_RESTRICT rate, Index heads, Index dim,
                              T* RBAR_RESTRICT moved) {
  for (Index h = 0; h < heads; ++h) {
    const T *c = phasors + 2 * h * dim, *s = c + dim, *mean_c = mean + 2 * h * dim, *mean_s = mean_c + dim;
    for (Index i = 0; i < dim; ++i)
      moved[h * dim + i] = angles[h * dim + i] + rate[h * dim + i] * (c[i] * mean_s[i] - s[i] * mean_c[i]);
  }
}
// dmean = and dphasors = the step's gradient; drate[j] += dmoved·Δ. The angle itself passes dmoved on.
template <class T>
RBAR_NOINLINE void torus_step_backward(const T* RBAR_RESTRICT dmoved, const T* RBAR_RESTRICT phasors,
                                       const T* RBAR_RESTRICT mean, const T* RBAR_RESTRICT rate, Index heads, Index dim,
                                       T* RBAR_RESTRICT dmean, T* RBAR_RESTRICT dphasors, T* RBAR_RESTRICT drate) {
  for (Index h = 0; h < heads; ++h) {
    const Index at = 2 * h * dim;
    const T *c = phasors + at, *s = c + dim, *mean_c = mean + at, *mean_s = mean_c + dim;
    for (Index i = 0; i < dim; ++i) {
      const T d = dmoved[h * dim + i], step = d * rate[h * dim + i];
      drate[h * dim + i] += d * (c[i] * mean_s[i] - s[i] * mean_c[i]);
      dmean[at + i] = -step * s[i];
      dmean[at + dim + i] = step * c[i];
      dphasors[at + i] = step * mean_s[i];
      dphasors[at + dim + i] = -step * mean_c[i];
    }
  }
}

}  // namespace rbar::simd
