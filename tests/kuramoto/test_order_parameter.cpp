#include "kuramoto/naive_oscillators.hpp"
#include "rbar/audit/gradient_check.hpp"
#include "rbar/kuramoto/controls.hpp"
#include "support/catch.hpp"

#include <complex>

using namespace rbar;

namespace {

std::complex<double> phasor(double angle) { return {std::cos(angle), std::sin(angle)}; }

}  // namespace

TEST_CASE("three order parameters, each by its definition") {
  Rng rng(2);
  for (int round = 0; round < 20; ++round) {
    const Index heads = 1 + static_cast<Index>(rng.below(4)), oscillators = 1 + static_cast<Index>(rng.below(19));
    const Index batch = 1 + round % 3, tokens = 1 + static_cast<Index>(rng.below(9));
    const auto angles = naive::random_angles<double>(batch, tokens, heads * oscillators, rng);
    const auto by_head = head_order_parameter<double>(angles, heads);
    const auto by_token = token_order_parameter<double>(angles, heads);
    const auto by_mean = mean_phase_order_parameter<double>(angles, heads);
    INFO("round " << round);
    for (Index b = 0; b < batch; ++b) {
      std::complex<double> of_means = 0;
      std::vector<std::complex<double>> of_heads(static_cast<std::size_t>(heads), 0.0);
      for (Index t = 0; t < tokens; ++t) {
        std::vector<double> mean(static_cast<std::size_t>(oscillators), 0.0);
        for (Index h = 0; h < heads; ++h) {
          std::complex<double> of_token = 0;
          for (Index n = 0; n < oscillators; ++n) {
            const double angle = angles(b, t, h * oscillators + n);
            of_token += phasor(angle);
            mean[static_cast<std::size_t>(n)] += angle / static_cast<double>(heads);
          }
          of_heads[static_cast<std::size_t>(h)] += of_token;
          CHECK(by_token(b, t, h) == Approx(std::abs(of_token) / static_cast<double>(oscillators)).margin(1e-12));
        }
        for (const double angle : mean) of_means += phasor(angle);
      }
      for (Index h = 0; h < heads; ++h)
        CHECK(by_head(b, h) ==
              Approx(std::abs(of_heads[static_cast<std::size_t>(h)]) / static_cast<double>(tokens * oscillators))
                  .margin(1e-12));
      CHECK(by_mean(b) == Approx(std::abs(of_means) / static_cast<double>(tokens * oscillators)).margin(1e-12));
    }
  }
}

TEST_CASE("averaging the angles of many heads looks like synchrony where there is none") {
  Rng rng(3);
  const auto angles = naive::random_angles<double>(1, 64, 12 * 32, rng);
  double mean_of_tokens = 0;
  const auto of_tokens = token_order_parameter<double>(angles, 12);  // named: elements() only points into it
  for (const double r : elements(of_tokens)) mean_of_tokens += r / (64 * 12);
  CHECK(mean_of_tokens < 0.2);
  CHECK(mean_phase_order_parameter<double>(angles, 12)(0) > 0.8);
}

TEST_CASE("physics: attraction never lowers R over the positions, repulsion never raises it") {
  Rng rng(4);
  for (const Coupling coupling : all_couplings) {
    KuramotoConfig config{.n_heads = 3, .n_oscillators = 5, .n_steps = 1, .dt = 0.05};
    config.causality = Causality::reference;
    config.coupling = coupling;
    KuramotoDynamics<double> layer(config, rng);
    layer.natural_frequency.setZero();
    for (int round = 0; round < 20; ++round) {
      auto angles = naive::random_angles<double>(1, 2 + round, config.width(), rng);
      // R over the positions of each oscillator: its copies are the "oscillators" of one head here.
      const auto order = [&](Index w) {
        std::complex<double> sum = 0;
        for (Index t = 0; t < angles.dimension(1); ++t) sum += phasor(angles(0, t, w));
        return std::abs(sum) / static_cast<double>(angles.dimension(1));
      };
      for (int step = 0; step < 30; ++step) {
        std::vector<double> before;
        for (Index w = 0; w < config.width(); ++w) before.push_back(order(w));
        angles = layer(angles);
        for (Index w = 0; w < config.width(); ++w) {
          const double change = order(w) - before[static_cast<std::size_t>(w)];
          INFO(name_of(coupling) << " round " << round << " step " << step << " oscillator " << w);
          CHECK((coupling == Coupling::attractive ? change : -change) >= -1e-14);
        }
      }
    }
  }
}

