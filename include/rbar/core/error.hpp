// One exception type for everything a caller can get wrong. The message always says, in this order,
// operation, argument, what was expected and what was given:
//   "MultiHeadAttention::forward: hidden: expected [2, 12, 16], got [2, 12, 17]".
#pragma once

#include "rbar/config.hpp"

#include <cmath>
#include <cstddef>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace rbar {

class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message) : std::runtime_error(message) {}
  Error(std::string_view operation, std::string_view argument, std::string_view expected, std::string_view got)
      : std::runtime_error(compose(operation, argument, expected, got)) {}

 private:
  static std::string compose(std::string_view operation, std::string_view argument, std::string_view expected,
                             std::string_view got) {
    std::string message;
    message.append(operation).append(": ").append(argument).append(": expected ").append(expected);
    return message.append(", got ").append(got);
  }
};

namespace detail {

template <class Value>
std::string describe(const Value& value) {
  std::ostringstream out;
  out << value;
  return out.str();
}

template <class Dimensions>
std::string describe_shape(const Dimensions& dimensions) {
  std::string text = "[";
  for (std::size_t i = 0; i < static_cast<std::size_t>(dimensions.size()); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(dimensions[i]);
  }
  return text + "]";
}

}  // namespace detail

// The message parts are only put together when the check fails: a check costs one branch.
template <class Expected, class Got>
inline void require(bool condition, std::string_view operation, std::string_view argument, const Expected& expected,
                    const Got& got) {
  if (!condition) [[unlikely]]
    throw Error(operation, argument, detail::describe(expected), detail::describe(got));
}

// `actual` and `expected` are any indexable lists of sizes; -1 in `expected` accepts every size.
template <class Actual, class Expected>
inline void require_shape(std::string_view operation, std::string_view argument, const Actual& actual,
                          const Expected& expected) {
  bool same = static_cast<std::size_t>(actual.size()) == static_cast<std::size_t>(expected.size());
  for (std::size_t i = 0; same && i < static_cast<std::size_t>(expected.size()); ++i)
    same = expected[i] < 0 || actual[i] == expected[i];
  if (!same) [[unlikely]]
    throw Error(operation, argument, detail::describe_shape(expected), detail::describe_shape(actual));
}

// A router or an energy must never turn a NaN into a silent decision.
template <class T>
inline void require_finite(std::string_view operation, std::string_view argument, std::span<const T> values) {
  // x - x is 0 for every finite x and NaN otherwise, and a NaN survives the sum: the loop vectorises,
  // the search for the culprit runs only when there is one.
  T poison = 0;
  for (const T value : values) poison += value - value;
  if (poison == T(0)) [[likely]]
    return;
  for (std::size_t i = 0; i < values.size(); ++i)
    if (!std::isfinite(values[i]))
      throw Error(operation, argument, "finite values",
                  detail::describe(values[i]) + " at element " + std::to_string(i));
}

}  // namespace rbar
