// The causality audit passes what is causal, and finds and names every kind of leak.
#include "rbar/audit/causality.hpp"

#include "audit/toy_layers.hpp"
#include "support/catch.hpp"

namespace {

toy::Bigram<float> model(float leak) {
  rbar::Rng rng(11);
  toy::Bigram<float> result({17}, rng);
  result.leak = leak;
  return result;
}

// A layer that can look ahead by a token, or at the other sequences, or fail.
struct Peeking : toy::Square {
  rbar::Index ahead = 0;
  double others = 0;
  bool poison = false;

  Peeking() {
    scale = rbar::Tensor<double, 1>(3);
    scale.setConstant(2);
  }
  void forward(rbar::ConstTensorView<double, 3> x, rbar::Tensor<double, 3>& y, Cache& cache) const {
    Square::forward(x, y, cache);
    const rbar::Index length = x.dimension(1);
    for (rbar::Index b = 0; b < x.dimension(0); ++b)
      for (rbar::Index t = 0; t < length; ++t) {
        y(b, t, 0) += x(b, std::max<rbar::Index>(0, t - 3), 1) + (poison ? NAN : 0.0);
        if (t + ahead < length) y(b, t, 2) += x(b, t + ahead, 0);
        for (rbar::Index other = 0; other < x.dimension(0); ++other) y(b, t, 2) += others * x(other, t, 1);
      }
  }
};

}  // namespace

TEST_CASE("causality passes a causal model and catches a leaky one", "[audit]") {
  const auto causal = rbar::causality(model(0));
  CHECK(causal.passed());
  CHECK(causal.leak == 0);
  CHECK(causal.trials == 16);
  CHECK(causal.largest_output > 1);
  CHECK_THAT(causal.text(), Catch::Matchers::StartsWith("causal: 16 tokens"));

  const auto leaky = rbar::causality(model(1e-3f));
  CHECK_FALSE(leaky.passed());
  CHECK(leaky.leak > 1e-5);
  CHECK(leaky.seen == leaky.changed - 1);
  CHECK_FALSE(leaky.other_sequence);
  CHECK_THAT(leaky.text(), Catch::Matchers::StartsWith("NOT causal"));

  // The measure is relative to the largest logit, so the scale of the weights does not matter.
  auto large = model(1e-3f);
  for (float& value : rbar::elements(large.table)) value *= 1024;
  CHECK(rbar::causality(large).leak == Approx(leaky.leak).epsilon(1e-3));
}

TEST_CASE("causality tries every position, any shape, and is reproducible", "[audit]") {
  const auto all = rbar::causality(model(0.1f), {.length = 9, .batch = 1, .trials = 0, .seed = 5});
  CHECK(all.trials == 9);
  const auto again = rbar::causality(model(0.1f), {.length = 9, .batch = 1, .trials = 0, .seed = 5});
  CHECK(all.leak == again.leak);
  CHECK(all.changed == again.changed);
  CHECK(rbar::causality(model(0.1f), {.length = 1}).passed());  // nothing lies before
  CHECK(rbar::causality(model(0.1f), {.length = 2, .trials = 1}).changed == 1);
  CHECK_THROWS_AS(rbar::causality(model(0), {.length = 0}), rbar::Error);
  CHECK_THROWS_AS(rbar::causality(model(0), {.batch = 0}), rbar::Error);
  CHECK_THROWS_AS(rbar::causality(model(0), {.trials = -1}), rbar::Error);
}

TEST_CASE("causality of layers: looking ahead, at other sequences, and NaN", "[audit]") {
  Peeking layer;
  CHECK(rbar::causality(layer, 3).leak == 0);
  layer.ahead = 5;
  auto report = rbar::causality(layer, 3);
  CHECK_FALSE(report.passed());
  CHECK(report.seen == report.changed - 5);

  layer.ahead = 0;
  layer.others = 1e-2;
  report = rbar::causality(layer, 3);
  CHECK_FALSE(report.passed());
  CHECK(report.other_sequence);
  CHECK(report.seen == report.changed);
  CHECK(rbar::causality(layer, 3, {.batch = 1}).passed());

  layer.others = 0;
  layer.poison = true;
  CHECK_FALSE(rbar::causality(layer, 3).passed());
}