TEST_CASE("physics: equal phases stay equal and turn with their frequency") {
  Rng rng(6);
  for (const Integrator integrator : all_integrators) {
    KuramotoConfig config{.n_heads = 2, .n_oscillators = 4};
    config.integrator = integrator;
    const KuramotoDynamics<double> layer(config, rng);
    Tensor<double, 3> angles(1, 7, config.width());
    for (Index t = 0; t < 7; ++t)
      for (Index w = 0; w < config.width(); ++w) angles(0, t, w) = 0.3 * static_cast<double>(w);
    const auto moved = layer(angles);
    for (Index t = 0; t < 7; ++t)
      for (Index w = 0; w < config.width(); ++w)
        CHECK(naive::angle_difference(moved(0, t, w), angles(0, t, w) + layer.natural_frequency.data()[w]) <= 1e-12);
  }
}

TEST_CASE("the regularisers and their gradients") {
  Rng rng(7);
  const auto angles = naive::random_angles<double>(2, 3, 4 * 5, rng, 1.5);
  for (const CoherenceTarget target : all_coherence_targets)
    for (const double level : {0.1, 0.45, 0.9}) {
      const CoherenceRegularizer regularizer{target, level, 0.7};
      Tensor<double, 3> input = angles, gradient = zeros<double, 3>(shape_of(angles));
      RegularizerCache cache;
      coherence_regularizer<double>(input, 4, regularizer, cache);
      coherence_regularizer_backward<double>(input, cache, gradient);
      const GradientPair pair{"angles", elements(input), elements(std::as_const(gradient))};
      const auto report = gradient_check(std::span<const GradientPair>(&pair, 1),
                                         [&] { return coherence_regularizer<double>(input, 4, regularizer); });
      INFO(name_of(target) << " " << level << " " << report.worst);
      CHECK((report.largest_gradient == 0 || report.error <= 1e-6));
    }
  CHECK(coherence_loss({CoherenceTarget::ceiling, .45, .1}, .65).loss == Approx(.1 * .04));
  CHECK(coherence_loss({CoherenceTarget::ceiling, .45, .1}, .25).loss == 0);
  CHECK(coherence_loss({CoherenceTarget::center, .45, .1}, .25).loss == Approx(.1 * .04));
  CHECK(coherence_loss({CoherenceTarget::band, .45, .1}, .25).loss == Approx(.1 * .01));
  CHECK(coherence_loss({CoherenceTarget::band, .45, .1}, .5).loss == 0);
  CHECK(coherence_loss({CoherenceTarget::band, .45, .1}, .75).loss == Approx(.1 * .04));
}

TEST_CASE("noise: normal, an element's number its own, for any number of threads") {
  const Rng stream(5, 3);
  auto noisy = zeros<float, 3>({4, 101, 50});
  add_phase_noise<float>(0.03, stream, noisy);
  double moments[5] = {}, neighbours = 0;
  for (Index i = 0; i < noisy.size(); ++i) {
    const double z = static_cast<double>(noisy.data()[i]) / 0.03;
    for (int power = 1; power <= 4; ++power) moments[power] += std::pow(z, power) / static_cast<double>(noisy.size());
    if (i > 0) neighbours += z * static_cast<double>(noisy.data()[i - 1]) / 0.03 / static_cast<double>(noisy.size());
  }
  // 20,200 draws: deviations of the four moments .007, .010, .027, .069 (√(E z^2p − (E z^p)²)/√n), and five of them.
  CHECK(std::abs(moments[1]) <= 0.035);
  CHECK(moments[2] == Approx(1).margin(0.05));
  CHECK(std::abs(moments[3]) <= 0.14);
  CHECK(moments[4] == Approx(3).margin(0.35));
  CHECK(std::abs(neighbours) <= 0.035);

  for (const int threads : {2, 5}) {
    set_num_threads(threads);
    auto again = zeros<float, 3>({4, 101, 50});
    add_phase_noise<float>(0.03, stream, again);
    CHECK(std::equal(noisy.data(), noisy.data() + noisy.size(), again.data()));
  }
  set_num_threads(1);
  auto fewer = zeros<float, 3>({1, 7, 31});  // fewer elements: the same numbers
  add_phase_noise<float>(0.03, stream, fewer);
  CHECK(std::equal(fewer.data(), fewer.data() + fewer.size(), noisy.data()));
  auto exact = zeros<double, 3>({1, 7, 31});
  add_phase_noise<double>(0.03, stream, exact);
  for (Index i = 0; i < exact.size(); ++i)
    CHECK(static_cast<double>(fewer.data()[i]) == Approx(exact.data()[i]).margin(1e-6));
  add_phase_noise<double>(0.03, Rng(5, 4), exact);
  CHECK(std::abs(exact(0, 0, 0) - 2 * static_cast<double>(fewer(0, 0, 0))) > 1e-6);  // another stream
}

