#include "kuramoto/naive_oscillators.hpp"
#include "rbar/audit/gradient_check.hpp"
#include "rbar/kuramoto/phase_attention.hpp"
#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/passes.hpp"

using namespace rbar;

namespace {

PhaseAttentionConfig small_config() {
  PhaseAttentionConfig config;
  config.d_model = 7;
  config.kuramoto.n_heads = 3;
  config.kuramoto.n_oscillators = 5;
  config.kuramoto.n_steps = 4;
  return config;
}

template <class T>
Tensor<T, 3> random_input(Index batch, Index tokens, Index dim, Rng& rng) {
  Tensor<T, 3> x(batch, tokens, dim);
  for (T& value : elements(x)) value = static_cast<T>(rng.normal());
  return x;
}

// The published order of operations, in double and pair by pair.
Tensor<double, 3> plain(const PhaseAttention<double>& layer, const Tensor<double, 3>& x) {
  const Index width = layer.config.kuramoto.width(), dim = layer.config.d_model;
  Tensor<double, 3> initial(x.dimension(0), x.dimension(1), width), y(x.dimension(0), x.dimension(1), dim);
  for (Index row = 0; row < rows(x).rows(); ++row)
    for (Index w = 0; w < width; ++w) {
      double sum = layer.to_phase.bias(w);
      for (Index d = 0; d < dim; ++d) sum += layer.to_phase.weight(w, d) * x.data()[row * dim + d];
      initial.data()[row * width + w] = std::numbers::pi * std::tanh(sum);
    }
  const auto angles = naive::run(layer.dynamics, initial);
  for (Index row = 0; row < rows(x).rows(); ++row)
    for (Index d = 0; d < dim; ++d) {
      double sum = layer.from_phase.bias(d);
      for (Index w = 0; w < width; ++w) {
        const double angle = angles.data()[row * width + w];
        if (layer.config.readout == PhaseReadout::raw)
          sum += layer.from_phase.weight(d, w) * angle;
        else
          sum +=
              layer.from_phase.weight(d, w) * std::cos(angle) + layer.from_phase.weight(d, width + w) * std::sin(angle);
      }
      y.data()[row * dim + d] = sum;
    }
  return y;
}

}  // namespace

TEST_CASE("phase attention is its definition") {
  Rng rng(1);
  for (const PhaseReadout readout : all_phase_readouts)
    for (const Coupling coupling : all_couplings)
      for (const Causality causality : {Causality::causal, Causality::reference}) {
        auto config = small_config();
        config.readout = readout;
        config.kuramoto.coupling = coupling;
        config.kuramoto.causality = causality;
        const PhaseAttention<double> layer(config, rng);
        const auto x = random_input<double>(2, 11, config.d_model, rng);
        const auto y = layer(x), expected = plain(layer, x);
        for (Index i = 0; i < y.size(); ++i) REQUIRE(y.data()[i] == Approx(expected.data()[i]).margin(1e-11));
      }
}

TEST_CASE("phase attention's gradients, the regulariser's among them") {
  Rng rng(2);
  for (const CoherenceTarget target : all_coherence_targets) {
    auto config = small_config();
    config.regularizer = {target, 0.1, 2.0};
    const PhaseAttention<double> layer(config, rng);
    const auto x = random_input<double>(2, 6, config.d_model, rng);
    PhaseAttention<double>::Cache cache;
    Tensor<double, 3> y;
    layer.forward(x, y, cache);
    const auto report = gradient_check(layer, view(x));
    INFO(name_of(target) << ": " << report.worst);
    CHECK((auxiliary_loss_of(cache) > 0) == (target != CoherenceTarget::none));
    CHECK(report.error <= 1e-6);
  }
}

TEST_CASE("phase attention's gradients in the other ways to couple, to integrate and to read") {
  Rng rng(12);
  for (const PhaseReadout readout : all_phase_readouts)
    for (const Coupling coupling : all_couplings)
      for (const Integrator integrator : all_integrators) {
        auto config = small_config();
        config.readout = readout;
        config.kuramoto.coupling = coupling;
        config.kuramoto.integrator = integrator;
        config.kuramoto.causality = integrator == Integrator::rk4 ? Causality::reference : Causality::causal;
        config.regularizer = {CoherenceTarget::center, 0.1, 2.0};
        const PhaseAttention<double> layer(config, rng);
        const auto report = gradient_check(layer, view(random_input<double>(1, 5, config.d_model, rng)));
        INFO(name_of(readout) << " " << name_of(coupling) << " " << name_of(integrator) << ": " << report.worst);
        CHECK(report.error <= 1e-6);
      }
}

TEST_CASE("phase attention has the same bits for any number of threads, with all its controls") {
  Rng rng(13);
  auto config = small_config();
  config.kuramoto.n_oscillators = 17;
  config.phase_noise = 0.1;
  config.frequency_jitter = 0.1;
  config.regularizer = {CoherenceTarget::center, 0.1, 2.0};
  PhaseAttention<float>::Cache cache;
  cache.dropout = {true, /*seed=*/7, /*step=*/3};
  const auto x = random_input<float>(3, 90, config.d_model, rng);  // more than one chunk of every loop
  for (const PhaseReadout readout : all_phase_readouts) {
    config.readout = readout;
    CHECK(test::same_for_any_threads(PhaseAttention<float>(config, rng), x, cache));
  }
}

