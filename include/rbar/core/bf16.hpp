// bfloat16, the upper half of a binary32: for storage. Sums happen in float (simd/bf16_packed.hpp, bf16_product.hpp).
#pragma once

#include <bit>
#include <cstdint>
#include <string_view>

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

// What a product with weights in bf16 rounds; its sums are fp32 either way. `both` rounds the activations that go into
// it as well: as exact as bf16 is on other hardware, and up to twice as fast where there are instructions for it.
enum class Bf16Inputs { weights, both };

inline constexpr Bf16Inputs all_bf16_inputs[] = {Bf16Inputs::weights, Bf16Inputs::both};
constexpr const char* name_of(Bf16Inputs inputs) { return inputs == Bf16Inputs::weights ? "weights" : "both"; }
constexpr bool parse(std::string_view text, Bf16Inputs& inputs) {
  for (const Bf16Inputs candidate : all_bf16_inputs)
    if (text == name_of(candidate)) return inputs = candidate, true;
  return false;
}

// What the large products of a model that trains are computed in: all three of a dense layer, x Wᵀ, dy W and dyᵀ x. In
// bf16 both factors are rounded for each product and summed in fp32; weights, activations and gradients stay fp32.
enum class Products { fp32, bf16 };

inline constexpr Products all_products[] = {Products::fp32, Products::bf16};
constexpr const char* name_of(Products products) { return products == Products::fp32 ? "fp32" : "bf16"; }
constexpr bool parse(std::string_view text, Products& products) {
  for (const Products candidate : all_products)
    if (text == name_of(candidate)) return products = candidate, true;
  return false;
}

}  // namespace rbar
