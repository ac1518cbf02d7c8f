// JSON text of strangers: what nlohmann::json lets pass silently (two equal keys, of which the last
// wins) or reports in its own words becomes an rbar::Error here.
#pragma once

#include "rbar/io/file.hpp"

#include <nlohmann/json.hpp>

#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace rbar {

// `source` names the text in messages. Errors: invalid JSON or UTF-8, a key twice in one object,
// nesting deeper than 100.
inline nlohmann::json parse_json(std::string_view text, std::string_view source) {
  using Event = nlohmann::json::parse_event_t;
  constexpr std::string_view operation = "parse_json";
  std::vector<std::set<std::string>> keys;  // of the objects around the current value
  const auto check = [&](int depth, Event event, nlohmann::json& value) {
    if (depth > 100) throw Error(operation, source, "at most 100 levels", "more");
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && !keys.back().insert(value.get<std::string>()).second)
      throw Error(operation, source, "distinct keys",
                  std::string("'").append(detail::printable(value.get<std::string>())).append("' twice"));
    return true;
  };
  if (text.find('\0') != text.npos) throw Error(operation, source, "valid JSON", "a NUL byte");
  try {
    return nlohmann::json::parse(text, check);
  } catch (const nlohmann::json::exception& error) {
    const std::string_view message = error.what();  // "[json.exception...] parse error at line ..."
    throw Error(operation, source, "valid JSON", detail::printable(message.substr(message.find(' ') + 1)));
  }
}

inline nlohmann::json read_json(const std::filesystem::path& path) {
  return parse_json(MappedFile(path).text(), path.string());
}

// Errors: text that is no UTF-8, and everything the file system refuses.
inline void write_json(const std::filesystem::path& path, const nlohmann::json& json) {
  std::string text;
  try {
    text = json.dump(2) + "\n";
  } catch (const nlohmann::json::exception&) {
    throw Error("write_json", path.string(), "UTF-8 text", "other bytes");
  }
  write_file_atomically(path, std::string_view(text));
}

}  // namespace rbar
