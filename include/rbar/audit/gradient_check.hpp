// Is the backward pass the derivative of the forward pass? Central differences in double,
//   (L(θ+h) − L(θ−h)) / 2h   against   ∂L/∂θ,
// for parameters and inputs. The error is relative to the largest gradient of the whole check: a
// tensor whose true gradient is 0 (a key bias under softmax) then needs no exception.
#pragma once

#include "rbar/core/parameters.hpp"
#include "rbar/core/random.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace rbar {
inline namespace audit {

struct GradientCheckOptions {
  double step = 1e-5;             // h, times max(1, |θ|)
  Index samples_per_tensor = 40;  // 0: every element
  std::uint64_t seed = 1;         // of the loss weights and of the samples
};

struct GradientCheckReport {
  double error = 0;             // max |analytic − numeric| / largest_gradient; infinite if one is not finite
  double largest_gradient = 0;  // largest |gradient|, analytic (all elements) or numeric (the checked ones)
  std::string worst;            // "name[element]: analytic ..., numeric ..."
  Index checked = 0;            // elements
};

// Memory that the loss reads, and the analytic gradient of the loss with respect to it.
struct GradientPair {
  std::string name;
  std::span<double> value;
  std::span<const double> gradient;
};

}  // namespace audit

namespace detail {

inline std::string describe_number(double value) {
  std::ostringstream out;
  out.precision(12);
  out << value;
  return out.str();
}

// A router that flips or a ReLU's kink inside [θ−h, θ+h] gives a wild difference that a smaller step
// removes, whereas a wrong gradient stays wrong at every step. So a disagreement is looked at again
// with h/10 and h/100, and the closest of the three counts.
template <class Loss>
double numeric_derivative(double& value, double analytic, double step, double tolerance, Loss& loss) {
  const double original = value;
  double closest = std::numeric_limits<double>::quiet_NaN();
  for (double h = step * std::max(1.0, std::abs(original)); h > step * 1e-3; h /= 10) {
    value = original + h;
    const double above = value, loss_above = loss();
    value = original - h;
    const double below = value, loss_below = loss();
    value = original;
    const double derivative = (loss_above - loss_below) / (above - below);
    if (!(std::abs(closest - analytic) <= std::abs(derivative - analytic))) closest = derivative;
    if (std::abs(closest - analytic) <= tolerance) break;
  }
  return closest;
}

template <class L>
void append_pairs(L& layer, const L& gradient, std::vector<GradientPair>& pairs) {
  const auto values = parameters_of(layer);
  const auto gradients = parameters_of(gradient);
  for (std::size_t i = 0; i < values.size(); ++i)
    pairs.push_back({values[i].name, values[i].values(), gradients[i].values()});
}

inline Tensor<double, 3> random_like(const Tensor<double, 3>& like, std::uint64_t seed) {
  Tensor<double, 3> random = like;
  Rng rng(seed, /*stream=*/1);
  for (double& value : elements(random)) value = rng.normal();
  return random;
}

inline double weighted_sum(const Tensor<double, 3>& weights, const Tensor<double, 3>& values) {
  double sum = 0;
  for (Index i = 0; i < weights.size(); ++i) sum += weights.data()[i] * values.data()[i];
  return sum;
}

}  // namespace detail

