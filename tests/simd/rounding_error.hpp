// How far a product of rounded factors is from the exact one.
#pragma once

#include "rbar/core/bf16.hpp"
#include "rbar/simd/batch.hpp"

#include <algorithm>
#include <cmath>

namespace test {

// Largest over the elements added.
struct RoundingError {
  double error = 0;        // of ours, from the exact sum
  double naive_error = 0;  // of a float sum of factors that are both rounded
  double apart = 0;        // of ours, from the exact sum of the factors as ours rounds them

  // One element of `ours` = Σ_p left(p)·right(p); `rounds_left`: left is rounded too.
  void add(float ours, rbar::simd::Index k, bool rounds_left, const auto& left, const auto& right) {
    double exact = 0, of_rounded = 0;
    float naive = 0;
    for (rbar::simd::Index p = 0; p < k; ++p) {
      const float a = left(p), b = right(p);
      const float rounded_a = rbar::to_float(rbar::to_bf16(a)), rounded_b = rbar::to_float(rbar::to_bf16(b));
      exact += static_cast<double>(a) * static_cast<double>(b);
      of_rounded += static_cast<double>(rounds_left ? rounded_a : a) * static_cast<double>(rounded_b);
      naive += rounded_a * rounded_b;
    }
    error = std::max(error, std::abs(static_cast<double>(ours) - exact));
    naive_error = std::max(naive_error, std::abs(static_cast<double>(naive) - exact));
    apart = std::max(apart, std::abs(static_cast<double>(ours) - of_rounded));
  }
};

}  // namespace test
