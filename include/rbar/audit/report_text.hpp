// Text of strangers on its way into a report: what a terminal, an HTML page or an SVG file may be sent of it.
#pragma once

#include "rbar/io/utf8.hpp"

#include <algorithm>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace rbar::detail {

template <class... Values>
std::string format_line(const char* format, Values... values) {
  char line[160];
  const int size = std::snprintf(line, sizeof line, format, values...);
  return std::string(line, static_cast<std::size_t>(std::clamp(size, 0, static_cast<int>(sizeof line) - 1)));
}

// Marks, embeddings, overrides and isolates: they reorder the text around them.
constexpr bool changes_direction(char32_t value) {
  return value == 0x61c || value == 0x200e || value == 0x200f || (value >= 0x202a && value <= 0x202e) ||
         (value >= 0x2066 && value <= 0x2069);
}

// Text that may be shown, on one line: a line feed becomes ↵, other control characters pictures of themselves,
// characters that change the direction of writing their number, what is no text (bytes that are no UTF-8,
// noncharacters) the replacement character. `break_lines`: a line ends after its ↵.
inline std::string visible_text(std::string_view text, bool break_lines = false) {
  std::string result;
  for (std::size_t i = 0; i < text.size();) {
    const CodePoint point = decode_utf8(text, i);
    const bool control = point.value < 0x20 || (point.value >= 0x7f && point.value < 0xa0);
    if (point.value == CodePoint::invalid || (point.value & 0xfffe) == 0xfffe)
      result += "\uFFFD";
    else if (point.value == '\n')
      result += break_lines ? "↵\n" : "↵";
    else if (control)
      append_utf8(result, point.value < 0x20 ? 0x2400 + point.value : 0x2421);
    else if (changes_direction(point.value))
      result += format_line("<U+%04X>", static_cast<unsigned>(point.value));
    else
      result += text.substr(i, point.length);
    i += point.length;
  }
  return result;
}

// Characters of HTML and SVG, in text and in quoted attributes.
inline std::string escape_markup(std::string_view text) {
  std::string result;
  for (const char c : text)
    result += c == '<'    ? "&lt;"
              : c == '>'  ? "&gt;"
              : c == '&'  ? "&amp;"
              : c == '"'  ? "&quot;"
              : c == '\'' ? "&#39;"
                          : std::string(1, c);
  return result;
}

// At most `most` characters of UTF-8, the last one an ellipsis if there were more.
inline std::string shorten(std::string text, std::size_t most) {
  std::size_t position = 0, cut = 0;
  for (std::size_t count = 0; position < text.size(); ++count) {
    if (count + 1 == most) cut = position;
    if (count == most) return text.substr(0, cut) + "…";
    position += decode_utf8(text, position).length;
  }
  return text;
}

// Does `text` stop in the middle of a character? Then the next token carries on with it.
inline bool ends_inside_character(std::string_view text) {
  for (std::size_t back = 1; back <= std::min<std::size_t>(3, text.size()); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if ((byte & 0xc0) == 0x80) continue;
    return back < (byte >= 0xf0 ? 4u : byte >= 0xe0 ? 3u : byte >= 0xc0 ? 2u : 1u);
  }
  return false;
}

// Tokens that share a character and can only be shown together: most often one token.
struct TokenGroup {
  std::size_t first = 0, count = 0;
  std::string text;
};

inline std::vector<TokenGroup> groups_by_character(std::span<const std::string> pieces) {
  std::vector<TokenGroup> groups;
  for (std::size_t t = 0; t < pieces.size(); ++t) {
    const bool continues = !pieces[t].empty() && (static_cast<unsigned char>(pieces[t].front()) & 0xc0) == 0x80;
    if (t == 0 || !continues || !ends_inside_character(groups.back().text)) groups.push_back({t, 0, {}});
    ++groups.back().count;
    groups.back().text += pieces[t];
  }
  return groups;
}

}  // namespace rbar::detail
