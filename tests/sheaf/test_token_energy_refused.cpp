// A stream of energies after a step that it refused.
#include "rbar/sheaf/state_spread.hpp"
#include "rbar/sheaf/token_energy.hpp"
#include "sheaf/naive_sheaf.hpp"

#include <limits>

using namespace rbar;

TEST_CASE("a refused step leaves the stream as it was") {
  Rng rng(11);
  TokenEnergyConfig config;
  config.d_model = 8, config.energy_dim = 4;
  const TokenEnergy<float> measure(config, rng);
  const auto first = naive::random_hidden<float>(2, 5, 8, 12), second = naive::random_hidden<float>(2, 3, 8, 13);
  auto poisoned = second;
  poisoned(0, 1, 3) = std::numeric_limits<float>::quiet_NaN();
  auto huge = second;
  huge(1, 2, 3) = 1e30f;  // finite, its energy is not
  TokenEnergy<float>::State state, undisturbed;
  Tensor<float, 2> energy, expected;
  measure.step(first, energy, state);
  measure.step(first, energy, undisturbed);
  CHECK_THROWS_AS(measure.step(poisoned, energy, state), Error);
  CHECK_THROWS_AS(measure.step(huge, energy, state), Error);
  measure.step(second, energy, state);
  measure.step(second, expected, undisturbed);
  CHECK(std::equal(energy.data(), energy.data() + energy.size(), expected.data()));

  ContextMoments moments, other;
  relative_spread<float>(first, moments, energy);
  relative_spread<float>(first, other, energy);
  CHECK_THROWS_AS(relative_spread<float>(poisoned, moments, energy), Error);
  relative_spread<float>(second, moments, energy);
  relative_spread<float>(second, other, expected);
  CHECK(std::equal(energy.data(), energy.data() + energy.size(), expected.data()));
}
