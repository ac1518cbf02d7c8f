#include "kuramoto/naive_oscillators.hpp"
#include "rbar/audit/gradient_check.hpp"
#include "support/catch.hpp"
#include "support/differences.hpp"
#include "support/passes.hpp"

using namespace rbar;

namespace {

struct Case {
  KuramotoConfig config;
  Index batch, tokens;
};

Case random_case(Rng& rng) {
  Case result;
  const auto below = [&](std::uint64_t bound) { return static_cast<Index>(rng.below(bound)); };
  result.config.n_heads = 1 + below(4);
  result.config.n_oscillators = 1 + below(20);
  result.config.n_steps = below(12);
  result.config.dt = rng.uniform(0.01, 0.4);
  result.config.coupling = all_couplings[rng.below(2)];
  result.config.integrator = all_integrators[rng.below(2)];
  result.config.causality = rng.below(2) == 0 ? Causality::causal : Causality::reference;
  result.batch = 1 + below(3);
  result.tokens = below(40);
  return result;
}

constexpr double largest_strength = 3;

template <class T>
KuramotoDynamics<T> random_layer(const KuramotoConfig& config, Rng& rng) {
  KuramotoDynamics<T> layer(config, rng);
  for (T& strength : elements(layer.coupling_strength)) strength = static_cast<T>(rng.uniform(-2, largest_strength));
  return layer;
}

// A step adds an error of its own (`of_a_step`: the phasors' and the angle's rounding) and multiplies what there was by
// about 1 + dt·|K|: n steps leave n·of_a_step·(1 + dt·|K|)^n.
template <class T>
void compare_with_pairs(double of_a_step, int rounds) {
  Rng rng(11);
  for (int round = 0; round < rounds; ++round) {
    const Case sizes = random_case(rng);
    const auto layer = random_layer<T>(sizes.config, rng);
    const auto initial = naive::random_angles<T>(sizes.batch, sizes.tokens, sizes.config.width(), rng);
    const auto expected = naive::run(layer, initial);
    const auto angles = layer(initial);
    INFO("round " << round << " tokens " << sizes.tokens << " width " << sizes.config.width() << " steps "
                  << sizes.config.n_steps << " dt " << sizes.config.dt << " " << name_of(sizes.config.integrator));
    double worst = 0;
    for (Index i = 0; i < angles.size(); ++i)
      worst = test::larger(worst, naive::angle_difference(static_cast<double>(angles.data()[i]), expected.data()[i]));
    const double steps = static_cast<double>(sizes.config.n_steps), growth = 1 + sizes.config.dt * largest_strength;
    CHECK(worst <= of_a_step * (1 + steps) * std::pow(growth, steps));
  }
}

}  // namespace

TEST_CASE("the mean field is the sum over pairs") {
  compare_with_pairs<double>(2e-15, 60);
  compare_with_pairs<float>(1e-6, 60);
}

TEST_CASE("trajectories of the published example") {
  Rng rng(1);
  KuramotoConfig config{.n_heads = 1, .n_oscillators = 2};
  config.causality = Causality::reference;
  const double initial_angles[] = {.5, -1, 2, 3, -2.5, .25};
  const auto end = [&](Coupling coupling) {
    config.coupling = coupling;
    KuramotoDynamics<double> layer(config, rng);
    layer.natural_frequency(0, 0) = .1;
    layer.natural_frequency(0, 1) = -.2;
    return layer(view(initial_angles + 0, 1, 3, 2));
  };
  const double repelled[] = {.382581, -1.275674, 2.115328, 2.713969, -2.197909, .211704};
  const double attracted[] = {.976094, -1.161466, 2.107378, 2.988504, -2.783471, -.177038};
  const auto reference = end(Coupling::reference), attractive = end(Coupling::attractive);
  for (Index i = 0; i < 6; ++i) {
    CHECK(std::abs(reference.data()[i] - repelled[i]) <= 1e-6);
    CHECK(std::abs(attractive.data()[i] - attracted[i]) <= 1e-6);
  }
}

TEST_CASE("the gradient runs through all steps") {
  Rng rng(5);
  for (const Integrator integrator : all_integrators)
    for (const Coupling coupling : all_couplings)
      for (const Causality causality : {Causality::causal, Causality::reference}) {
        KuramotoConfig config{.n_heads = 3, .n_oscillators = 7};
        config.integrator = integrator;
        config.coupling = coupling;
        config.causality = causality;
        const auto layer = random_layer<double>(config, rng);
        // Small angles: none crosses ±π, where the raw angle jumps. More tokens than two of backward's stretches.
        const auto initial = naive::random_angles<double>(2, 37, config.width(), rng, 1.0);
        const auto report = gradient_check(layer, view(initial));
        INFO(name_of(integrator) << " " << name_of(coupling) << " " << report.worst);
        CHECK(report.error <= 1e-6);
        CHECK(report.largest_gradient > 0.1);
      }
}