inline namespace audit {

// The general form: loss() -> double reads the memory of every pair's `value`, which is perturbed
// and restored. Errors: a pair whose two sizes differ.
template <class Loss>
GradientCheckReport gradient_check(std::span<const GradientPair> pairs, Loss&& loss,
                                   GradientCheckOptions options = {}) {
  GradientCheckReport report;
  for (const auto& pair : pairs) {
    require(pair.value.size() == pair.gradient.size(), "gradient_check", pair.name + ": gradient size",
            pair.value.size(), pair.gradient.size());
    for (const double gradient : pair.gradient)
      report.largest_gradient = std::max(report.largest_gradient, std::abs(gradient));
  }
  const double tolerance = 1e-7 * report.largest_gradient;
  double largest_difference = -1;
  Rng rng(options.seed, /*stream=*/2);
  for (const auto& pair : pairs) {
    const auto size = static_cast<Index>(pair.value.size());
    const Index samples = options.samples_per_tensor > 0 ? std::min(options.samples_per_tensor, size) : size;
    for (Index sample = 0; sample < samples; ++sample) {
      // One random element from each of `samples` equal stretches: distinct, and spread over the tensor.
      const Index first = sample * size / samples, last = (sample + 1) * size / samples;
      const auto element = static_cast<std::size_t>(first) + rng.below(static_cast<std::uint64_t>(last - first));
      const double analytic = pair.gradient[element];
      const double numeric = detail::numeric_derivative(pair.value[element], analytic, options.step, tolerance, loss);
      double difference = std::abs(analytic - numeric);
      if (!std::isfinite(difference)) difference = std::numeric_limits<double>::infinity();
      if (std::isfinite(numeric)) report.largest_gradient = std::max(report.largest_gradient, std::abs(numeric));
      if (difference > largest_difference) {
        largest_difference = difference;
        report.worst = pair.name + "[" + std::to_string(element) + "]: analytic " + detail::describe_number(analytic) +
                       ", numeric " + detail::describe_number(numeric);
      }
      ++report.checked;
    }
  }
  if (largest_difference > 0) report.error = largest_difference / report.largest_gradient;
  if (std::isnan(report.error)) report.error = std::numeric_limits<double>::infinity();
  return report;
}

// Loss Σ r∘y with fixed random r, and what the layer adds itself (auxiliary_loss_of); checks every parameter and the
// input [batch, tokens, features].
template <Layer L>
GradientCheckReport gradient_check(const L& layer, ConstTensorView<double, 3> x, GradientCheckOptions options = {}) {
  static_assert(std::is_same_v<typename L::Scalar, double>, "gradient_check needs a layer of double");
  L probe = layer;
  Tensor<double, 3> input = x, output, input_gradient;
  typename L::Cache cache;
  probe.forward(input, output, cache);
  const Tensor<double, 3> weights = detail::random_like(output, options.seed);
  L gradient = zeros_like(layer);
  probe.backward(weights, cache, input_gradient, gradient);
  require_shape("gradient_check", "gradient of the input", shape_of(input_gradient), shape_of(input));

  std::vector<GradientPair> pairs;
  detail::append_pairs(probe, gradient, pairs);
  pairs.push_back({"input", elements(input), elements(std::as_const(input_gradient))});
  return gradient_check(
      std::span<const GradientPair>(pairs),
      [&] {
        probe.forward(input, output, cache);
        return detail::weighted_sum(weights, output) + auxiliary_loss_of(cache);
      },
      options);
}

// The same for a language model: loss Σ r∘logits, every parameter.
template <LanguageModel M>
GradientCheckReport gradient_check(const M& model, ConstTensorView<Token, 2> tokens,
                                   GradientCheckOptions options = {}) {
  static_assert(std::is_same_v<typename M::Scalar, double>, "gradient_check needs a model of double");
  M probe = model;
  Tensor<double, 3> logits;
  typename M::Cache cache;
  probe.forward(tokens, logits, cache);
  const Tensor<double, 3> weights = detail::random_like(logits, options.seed);
  M gradient = zeros_like(model);
  probe.backward(weights, cache, gradient);

  std::vector<GradientPair> pairs;
  detail::append_pairs(probe, gradient, pairs);
  return gradient_check(
      std::span<const GradientPair>(pairs),
      [&] {
        probe.forward(tokens, logits, cache);
        return detail::weighted_sum(weights, logits) + auxiliary_loss_of(cache);
      },
      options);
}

}  // namespace audit
}  // namespace rbar
