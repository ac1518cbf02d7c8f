// Random tokens, and thresholds that no small perturbation crosses.
#pragma once

#include "rbar/routing/routed_attention.hpp"

#include <algorithm>
#include <vector>

namespace test {

template <class T = double>
rbar::Tensor<T, 3> random_tokens(rbar::Index batch, rbar::Index tokens, rbar::Index dim, rbar::Rng& rng) {
  rbar::Tensor<T, 3> x(batch, tokens, dim);
  for (T& value : rbar::elements(x)) value = static_cast<T>(rng.normal());
  return x;
}

// Biases and norms away from their initial zeros and ones.
template <class Layer>
void shake(Layer& layer, double deviation, rbar::Rng& rng) {
  for (const auto& parameter : rbar::parameters_of(layer))
    for (auto& value : parameter.values()) value += static_cast<typename Layer::Scalar>(deviation * rng.normal());
}

// Puts τ into the widest gap between the scores of the middle third; returns half its width.
template <class T>
double separate(rbar::CoherentRouter<T>& router, const rbar::Tensor<T, 2>& scores) {
  std::vector<T> sorted(scores.data(), scores.data() + scores.size());
  std::sort(sorted.begin(), sorted.end());
  std::size_t best = sorted.size() / 3;
  for (std::size_t i = best; i < std::max(best + 1, 2 * sorted.size() / 3) && i + 1 < sorted.size(); ++i)
    if (sorted[i + 1] - sorted[i] > sorted[best + 1] - sorted[best]) best = i;
  router.threshold.value(0) = (sorted[best] + sorted[best + 1]) / 2;
  return static_cast<double>(sorted[best + 1] - sorted[best]) / 2;
}

}  // namespace test
