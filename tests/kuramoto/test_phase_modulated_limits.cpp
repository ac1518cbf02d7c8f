// What phase-modulated attention allocates, and what it refuses.
#include "kuramoto/phase_modulated_layers.hpp"
#include "support/allocation_count.hpp"
#include "support/catch.hpp"

#include <array>
#include <cmath>

using namespace rbar;
using Config = PhaseModulatedAttentionConfig;

TEST_CASE("a second pass of phase-modulated attention allocates nothing") {
  Rng rng(5);
  const Config config = test::phase_config(3, 8);
  const auto layer = test::random_phase_layer<float>(config, rng);
  const auto x = test::random_tokens<float>(2, 19, config.d_model, rng);
  const auto state = test::random_tokens<float>(2, 19, 5, rng);
  const auto one_x = test::random_tokens<float>(2, 1, config.d_model, rng);
  const auto one_state = test::random_tokens<float>(2, 1, 5, rng);
  const PhaseIntervention set{.coupling = 2, .gate = 0.5};
  Tensor<float, 3> y, dx, dstate, entropy, next;
  PhaseModulatedAttention<float>::Cache cache;
  PhaseModulatedAttention<float>::State stream;
  auto grad = zeros_like(layer);
  const auto pass = [&] {
    cache.intervention = nullptr;
    layer.forward(x, state, y, cache);
    layer.backward(x, cache, dx, dstate, grad);
    layer.attention_entropy(cache, entropy);
    cache.intervention = &set;
    layer.forward(x, state, y, cache);
    layer.step(one_x, one_state, next, stream);
  };
  pass();
  pass();  // a stream's first key of all reserves the others
  CHECK(test::allocations_in(pass) == 0);

  // Nor does a stream whose pieces change in length.
  std::array<Tensor<float, 3>, 2> pieces{test::random_tokens<float>(2, 1, config.d_model, rng),
                                         test::random_tokens<float>(2, 7, config.d_model, rng)};
  std::array<Tensor<float, 3>, 2> states{test::random_tokens<float>(2, 1, 5, rng),
                                         test::random_tokens<float>(2, 7, 5, rng)};
  std::array<Tensor<float, 3>, 2> results;
  PhaseModulatedAttention<float>::State uneven;
  const auto piece = [&](std::size_t which) { layer.step(pieces[which], states[which], results[which], uneven); };
  for (const std::size_t which : {1u, 0u, 1u}) piece(which);
  CHECK(test::allocations_in([&] {
          for (const std::size_t which : {0u, 1u, 0u, 1u}) piece(which);
        }) == 0);
}

