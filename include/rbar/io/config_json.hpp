// Configurations as JSON. A config names its members once, in `fields(visit)`, and everything here
// follows: bool, integers, floating point, strings, enums (by name_of and parse), std::optional
// (null when empty), std::vector, and configs inside configs.
#pragma once

#include "rbar/core/error.hpp"
#include "rbar/io/json.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace rbar {

namespace detail {

struct AnyField {
  template <class Member>
  void operator()(const char*, Member&) const {}
};
template <class Config>
concept HasFields = requires(Config config) {
  config.fields(AnyField{});
};

template <class T>
inline constexpr bool is_optional = false;
template <class T>
inline constexpr bool is_optional<std::optional<T>> = true;
template <class T>
inline constexpr bool is_vector = false;
template <class T>
inline constexpr bool is_vector<std::vector<T>> = true;

// Levenshtein distance: insertions, deletions and replacements from one word to the other.
inline std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j < row.size(); ++j) row[j] = j;
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({row[j] + 1, diagonal + 1, replaced});
    }
  }
  return row.back();
}

template <class T>
nlohmann::json value_to_json(std::string_view where, const T& value) {
  if constexpr (HasFields<T>) {
    nlohmann::json json = nlohmann::json::object();
    T copy = value;  // fields() is written once, for mutable configs
    copy.fields([&](const char* name, auto& member) { json[name] = value_to_json(name, member); });
    return json;
  } else if constexpr (is_optional<T>) {
    return value ? value_to_json(where, *value) : nlohmann::json(nullptr);
  } else if constexpr (is_vector<T>) {
    nlohmann::json json = nlohmann::json::array();
    for (const auto& element : value) json.push_back(value_to_json(where, element));
    return json;
  } else if constexpr (std::is_enum_v<T>) {
    return name_of(value);
  } else {
    if constexpr (std::is_floating_point_v<T>)  // JSON has no infinity
      require(std::isfinite(value), "to_json", where, "a finite number", value);
    return value;
  }
}

template <class T>
void value_from_json(const std::string& where, const nlohmann::json& json, T& value);

template <class Config>
void fields_from_json(const std::string& where, const nlohmann::json& json, Config& config) {
  require(json.is_object(), "from_json", where.empty() ? "config" : where, "an object", json.type_name());
  std::vector<std::string> names;
  config.fields([&](const char* name, auto&) { names.emplace_back(name); });
  for (const auto& [key, ignored] : json.items()) {
    if (std::find(names.begin(), names.end(), key) != names.end()) continue;
    const auto nearest = std::min_element(names.begin(), names.end(), [&, &key = key](const auto& a, const auto& b) {
      return edit_distance(key.substr(0, 100), a) < edit_distance(key.substr(0, 100), b);
    });
    throw Error("from_json", where.empty() ? "config" : where,
                nearest == names.end() ? "no keys" : "a known key (the nearest is '" + *nearest + "')",
                "'" + printable(key) + "'");
  }
  config.fields([&](const char* name, auto& member) {
    if (const auto found = json.find(name); found != json.end())
      value_from_json(where.empty() ? name : where + "." + name, *found, member);
  });
}

template <class T>
void value_from_json(const std::string& where, const nlohmann::json& json, T& value) {
  const auto refuse = [&](std::string_view expected) {
    throw Error("from_json", where, expected,
                printable(json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)));
  };
  if constexpr (HasFields<T>) {
    fields_from_json(where, json, value);
  } else if constexpr (is_optional<T>) {
    if (json.is_null())
      value.reset();
    else
      value_from_json(where, json, value.emplace());
  } else if constexpr (is_vector<T>) {
    if (!json.is_array()) refuse("an array");
    value.clear();
    for (const auto& element : json) {
      typename T::value_type item{};
      value_from_json(where, element, item);
      value.push_back(std::move(item));
    }
  } else if constexpr (std::is_enum_v<T>) {
    if (!json.is_string() || !parse(json.template get<std::string>(), value)) refuse("the name of a known choice");
  } else if constexpr (std::is_same_v<T, bool>) {
    if (!json.is_boolean()) refuse("true or false");
    value = json.template get<bool>();
  } else if constexpr (std::is_integral_v<T>) {
    const bool fits = json.is_number_unsigned()
                          ? std::in_range<T>(json.template get<std::uint64_t>())
                          : json.is_number_integer() && std::in_range<T>(json.template get<std::int64_t>());
    if (!fits) refuse("an integer in range");
    value = json.template get<T>();
  } else if constexpr (std::is_floating_point_v<T>) {
    if (!json.is_number()) refuse("a number");
    value = json.template get<T>();
  } else {
    if (!json.is_string()) refuse("a string");
    value = json.template get<std::string>();
  }
}

}  // namespace detail

// Errors: a number that is not finite.
template <detail::HasFields Config>
nlohmann::json to_json(const Config& config) {
  return detail::value_to_json("config", config);
}

// Members without a key keep their defaults. Errors: a key that the config does not have (with the
// nearest one it has), a value of another type or out of range, and whatever config.validate() refuses.
template <detail::HasFields Config>
Config from_json(const nlohmann::json& json) {
  Config config;
  detail::fields_from_json("", json, config);
  if constexpr (requires { config.validate(); }) config.validate();
  return config;
}

}  // namespace rbar
