#include "rbar/routing/lane_router.hpp"

#include "rbar/audit/gradient_check.hpp"
#include "routing/lane_support.hpp"
#include "support/allocation_count.hpp"
#include "support/catch.hpp"

#include <limits>

using namespace test;

TEST_CASE("the record's energies go to the record's lanes") {
  const CoherenceThresholds record;
  Rng rng(1);
  const LaneRouter<float> router(lane_config(4, RouteAt::embedding), rng);
  CHECK(router.lane(0.001, record) == ComputeLane::reflex);
  CHECK(router.lane(0.05, record) == ComputeLane::standard);
  CHECK(router.lane(0.5, record) == ComputeLane::deep);
  CHECK(router.lane(100, record) == ComputeLane::escalate);
  // The lower lane takes a strict <.
  CHECK(router.lane(0.01, record) == ComputeLane::standard);
  CHECK(router.lane(0.1, record) == ComputeLane::deep);
  CHECK(router.lane(1, record) == ComputeLane::escalate);
  CHECK(router.continues(1, 0.01, record));
  CHECK(!router.continues(1, 0.0099, record));
  CHECK(router.continues(2, 0.1, record));
  CHECK(!router.continues(2, 0.0999, record));
  CHECK(router.last_lane(0.999, record) == ComputeLane::deep);
  CHECK(router.last_lane(1, record) == ComputeLane::escalate);
}

TEST_CASE("before anything was measured every token takes all layers and nothing is refused") {
  Rng rng(2);
  const LaneRouter<float> router(lane_config(64), rng);
  LaneRouter<float>::Cache cache;
  Tensor<float, 2> energy;
  router.energies(1, tokens_of_sizes<float>(2, 50, 64, rng), energy, cache);
  const CoherenceThresholds in_force = router.thresholds_in_force(0.7);
  CHECK(std::isinf(in_force.max));
  Index through = 0;
  for (const float e : elements(energy)) through += static_cast<double>(e) >= in_force.deep ? 1 : 0;
  CHECK(through >= 98);  // the first token of a sequence agrees with itself
}

TEST_CASE("normalised energies have a gradient, a stream and a second measurement") {
  Rng rng(7);
  LaneRouter<double> router(lane_config(12), rng);
  const std::vector<double> mean_three{2, 4};
  router.adapt(2, mean_three);
  CHECK(router.scale(2) == Approx(3));
  auto hidden = tokens_of_sizes<double>(2, 9, 12, rng);
  LaneRouter<double>::Cache cache;
  Tensor<double, 2> energy, raw, weights(2, 9), part;
  typename TokenEnergy<double>::Cache measured;
  router.energies(2, hidden, energy, cache);
  router.measure.forward(hidden, raw, measured);
  for (Index i = 0; i < raw.size(); ++i) CHECK(3 * energy.data()[i] == Approx(raw.data()[i]));

  LaneRouter<double>::State state;
  for (const Index at : {0, 4}) {
    const Index count = at == 0 ? 4 : 5;
    const Tensor<double, 3> next = hidden.slice(Eigen::array<Index, 3>{0, at, 0}, Eigen::array<Index, 3>{2, count, 12});
    router.energies_step(2, next, part, state);
    for (Index b = 0; b < 2; ++b)
      for (Index i = 0; i < count; ++i) CHECK(part(b, i) == energy(b, at + i));
  }

  const Index moved[] = {5, 13};
  Matrix<double> states(2, 12);
  for (Index n = 0; n < 2; ++n) states.row(n) = rows(hidden).row(moved[n]);
  double again[2];
  router.remeasure(2, ConstMatrixView<double>(states.data(), 2, 12), moved, cache.energy, again);
  for (Index n = 0; n < 2; ++n) CHECK(again[n] == Approx(energy.data()[moved[n]]));

  for (double& weight : elements(weights)) weight = rng.normal();
  auto gradient = zeros_like(router);
  Tensor<double, 3> dhidden = zeros<double, 3>({2, 9, 12});
  router.energies_backward(2, weights, hidden, cache, dhidden, gradient);
  std::vector<GradientPair> pairs{{"hidden", elements(hidden), elements(std::as_const(dhidden))}};
  rbar::detail::append_pairs(router, gradient, pairs);
  const auto report = gradient_check(std::span<const GradientPair>(pairs), [&] {
    router.energies(2, hidden, energy, cache);
    double sum = 0;
    for (Index i = 0; i < energy.size(); ++i) sum += weights.data()[i] * energy.data()[i];
    return sum;
  });
  INFO(report.worst);
  CHECK(report.error < 1e-6);
}

