// Number types as they lie in files, and their exact conversion to the types we compute in.
#pragma once

#include "rbar/core/bf16.hpp"
#include "rbar/core/error.hpp"

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace rbar {

// Names and order of the safetensors format.
enum class Dtype { F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL };

// Storage only: arithmetic happens in float and double.
struct Half {  // IEEE binary16: 1 sign, 5 exponent, 10 mantissa bits
  std::uint16_t bits;
};

// Every binary16 is a binary32: the conversion is exact, NaN payloads included, as is that of BFloat16 (core/bf16.hpp).
constexpr float to_float(Half value) {
  const std::uint32_t sign = (value.bits & 0x8000u) << 16;
  const std::uint32_t exponent = (value.bits >> 10) & 0x1fu;
  const std::uint32_t mantissa = value.bits & 0x3ffu;
  if (exponent == 0) {  // zero and subnormals: mantissa · 2⁻²⁴
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const std::uint32_t wide = exponent == 0x1f ? 0xffu : exponent + (127 - 15);
  return std::bit_cast<float>(sign | wide << 23 | mantissa << 13);
}

// visit.template operator()<Stored>() with the C++ type of a dtype.
template <class Visit>
decltype(auto) visit_dtype(Dtype dtype, Visit&& visit) {
  switch (dtype) {
    case Dtype::F64:
      return visit.template operator()<double>();
    case Dtype::F32:
      return visit.template operator()<float>();
    case Dtype::F16:
      return visit.template operator()<Half>();
    case Dtype::BF16:
      return visit.template operator()<BFloat16>();
    case Dtype::I64:
      return visit.template operator()<std::int64_t>();
    case Dtype::I32:
      return visit.template operator()<std::int32_t>();
    case Dtype::I16:
      return visit.template operator()<std::int16_t>();
    case Dtype::I8:
      return visit.template operator()<std::int8_t>();
    case Dtype::U64:
      return visit.template operator()<std::uint64_t>();
    case Dtype::U32:
      return visit.template operator()<std::uint32_t>();
    case Dtype::U16:
      return visit.template operator()<std::uint16_t>();
    case Dtype::U8:
      return visit.template operator()<std::uint8_t>();
    case Dtype::BOOL:
      return visit.template operator()<bool>();
  }
  throw Error("visit_dtype", "dtype", "a value of the enumeration", std::to_string(static_cast<int>(dtype)));
}

namespace detail {
inline constexpr std::pair<Dtype, const char*> dtype_names[] = {
    {Dtype::F64, "F64"}, {Dtype::F32, "F32"}, {Dtype::F16, "F16"},  {Dtype::BF16, "BF16"}, {Dtype::I64, "I64"},
    {Dtype::I32, "I32"}, {Dtype::I16, "I16"}, {Dtype::I8, "I8"},    {Dtype::U64, "U64"},   {Dtype::U32, "U32"},
    {Dtype::U16, "U16"}, {Dtype::U8, "U8"},   {Dtype::BOOL, "BOOL"}};
}  // namespace detail

inline const char* name_of(Dtype dtype) {
  for (const auto& [value, name] : detail::dtype_names)
    if (value == dtype) return name;
  return "?";
}
inline bool parse(std::string_view text, Dtype& dtype) {
  for (const auto& [value, name] : detail::dtype_names)
    if (text == name) return dtype = value, true;
  return false;
}

// Bytes of one element.
inline std::size_t size_of(Dtype dtype) {
  return visit_dtype(dtype, []<class Stored>() { return sizeof(Stored); });
}

constexpr bool is_floating(Dtype dtype) {
  return dtype == Dtype::F64 || dtype == Dtype::F32 || dtype == Dtype::F16 || dtype == Dtype::BF16;
}

template <class T>
constexpr Dtype dtype_of() {
  if constexpr (std::is_same_v<T, bool>)
    return Dtype::BOOL;
  else if constexpr (std::is_same_v<T, Half>)
    return Dtype::F16;
  else if constexpr (std::is_same_v<T, BFloat16>)
    return Dtype::BF16;
  else if constexpr (std::is_floating_point_v<T>)
    return sizeof(T) == 8 ? Dtype::F64 : Dtype::F32;
  else if constexpr (std::is_signed_v<T>)
    return sizeof(T) == 8 ? Dtype::I64 : sizeof(T) == 4 ? Dtype::I32 : sizeof(T) == 2 ? Dtype::I16 : Dtype::I8;
  else
    return sizeof(T) == 8 ? Dtype::U64 : sizeof(T) == 4 ? Dtype::U32 : sizeof(T) == 2 ? Dtype::U16 : Dtype::U8;
}

namespace detail {

// One element, from memory of any alignment.
template <class Stored>
Stored load_stored(const std::byte* data) {
  if constexpr (std::is_same_v<Stored, bool>) {
    return *data != std::byte{0};  // a byte of 2 read as a bool would be undefined behaviour
  } else {
    Stored value;
    std::memcpy(&value, data, sizeof value);
    return value;
  }
}

template <class Stored, class T>
void convert_elements(std::string_view operation, std::string_view argument, const std::byte* data, std::span<T> out) {
  constexpr bool stored_integral = std::is_integral_v<Stored>;
  if constexpr (std::is_same_v<Stored, T> && !std::is_same_v<T, bool>) {
    if (!out.empty()) std::memcpy(out.data(), data, out.size_bytes());
  } else if constexpr (std::is_floating_point_v<T> && std::is_floating_point_v<Stored>) {
    for (T& value : out) value = static_cast<T>(load_stored<Stored>(data)), data += sizeof(Stored);
  } else if constexpr (std::is_floating_point_v<T> && !stored_integral) {
    for (T& value : out) value = to_float(load_stored<Stored>(data)), data += sizeof(Stored);
  } else if constexpr (std::is_same_v<Stored, bool>) {
    for (T& value : out) value = static_cast<T>(load_stored<bool>(data++));
  } else if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool> && stored_integral) {
    for (T& value : out) {
      const Stored stored = load_stored<Stored>(data);
      if (!std::in_range<T>(stored))
        throw Error(operation, argument, "values that fit " + std::string(name_of(dtype_of<T>())), describe(+stored));
      value = static_cast<T>(stored);
      data += sizeof(Stored);
    }
  } else {
    throw Error(operation, argument, name_of(dtype_of<T>()), name_of(dtype_of<Stored>()));
  }
}

}  // namespace detail

// out[i] = the i-th stored element. Between floating-point types and between integer types (and from
// BOOL to integers); anything else, and an integer that does not fit, is an Error.
template <class T>
void convert(std::string_view operation, std::string_view argument, Dtype dtype, std::span<const std::byte> data,
             std::span<T> out) {
  require(data.size() == out.size() * size_of(dtype), operation, argument, std::to_string(out.size()) + " elements",
          data.size() / size_of(dtype));
  visit_dtype(dtype,
              [&]<class Stored>() { detail::convert_elements<Stored, T>(operation, argument, data.data(), out); });
}

}  // namespace rbar
