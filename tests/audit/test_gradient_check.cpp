// The gradient check itself: right gradients pass, wrong ones are found and named.
#include "rbar/audit/gradient_check.hpp"

#include "audit/toy_layers.hpp"
#include "support/catch.hpp"

#include <array>

namespace {

toy::Square square_layer() {
  toy::Square layer;
  layer.scale = rbar::Tensor<double, 1>(5);
  rbar::Rng rng(3);
  for (double& value : rbar::elements(layer.scale)) value = rng.normal();
  return layer;
}

rbar::Tensor<double, 3> random_input() {
  rbar::Tensor<double, 3> x(2, 7, 5);
  rbar::Rng rng(4);
  for (double& value : rbar::elements(x)) value = rng.normal();
  return x;
}

}  // namespace

TEST_CASE("gradient_check accepts a right layer, element by element or sampled", "[audit]") {
  const auto x = random_input();
  for (const rbar::Index samples : {0, 3, 40}) {
    const auto report = rbar::gradient_check(square_layer(), x, {.samples_per_tensor = samples});
    INFO(report.worst);
    CHECK(report.error < 1e-8);
    CHECK(report.largest_gradient > 0.1);
    CHECK(report.checked == (samples == 0 ? 75 : samples == 3 ? 6 : 45));
  }
}

TEST_CASE("gradient_check finds a wrong gradient and names it", "[audit]") {
  auto layer = square_layer();
  layer.wrong_scale_factor = 1.001;
  auto report = rbar::gradient_check(layer, random_input());
  CHECK(report.error > 1e-4);
  CHECK(report.worst.rfind("scale[", 0) == 0);

  layer = square_layer();
  layer.wrong_input_factor = 0;
  report = rbar::gradient_check(layer, random_input(), {.samples_per_tensor = 0});
  CHECK(report.error > 0.1);
  CHECK(report.worst.rfind("input[", 0) == 0);

  layer.wrong_scale_factor = 0;  // everything zero: still measured against the numeric gradient
  CHECK(rbar::gradient_check(layer, random_input()).error == Approx(1.0));

  layer.wrong_scale_factor = std::numeric_limits<double>::quiet_NaN();
  CHECK(std::isinf(rbar::gradient_check(layer, random_input()).error));
}

TEST_CASE("gradient_check works on language models", "[audit]") {
  rbar::Rng rng(5);
  toy::Bigram<double> model({11}, rng);
  model.leak = 0.5;
  rbar::Tensor<rbar::Token, 2> tokens(2, 9);
  for (rbar::Index i = 0; i < tokens.size(); ++i) tokens.data()[i] = static_cast<rbar::Token>((7 * i + i * i) % 11);
  const auto report = rbar::gradient_check(model, tokens, {.samples_per_tensor = 0});
  INFO(report.worst);
  CHECK(report.error < 1e-8);
  CHECK(report.checked == 121);
}

TEST_CASE("gradient_check steps around a kink, and not around an error", "[audit]") {
  // |θ| just beside its kink, a step function just beside its jump: closer than the first step.
  std::array<double, 2> theta = {2e-6, 1.0 + 3e-6};
  std::array<double, 2> gradient = {1.0, 0.0};
  const auto loss = [&] { return std::abs(theta[0]) + (theta[1] > 1 ? 4.0 : 0.0); };
  const std::array<rbar::GradientPair, 1> pairs = {{{"theta", theta, gradient}}};
  CHECK(rbar::gradient_check(std::span<const rbar::GradientPair>(pairs), loss).error < 1e-7);
  CHECK(theta == std::array<double, 2>{2e-6, 1.0 + 3e-6});
  gradient[0] = -1;
  CHECK(rbar::gradient_check(std::span<const rbar::GradientPair>(pairs), loss).error > 1);
  const std::array<rbar::GradientPair, 1> uneven = {{{"theta", theta, std::span<const double>(gradient).first(1)}}};
  CHECK_THROWS_AS(rbar::gradient_check(std::span<const rbar::GradientPair>(uneven), loss), rbar::Error);
}