TEST_CASE("jitter has the size it should") {
  Tensor<double, 2> frequency(40, 50);
  frequency.setConstant(2.0);
  add_frequency_jitter(0.02, Rng(5, 3), frequency);
  double square = 0;
  for (const double value : elements(frequency)) square += (value / 2 - 1) * (value / 2 - 1);
  CHECK(std::sqrt(square / 2000) == Approx(0.02).epsilon(0.06));  // 2,000 draws: ±1.6%
}

TEST_CASE("a tracker keeps the history of R") {
  CoherenceTracker tracker;
  const float first[] = {0.2f, 0.4f}, second[] = {0.9f};
  tracker.observe(std::span<const float>(first));
  CHECK(tracker.average == Approx(0.3));
  tracker.observe(std::span<const float>(second));
  CHECK(tracker.history.size() == 2);
  CHECK(tracker.average == Approx((0.99 * 0.01 * 0.3 + 0.01 * 0.9) / (0.99 * 0.01 + 0.01)));
  CHECK(tracker.deviation(10) == Approx(0.3));
  CHECK(tracker.deviation(1) == 0);
  CHECK_THROWS_AS(tracker.observe(std::span<const float>()), Error);
  const float wrong[] = {1.5f};
  CHECK_THROWS_WITH(tracker.observe(std::span<const float>(wrong)), ContainsText("0 to 1"));
  for (const double smoothing : {1.0, -0.1, std::nan("")}) {
    tracker.smoothing = smoothing;
    CHECK_THROWS_WITH(tracker.observe(std::span<const float>(first)), ContainsText("smoothing"));
  }
}

TEST_CASE("an angle that is not a number stays visible in R and in its loss") {
  Rng rng(8);
  auto angles = naive::random_angles<double>(1, 3, 10, rng);
  angles(0, 1, 7) = std::nan("");
  CHECK(std::isnan(head_order_parameter<double>(angles, 2)(0, 1)));
  CHECK(std::isnan(token_order_parameter<double>(angles, 2)(0, 1, 1)));
  CHECK(std::isnan(mean_phase_order_parameter<double>(angles, 2)(0)));
  CHECK(token_order_parameter<double>(angles, 2)(0, 0, 1) <= 1);
  for (const CoherenceTarget target : {CoherenceTarget::ceiling, CoherenceTarget::center, CoherenceTarget::band})
    CHECK(std::isnan(coherence_regularizer<double>(angles, 2, {target})));
}

TEST_CASE("order parameters refuse what has no heads") {
  const Tensor<float, 3> angles = zeros<float, 3>({1, 2, 6});
  CHECK_THROWS_WITH(head_order_parameter<float>(angles, 0), ContainsText("heads"));
  CHECK_THROWS_WITH(token_order_parameter<float>(angles, 4), ContainsText("angles"));
  CHECK_THROWS_WITH(mean_phase_order_parameter<float>(zeros<float, 3>({1, 0, 6}), 2), ContainsText("tokens"));
  CHECK_THROWS_AS(coherence_regularizer<float>(angles, 2, {CoherenceTarget::center, 1.5}), Error);
}