TEST_CASE("energies of a shape seen before allocate nothing") {
  if (!test::counts_allocations) return;
  Rng rng(8);
  const LaneRouter<float> router(lane_config(16), rng);
  auto gradient = zeros_like(router);
  const auto hidden = tokens_of_sizes<float>(2, 30, 16, rng), token = tokens_of_sizes<float>(2, 1, 16, rng);
  LaneRouter<float>::Cache cache;
  LaneRouter<float>::State state;
  Tensor<float, 2> energy, part;
  Tensor<float, 3> dhidden = zeros<float, 3>({2, 30, 16});
  const Index moved[] = {7, 40};
  float again[2];
  const auto pass = [&] {
    router.energies(1, hidden, energy, cache);
    router.energies_backward(1, view(std::as_const(energy)), hidden, cache, dhidden, gradient);
    router.energies_step(1, token, part, state);
    router.remeasure(1, ConstMatrixView<float>(hidden.data(), 2, 16), moved, cache.energy, again);
    const CoherenceThresholds in_force = router.thresholds_in_force(0.5);
    CHECK(router.continues(1, 1e9, in_force));
  };
  pass();
  pass();  // Catch's own
  CHECK(test::allocations_in(pass) == 0);
}

TEST_CASE("buffers are saved, scales and thresholds with them; forward moves none") {
  Rng rng(9);
  LaneRouter<float> router(lane_config(8), rng), other(lane_config(8), rng);
  for (const Index point : {1, 2, 3}) {
    Tensor<float, 2> energy;
    LaneRouter<float>::Cache cache;
    router.energies(point, tokens_of_sizes<float>(2, 64, 8, rng), energy, cache);
    router.adapt(point, elements(energy));
  }
  const LaneRouter<float> before = router;
  copy_parameters(router, other);
  const CoherenceThresholds a = router.thresholds_in_force(0.3), b = other.thresholds_in_force(0.3);
  CHECK((a.reflex == b.reflex && a.standard == b.standard && a.deep == b.deep && a.max == b.max));
  LaneRouter<float>::Cache cache;
  Tensor<float, 2> mine, its;
  const auto hidden = tokens_of_sizes<float>(1, 20, 8, rng);
  router.energies(3, hidden, mine, cache);
  other.energies(3, hidden, its, cache);
  for (Index i = 0; i < 20; ++i) CHECK(mine(0, i) == its(0, i));
  const auto first = buffers_of(before), second = buffers_of(std::as_const(router));
  for (std::size_t i = 0; i < first.size(); ++i)
    CHECK(std::equal(first[i].data, first[i].data + first[i].size, second[i].data));
}

TEST_CASE("the router refuses what it cannot decide by") {
  Rng rng(10);
  const auto broken = [&](auto&& change) {
    auto config = lane_config(8);
    change(config);
    return LaneRouter<float>(config, rng);
  };
  CHECK_THROWS_WITH(broken([](auto& c) { c.d_model = 0; }), ContainsText("d_model"));
  CHECK_THROWS_WITH(broken([](auto& c) { c.share_reflex = 0.9; }), ContainsText("at most 1"));
  CHECK_THROWS_WITH(broken([](auto& c) { c.share_refused = -1; }), ContainsText("share"));
  CHECK_THROWS_WITH(broken([](auto& c) { c.scale_decay = 1; }), ContainsText("scale_decay"));
  CHECK_THROWS_WITH(broken([](auto& c) { c.tuner.smoothing = 0; }), ContainsText("tuner_smoothing"));

  LaneRouter<float> router(lane_config(8), rng);
  LaneRouter<float>::Cache cache;
  Tensor<float, 2> energy;
  auto hidden = tokens_of_sizes<float>(1, 4, 8, rng);
  CHECK_THROWS_WITH(router.energies(4, hidden, energy, cache), ContainsText("point"));
  CHECK_THROWS_WITH(router.energies(-1, hidden, energy, cache), ContainsText("point"));
  CHECK_THROWS_WITH(router.energies(0, Tensor<float, 3>(1, 0, 8), energy, cache), ContainsText("token"));
  hidden(0, 2, 3) = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH(router.energies(0, hidden, energy, cache), ContainsText("finite"));

  const CoherenceThresholds record;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_AS(router.continues(3, 1, record), Error);
  CHECK_THROWS_AS(router.continues(1, nan, record), Error);
  CHECK_THROWS_AS(router.lane(nan, record), Error);
  CHECK_THROWS_AS(router.last_lane(nan, record), Error);
  CHECK_THROWS_AS(router.set_thresholds({1, 0.5, 2, 3}), Error);
  CHECK_THROWS_AS(router.set_thresholds({0.1, 0.5, nan, 3}), Error);
  router.set_thresholds({0.1, 0.5, 2, 3});
  CHECK(router.thresholds_in_force().deep == 2);

  const std::vector<float> two{1, 2}, none;
  const bool one_mark[] = {true};
  CHECK_THROWS_WITH(router.adapt(1, two, one_mark), ContainsText("decided"));
  CHECK_THROWS_AS(router.adapt(1, none), Error);
  CHECK_THROWS_AS(router.adapt(7, two), Error);
}
