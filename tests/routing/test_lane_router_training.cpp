#include "routing/lane_support.hpp"
#include "support/catch.hpp"

#include <limits>
#include <memory>

using namespace test;

namespace {

// One training step at the boundaries: shares of reflex, standard, deep, escalate and refused by the thresholds before
// it. A token's size stays with it up the layers (with some noise), so that those who go on are not like the others.
struct Shares {
  double reflex = 0, standard = 0, deep = 0, escalate = 0, refused = 0;
};
Shares training_step(LaneRouter<float>& router, Rng& rng, double growth) {
  constexpr Index batch = 8, tokens = 64;
  const auto count = static_cast<std::size_t>(batch * tokens);
  LaneRouter<float>::Cache cache;
  Tensor<float, 2> energy;
  const auto embedded = tokens_of_sizes<float>(batch, tokens, router.config.d_model, rng, growth);
  const CoherenceThresholds in_force = router.thresholds_in_force();
  const auto here = std::make_unique<bool[]>(count);
  std::fill_n(here.get(), count, true);
  double stopped[2] = {}, deep = 0, escalate = 0, refused = 0;
  for (const Index point : {1, 2, 3}) {
    Tensor<float, 3> states = embedded;
    for (float& state : elements(states))
      state = static_cast<float>(point) * state + static_cast<float>(0.5 * rng.normal());
    router.energies(point, states, energy, cache);
    router.adapt(point, elements(energy), std::span<const bool>(here.get(), count));
    for (std::size_t i = 0; i < count; ++i) {
      const double e = static_cast<double>(energy.data()[i]);
      if (point == 3) refused += e > in_force.max ? 1 : 0;
      if (!here[i]) continue;
      if (point == 3) {
        (router.last_lane(e, in_force) == ComputeLane::deep ? deep : escalate) += 1;
      } else if (!router.continues(point, e, in_force)) {
        stopped[point - 1] += 1;
        here[i] = false;
      }
    }
  }
  const auto n = static_cast<double>(count);
  return {stopped[0] / n, stopped[1] / n, deep / n, escalate / n, refused / n};
}

}  // namespace

TEST_CASE("calibration cuts the energies into the shares") {
  Rng rng(3);
  std::vector<double> energies(4000);
  for (double& energy : energies) energy = std::exp(rng.normal());
  const LaneShares shares{0.5, 0.3, 0.15, 0.02};
  const CoherenceThresholds cut = calibrate(std::span<const double>(energies), shares);
  CHECK_NOTHROW(cut.validate());
  double count[4] = {}, refused = 0;
  for (const double energy : energies) {
    count[static_cast<int>(lane_of(energy, cut))] += 1.0 / 4000;
    refused += energy > cut.max ? 1.0 / 4000 : 0;
  }
  CHECK(count[0] == Approx(0.5).epsilon(1e-9));
  CHECK(count[1] == Approx(0.3).epsilon(1e-9));
  CHECK(count[2] == Approx(0.15).epsilon(1e-9));
  CHECK(count[3] == Approx(0.05).epsilon(1e-9));
  CHECK(refused == Approx(0.02).epsilon(1e-9));

  const std::vector<double> none, nan{1, std::numeric_limits<double>::quiet_NaN()};
  CHECK_THROWS_AS(calibrate(std::span<const double>(none), shares), Error);
  CHECK_THROWS_AS(calibrate(std::span<const double>(nan), shares), Error);
  CHECK_THROWS_AS(calibrate(std::span<const double>(energies), LaneShares{0.7, 0.3, 0.1, 0}), Error);
  CHECK_THROWS_AS(calibrate(std::span<const double>(energies), LaneShares{-0.1, 0.3, 0.1, 0}), Error);
  const CoherenceThresholds open = calibrate(std::span<const double>(energies), LaneShares{0, 0, 1, 0});
  CHECK_NOTHROW(open.validate());
  for (const double energy : energies) CHECK(lane_of(energy, open) == ComputeLane::deep);
  // Nobody escalates: the bound still holds, and only who is refused is above θ_deep.
  const CoherenceThresholds bounded = calibrate(std::span<const double>(energies), LaneShares{0.6, 0.25, 0.15, 0.02});
  CHECK_NOTHROW(bounded.validate());
  CHECK(share_below(std::span<const double>(energies), bounded.max) == Approx(0.98).epsilon(1e-9));
  CHECK(bounded.deep == bounded.max);
}

