// How parameters start. Weights are stored [out, in].
#pragma once

#include "rbar/core/random.hpp"
#include "rbar/core/tensor.hpp"

#include <cmath>

namespace rbar {

// U(−a, a) with a = √(6 / (in + out)), which keeps the variance of activations and of gradients
// alike (Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural
// networks", AISTATS 2010).
template <class T>
void xavier_uniform(Tensor<T, 2>& weight, Rng& rng) {
  const double bound = std::sqrt(6.0 / static_cast<double>(weight.dimension(0) + weight.dimension(1)));
  for (T& value : elements(weight)) value = static_cast<T>(rng.uniform(-bound, bound));
}

// N(0, deviation²).
template <class T, int Rank>
void normal(Tensor<T, Rank>& tensor, double deviation, Rng& rng) {
  for (T& value : elements(tensor)) value = static_cast<T>(rng.normal(0, deviation));
}

}  // namespace rbar
