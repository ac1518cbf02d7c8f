#include "coherence/naive.hpp"
#include "support/allocations.hpp"
#include "support/catch.hpp"

using namespace rbar;

TEST_CASE("a second forward, backward and step of the same shape allocates nothing", "[coherence]") {
  const auto hidden = naive::random_hidden<float>(2, 50, 130, 50);
  const auto token = naive::random_hidden<float>(2, 1, 130, 51);
  for (const auto& config : naive::all_configs({6})) {
    CoherenceCache<float> cache;
    CoherenceState<float> state;
    Tensor<float, 2> r, next;
    auto gradient = zeros<float, 3>(shape_of(hidden));
    const auto pass = [&] {
      coherence_forward(hidden, config, r, cache);
      coherence_backward(r, hidden, config, cache, gradient);
      if (config.causality == Causality::causal) coherence_step(token, config, next, state);
    };
    pass();
    INFO(naive::describe(config));
    CHECK(test::allocations_in(pass) == 0);
  }
}