TEST_CASE("without a share that escalates the bound is the tuned one") {
  for (const double share_deep : {0.15, 0.0}) {  // at point 3: a target of 1, and no target at all
    LaneRouterConfig config;
    config.d_model = 8;
    config.share_reflex = 0.6;
    config.share_standard = 0.4 - share_deep;
    config.share_deep = share_deep;
    Rng rng(5);
    LaneRouter<double> router(config, rng);
    std::vector<double> energies(2000);
    for (double& energy : energies) energy = rng.uniform(0.5, 1.5);
    for (int step = 0; step < 3; ++step) {
      const std::vector<double>& given = energies;
      router.adapt(3, std::span<const double>(given));
      for (double& energy : energies) energy *= step == 0 ? 1 / router.scale(3) : 1;
    }
    const CoherenceThresholds in_force = router.thresholds_in_force();
    CHECK(in_force.max == router.thresholds(LaneRouter<double>::max));
    CHECK(in_force.max < 2);
    CHECK(in_force.deep <= in_force.max);
  }
}

TEST_CASE("training holds the shares at the boundaries while the states grow") {
  auto config = lane_config(16);
  config.share_reflex = 0.5, config.share_standard = 0.3, config.share_deep = 0.15, config.share_refused = 0.02;
  Rng rng(4);
  LaneRouter<float> router(config, rng);
  Shares total;
  constexpr int warm_up = 20, steps = 220;
  for (int step = 0; step < steps; ++step) {
    const Shares seen = training_step(router, rng, 1 + 0.004 * step);
    if (step == 0) CHECK(seen.reflex + seen.standard < 0.1);
    if (step < warm_up) continue;
    constexpr double weight = 1.0 / (steps - warm_up);
    total.reflex += weight * seen.reflex, total.standard += weight * seen.standard, total.deep += weight * seen.deep;
    total.escalate += weight * seen.escalate, total.refused += weight * seen.refused;
  }
  CHECK(total.reflex == Approx(0.5).margin(0.03));
  CHECK(total.standard == Approx(0.3).margin(0.03));
  CHECK(total.deep == Approx(0.15).margin(0.02));
  CHECK(total.escalate == Approx(0.05).margin(0.02));
  CHECK(total.refused == Approx(0.02).margin(0.01));
  CHECK(router.scale(0) == 1);  // nothing was measured there
  CHECK(router.scale(3) > 4 * router.scale(1));
  CHECK(!router.thresholds.log.empty());
}

TEST_CASE("training holds the shares at the embedding, where one energy is cut three times") {
  Rng rng(5);
  LaneRouter<float> router(lane_config(16, RouteAt::embedding), rng);
  double lanes[4] = {};
  for (int step = 0; step < 150; ++step) {
    LaneRouter<float>::Cache cache;
    Tensor<float, 2> energy;
    router.energies(0, tokens_of_sizes<float>(8, 64, 16, rng), energy, cache);
    const CoherenceThresholds in_force = router.thresholds_in_force();
    if (step >= 10)
      for (const float e : elements(energy))
        lanes[static_cast<int>(router.lane(static_cast<double>(e), in_force))] += 1.0 / (140 * 512);
    router.adapt(0, elements(energy));
  }
  CHECK(lanes[0] == Approx(0.6).margin(0.03));
  CHECK(lanes[1] == Approx(0.25).margin(0.03));
  CHECK(lanes[2] == Approx(0.14).margin(0.02));
  CHECK(lanes[3] == Approx(0.01).margin(0.008));
}

TEST_CASE("pressure sends more tokens to the reflex lane, and only that") {
  const auto route_at = GENERATE(RouteAt::embedding, RouteAt::boundaries);
  INFO(name_of(route_at));
  Rng rng(6);
  LaneRouter<float> router(lane_config(16, route_at), rng);
  const Index point = route_at == RouteAt::embedding ? 0 : 1;
  LaneRouter<float>::Cache cache;
  Tensor<float, 2> energy;
  for (int step = 0; step < 5; ++step) {
    router.energies(point, tokens_of_sizes<float>(8, 64, 16, rng), energy, cache);
    router.adapt(point, elements(energy));
  }
  router.energies(point, tokens_of_sizes<float>(8, 64, 16, rng), energy, cache);
  const CoherenceThresholds at_rest = router.thresholds_in_force();
  double before = 0;
  for (int i = 0; i <= 100; ++i) {
    const double pressure = i / 100.0;
    const CoherenceThresholds in_force = router.thresholds_in_force(pressure);
    const double share = share_below(std::span<const float>(elements(energy)), in_force.reflex);
    INFO("pressure " << pressure);
    CHECK(share >= before);
    CHECK(share == Approx(pressed_share(0.6, pressure)).margin(0.07));
    CHECK(in_force.max == at_rest.max);
    if (route_at == RouteAt::boundaries) {
      CHECK(in_force.standard == at_rest.standard);
      CHECK(in_force.deep == at_rest.deep);
    } else {
      CHECK(in_force.standard >= in_force.reflex);
      CHECK(in_force.deep >= in_force.standard);
    }
    before = share;
  }
  CHECK_THROWS_AS(router.thresholds_in_force(1.5), Error);
  CHECK_THROWS_AS(router.thresholds_in_force(std::numeric_limits<double>::quiet_NaN()), Error);
}