TEST_CASE("a stream moves like the whole sequence") {
  Rng rng(3);
  for (const Integrator integrator : all_integrators) {
    KuramotoConfig config{.n_heads = 5, .n_oscillators = 9};
    config.integrator = integrator;
    const auto layer = random_layer<float>(config, rng);
    const Index batch = 2, tokens = 23;
    const auto initial = naive::random_angles<float>(batch, tokens, config.width(), rng);
    const auto whole = layer(initial);
    KuramotoDynamics<float>::State state;
    Index done = 0;
    for (const Index count : {1, 4, 1, 9, 8}) {
      Tensor<float, 3> part(batch, count, config.width()), moved;
      for (Index b = 0; b < batch; ++b) std::copy_n(&initial(b, done, 0), count * config.width(), &part(b, 0, 0));
      layer.step(part, moved, state);
      for (Index b = 0; b < batch; ++b)
        for (Index i = 0; i < count * config.width(); ++i) REQUIRE((&moved(b, 0, 0))[i] == (&whole(b, done, 0))[i]);
      done += count;
    }
    CHECK(done == tokens);
  }
}

TEST_CASE("threads do not change a bit, and the future not an angle") {
  Rng rng(9);
  KuramotoConfig config{.n_heads = 6, .n_oscillators = 21};
  for (const Integrator integrator : all_integrators)
    for (const Causality causality : {Causality::reference, Causality::causal}) {
      config.integrator = integrator;
      config.causality = causality;
      INFO(name_of(integrator) << " " << name_of(causality));
      CHECK(test::same_for_any_threads(random_layer<float>(config, rng),
                                       naive::random_angles<float>(3, 70, config.width(), rng)));
    }
  const auto layer = random_layer<float>(config, rng);
  auto initial = naive::random_angles<float>(3, 70, config.width(), rng);
  const auto before = layer(initial);
  for (Index w = 0; w < config.width(); ++w) initial(1, 40, w) += 1;
  const auto after = layer(initial);
  for (Index t = 0; t < 40; ++t)
    for (Index w = 0; w < config.width(); ++w) REQUIRE(before(1, t, w) == after(1, t, w));
  CHECK(before(1, 41, 0) != after(1, 41, 0));
}

TEST_CASE("wrong shapes and configurations say so") {
  Rng rng(1);
  const KuramotoConfig good{.n_heads = 2, .n_oscillators = 3};
  const KuramotoDynamics<float> layer(good, rng);
  Tensor<float, 3> angles(1, 4, 5), out;
  KuramotoDynamics<float>::Cache cache;
  CHECK_THROWS_WITH(layer.forward(angles, out, cache), ContainsText("KuramotoDynamics::forward: initial"));
  auto reference = good;
  reference.causality = Causality::reference;
  const KuramotoDynamics<float> all(reference, rng);
  KuramotoDynamics<float>::State state;
  CHECK_THROWS_WITH(all.step(Tensor<float, 3>(1, 1, 6), out, state), ContainsText("causality"));
  layer.step(zeros<float, 3>({2, 0, 6}), out, state);  // nothing yet: the batch is not settled
  layer.step(zeros<float, 3>({2, 1, 6}), out, state);
  CHECK_THROWS_WITH(layer.step(zeros<float, 3>({3, 1, 6}), out, state), ContainsText("state"));
  auto grad = zeros_like(layer);
  layer.forward(zeros<float, 3>({1, 4, 6}), out, cache);
  CHECK_THROWS_WITH(layer.backward(Tensor<float, 3>(1, 3, 6), cache, out, grad), ContainsText("dangles"));
  for (const float strength : {1e5f, -1e5f, std::nanf("")}) {
    auto wild = layer;
    wild.coupling_strength(1) = strength;
    CHECK_THROWS_WITH(wild.forward(Tensor<float, 3>(1, 4, 6), out, cache), ContainsText("dt·(|ω| + |K|)"));
    wild = layer;
    wild.natural_frequency(1, 2) = strength;
    KuramotoDynamics<float>::State stream;
    CHECK_THROWS_WITH(wild.step(Tensor<float, 3>(1, 4, 6), out, stream), ContainsText("dt·(|ω| + |K|)"));
  }
  for (const auto spoil : {+[](KuramotoConfig& c) { c.n_heads = 0; }, +[](KuramotoConfig& c) { c.n_oscillators = 0; },
                           +[](KuramotoConfig& c) { c.n_steps = -1; }, +[](KuramotoConfig& c) { c.dt = 0; }}) {
    KuramotoConfig bad = good;
    spoil(bad);
    CHECK_THROWS_AS(KuramotoDynamics<float>(bad, rng), Error);
  }
}
