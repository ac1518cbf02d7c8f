#include "coherence/naive.hpp"
#include "rbar/audit/gradient_check.hpp"
#include "support/catch.hpp"
#include "support/differences.hpp"

using namespace rbar;

namespace {

// Gradient check of Σ weights ⊙ coherence(hidden).
GradientCheckReport check_coherence(Tensor<double, 3> hidden, const CoherenceConfig& config) {
  Tensor<double, 2> coherence, weights(hidden.dimension(0), hidden.dimension(1));
  Rng rng(77);
  for (double& weight : elements(weights)) weight = rng.normal();
  CoherenceCache<double> cache;
  coherence_forward(hidden, config, coherence, cache);
  auto gradient = zeros<double, 3>(shape_of(hidden));
  coherence_backward(weights, hidden, config, cache, gradient);
  const GradientPair pairs[] = {{"hidden", elements(hidden), elements(std::as_const(gradient))}};
  return gradient_check(pairs, [&] {
    coherence_forward(hidden, config, coherence, cache);
    double sum = 0;
    for (Index i = 0; i < weights.size(); ++i) sum += weights.data()[i] * coherence.data()[i];
    return sum;
  });
}

}  // namespace

TEST_CASE("gradients of every mode agree with central differences", "[coherence]") {
  std::uint64_t seed = 20;
  for (const Shape<3> shape : {Shape<3>{2, 7, 5}, {1, 1, 4}, {1, 2, 1}, {1, 11, 70}, {2, 20, 3}})
    for (const auto& config : naive::all_configs({1, 2, 3, 6, 40})) {
      INFO(naive::describe(config) << ", " << detail::describe_shape(shape) << ", seed " << seed);
      const auto report = check_coherence(naive::random_hidden<double>(shape[0], shape[1], shape[2], ++seed), config);
      INFO(report.worst);
      // One phase alone has R̄ = 1 whatever it is: the gradient is rounding noise, with nothing to compare it to.
      if (report.largest_gradient < 1e-9) continue;
      CHECK(report.error <= 1e-6);
    }
}

TEST_CASE("gradients of sequence coherence and of R̄ of given phases", "[coherence]") {
  auto hidden = naive::random_hidden<double>(2, 5, 9, 31);
  Tensor<double, 1> weights(2);
  weights.setValues({0.7, -1.3});
  auto gradient = zeros<double, 3>(shape_of(hidden));
  sequence_coherence_backward(weights, hidden, gradient);
  const GradientPair pairs[] = {{"hidden", elements(hidden), elements(std::as_const(gradient))}};
  const auto report = gradient_check(pairs, [&] {
    const auto r = compute_sequence_coherence(hidden);
    return weights(0) * r(0) + weights(1) * r(1);
  });
  INFO(report.worst);
  CHECK(report.error <= 1e-6);

  const auto row_weights = naive::coherence(hidden, {.mode = CoherenceMode::token});
  auto dphases = zeros<double, 3>(shape_of(hidden));
  r_bar_from_phases_backward<double, 3>(row_weights, hidden, dphases);
  const GradientPair phase_pairs[] = {{"phases", elements(hidden), elements(std::as_const(dphases))}};
  const auto phase_report = gradient_check(phase_pairs, [&] {
    const auto r = r_bar_from_phases(hidden);
    double sum = 0;
    for (Index i = 0; i < r.size(); ++i) sum += row_weights.data()[i] * r.data()[i];
    return sum;
  });
  INFO(phase_report.worst);
  CHECK(phase_report.error <= 1e-6);
}

TEST_CASE("the gradient is added to what is there, and float agrees with double", "[coherence]") {
  const auto hidden = naive::random_hidden<float>(2, 30, 70, 40, 1.0);
  Tensor<double, 3> hidden64(2, 30, 70);
  std::copy_n(hidden.data(), hidden.size(), hidden64.data());
  Tensor<float, 2> r, weights(2, 30);
  Tensor<double, 2> r64, weights64(2, 30);
  weights.setConstant(1.5f);
  weights64.setConstant(1.5);
  for (const auto& config : naive::all_configs({5})) {
    CoherenceCache<float> cache;
    CoherenceCache<double> cache64;
    coherence_forward(hidden, config, r, cache);
    coherence_forward(hidden64, config, r64, cache64);
    Tensor<float, 3> once = zeros<float, 3>({2, 30, 70}), offset(2, 30, 70);
    auto exact = zeros<double, 3>({2, 30, 70});
    offset.setConstant(2);
    coherence_backward(weights, hidden, config, cache, once);
    coherence_backward(weights, hidden, config, cache, offset);
    coherence_backward(weights64, hidden64, config, cache64, exact);
    double largest = 0, added = 0;
    for (Index i = 0; i < once.size(); ++i) {
      largest = std::max(largest, std::abs(exact.data()[i]));
      added = test::larger(added, std::abs(static_cast<double>(offset.data()[i] - once.data()[i]) - 2.0));
    }
    INFO(naive::describe(config) << ", largest gradient " << largest);
    CHECK(naive::largest_difference(once, exact) <= 1e-5 * largest);
    CHECK(added <= 1e-6);
  }
}
