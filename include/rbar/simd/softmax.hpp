// Softmax of a row, y_i = exp(x_i − max x) / Σ_j exp(x_j − max x), and its vjp.
//
// A row of −inf only (nothing is visible) gives zeros, not NaN; a NaN anywhere gives a row of NaN.
#pragma once

#include "rbar/simd/math.hpp"

#include <cmath>
#include <limits>

namespace rbar::simd {

// y = softmax(x); y may be x. Returns log Σ exp(x), −inf for a row without a finite entry.
template <class T>
RBAR_NOINLINE T softmax_row(const T* x, Index count, T* y) {
  constexpr Index L = lanes<T>;
  constexpr T minus_infinity = -std::numeric_limits<T>::infinity();
  const Index whole = count / L * L, rest = count - whole;

  Batch<T> largest = broadcast(minus_infinity);
  for (Index i = 0; i < whole; i += L) largest = max(largest, load(x + i));
  if (rest > 0) largest = max(largest, load_partial(x + whole, rest, minus_infinity));
  const T shift = reduce_max(largest);
  if (shift == minus_infinity) {
    // Nothing visible, or nothing but NaN and −inf: adding keeps the NaN.
    T poison = 0;
    for (Index i = 0; i < count; ++i) poison += x[i] == x[i] ? T(0) : x[i];
    for (Index i = 0; i < count; ++i) y[i] = poison;
    return poison + minus_infinity;
  }

  double total = 0;
  const Batch<T> offset = broadcast(shift);
  constexpr Index block = 64 * L;  // registers add over a block, double over the row
  for (Index begin = 0; begin < whole; begin += block) {
    Batch<T> sum = zero<T>();
    for (Index i = begin; i < whole && i < begin + block; i += L) {
      const Batch<T> e = exp(load(x + i) - offset);
      store(y + i, e);
      sum = sum + e;
    }
    total += static_cast<double>(reduce_add(sum));
  }
  if (rest > 0) {
    const Batch<T> e = exp(load_partial(x + whole, rest, minus_infinity) - offset);
    store_partial(y + whole, e, rest);
    total += static_cast<double>(reduce_add(e));
  }

  const Batch<T> scale = broadcast(static_cast<T>(1.0 / total));
  for (Index i = 0; i < whole; i += L) store(y + i, load(y + i) * scale);
  if (rest > 0) store_partial(y + whole, load_partial(y + whole, rest) * scale, rest);
  return shift + static_cast<T>(std::log(total));
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
