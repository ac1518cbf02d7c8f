// The one place where xsimd is touched: names that mean the same with xsimd 8.1 (Debian 12) and 14.
// Kernels above are written against these functions and `lanes<T>`; no kernel names an instruction
// set except this file.
#pragma once

#include "rbar/config.hpp"

#include <xsimd/xsimd.hpp>

#include <Eigen/Core>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace rbar::simd {

using Index = Eigen::Index;

template <class T>
using Batch = xsimd::batch<T>;

// Elements of T in one register of the architecture this translation unit is compiled for.
template <class T>
inline constexpr Index lanes = static_cast<Index>(Batch<T>::size);

// Architectural registers: how many accumulators a register block may use.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr Index register_count = 32;
#else
inline constexpr Index register_count = 16;
#endif

// The instruction set xsimd chose from the consumer's flags, e.g. "avx512bw".
inline const char* architecture() { return xsimd::default_arch::name(); }

template <class T>
RBAR_INLINE Batch<T> load(const T* data) {
  return Batch<T>::load_unaligned(data);
}
template <class T>
RBAR_INLINE void store(T* data, const Batch<T>& value) {
  value.store_unaligned(data);
}
template <class T>
RBAR_INLINE Batch<T> broadcast(T value) {
  return Batch<T>(value);
}
template <class T>
RBAR_INLINE Batch<T> zero() {
  return Batch<T>(T(0));
}

// a·b + c in one rounding wherever the machine has it. xsimd 8.1 has no AVX-512 fma of its own
// (it computes a*b+c and relies on -ffp-contract), hence the two lines of intrinsics.
RBAR_INLINE Batch<float> multiply_add(const Batch<float>& a, const Batch<float>& b, const Batch<float>& c) {
#if defined(__AVX512F__)
  return Batch<float>(_mm512_fmadd_ps(a, b, c));
#else
  return xsimd::fma(a, b, c);
#endif
}
RBAR_INLINE Batch<double> multiply_add(const Batch<double>& a, const Batch<double>& b, const Batch<double>& c) {
#if defined(__AVX512F__)
  return Batch<double>(_mm512_fmadd_pd(a, b, c));
#else
  return xsimd::fma(a, b, c);
#endif
}

// Keeps a value that is used several times in its register. GCC 12 would rather read it from memory again in every
// multiply-add, and loads are what a 4 × 4 register block has least of: 77% of the FMA peak without this, 97% with it.
template <class T>
RBAR_INLINE void hold([[maybe_unused]] Batch<T>& value) {
#if defined(__GNUC__) && defined(__AVX512F__)
  asm("" : "+v"(value.data));
#elif defined(__GNUC__) && defined(__SSE2__)
  asm("" : "+x"(value.data));
#endif
}

// Loads the first `count` < lanes elements; the other lanes are `fill`.
template <class T>
RBAR_INLINE Batch<T> load_partial(const T* data, Index count, T fill = T(0)) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>)
    return Batch<float>(_mm512_mask_loadu_ps(_mm512_set1_ps(fill), static_cast<__mmask16>((1u << count) - 1u), data));
  else if constexpr (std::is_same_v<T, double>)
    return Batch<double>(_mm512_mask_loadu_pd(_mm512_set1_pd(fill), static_cast<__mmask8>((1u << count) - 1u), data));
#endif
  alignas(64) T buffer[lanes<T>];
  for (Index i = 0; i < lanes<T>; ++i) buffer[i] = i < count ? data[i] : fill;
  return Batch<T>::load_aligned(buffer);
}
template <class T>
RBAR_INLINE void store_partial(T* data, const Batch<T>& value, Index count) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    _mm512_mask_storeu_ps(data, static_cast<__mmask16>((1u << count) - 1u), value);
    return;
  } else if constexpr (std::is_same_v<T, double>) {
    _mm512_mask_storeu_pd(data, static_cast<__mmask8>((1u << count) - 1u), value);
    return;
  }
#endif
  alignas(64) T buffer[lanes<T>];
  value.store_aligned(buffer);
  for (Index i = 0; i < count; ++i) data[i] = buffer[i];
}

// As many elements as a register holds doubles, in double.
template <class T>
RBAR_INLINE Batch<double> load_as_double(const T* data) {
  if constexpr (std::is_same_v<T, double>) return load(data);
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) return Batch<double>(_mm512_cvtps_pd(_mm256_loadu_ps(data)));
#elif defined(__AVX__)
  if constexpr (std::is_same_v<T, float>) return Batch<double>(_mm256_cvtps_pd(_mm_loadu_ps(data)));
#elif defined(__SSE2__)
  if constexpr (std::is_same_v<T, float>) return Batch<double>(_mm_cvtps_pd(_mm_setr_ps(data[0], data[1], 0, 0)));
#endif
  alignas(64) double buffer[lanes<double>];
  for (Index i = 0; i < lanes<double>; ++i) buffer[i] = static_cast<double>(data[i]);
  return Batch<double>::load_aligned(buffer);
}
// The first `count` < lanes of them; the other lanes are 0.
template <class T>
RBAR_INLINE Batch<double> load_partial_as_double(const T* data, Index count) {
  alignas(64) double buffer[lanes<double>];
  for (Index i = 0; i < lanes<double>; ++i) buffer[i] = i < count ? static_cast<double>(data[i]) : 0;
  return Batch<double>::load_aligned(buffer);
}

// Asks for a row before its turn: rows that lie far apart are what no hardware looks ahead for.
template <class T>
RBAR_INLINE void prefetch_row(const T* row, Index count) {
  for (Index i = 0; i < count; i += static_cast<Index>(64 / sizeof(T))) RBAR_PREFETCH_FAR(row + i);
}

// Horizontal sum and maximum, in a fixed order of lanes. What the maximum of lanes with a NaN is, is left open.
template <class T>
RBAR_INLINE T reduce_add(const Batch<T>& value) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>)
    return _mm512_reduce_add_ps(value);
  else if constexpr (std::is_same_v<T, double>)
    return _mm512_reduce_add_pd(value);
#endif
  alignas(64) T buffer[lanes<T>];
  value.store_aligned(buffer);
  for (Index width = lanes<T> / 2; width > 0; width /= 2)
    for (Index i = 0; i < width; ++i) buffer[i] += buffer[i + width];
  return buffer[0];
}
template <class T>
RBAR_INLINE T reduce_max(const Batch<T>& value) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>)
    return _mm512_reduce_max_ps(value);
  else if constexpr (std::is_same_v<T, double>)
    return _mm512_reduce_max_pd(value);
#endif
  alignas(64) T buffer[lanes<T>];
  value.store_aligned(buffer);
  T largest = buffer[0];
  for (Index i = 1; i < lanes<T>; ++i) largest = buffer[i] > largest ? buffer[i] : largest;
  return largest;
}

// The bits of a float register as integers and back (xsimd 8.1 and 9+ spell bitwise_cast differently).
RBAR_INLINE Batch<std::int32_t> to_bits(const Batch<float>& value) { return std::bit_cast<Batch<std::int32_t>>(value); }
RBAR_INLINE Batch<float> from_bits(const Batch<std::int32_t>& bits) { return std::bit_cast<Batch<float>>(bits); }

template <class T>
RBAR_INLINE Batch<T> max(const Batch<T>& a, const Batch<T>& b) {
  return xsimd::max(a, b);
}
template <class T>
RBAR_INLINE Batch<T> min(const Batch<T>& a, const Batch<T>& b) {
  return xsimd::min(a, b);
}

}  // namespace rbar::simd
