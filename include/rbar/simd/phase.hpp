// Phases φ = 2π·σ(x) as unit phasors, straight from x.
//
// σ(x) = ½(1 + t) with t = tanh(x/2), so φ = π(1 + t): no range to reduce. In half angles, with u = t² in [0, 1],
//   s = sin(πt/2) = t·S(u),   c = −cos(πt/2) = C(u):
//   cos φ = s² − c²,   sin φ = 2sc,   dφ/dx = ½π(1 − t²),
// where S and C have five terms each (Remez fits, absolute errors 3e-9 and 5e-8). In float the phasors end within 6e-7
// of the exact ones, 1e-7 in the mean; double takes xsimd's exp, sin and cos.
#pragma once

#include "rbar/simd/math.hpp"

#include <numbers>
#include <utility>

namespace rbar::simd {

template <class T>
struct Phasor {
  Batch<T> cosine, sine;
  Batch<T> slope;  // dφ/dx; costs nothing where it is not used
};

namespace detail {

// s = sin(πt/2) and c = −cos(πt/2) for t in [−1, 1].
struct HalfAngle {
  Batch<float> sine, cosine;
};
RBAR_INLINE HalfAngle half_angle(const Batch<float>& t) {
  const Batch<float> u = t * t;
  Batch<float> s = multiply_add(u, broadcast(1.508205646e-04f), broadcast(-4.672227923e-03f));
  s = multiply_add(s, u, broadcast(7.968848054e-02f));
  s = multiply_add(s, u, broadcast(-6.459633599e-01f));
  s = multiply_add(s, u, broadcast(1.570796290e+00f));
  Batch<float> c = multiply_add(u, broadcast(-8.581906198e-04f), broadcast(2.081062753e-02f));
  c = multiply_add(c, u, broadcast(-2.536507447e-01f));
  c = multiply_add(c, u, broadcast(1.233698215e+00f));
  c = multiply_add(c, u, broadcast(-9.999999535e-01f));
  return {s * t, c};
}

}  // namespace detail

// t = tanh(x/2).
RBAR_INLINE Batch<float> half_tanh(const Batch<float>& x) {
  // e = exp(−x). No split of ln 2 as in exp(): where |x| is large enough for it to matter, t is flat.
  const Batch<float> minus_log2e = broadcast(-1.44269504f), magic = broadcast(detail::exponent_magic);
  const Batch<float> clamped = detail::clamp(x, -80.0f, 80.0f);
  const Batch<float> n_plus_magic = multiply_add(clamped, minus_log2e, magic);
  const Batch<float> f = multiply_add(clamped, minus_log2e, magic - n_plus_magic);
  const Batch<float> e = detail::twice_exp2_fraction(f) * detail::half_power_of_two(n_plus_magic);
  const Batch<float> one = broadcast(1.0f);
  return (one - e) / (one + e);
}
RBAR_INLINE Batch<double> half_tanh(const Batch<double>& x) {
  const Batch<double> e = exp(-max(broadcast(-700.0), x)), one = broadcast(1.0);
  return (one - e) / (one + e);
}

// The phasor of φ = π(1 + t).
RBAR_INLINE Phasor<float> tanh_phasor(const Batch<float>& t) {
  const detail::HalfAngle half = detail::half_angle(t);
  const Batch<float> half_sine = half.sine * half.cosine;
  constexpr float half_pi = std::numbers::pi_v<float> / 2;
  // (s − c)(s + c) halves the rounding error of 2s² − 1.
  return {(half.sine - half.cosine) * (half.sine + half.cosine), half_sine + half_sine,
          multiply_add(t * t, broadcast(-half_pi), broadcast(half_pi))};
}
RBAR_INLINE Phasor<double> tanh_phasor(const Batch<double>& t) {
  constexpr double pi = std::numbers::pi;
  const Batch<double> angle = broadcast(pi) * t;
  const auto [sine, cosine] = xsimd::sincos(angle);
  return {-cosine, -sine, broadcast(pi / 2) * (broadcast(1.0) - t * t)};
}

template <class T>
RBAR_INLINE Phasor<T> sigmoid_phase(const Batch<T>& x) {
  return tanh_phasor(half_tanh(x));
}

// --- rows ---------------------------------------------------------------------------------------

// Σ cos and Σ sin of a set of angles.
struct PhaseSums {
  double cosine = 0, sine = 0;
};

namespace detail {

// Calls body(offset, n) for every register of a row, n = lanes but for the last.
template <class T, class Body>
RBAR_INLINE void for_registers(Index count, Body&& body) {
  Index i = 0;
  for (; i + lanes<T> <= count; i += lanes<T>) body(i, lanes<T>);
  if (i < count) body(i, count - i);
}
template <class T>
RBAR_INLINE Batch<T> load_up_to(const T* data, Index count) {
  return count == lanes<T> ? load(data) : load_partial(data, count);
}
template <class T>
RBAR_INLINE void store_up_to(T* data, const Batch<T>& value, Index count) {
  count == lanes<T> ? store(data, value) : store_partial(data, value, count);
}

// Rows are summed in registers over this many elements at a time and in double from there on.
inline constexpr Index sum_block = 1024;

// Phasors of a row are made in two passes over at most sum_block elements, with tanh(x/2) kept between them in L1. As
// one pass it is a chain of some 100 cycles, of which a core's window holds too few at a time to fill its ports.
struct SigmoidPhase {
  template <class T>
  RBAR_INLINE const T* prepare(const T* RBAR_RESTRICT x, Index count, T* RBAR_RESTRICT buffer) const {
    for_registers<T>(count, [&](Index i, Index n) { store_up_to(buffer + i, half_tanh(load_up_to(x + i, n)), n); });
    return buffer;
  }
  template <class T>
  RBAR_INLINE Phasor<T> phasor(const Batch<T>& t) const {
    return tanh_phasor(t);
  }
  // cosine += cos φ, half_sine += ½ sin φ: the products are part of the sums.
  RBAR_INLINE void add(const Batch<float>& t, Batch<float>& cosine, Batch<float>& half_sine) const {
    const HalfAngle half = half_angle(t);
    cosine = multiply_add(half.sine - half.cosine, half.sine + half.cosine, cosine);
    half_sine = multiply_add(half.sine, half.cosine, half_sine);
  }
  RBAR_INLINE void add(const Batch<double>& t, Batch<double>& cosine, Batch<double>& half_sine) const {
    const Phasor<double> z = tanh_phasor(t);
    cosine = cosine + z.cosine;
    half_sine = multiply_add(broadcast(0.5), z.sine, half_sine);
  }
};
struct GivenPhase {
  template <class T>
  RBAR_INLINE const T* prepare(const T* angles, Index, T*) const {
    return angles;
  }
  template <class T>
  RBAR_INLINE Phasor<T> phasor(const Batch<T>& angle) const {
    const auto [sine, cosine] = xsimd::sincos(angle);
    return {cosine, sine, broadcast(T(1))};
  }
  template <class T>
  RBAR_INLINE void add(const Batch<T>& angle, Batch<T>& cosine, Batch<T>& half_sine) const {
    const auto [s, c] = xsimd::sincos(angle);
    cosine = cosine + c;
    half_sine = multiply_add(broadcast(T(0.5)), s, half_sine);
  }
};

// Calls body(offset, n, phasor) for every register of a row.
template <class T, class Phase, class Body>
RBAR_INLINE void for_phasors(const T* x, Index count, Phase phase, Body&& body) {
  alignas(64) T buffer[sum_block];
  for (Index begin = 0; begin < count; begin += sum_block) {
    const Index size = count - begin < sum_block ? count - begin : sum_block;
    const T* prepared = phase.prepare(x + begin, size, buffer);
    for_registers<T>(
        size, [&](Index i, Index n) { body(begin + i, n, phase.template phasor<T>(load_up_to(prepared + i, n))); });
  }
}

template <class T, class Phase>
RBAR_INLINE PhaseSums sum_phasors(const T* RBAR_RESTRICT x, Index count, Phase phase) {
  constexpr Index L = lanes<T>;
  alignas(64) T buffer[sum_block];
  PhaseSums total;
  for (Index begin = 0; begin < count; begin += sum_block) {
    const Index size = count - begin < sum_block ? count - begin : sum_block;
    const T* prepared = phase.prepare(x + begin, size, buffer);
    Batch<T> cosine[2] = {zero<T>(), zero<T>()}, half_sine[2] = {zero<T>(), zero<T>()};
    Index i = 0;
    for (; i + 2 * L <= size; i += 2 * L) {
      RBAR_UNROLL
      for (Index j = 0; j < 2; ++j) phase.add(load(prepared + i + j * L), cosine[j], half_sine[j]);
    }
    for (; i + L <= size; i += L) phase.add(load(prepared + i), cosine[0], half_sine[0]);
    total.cosine += static_cast<double>(reduce_add(Batch<T>(cosine[0] + cosine[1])));
    total.sine += 2 * static_cast<double>(reduce_add(Batch<T>(half_sine[0] + half_sine[1])));
    if (i < size) {
      alignas(64) T c[L], s[L];
      const Phasor<T> z = phase.template phasor<T>(load_partial(prepared + i, size - i));
      store(c, z.cosine);
      store(s, z.sine);
      for (Index j = 0; j < size - i; ++j) {
        total.cosine += static_cast<double>(c[j]);
        total.sine += static_cast<double>(s[j]);
      }
    }
  }
  return total;
}

// dx[i] += dφ/dx·(a·cos φ − b·sin φ): the gradient of a·Σ sin φ + b·Σ cos φ.
template <class T, class Phase>
RBAR_INLINE void add_phasor_gradient(const T* RBAR_RESTRICT x, Index count, T a, T b, T* RBAR_RESTRICT dx,
                                     Phase phase) {
  const Batch<T> da = broadcast(a), db = broadcast(b);
  for_phasors(x, count, phase, [&](Index i, Index n, const Phasor<T>& z) {
    const Batch<T> dphi = da * z.cosine - db * z.sine;
    store_up_to(dx + i, multiply_add(dphi, z.slope, load_up_to(dx + i, n)), n);
  });
}

}  // namespace detail

// Sums over φ = 2πσ(x[i]), without storing a single phasor.
template <class T>
RBAR_NOINLINE PhaseSums sigmoid_phase_sums(const T* x, Index count) {
  return detail::sum_phasors(x, count, detail::SigmoidPhase{});
}
// dx += gradient of a·Σ sin φ + b·Σ cos φ.
template <class T>
RBAR_NOINLINE void sigmoid_phase_gradient(const T* x, Index count, T a, T b, T* dx) {
  detail::add_phasor_gradient(x, count, a, b, dx, detail::SigmoidPhase{});
}

// dx[i] += dφ/dx·(a[i]·cos φ − b[i]·sin φ).
template <class T>
RBAR_NOINLINE void sigmoid_phase_gradient(const T* x, Index count, const T* a, const T* b, T* dx) {
  detail::for_phasors(x, count, detail::SigmoidPhase{}, [&](Index i, Index n, const Phasor<T>& z) {
    const Batch<T> dphi = detail::load_up_to(a + i, n) * z.cosine - detail::load_up_to(b + i, n) * z.sine;
    detail::store_up_to(dx + i, multiply_add(dphi, z.slope, detail::load_up_to(dx + i, n)), n);
  });
}

// The same for given angles of any size (radians).
template <class T>
RBAR_NOINLINE PhaseSums angle_sums(const T* angles, Index count) {
  return detail::sum_phasors(angles, count, detail::GivenPhase{});
}
template <class T>
RBAR_NOINLINE void angle_gradient(const T* angles, Index count, T a, T b, T* dangles) {
  detail::add_phasor_gradient(angles, count, a, b, dangles, detail::GivenPhase{});
}

// Stores the phasors of a row.
template <class T>
RBAR_NOINLINE void write_phasors(const T* RBAR_RESTRICT x, Index count, T* RBAR_RESTRICT cosine,
                                 T* RBAR_RESTRICT sine) {
  detail::for_phasors(x, count, detail::SigmoidPhase{}, [&](Index i, Index n, const Phasor<T>& z) {
    detail::store_up_to(cosine + i, z.cosine, n);
    detail::store_up_to(sine + i, z.sine, n);
  });
}

// Σ z·conj(w) of two stored rows of phasors: the cosine and sine sums of the phase differences.
template <class T>
RBAR_NOINLINE PhaseSums phase_difference_sums(const T* z_cosine, const T* z_sine, const T* w_cosine, const T* w_sine,
                                              Index count) {
  PhaseSums total;
  for (Index begin = 0; begin < count; begin += detail::sum_block) {
    Batch<T> cosine = zero<T>(), sine = zero<T>();
    const Index size = count - begin < detail::sum_block ? count - begin : detail::sum_block;
    detail::for_registers<T>(size, [&](Index offset, Index n) {
      const Index i = begin + offset;
      const Batch<T> zc = detail::load_up_to(z_cosine + i, n), zs = detail::load_up_to(z_sine + i, n);
      const Batch<T> wc = detail::load_up_to(w_cosine + i, n), ws = detail::load_up_to(w_sine + i, n);
      cosine = multiply_add(zc, wc, multiply_add(zs, ws, cosine));
      sine = multiply_add(zs, wc, sine) - zc * ws;
    });
    total.cosine += static_cast<double>(reduce_add(cosine));
    total.sine += static_cast<double>(reduce_add(sine));
  }
  return total;
}

}  // namespace rbar::simd
