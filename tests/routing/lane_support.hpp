// A lane router's config for tests, and states whose energies differ.
#pragma once

#include "rbar/routing/lane_router.hpp"

#include <cmath>

namespace test {

using namespace rbar;

inline LaneRouterConfig lane_config(Index d_model, RouteAt route_at = RouteAt::boundaries) {
  LaneRouterConfig config;
  config.d_model = d_model;
  config.energy_dim = 8;
  config.route_at = route_at;
  return config;
}

// Tokens of different sizes, so that their energies differ; `growth` stretches them all.
template <class T>
Tensor<T, 3> tokens_of_sizes(Index batch, Index tokens, Index dim, Rng& rng, double growth = 1) {
  Tensor<T, 3> x(batch, tokens, dim);
  for (Index row = 0; row < batch * tokens; ++row) {
    const double size = growth * std::exp(0.3 * rng.normal());
    for (Index d = 0; d < dim; ++d) x.data()[row * dim + d] = static_cast<T>(size * rng.normal());
  }
  return x;
}

}  // namespace test
