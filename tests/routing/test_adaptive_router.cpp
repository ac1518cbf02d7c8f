#include "rbar/routing/adaptive_router.hpp"

#include "routing/routing_support.hpp"
#include "support/catch.hpp"

using namespace rbar;

namespace {

AdaptiveRouterConfig adaptive_config(Index dim, Causality causality, bool adaptive, double share = 0.15) {
  AdaptiveRouterConfig config;
  config.router.d_model = dim;
  config.router.route_frac = share;
  config.router.causality = causality;
  config.adaptive = adaptive;
  return config;
}

// Phases spread with the deviation: wide features are incoherent, narrow ones coherent.
Tensor<float, 3> tokens_of_spread(double deviation, Rng& rng) {
  Tensor<float, 3> hidden(4, 128, 16);
  for (float& value : elements(hidden)) value = static_cast<float>(rng.normal(0, deviation));
  return hidden;
}

// Mean share over the last half of `steps` training steps on `spread(step)`.
template <class Spread>
double settled_share(AdaptiveCoherentRouter<float>& router, int steps, Spread&& spread) {
  Rng rng(7);
  AdaptiveCoherentRouter<float>::Cache cache;
  double total = 0;
  for (int step = 0; step < steps; ++step) {
    router.forward(tokens_of_spread(spread(step), rng), cache);
    if (step >= steps / 2) total += cache.stats.attention_share;
    router.adapt(cache);
  }
  return total / (steps - steps / 2);
}

}  // namespace

TEST_CASE("training holds the share, also while the text changes") {
  for (const double share : {0.05, 0.15, 0.3, 0.5, 0.9}) {
    INFO("share " << share);
    Rng rng(1);
    AdaptiveCoherentRouter<float> still(adaptive_config(16, Causality::causal, false, share), rng);
    CHECK(settled_share(still, 80, [](int) { return 1.0; }) == Approx(share).epsilon(0.05).margin(0.005));
    AdaptiveCoherentRouter<float> moving(adaptive_config(16, Causality::causal, false, share), rng);
    CHECK(settled_share(moving, 200, [](int step) { return 0.8 + 0.004 * step; }) ==
          Approx(share).epsilon(0.1).margin(0.01));
  }
}

TEST_CASE("before the first adapt the threshold is a sensible guess for layer-normed tokens") {
  for (const double share : {0.05, 0.15, 0.5}) {
    Rng rng(3);
    AdaptiveCoherentRouter<float> router(adaptive_config(64, Causality::causal, false, share), rng);
    Tensor<float, 3> hidden(4, 256, 64);
    for (float& value : elements(hidden)) value = static_cast<float>(rng.normal());
    AdaptiveCoherentRouter<float>::Cache cache;
    router.forward(hidden, cache);
    CHECK(cache.stats.attention_share < share + 0.3);
    router.adapt(cache);
    router.forward(hidden, cache);
    CHECK(cache.stats.attention_share == Approx(share).margin(1.0 / 1024));
  }
}

TEST_CASE("a share of 1 attends to everything, before and after adapting") {
  Rng rng(5);
  AdaptiveCoherentRouter<float> router(adaptive_config(16, Causality::causal, false, 1.0), rng);
  AdaptiveCoherentRouter<float>::Cache cache;
  for (int step = 0; step < 3; ++step) {
    router.forward(tokens_of_spread(1 + step, rng), cache);
    CHECK(cache.stats.attention_share == 1.0);
    router.adapt(cache);
  }
}

TEST_CASE("adaptive routing gives incoherent text more attention") {
  Rng rng(9);
  AdaptiveCoherentRouter<float> coherent(adaptive_config(16, Causality::causal, true), rng);
  AdaptiveCoherentRouter<float> incoherent(adaptive_config(16, Causality::causal, true), rng);
  const double low = settled_share(coherent, 300, [](int) { return 0.2; });
  const double high = settled_share(incoherent, 300, [](int) { return 1.5; });
  CHECK(coherent.budget(0) < 0.06);  // near the limits of the package, .05 and .50
  CHECK(incoherent.budget(0) == Approx(0.50));
  CHECK(low < 0.06);
  CHECK(high > 0.45);
}

TEST_CASE("forward and step leave thresholds, budgets and controllers as they are") {
  const auto causality = GENERATE(Causality::causal, Causality::reference);
  Rng rng(11);
  AdaptiveCoherentRouter<float> router(adaptive_config(16, causality, true), rng);
  AdaptiveCoherentRouter<float>::Cache cache;
  const auto buffers = [&] {
    std::vector<float> all;
    for (const auto& buffer : buffers_of(router)) all.insert(all.end(), buffer.values().begin(), buffer.values().end());
    return all;
  };
  router.forward(tokens_of_spread(2, rng), cache);
  router.adapt(cache);
  const auto before = buffers();
  for (int i = 0; i < 3; ++i) router.forward(tokens_of_spread(2, rng), cache);
  AdaptiveCoherentRouter<float>::State state;
  if (causality == Causality::causal) router.step(tokens_of_spread(2, rng), state);
  CHECK(buffers() == before);
  router.adapt(cache);
  CHECK(buffers() != before);
}

TEST_CASE("adaptive configs that make no sense are errors") {
  Rng rng(1);
  auto config = adaptive_config(16, Causality::causal, true);
  config.pid.maximum = 1.5;
  CHECK_THROWS_AS(AdaptiveCoherentRouter<float>(config, rng), Error);
  config.pid.maximum = 0.5;
  config.target_coherence = std::nan("");
  CHECK_THROWS_AS(AdaptiveCoherentRouter<float>(config, rng), Error);
}
