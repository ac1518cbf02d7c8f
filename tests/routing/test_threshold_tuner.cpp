#include "rbar/routing/threshold_tuner.hpp"

#include "rbar/core/random.hpp"
#include "support/catch.hpp"

#include <cmath>
#include <limits>

using namespace rbar;

namespace {

ThresholdTuner<float> tuner_of(const ThresholdTunerConfig& config = {}, double initial = 0) {
  return ThresholdTuner<float>(config, std::span<const double>(&initial, 1));
}

// Energies as token energies are: positive, skewed.
std::vector<float> energies(std::size_t count, double scale, Rng& rng) {
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(scale * std::exp(0.3 * rng.normal()));
  return values;
}

}  // namespace

TEST_CASE("the first batch sets the threshold, and says so in the log") {
  Rng rng(1);
  for (const double target : {0.01, 0.3, 0.6, 0.99}) {
    auto tuner = tuner_of({}, 123);
    const auto batch = energies(2000, 5, rng);
    tuner.adapt(0, batch, target);
    CHECK(share_below(std::span<const float>(batch), tuner(0)) == Approx(target).margin(1e-3));
    REQUIRE(tuner.log.size() == 1);
    CHECK(tuner.log[0].reason == ProposalReason::first_batch);
    CHECK(tuner.log[0].previous == Approx(123));
    CHECK(tuner.log[0].proposed == Approx(tuner(0)));
    CHECK(tuner.log[0].observed_share == 1);
    CHECK(tuner.log[0].target_share == target);
  }
}

TEST_CASE("a threshold stays where it is while the share only scatters") {
  Rng rng(2);
  for (const double target : {0.1, 0.6, 0.95}) {
    auto tuner = tuner_of();
    tuner.adapt(0, energies(20000, 1, rng), target);
    const double set = tuner(0);
    for (int step = 0; step < 300; ++step) tuner.adapt(0, energies(2000, 1, rng), target);
    CHECK(tuner(0) == set);
    CHECK(tuner.log.size() == 1);
  }
}

TEST_CASE("hysteresis: an error below start is left alone, one above it is corrected to below stop") {
  const double target = 0.5;  // unit √(s(1−s)) = .5
  ThresholdTunerConfig config;
  config.smoothing = 1;  // every batch speaks for itself
  config.start = 0.2;    // errors of the share: .1
  config.stop = 0.04;    //                      .02
  auto tuner = tuner_of(config);
  const auto batch = [](double shift) {
    std::vector<float> values(1000);
    for (std::size_t i = 0; i < 1000; ++i)
      values[i] = static_cast<float>(1 + (static_cast<double>(i) + 0.5) / 1000 + shift);
    return values;
  };
  tuner.adapt(0, batch(0), target);
  const double first = tuner(0);
  tuner.adapt(0, batch(0.09), target);  // share .41
  CHECK(tuner(0) == first);
  tuner.adapt(0, batch(0.11), target);  // share .39: corrected
  CHECK(tuner(0) == Approx(first + 0.11));
  CHECK(tuner.log.back().reason == ProposalReason::share_too_low);
  CHECK(tuner.log.back().observed_share == Approx(0.39).margin(1e-6));
  // Still correcting: an error that would not have set it off is followed, down to `stop`.
  tuner.adapt(0, batch(0.14), target);
  CHECK(tuner(0) == Approx(first + 0.14));
  const double second = tuner(0);
  tuner.adapt(0, batch(0.15), target);  // share .49: below stop
  CHECK(tuner(0) == second);
  tuner.adapt(0, batch(0.23), target);  // share .41: at rest again, so left alone
  CHECK(tuner(0) == second);
  tuner.adapt(0, batch(-0.2), target);
  CHECK(tuner(0) == Approx(first - 0.2));
  CHECK(tuner.log.back().reason == ProposalReason::share_too_high);
  CHECK(tuner.log.size() == 4);
}

TEST_CASE("the share holds its target while the energies drift") {
  const double target = GENERATE(0.05, 0.6, 0.85, 0.99);
  INFO("target " << target);
  Rng rng(3);
  auto tuner = tuner_of();
  double total = 0;
  constexpr int warm_up = 50, steps = 600;
  for (int step = 0; step < steps; ++step) {
    const auto batch = energies(2048, 1 + 0.001 * step, rng);
    if (step >= warm_up) total += share_below(std::span<const float>(batch), tuner(0));
    tuner.adapt(0, batch, target);
  }
  const double unit = std::sqrt(target * (1 - target));
  CHECK(std::abs(total / (steps - warm_up) - target) < 0.06 * unit);
  CHECK(tuner.log.size() > 3);
  CHECK(tuner.log.size() < 300);  // it rests in between
}

TEST_CASE("the log keeps the newest proposals") {
  ThresholdTunerConfig config;
  config.smoothing = 1;
  config.log_size = 3;
  auto tuner = tuner_of(config);
  Rng rng(4);
  for (int step = 0; step < 10; ++step) tuner.adapt(0, energies(100, std::pow(4.0, step), rng), 0.5);
  REQUIRE(tuner.log.size() == 3);
  CHECK(tuner.log[0].step == 7);
  CHECK(tuner.log[2].step == 9);
  CHECK(tuner.log[2].previous == Approx(tuner.log[1].proposed));
  config.log_size = 0;
  auto silent = tuner_of(config);
  silent.adapt(0, energies(10, 1, rng), 0.5);
  CHECK(silent.log.empty());
}

TEST_CASE("all or nothing is above or below every energy, and there is a way back") {
  auto tuner = tuner_of();
  Rng rng(5);
  const auto batch = energies(500, 1e6, rng);
  tuner.adapt(0, batch, 1);
  CHECK(share_below(std::span<const float>(batch), tuner(0)) == 1);
  tuner.adapt(0, batch, 0);
  CHECK(share_below(std::span<const float>(batch), tuner(0)) == 0);
  tuner.adapt(0, batch, 0.25);
  CHECK(share_below(std::span<const float>(batch), tuner(0)) == Approx(0.25));
}

TEST_CASE("the tuner refuses what it cannot learn from") {
  auto tuner = tuner_of({}, 7);
  const std::vector<float> none, nan{1, std::numeric_limits<float>::quiet_NaN()}, fine{1, 2};
  CHECK_THROWS_AS(tuner.adapt(0, none, 0.5), Error);
  CHECK_THROWS_AS(tuner.adapt(0, nan, 0.5), Error);
  CHECK_THROWS_AS(tuner.adapt(0, fine, 1.5), Error);
  CHECK_THROWS_AS(tuner.adapt(1, fine, 0.5), Error);
  CHECK_THROWS_AS(tuner.adapt(0, fine, std::numeric_limits<double>::quiet_NaN()), Error);
  CHECK(tuner(0) == 7);
  CHECK(tuner.log.empty());
  for (const ThresholdTunerConfig& bad :
       {ThresholdTunerConfig{0}, {1.5}, {0.1, 0.01, 0.02}, {0.1, 0.1, -0.1}, {0.1, 0.1, 0.1, -1}})
    CHECK_THROWS_AS(bad.validate(), Error);
}
