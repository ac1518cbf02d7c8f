#include "rbar/routing/score_threshold.hpp"

#include "rbar/core/random.hpp"
#include "support/catch.hpp"

#include <cmath>
#include <limits>

using rbar::Index;
using rbar::Rng;
using rbar::ScoreThreshold;

namespace {

double share_below(const std::vector<float>& scores, float threshold) {
  double below = 0;
  for (const float score : scores) below += score < threshold ? 1 : 0;
  return below / static_cast<double>(scores.size());
}

}  // namespace

TEST_CASE("the first batch sets the threshold to its quantile") {
  std::vector<float> scores(1000);
  Rng rng(1);
  for (float& score : scores) score = static_cast<float>(rng.normal(3, 7));
  for (const double budget : {0.001, 0.05, 0.15, 0.5, 0.999}) {
    ScoreThreshold<float> threshold(budget, 0.5, 0.1);
    threshold.adapt(scores, budget);
    CHECK(share_below(scores, threshold()) == Approx(budget));
  }
}

TEST_CASE("the threshold holds the share while scores drift, spread and skew") {
  // What the gains mean must not depend on the scale of the scores.
  const double scale = GENERATE(1e-3, 1.0, 50.0);
  const double budget = GENERATE(0.05, 0.15, 0.3, 0.5);
  INFO("scale " << scale << ", budget " << budget);
  ScoreThreshold<float> threshold(budget, 0.5, 0.1);
  Rng rng(3);
  double total = 0, squares = 0;
  constexpr int warm_up = 20, steps = 400;
  for (int step = 0; step < steps; ++step) {
    std::vector<float> scores(1024);
    const double centre = 0.5 + 0.01 * step, spread = 1 + 0.5 * std::sin(0.05 * step);
    for (float& score : scores) {
      const double z = rng.normal();
      score = static_cast<float>(scale * (centre + spread * (z + 0.3 * z * z)));
    }
    const double share = share_below(scores, threshold());
    if (step >= warm_up) {
      total += share;
      squares += (share - budget) * (share - budget);
    }
    threshold.adapt(scores, budget);
  }
  CHECK(total / (steps - warm_up) == Approx(budget).epsilon(0.05));
  CHECK(std::sqrt(squares / (steps - warm_up)) < 0.05);
}

TEST_CASE("the controller removes a bias that the batch quantile cannot see") {
  // A constant part of the tokens repeats one score: the quantile sits on the atom, where < and <= differ.
  ScoreThreshold<float> threshold(0.3, 0.5, 0.1);
  Rng rng(4);
  double total = 0;
  for (int step = 0; step < 300; ++step) {
    std::vector<float> scores(512, 0.4f);
    for (std::size_t i = 0; i < 384; ++i) scores[i] = static_cast<float>(rng.uniform());
    if (step >= 100) total += share_below(scores, threshold());
    threshold.adapt(scores, 0.3);
  }
  CHECK(total / 200 == Approx(0.3).epsilon(0.1));
}

TEST_CASE("a budget of 1 lets everything through and a change of mind finds the way back") {
  std::vector<float> scores(512);
  Rng rng(5);
  for (float& score : scores) score = static_cast<float>(rng.normal());
  ScoreThreshold<float> threshold(1.0, 0.5, 0.1);
  CHECK(share_below(scores, threshold()) == 1.0);
  threshold.adapt(scores, 1.0);
  CHECK(share_below(scores, threshold()) == 1.0);
  threshold.adapt(scores, 0.25);
  CHECK(share_below(scores, threshold()) == Approx(0.25));
}

TEST_CASE("the threshold refuses what it cannot learn from") {
  ScoreThreshold<float> threshold(0.2, 0.5, 0.1);
  const std::vector<float> none, nan{0.1f, std::numeric_limits<float>::quiet_NaN()}, fine{0.1f, 0.2f};
  const float before = threshold();
  CHECK_THROWS_AS(threshold.adapt(none, 0.2), rbar::Error);
  CHECK_THROWS_AS(threshold.adapt(nan, 0.2), rbar::Error);
  CHECK_THROWS_AS(threshold.adapt(fine, 0.0), rbar::Error);
  CHECK_THROWS_AS(threshold.adapt(fine, 1.5), rbar::Error);
  CHECK(threshold() == before);
}
