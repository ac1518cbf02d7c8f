// Quantiles that cut a set of scores into shares.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

namespace rbar {

// The value that has ⌊rank⌋ of the scores below it, midway between its two neighbours. `scores` holds at least one.
template <class T>
double separator(std::span<const T> scores, double rank) {
  std::vector<T> sorted(scores.begin(), scores.end());
  const auto k = std::min(static_cast<std::ptrdiff_t>(rank), static_cast<std::ptrdiff_t>(sorted.size()) - 1);
  std::nth_element(sorted.begin(), sorted.begin() + k, sorted.end());
  const auto above = static_cast<double>(sorted[static_cast<std::size_t>(k)]);
  if (k == 0) return above;
  return (above + static_cast<double>(*std::max_element(sorted.begin(), sorted.begin() + k))) / 2;
}

// Share of the scores strictly below `threshold`.
template <class T>
double share_below(std::span<const T> scores, double threshold) {
  std::ptrdiff_t below = 0;
  for (const T score : scores) below += static_cast<double>(score) < threshold ? 1 : 0;
  return static_cast<double>(below) / static_cast<double>(scores.size());
}

}  // namespace rbar