TEST_CASE("phase-modulated attention refuses what it cannot compute") {
  Rng rng(6);
  const Config config = test::phase_config(2, 3);
  auto layer = test::random_phase_layer<float>(config, rng);
  const auto x = [](Index batch, Index tokens, Index width) { return zeros<float, 3>({batch, tokens, width}); };
  Tensor<float, 3> y, dx, dstate;
  PhaseModulatedAttention<float>::Cache cache;
  CHECK_THROWS_WITH(layer.forward(x(1, 2, 5), x(1, 2, 5), y, cache), ContainsText("x: expected"));
  CHECK_THROWS_WITH(layer.forward(x(1, 2, 6), x(1, 2, 6), y, cache), ContainsText("state: expected [1, 2, 5]"));
  CHECK_THROWS_WITH(layer.forward(x(1, 2, 6), x(1, 3, 5), y, cache), ContainsText("state"));
  CHECK_THROWS_WITH(layer.forward(x(1, 0, 6), x(1, 0, 5), y, cache), ContainsText("at least one token"));
  CHECK_THROWS_WITH(layer.forward(x(1, 41, 6), x(1, 41, 5), y, cache), ContainsText("tokens: expected"));
  PhaseModulatedAttention<float>::State stream;
  layer.step(x(1, 40, 6), x(1, 40, 5), y, stream);
  CHECK_THROWS_WITH(layer.step(x(1, 1, 6), x(1, 1, 5), y, stream), ContainsText("tokens: expected"));
  layer.forward(x(1, 2, 6), x(1, 2, 5), y, cache);
  auto grad = zeros_like(layer);
  CHECK_THROWS_WITH(layer.backward(x(1, 3, 6), cache, dx, dstate, grad), ContainsText("dy"));
  for (const PhaseIntervention& bad :
       {PhaseIntervention{.coupling = NAN}, PhaseIntervention{.order_parameter = 1.5},
        PhaseIntervention{.temperature = 0}, PhaseIntervention{.gate = -0.1}, PhaseIntervention{.phase = INFINITY}}) {
    cache.intervention = &bad;
    CHECK_THROWS_WITH(layer.forward(x(1, 2, 6), x(1, 2, 5), y, cache), ContainsText("PhaseIntervention"));
  }
  // What is a number in double and none as a float, and couplings that throw the phases too far to find them again.
  for (const PhaseIntervention& bad : {PhaseIntervention{.temperature = 1e-50}, PhaseIntervention{.temperature = 1e-40},
                                       PhaseIntervention{.temperature = 1e39}, PhaseIntervention{.coupling = 1e10},
                                       PhaseIntervention{.coupling = -1e5}}) {
    cache.intervention = &bad;
    CHECK_THROWS_WITH(layer.forward(x(1, 2, 6), x(1, 2, 5), y, cache),
                      ContainsText(bad.coupling ? "dt·(|ω| + |K|)" : "temperature"));
  }
  cache.intervention = nullptr;
  for (const double temperature : {1e-50, 1e39}) {
    layer.config.temperature = temperature;
    CHECK_THROWS_WITH(layer.forward(x(1, 2, 6), x(1, 2, 5), y, cache), ContainsText("temperature"));
  }
  layer.config.temperature = config.temperature;
  layer.beta(0) = 3e38f;
  layer.alpha(0) = 3;
  CHECK_THROWS_WITH(layer.forward(x(1, 2, 6), x(1, 2, 5), y, cache), ContainsText("temperature with alpha and beta"));
  layer.beta(0) = 0;
  for (const float frequency : {1e5f, NAN}) {
    auto fast = layer;
    fast.frequency(1) = frequency;
    CHECK_THROWS_WITH(fast.forward(x(1, 2, 6), x(1, 2, 5), y, cache), ContainsText("dt·(|ω| + |K|)"));
  }
  layer.alpha(0) = -1;
  CHECK_THROWS_WITH(layer.forward(x(1, 2, 6), x(1, 2, 5), y, cache), ContainsText("alpha"));
  layer.alpha(0) = 0;
  layer.beta(0) = NAN;
  CHECK_THROWS_WITH(layer.forward(x(1, 2, 6), x(1, 2, 5), y, cache), ContainsText("beta"));
  for (const auto spoil_config :
       {+[](Config& c) { c.n_heads = 0; }, +[](Config& c) { c.d_model = 7; }, +[](Config& c) { c.d_model = 514; },
        +[](Config& c) { c.d_coupling = -1; }, +[](Config& c) { c.max_seq_len = 0; },
        +[](Config& c) { c.n_steps = -1; }, +[](Config& c) { c.dt = 0; }, +[](Config& c) { c.gate = 0; },
        +[](Config& c) { c.gate = 1; }, +[](Config& c) { c.temperature = 0; }, +[](Config& c) { c.alpha = -1; },
        +[](Config& c) { c.beta = NAN; }, +[](Config& c) { c.coupling = INFINITY; },
        +[](Config& c) { c.coupling = -1e10; }, +[](Config& c) { c.rotary = Rotary::half_split; },
        +[](Config& c) { c.rope_base = 0; }}) {
    Config bad = config;
    spoil_config(bad);
    CHECK_THROWS_AS(PhaseModulatedAttention<float>(bad, rng), Error);
  }
}
