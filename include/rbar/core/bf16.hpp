// bfloat16, the upper half of a binary32: for storage. Arithmetic happens in float (simd/bf16_gemm.hpp).
#pragma once

#include <bit>
#include <cstdint>
#include <span>

namespace rbar {

struct BFloat16 {  // 1 sign, 8 exponent, 7 mantissa bits
  std::uint16_t bits;
};

// Exact.
constexpr float to_float(BFloat16 value) { return std::bit_cast<float>(std::uint32_t{value.bits} << 16); }

// To the nearest, ties to the even one; beyond the largest, infinity. A NaN stays one, with its sign and the upper half
// of its payload, and is quiet: only rounding it like a number could make it an infinity.
constexpr BFloat16 to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>(bits >> 16 | 0x40u)};
  return {static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

inline void to_bf16(std::span<const float> from, BFloat16* to) {
  for (const float value : from) *to++ = to_bf16(value);
}

}  // namespace rbar
