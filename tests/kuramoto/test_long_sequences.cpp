// Thousands of positions in float: sums over all of them must not drift.
#include "kuramoto/naive_oscillators.hpp"
#include "rbar/audit/gradient_check.hpp"
#include "support/catch.hpp"
#include "support/differences.hpp"

using namespace rbar;

namespace {

constexpr Index tokens = 4096;

// Copies within half a radian: their sums grow with every position, unlike those of copies all around the circle.
Tensor<float, 3> clustered(Index width, Rng& rng) {
  auto angles = naive::random_angles<float>(1, tokens, width, rng, 0.25);
  for (Index t = 0; t < tokens; ++t)
    for (Index w = 0; w < width; ++w) angles(0, t, w) += 0.4f * static_cast<float>(w + 1);
  return angles;
}

KuramotoConfig config_of(Causality causality, Integrator integrator) {
  KuramotoConfig config{.n_heads = 1, .n_oscillators = 3};
  config.causality = causality;
  config.integrator = integrator;
  return config;
}

}  // namespace

TEST_CASE("the mean field of thousands of positions is the sum over pairs") {
  Rng rng(1);
  KuramotoConfig config{.n_heads = 1, .n_oscillators = 1, .n_steps = 3, .dt = 0.3};
  const KuramotoDynamics<float> layer(config, rng);
  const auto initial = clustered(1, rng);
  const auto angles = layer(initial);
  const auto expected = naive::run(layer, initial);
  double worst = 0;
  for (Index i = 0; i < angles.size(); ++i)
    worst = test::larger(worst, naive::angle_difference(static_cast<double>(angles.data()[i]), expected.data()[i]));
  CHECK(worst <= 2e-6);  // three phasors within 6e-7, by dt·K
}

TEST_CASE("oscillators whose tokens fill registers move and learn like the sum over pairs") {
  Rng rng(4);
  const auto past_the_limit = [](Index lanes) { return 16 * lanes + 5; };  // of tokens in rows, and an odd rest
  for (const Integrator integrator : all_integrators) {
    INFO(name_of(integrator));
    const auto config = config_of(Causality::reference, integrator);
    const KuramotoDynamics<float> layer(config, rng);
    const auto initial = naive::random_angles<float>(2, past_the_limit(simd::lanes<float>), config.width(), rng);
    const auto angles = layer(initial);
    const auto expected = naive::run(layer, initial);
    double worst = 0;
    for (Index i = 0; i < angles.size(); ++i)
      worst = test::larger(worst, naive::angle_difference(static_cast<double>(angles.data()[i]), expected.data()[i]));
    CHECK(worst <= 2e-5);  // ten steps of 1e-6 that grow by 1.1 each
    const KuramotoDynamics<double> exact(config, rng);
    const auto report =
        gradient_check(exact, view(naive::random_angles<double>(1, past_the_limit(simd::lanes<double>), 3, rng, 1.0)));
    INFO(report.worst);
    CHECK(report.error <= 1e-6);
    CHECK(report.largest_gradient > 0.1);
  }
}

TEST_CASE("equal phases stay equal over thousands of positions") {
  Rng rng(2);
  for (const Causality causality : {Causality::causal, Causality::reference})
    for (const Integrator integrator : all_integrators) {
      KuramotoDynamics<float> layer(config_of(causality, integrator), rng);
      layer.natural_frequency.setZero();
      Tensor<float, 3> initial(1, tokens, 3);
      for (Index t = 0; t < tokens; ++t)
        for (Index w = 0; w < 3; ++w) initial(0, t, w) = 0.7f * static_cast<float>(w + 1);
      const auto angles = layer(initial);
      double worst = 0;
      for (Index i = 0; i < angles.size(); ++i)
        worst = test::larger(worst, static_cast<double>(std::abs(angles.data()[i] - initial.data()[i])));
      INFO(name_of(causality) << " " << name_of(integrator));
      CHECK(worst <= 5e-7);  // two roundings of an angle of 2
    }
}

TEST_CASE("the gradients of thousands of positions are those in double") {
  Rng rng(3);
  for (const Causality causality : {Causality::causal, Causality::reference}) {
    const auto config = config_of(causality, Integrator::euler);
    const KuramotoDynamics<float> layer(config, rng);
    KuramotoDynamics<double> exact(config, rng);
    copy_parameters(layer, exact);
    const auto initial = clustered(config.width(), rng), weights = clustered(config.width(), rng);
    const auto gradients = [&]<class T>(const KuramotoDynamics<T>& of) {
      Tensor<T, 3> from(1, tokens, config.width()), dangles = from, angles, dinitial;
      std::copy_n(initial.data(), initial.size(), from.data());
      std::copy_n(weights.data(), weights.size(), dangles.data());
      typename KuramotoDynamics<T>::Cache cache;
      auto grad = zeros_like(of);
      of.forward(from, angles, cache);
      of.backward(dangles, cache, dinitial, grad);
      std::vector<std::vector<double>> all = {{dinitial.data(), dinitial.data() + dinitial.size()}};
      for (const auto& parameter : parameters_of(grad))
        all.emplace_back(parameter.data, parameter.data + parameter.size);
      return all;
    };
    const auto got = gradients(layer), expected = gradients(exact);
    for (std::size_t i = 0; i < got.size(); ++i) {
      double worst = 0, largest = 0;
      for (std::size_t k = 0; k < got[i].size(); ++k) {
        worst = test::larger(worst, std::abs(got[i][k] - expected[i][k]));
        largest = std::max(largest, std::abs(expected[i][k]));
      }
      INFO(name_of(causality) << " tensor " << i << ": " << worst << " of " << largest);
      // dK is a sum of 120,000 terms of .02 or so that nearly cancel, where phasors are within 6e-7.
      CHECK(worst <= 5e-6 * largest + (i == 2 ? 5e-5 : 0.0));
    }
  }
}

TEST_CASE("a sum that no float can count further goes on growing") {
  constexpr Index L = simd::lanes<float>;
  alignas(64) float base[L], rest[L] = {}, partial[L];
  std::fill_n(base, L, 16777216.0f);  // 2²⁴ and 1 is 2²⁴
  for (int fold = 0; fold < 1000; ++fold) {
    std::fill_n(partial, L, 1.0f);
    simd::fold_sums(base, rest, partial, L, base);
  }
  for (Index i = 0; i < L; ++i) CHECK(static_cast<double>(base[i]) + static_cast<double>(rest[i]) == 16777216.0 + 1000);
  CHECK(partial[0] == 0);
}
