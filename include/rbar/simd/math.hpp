// exp2 and exp of a register, for the loops that live on them (softmax, sigmoids).
//
//   float : 2^t = 2^n · 2^f with n = round(t), f = t − n in [−½, ½], and 2^f a minimax polynomial of degree 5 (relative
//           error 9.2e-8 before rounding, 2e-7 after it). n is rounded by adding the magic number 1.5·2²³, which leaves
//           it in the low bits of the sum; a shift by 23 makes them the exponent field of 2^n.
//   double: xsimd's, accurate to an ulp or so. Only gradient checks run in double.
//
// Both are total: −inf gives 0, +inf gives +inf, every NaN stays a NaN. In float, results below 2^−125.5 are 0.
#pragma once

#include "rbar/simd/batch.hpp"

#include <cstddef>
#include <iterator>

namespace rbar::simd {

namespace detail {

// The magic number also carries the bias of the exponent field, less one: the scale is 2^(n−1), and the missing factor
// 2 sits in the polynomials. That way n = 128 is still a finite scale, and the result overflows only where it should,
// while n = −126 makes the field, and with it the result, exactly 0.
inline constexpr float exponent_magic = 12582912.0f + 126.0f;

RBAR_INLINE Batch<float> half_power_of_two(const Batch<float>& n_plus_magic) {
  return from_bits(to_bits(n_plus_magic) << 23);
}

// The bound is the first operand because x86's max and min hand on their second operand when either is a NaN.
RBAR_INLINE Batch<float> clamp(const Batch<float>& x, float low, float high) {
  return min(broadcast(high), max(broadcast(low), x));
}

// 2·2^f for f in [−½, ½], from the highest power down.
inline constexpr float twice_exp2_coefficients[] = {2.652946830e-03f, 1.934302579e-02f, 1.110146743e-01f,
                                                    4.804448416e-01f, 1.386293955e+00f, 2.0f};
RBAR_INLINE Batch<float> twice_exp2_fraction(const Batch<float>& f) {
  Batch<float> p = broadcast(twice_exp2_coefficients[0]);
  RBAR_UNROLL
  for (std::size_t k = 1; k < std::size(twice_exp2_coefficients); ++k)
    p = multiply_add(p, f, broadcast(twice_exp2_coefficients[k]));
  return p;
}

// xsimd's exponentials turn their argument into an integer before they look at it, which is undefined for an infinity
// or a NaN.
template <class Exponential>
RBAR_INLINE Batch<double> without_extremes(const Batch<double>& x, double limit, Exponential exponential) {
  const auto is_number = x == x;
  const Batch<double> number = xsimd::select(is_number, x, zero<double>());
  return xsimd::select(is_number, exponential(max(broadcast(-limit), min(broadcast(limit), number))), x);
}

}  // namespace detail

// 2^t.
RBAR_INLINE Batch<float> exp2(const Batch<float>& t) {
  const Batch<float> clamped = detail::clamp(t, -126.0f, 129.0f);
  const Batch<float> n_plus_magic = clamped + broadcast(detail::exponent_magic);
  const Batch<float> f = clamped - (n_plus_magic - broadcast(detail::exponent_magic));
  return detail::twice_exp2_fraction(f) * detail::half_power_of_two(n_plus_magic);
}
RBAR_INLINE Batch<double> exp2(const Batch<double>& t) {
  return detail::without_extremes(t, 1100.0, [](const Batch<double>& v) { return xsimd::exp2(v); });
}

// 2^t for t <= 0 in place, in float without the bound that only large t need. The registers go in step: one such chain
// takes 40 cycles, and compilers leave several one behind the other, which is more than a core looks ahead.
template <std::size_t n>
RBAR_INLINE void decay_together(Batch<float> (&t)[n]) {
  Batch<float> n_plus_magic[n], p[n];
  RBAR_UNROLL
  for (Batch<float>& x : t) x = max(broadcast(-126.0f), x);
  RBAR_UNROLL
  for (std::size_t i = 0; i < n; ++i) n_plus_magic[i] = t[i] + broadcast(detail::exponent_magic);
  RBAR_UNROLL
  for (std::size_t i = 0; i < n; ++i) t[i] = t[i] - (n_plus_magic[i] - broadcast(detail::exponent_magic));
  RBAR_UNROLL
  for (Batch<float>& x : p) x = broadcast(detail::twice_exp2_coefficients[0]);
  const auto next_power = [&](const Batch<float>& coefficient) RBAR_INLINE_LAMBDA {
    RBAR_UNROLL
    for (std::size_t i = 0; i < n; ++i) p[i] = multiply_add(p[i], t[i], coefficient);
  };
  constexpr std::size_t terms = std::size(detail::twice_exp2_coefficients);
  RBAR_UNROLL
  for (std::size_t k = 1; k < terms; ++k) next_power(broadcast(detail::twice_exp2_coefficients[k]));
  RBAR_UNROLL
  for (std::size_t i = 0; i < n; ++i) t[i] = p[i] * detail::half_power_of_two(n_plus_magic[i]);
}
template <std::size_t n>
RBAR_INLINE void decay_together(Batch<double> (&t)[n]) {
  for (Batch<double>& x : t) x = exp2(x);
}
template <class T>
RBAR_INLINE Batch<T> decay(const Batch<T>& t) {
  Batch<T> one[1] = {t};
  decay_together(one);
  return one[0];
}

// e^x = 2^n · e^r with r = x − n·ln 2. ln 2 is split (Cody & Waite) so that n times its upper part is exact.
RBAR_INLINE Batch<float> exp(const Batch<float>& x) {
  const Batch<float> clamped = detail::clamp(x, -87.4f, 89.4f);
  const Batch<float> n_plus_magic = multiply_add(clamped, broadcast(1.44269504f), broadcast(detail::exponent_magic));
  const Batch<float> n = n_plus_magic - broadcast(detail::exponent_magic);
  Batch<float> r = multiply_add(n, broadcast(-0.693359375f), clamped);
  r = multiply_add(n, broadcast(2.12194440e-4f), r);
  Batch<float> p = broadcast(1.658063812e-02f);  // 2·e^r
  p = multiply_add(p, r, broadcast(8.379586080e-02f));
  p = multiply_add(p, r, broadcast(3.333527223e-01f));
  p = multiply_add(p, r, broadcast(9.999829904e-01f));
  p = multiply_add(p, r, broadcast(1.999999414e+00f));
  p = multiply_add(p, r, broadcast(2.0f));
  return p * detail::half_power_of_two(n_plus_magic);
}
RBAR_INLINE Batch<double> exp(const Batch<double>& x) {
  return detail::without_extremes(x, 800.0, [](const Batch<double>& v) { return xsimd::exp(v); });
}

}  // namespace rbar::simd