TEST_CASE("noise and jitter are drawn while training only, and the gradient is that of what was drawn") {
  Rng rng(3);
  auto config = small_config();
  config.phase_noise = 0.3;
  config.frequency_jitter = 0.5;
  PhaseAttention<double> layer(config, rng);
  Tensor<double, 3> x = random_input<double>(2, 6, config.d_model, rng), y, dx;
  const auto quiet = layer(x);
  PhaseAttention<double>::Cache cache;
  cache.dropout = {true, /*seed=*/7, /*step=*/3};
  cache.dropout_stream = 5;
  layer.forward(x, y, cache);
  CHECK(std::abs(y(0, 0, 0) - quiet(0, 0, 0)) > 1e-4);

  // The loss is Σ y. Forward passes of one step draw the same numbers, or there would be no gradient to compare with.
  auto grad = zeros_like(layer);
  Tensor<double, 3> ones(2, 6, config.d_model);
  ones.setConstant(1);
  layer.backward(ones, cache, dx, grad);
  std::vector<GradientPair> pairs;
  rbar::detail::append_pairs(layer, grad, pairs);
  pairs.push_back({"x", elements(x), elements(std::as_const(dx))});
  const auto report = gradient_check(std::span<const GradientPair>(pairs), [&] {
    layer.forward(x, y, cache);
    double sum = 0;
    for (const double value : elements(y)) sum += value;
    return sum;
  });
  INFO(report.worst);
  CHECK(report.error <= 1e-6);
  const Tensor<double, 3> first = y;
  cache.dropout.step = 4;
  layer.forward(x, y, cache);
  CHECK(y(0, 0, 0) != first(0, 0, 0));
}

TEST_CASE("phase attention streams, and does not see the future") {
  Rng rng(4);
  const auto config = small_config();
  const PhaseAttention<float> layer(config, rng);
  auto x = random_input<float>(2, 13, config.d_model, rng);
  const auto whole = layer(x);
  PhaseAttention<float>::State state;
  Index done = 0;
  for (const Index count : {1, 5, 7}) {
    Tensor<float, 3> part(2, count, config.d_model), y;
    for (Index b = 0; b < 2; ++b) std::copy_n(&x(b, done, 0), count * config.d_model, &part(b, 0, 0));
    layer.step(part, y, state);
    for (Index b = 0; b < 2; ++b)
      for (Index i = 0; i < count * config.d_model; ++i)
        REQUIRE((&y(b, 0, 0))[i] == Approx((&whole(b, done, 0))[i]).margin(1e-5));
    done += count;
  }
  x(0, 8, 0) += 3;
  const auto changed = layer(x);
  for (Index t = 0; t < 8; ++t)
    for (Index d = 0; d < config.d_model; ++d) REQUIRE(changed(0, t, d) == whole(0, t, d));
}

TEST_CASE("a second pass of phase attention allocates nothing") {
  Rng rng(5);
  auto config = small_config();
  config.phase_noise = 0.1;
  config.frequency_jitter = 0.1;
  config.regularizer.target = CoherenceTarget::band;
  const PhaseAttention<float> layer(config, rng);
  const auto x = random_input<float>(2, 9, config.d_model, rng), token = random_input<float>(2, 1, config.d_model, rng);
  Tensor<float, 3> y, dx, next;
  PhaseAttention<float>::Cache cache;
  PhaseAttention<float>::State state;
  cache.dropout.active = true;
  auto grad = zeros_like(layer);
  const auto pass = [&] {
    layer.forward(x, y, cache);
    layer.backward(x, cache, dx, grad);
    layer.step(token, next, state);
  };
  CHECK((test::allocations_in(pass) > 0 || !test::counts_allocations));
  CHECK(test::allocations_in(pass) == 0);
}

TEST_CASE("phase attention refuses what it cannot compute") {
  Rng rng(6);
  const PhaseAttention<float> layer(small_config(), rng);
  Tensor<float, 3> y;
  PhaseAttention<float>::Cache cache;
  CHECK_THROWS_WITH(layer.forward(Tensor<float, 3>(1, 2, 6), y, cache), ContainsText("PhaseAttention::forward: x"));
  layer.forward(random_input<float>(1, 2, 7, rng), y, cache);
  auto grad = zeros_like(layer);
  CHECK_THROWS_WITH(layer.backward(Tensor<float, 3>(1, 3, 7), cache, y, grad), ContainsText("dy"));
  PhaseAttention<float>::State state;
  layer.step(random_input<float>(2, 1, 7, rng), y, state);
  CHECK_THROWS_AS(layer.step(random_input<float>(3, 1, 7, rng), y, state), Error);
  for (const auto spoil :
       {+[](PhaseAttentionConfig& c) { c.d_model = 0; }, +[](PhaseAttentionConfig& c) { c.phase_noise = -1; },
        +[](PhaseAttentionConfig& c) { c.frequency_jitter = -1; }, +[](PhaseAttentionConfig& c) { c.kuramoto.dt = -1; },
        +[](PhaseAttentionConfig& c) { c.regularizer.level = 2; }}) {
    auto bad = small_config();
    spoil(bad);
    CHECK_THROWS_AS(PhaseAttention<float>(bad, rng), Error);
  }
}
