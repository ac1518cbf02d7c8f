// UTF-8 one code point at a time, and the classes of code points that tokenizers split text by.
#pragma once

#include "rbar/io/unicode_tables.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <iterator>
#include <string>
#include <string_view>

namespace rbar {

struct CodePoint {
  char32_t value;      // `invalid` for a byte that belongs to no valid sequence
  std::size_t length;  // bytes

  static constexpr char32_t invalid = 0xffffffff;
};

// The code point at `position` < text.size(). Strict: no overlong forms, no surrogates, nothing above
// U+10FFFF. A byte that starts no valid sequence counts as one invalid code point of its own.
inline CodePoint decode_utf8(std::string_view text, std::size_t position) {
  const auto byte = [&](std::size_t i) -> char32_t {
    return position + i < text.size() ? static_cast<unsigned char>(text[position + i]) : 0;
  };
  const char32_t first = byte(0);
  if (first < 0x80) return {first, 1};
  const std::size_t length = first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
  if (length == 0) return {CodePoint::invalid, 1};
  char32_t value = first & (0x7f >> length);
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return {CodePoint::invalid, 1};
    value = value << 6 | (byte(i) & 0x3f);
  }
  constexpr char32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = value >= 0xd800 && value < 0xe000;
  if (value < least[length] || surrogate || value > 0x10ffff) return {CodePoint::invalid, 1};
  return {value, length};
}

inline void append_utf8(std::string& text, char32_t value) {
  const auto append = [&](char32_t byte) { text += static_cast<char>(static_cast<unsigned char>(byte)); };
  if (value < 0x80) {
    append(value);
  } else if (value < 0x800) {
    append(0xc0 | value >> 6);
    append(0x80 | (value & 0x3f));
  } else if (value < 0x10000) {
    append(0xe0 | value >> 12);
    append(0x80 | (value >> 6 & 0x3f));
    append(0x80 | (value & 0x3f));
  } else {
    append(0xf0 | value >> 18);
    append(0x80 | (value >> 12 & 0x3f));
    append(0x80 | (value >> 6 & 0x3f));
    append(0x80 | (value & 0x3f));
  }
}

enum class CharacterClass : unsigned char { letter, number, space, other };

namespace detail {

template <std::size_t Size>
constexpr bool in_ranges(const CodePointRange (&ranges)[Size], char32_t value) {
  const auto* after = std::upper_bound(std::begin(ranges), std::end(ranges), value,
                                       [](char32_t v, const CodePointRange& range) { return v < range.first; });
  return after != std::begin(ranges) && value <= std::prev(after)->last;
}

constexpr CharacterClass search_class(char32_t value) {
  return in_ranges(unicode_letters, value)   ? CharacterClass::letter
         : in_ranges(unicode_numbers, value) ? CharacterClass::number
         : in_ranges(unicode_spaces, value)  ? CharacterClass::space
                                             : CharacterClass::other;
}

inline constexpr auto ascii_classes = [] {
  std::array<CharacterClass, 128> classes{};
  for (std::size_t i = 0; i < classes.size(); ++i) classes[i] = search_class(static_cast<char32_t>(i));
  return classes;
}();

}  // namespace detail

// \p{L}, \p{N}, \s or none of them.
inline CharacterClass character_class(char32_t value) {
  return value < 128 ? detail::ascii_classes[value] : detail::search_class(value);
}

}  // namespace rbar
