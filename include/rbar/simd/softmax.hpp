// Softmax of a row, y_i = exp(x_i − max x) / Σ_j exp(x_j − max x), and its vjp.
//
// A row of −inf only (nothing is visible) gives zeros, not NaN; a NaN anywhere gives a row of NaN.
#pragma once

#include "rbar/simd/math.hpp"

#include <algorithm>
#include <limits>
#include <numbers>
#include <type_traits>

namespace rbar::simd {

namespace detail {

// body(first, std::integral_constant{registers}) over `whole` elements of a row, four registers at a time and then one:
// a register's chain of operations is long, and only several of them keep the ports busy.
template <class T, class Body>
RBAR_INLINE void for_register_groups(Index begin, Index whole, Body&& body) {
  constexpr Index L = lanes<T>;
  Index i = begin;
  for (; i + 4 * L <= whole; i += 4 * L) body(i, std::integral_constant<Index, 4>{});
  for (; i < whole; i += L) body(i, std::integral_constant<Index, 1>{});
}

}  // namespace detail

// y = softmax(x); y may be x.
template <class T>
RBAR_NOINLINE void softmax_row(const T* x, Index count, T* y) {
  constexpr Index L = lanes<T>;
  constexpr T minus_infinity = -std::numeric_limits<T>::infinity();
  const Index whole = count / L * L, rest = count - whole;

  Batch<T> largest[4];
  RBAR_UNROLL
  for (Batch<T>& part : largest) part = broadcast(minus_infinity);
  detail::for_register_groups<T>(0, whole, [&]<Index n>(Index i, std::integral_constant<Index, n>) {
    RBAR_UNROLL
    for (Index j = 0; j < n; ++j) largest[j] = max(largest[j], load(x + i + j * L));
  });
  if (rest > 0) largest[0] = max(largest[0], load_partial(x + whole, rest, minus_infinity));
  const T shift = reduce_max(max(max(largest[0], largest[1]), max(largest[2], largest[3])));
  if (shift == minus_infinity) {
    // Nothing visible, or nothing but NaN and −inf: adding keeps the NaN.
    T poison = 0;
    for (Index i = 0; i < count; ++i) poison += x[i] == x[i] ? T(0) : x[i];
    for (Index i = 0; i < count; ++i) y[i] = poison;
    return;
  }

  // exp(x − max) as a power of two: where rounding (x − max)·log₂e costs digits, the result is next to nothing.
  double total = 0;
  const Batch<T> offset = broadcast(shift), log2e = broadcast(std::numbers::log2e_v<T>);
  constexpr Index block = 64 * L;  // registers add over a block, double over the row
  for (Index begin = 0; begin < whole; begin += block) {
    Batch<T> sum[4];
    RBAR_UNROLL
    for (Batch<T>& part : sum) part = zero<T>();
    detail::for_register_groups<T>(begin, std::min(whole, begin + block),
                                   [&]<Index n>(Index i, std::integral_constant<Index, n>) {
                                     Batch<T> e[n];
                                     RBAR_UNROLL
                                     for (Index j = 0; j < n; ++j) e[j] = (load(x + i + j * L) - offset) * log2e;
                                     decay_together(e);
                                     RBAR_UNROLL
                                     for (Index j = 0; j < n; ++j) {
                                       store(y + i + j * L, e[j]);
                                       sum[j] = sum[j] + e[j];
                                     }
                                   });
    total += static_cast<double>(reduce_add(Batch<T>((sum[0] + sum[1]) + (sum[2] + sum[3]))));
  }
  if (rest > 0) {
    const Batch<T> e = decay((load_partial(x + whole, rest, minus_infinity) - offset) * log2e);
    store_partial(y + whole, e, rest);
    total += static_cast<double>(reduce_add(e));
  }

  const Batch<T> scale = broadcast(static_cast<T>(1.0 / total));
  detail::for_register_groups<T>(0, whole, [&]<Index n>(Index i, std::integral_constant<Index, n>) {
    RBAR_UNROLL
    for (Index j = 0; j < n; ++j) store(y + i + j * L, load(y + i + j * L) * scale);
  });
  if (rest > 0) store_partial(y + whole, load_partial(y + whole, rest) * scale, rest);
}

// dx_i = y_i·(dy_i − Σ_j y_j dy_j); dx may be dy.
template <class T>
RBAR_NOINLINE void softmax_row_backward(const T* y, const T* dy, Index count, T* dx) {
  constexpr Index L = lanes<T>;
  const Index whole = count / L * L, rest = count - whole;
  Batch<T> sum = zero<T>();
  for (Index i = 0; i < whole; i += L) sum = multiply_add(load(y + i), load(dy + i), sum);
  if (rest > 0) sum = multiply_add(load_partial(y + whole, rest), load_partial(dy + whole, rest), sum);
  const Batch<T> mean = broadcast(reduce_add(sum));
  for (Index i = 0; i < whole; i += L) store(dx + i, load(y + i) * (load(dy + i) - mean));
  if (rest > 0)
    store_partial(dx + whole, load_partial(y + whole, rest) * (load_partial(dy + whole, rest) - mean), rest);
}

}  // namespace rbar::simd
