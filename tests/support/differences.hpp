// How far numbers are from what they should be. A NaN among them is kept, and fails every bound on the result;
// std::max(worst, NaN) is `worst`, which would pass it.
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>
#include <type_traits>

namespace test {

// For running maxima: the larger of the two, NaN once either is.
template <class T>
T larger(T worst, std::type_identity_t<T> value) {
  return std::isnan(worst) || value <= worst ? worst : value;
}

// max |a − b| over two tensors of any scalars; NaN when they differ in size.
template <class A, class B>
double largest_difference(const A& a, const B& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::quiet_NaN();
  double worst = 0;
  for (std::ptrdiff_t i = 0; i < static_cast<std::ptrdiff_t>(a.size()); ++i)
    worst = larger(worst, std::abs(static_cast<double>(a.data()[i]) - static_cast<double>(b.data()[i])));
  return worst;
}

}  // namespace test
