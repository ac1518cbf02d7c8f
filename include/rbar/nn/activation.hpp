// Pointwise nonlinearities f and their derivatives.
//   gelu       x·Φ(x), Φ the normal distribution function        (Hendrycks, Gimpel, arXiv:1606.08415)
//   gelu_tanh  ½x·(1 + tanh(√(2/π)·(x + 0.044715x³))), GPT-2's approximation of it
//   relu       max(x, 0)
//   silu       x·σ(x)
#pragma once

#include "rbar/core/parallel.hpp"
#include "rbar/core/tensor.hpp"
#include "rbar/simd/math.hpp"

#include <algorithm>
#include <string_view>
#include <type_traits>

namespace rbar {

enum class Activation { gelu, gelu_tanh, relu, silu };

inline constexpr Activation all_activations[] = {Activation::gelu, Activation::gelu_tanh, Activation::relu,
                                                 Activation::silu};
constexpr const char* name_of(Activation activation) {
  switch (activation) {
    case Activation::gelu:
      return "gelu";
    case Activation::gelu_tanh:
      return "gelu_tanh";
    case Activation::relu:
      return "relu";
    case Activation::silu:
      return "silu";
  }
  return "?";
}
constexpr bool parse(std::string_view text, Activation& activation) {
  for (const Activation candidate : all_activations)
    if (text == name_of(candidate)) return activation = candidate, true;
  return false;
}

namespace detail {

// f(x) and f'(x): what they have in common is computed once, and what nobody uses is not computed.
template <class B>
struct ValueAndSlope {
  B value, slope;
};

// Φ(x) and the density φ(x) = exp(−x²/2)/√(2π).
template <class T>
RBAR_INLINE ValueAndSlope<simd::Batch<T>> normal_distribution(const simd::Batch<T>& x) {
  using B = simd::Batch<T>;
  const B density_scale(T(0.398942280401432678));  // 1/√(2π)
  const B gauss = simd::exp(x * x * B(T(-0.5)));
  if constexpr (std::is_same_v<T, float>) {
    // Φ(−u) = exp(−u²/2)·R(u) for u = |x|, with R written as t·P(t) in t = 1/(1 + 0.27u) (the form of
    // Hastings; see Abramowitz, Stegun, 7.1.26). P interpolates at the Chebyshev nodes of 0 <= u <= 14,
    // the range where fp32 can hold the tail; relative error 3e-8 there.
    const B t = B(1.0f) / simd::multiply_add(xsimd::abs(x), B(0.27f), B(1.0f));
    B p(0.02910702821760744f);
    for (const float coefficient :
         {-0.12724211988482828f, 0.1714446874042226f, -0.07121391700447795f, 0.10927720647132008f, 0.07140606254391152f,
          0.10198036700316891f, 0.1075186032622218f, 0.10772209305876276f})
      p = simd::multiply_add(p, t, B(coefficient));
    const B tail = gauss * t * p;
    return {xsimd::select(x < B(0.0f), tail, B(1.0f) - tail), gauss * density_scale};
  } else {
    const B half(T(0.5));
    return {simd::multiply_add(half, xsimd::erf(x * B(T(0.707106781186547524))), half), gauss * density_scale};
  }
}

template <class T>
RBAR_INLINE simd::Batch<T> sigmoid(const simd::Batch<T>& x) {
  using B = simd::Batch<T>;
  return B(T(1)) / (B(T(1)) + simd::exp(-x));
}

template <Activation activation, class T>
RBAR_INLINE ValueAndSlope<simd::Batch<T>> activate(const simd::Batch<T>& x) {
  using B = simd::Batch<T>;
  const B one(T(1)), zero(T(0));
  if constexpr (activation == Activation::gelu) {
    const auto [distribution, density] = normal_distribution<T>(x);
    return {x * distribution, simd::multiply_add(x, density, distribution)};
  } else if constexpr (activation == Activation::gelu_tanh) {
    // ½(1 + tanh z) = σ(2z)
    const B square = x * x, scale(T(2 * 0.797884560802865356));  // 2√(2/π)
    const B s = sigmoid<T>(scale * x * simd::multiply_add(B(T(0.044715)), square, one));
    const B inner_slope = scale * simd::multiply_add(B(T(3 * 0.044715)), square, one);
    return {x * s, simd::multiply_add(x * s * (one - s), inner_slope, s)};
  } else if constexpr (activation == Activation::relu) {
    return {simd::max(x, zero), xsimd::select(x > zero, one, zero)};
  } else {
    const B s = sigmoid<T>(x);
    return {x * s, s * simd::multiply_add(x, one - s, one)};
  }
}

// Calls body<activation>() with the run-time choice as a constant.
template <class Body>
void with_activation(Activation activation, Body&& body) {
  switch (activation) {
    case Activation::gelu:
      return body.template operator()<Activation::gelu>();
    case Activation::gelu_tanh:
      return body.template operator()<Activation::gelu_tanh>();
    case Activation::relu:
      return body.template operator()<Activation::relu>();
    case Activation::silu:
      return body.template operator()<Activation::silu>();
  }
}

// body(offset, count) over [0, size): count is the register width except in the last call.
template <class T, class Body>
void for_each_register(Index size, Body&& body) {
  constexpr Index chunk = 8192;
  parallel_for(size, chunk, [&](Index begin, Index end) {
    Index i = begin;
    for (; i + simd::lanes<T> <= end; i += simd::lanes<T>) body(i, simd::lanes<T>);
    if (i < end) body(i, end - i);
  });
}

template <class T>
RBAR_INLINE simd::Batch<T> load_some(const T* data, Index count) {
  return count == simd::lanes<T> ? simd::load(data) : simd::load_partial(data, count);
}
template <class T>
RBAR_INLINE void store_some(T* data, const simd::Batch<T>& value, Index count) {
  count == simd::lanes<T> ? simd::store(data, value) : simd::store_partial(data, value, count);
}

}  // namespace detail

// y = f(x). Errors: different sizes.
template <class T>
void activation_forward(Activation activation, ConstMatrixView<T> x, MatrixView<T> y) {
  require_shape("activation_forward", "y", y, {x.rows(), x.cols()});
  detail::with_activation(activation, [&]<Activation f>() {
    detail::for_each_register<T>(x.size(), [&](Index i, Index count) {
      detail::store_some(y.data() + i, detail::activate<f, T>(detail::load_some(x.data() + i, count)).value, count);
    });
  });
}

// dx = dy∘f'(x); dx may be dy.
template <class T>
void activation_backward(Activation activation, ConstMatrixView<T> dy, ConstMatrixView<T> x, MatrixView<T> dx) {
  require_shape("activation_backward", "dy", dy, {x.rows(), x.cols()});
  require_shape("activation_backward", "dx", dx, {x.rows(), x.cols()});
  detail::with_activation(activation, [&]<Activation f>() {
    detail::for_each_register<T>(x.size(), [&](Index i, Index count) {
      const auto slope = detail::activate<f, T>(detail::load_some(x.data() + i, count)).slope;
      detail::store_some(dx.data() + i, detail::load_some(dy.data() + i, count) * slope, count);
    });
  });
}

}  // namespace rbar
