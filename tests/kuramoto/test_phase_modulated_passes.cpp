// Phase-modulated attention's gradients, and what its numbers may depend on: nothing but the row's own past.
#include "kuramoto/phase_modulated_layers.hpp"
#include "rbar/audit/gradient_check.hpp"
#include "support/catch.hpp"
#include "support/differences.hpp"

#include <span>
#include <utility>

using namespace rbar;
using Config = PhaseModulatedAttentionConfig;

namespace {

// Every parameter, x and state.
GradientCheckReport check_gradients(const Config& config, const PhaseIntervention& set, Index batch, Index tokens,
                                    Rng& rng, GradientCheckOptions options = {}) {
  auto layer = test::random_phase_layer<double>(config, rng);
  auto grad = zeros_like(layer);
  auto x = test::random_tokens<double>(batch, tokens, config.d_model, rng);
  auto state = test::random_tokens<double>(batch, tokens, config.coupling_width(), rng);
  const auto weights = test::random_tokens<double>(batch, tokens, config.d_model, rng);
  Tensor<double, 3> y, dx, dstate;
  PhaseModulatedAttention<double>::Cache cache;
  cache.intervention = &set;
  layer.forward(x, state, y, cache);
  layer.backward(weights, cache, dx, dstate, grad);
  std::vector<GradientPair> pairs;
  detail::append_pairs(layer, grad, pairs);
  pairs.push_back({"x", elements(x), elements(std::as_const(dx))});
  pairs.push_back({"state", elements(state), elements(std::as_const(dstate))});
  const auto loss = [&] {
    layer.forward(x, state, y, cache);
    return detail::weighted_sum(weights, y);
  };
  return gradient_check(std::span<const GradientPair>(pairs), loss, options);
}

void spoil(Tensor<float, 3>& tensor, Index b, Index t) {
  for (Index i = 0; i < tensor.dimension(2); ++i) tensor(b, t, i) = 3 - tensor(b, t, i);
}

double difference_of_rows(const Tensor<float, 3>& a, const Tensor<float, 3>& b, Index sequence, Index from, Index to) {
  const auto part = [&](const auto& tensor) {
    return std::span(&tensor(sequence, from, 0), static_cast<std::size_t>((to - from) * tensor.dimension(2)));
  };
  return test::largest_difference(part(a), part(b));
}
bool same_rows(const Tensor<float, 3>& a, const Tensor<float, 3>& b, Index sequence, Index from, Index to) {
  const Index width = a.dimension(2);
  return std::equal(&a(sequence, from, 0), &a(sequence, from, 0) + (to - from) * width, &b(sequence, from, 0));
}

}  // namespace

TEST_CASE("phase-modulated attention's gradients") {
  Rng rng(1);
  const auto check = [&](const Config& config, const PhaseIntervention& set, Index batch, Index tokens) {
    const auto report = check_gradients(config, set, batch, tokens, rng);
    INFO(report.worst);
    CHECK(report.error <= 1e-6);
    CHECK(report.checked > 0);
  };
  for (const auto change :
       {+[](Config&) {}, +[](Config& c) { c.phase_gate = false; }, +[](Config& c) { c.adaptive_temperature = false; },
        +[](Config& c) { c.phase_gate = c.adaptive_temperature = false; }, +[](Config& c) { c.learn_coupling = false; },
        +[](Config& c) { c.frozen_phases = true; }, +[](Config& c) { c.n_steps = 0; },
        +[](Config& c) { c.position_phases = false; },
        +[](Config& c) { c.rotary = Rotary::half_split, c.bias = true; }}) {
    Config config = test::phase_config(3, 4);
    change(config);
    check(config, {}, 2, 7);
  }
  const Config config = test::phase_config(3, 2);
  for (const PhaseIntervention& set :
       {PhaseIntervention{.coupling = 2.5}, PhaseIntervention{.order_parameter = 0.25},
        PhaseIntervention{.temperature = 0.6}, PhaseIntervention{.gate = 0.9}, PhaseIntervention{.phase = 2.0}})
    check(config, set, 2, 5);
  for (const auto& [heads, dim, batch, tokens] :
       {std::tuple<Index, Index, Index, Index>{1, 3, 1, 1}, {5, 3, 3, 13}, {9, 1, 1, 39}})
    check(test::phase_config(heads, dim), {}, batch, tokens);
  Config chunks = test::phase_config(32, 1);  // more than two chunks of blocks of oscillators
  chunks.max_seq_len = 200;
  const auto report = check_gradients(chunks, {}, 3, 200, rng, {.samples_per_tensor = 3});
  INFO(report.worst);
  CHECK(report.error <= 1e-6);
}

TEST_CASE(
    "phase-modulated attention: gradients accumulate, dx and dstate are overwritten, a backward can be repeated") {
  Rng rng(7);
  const auto check = [&](const Config& config, const PhaseIntervention& set) {
    const auto layer = test::random_phase_layer<double>(config, rng);
    const auto x = test::random_tokens<double>(2, 19, config.d_model, rng);
    const auto state = test::random_tokens<double>(2, 19, 5, rng), dy = test::random_tokens<double>(2, 19, 12, rng);
    Tensor<double, 3> y, dx, dstate, dx_again(2, 19, 12), dstate_again(2, 19, 5), entropy;
    PhaseModulatedAttention<double>::Cache cache;
    cache.intervention = &set;
    layer.forward(x, state, y, cache);
    auto once = zeros_like(layer), twice = zeros_like(layer);
    layer.backward(dy, cache, dx, dstate, once);
    dx_again.setConstant(1e30);
    dstate_again.setConstant(1e30);
    layer.attention_entropy(cache, entropy);  // spoils nothing that backward reads
    for (int i = 0; i < 2; ++i) layer.backward(dy, cache, dx_again, dstate_again, twice);
    CHECK(test::largest_difference(dx, dx_again) == 0);
    CHECK(test::largest_difference(dstate, dstate_again) == 0);
    const auto expected = parameters_of(once), actual = parameters_of(twice);
    for (std::size_t p = 0; p < expected.size(); ++p)
      for (Index i = 0; i < expected[p].size; ++i)
        CHECK(actual[p].data[i] == Approx(2 * expected[p].data[i]).margin(1e-12));
  };
  Config config = test::phase_config(3, 4);
  check(config, {});
  check(config, {.coupling = 1.5});
  check(config, {.phase = 0.5});
  config.learn_coupling = false;
  check(config, {});
}

TEST_CASE("phase statistics stay in their row: no later token, no other sequence") {
  Rng rng(2);
  const Config config = test::phase_config(3, 8);
  const auto layer = test::random_phase_layer<float>(config, rng);
  const auto x = test::random_tokens<float>(3, 21, config.d_model, rng);
  const auto state = test::random_tokens<float>(3, 21, 5, rng);
  Tensor<float, 3> before, after, entropy, entropy_after;
  PhaseModulatedAttention<float>::Cache cache, other;
  layer.forward(x, state, before, cache);
  layer.attention_entropy(cache, entropy);

  // One temperature for the batch, from the variance of every P and the mean of every R: what the reference does.
  const auto batch_temperature = [&](const auto& rows) {
    double sum = 0, squares = 0, order = 0, count = 0;
    for (Index n = 0; n < rows.phases.dimension(0); ++n) {
      order += static_cast<double>(rows.order_parameter(n)) / static_cast<double>(rows.phases.dimension(0));
      for (Index h = 0; h < 3; ++h)
        for (Index j = 0; j < 21; ++j, ++count) {
          const double p = std::cos(static_cast<double>(rows.phases(n, h) - layer.position_phases(j)));
          sum += p;
          squares += p * p;
        }
    }
    const double variance = squares / count - sum * sum / count / count;
    return (1 + static_cast<double>(layer.beta(0)) * variance) *
           (1 + static_cast<double>(layer.alpha(0)) * (1 - order));
  };

  for (const bool change_state : {false, true}) {
    auto x_after = x, state_after = state;
    for (Index t = 13; t < 21; ++t) spoil(change_state ? state_after : x_after, 1, t);
    layer.forward(x_after, state_after, after, other);
    CHECK(same_rows(before, after, 0, 0, 21));
    CHECK(same_rows(before, after, 1, 0, 13));
    CHECK(same_rows(before, after, 2, 0, 21));
    CHECK_FALSE(same_rows(before, after, 1, 13, 21));
    for (Index n = 0; n < 63; ++n) {
      if (n >= 21 + 13 && n < 42) continue;
      CHECK(cache.order_parameter(n) == other.order_parameter(n));
      CHECK(cache.coupling(n) == other.coupling(n));
      for (Index h = 0; h < 3; ++h) CHECK(cache.temperature(n, h) == other.temperature(n, h));
    }
    layer.attention_entropy(other, entropy_after);
    CHECK(std::equal(&entropy(0, 0, 0), &entropy(1, 0, 0), &entropy_after(0, 0, 0)));

    // The same change through one temperature for all reaches the past and other sequences.
    const PhaseIntervention all_before{.temperature = batch_temperature(cache)};
    const PhaseIntervention all_after{.temperature = batch_temperature(other)};
    Tensor<float, 3> leaky_before, leaky_after;
    cache.intervention = &all_before;
    other.intervention = &all_after;
    layer.forward(x, state, leaky_before, cache);
    layer.forward(x_after, state_after, leaky_after, other);
    CHECK(difference_of_rows(leaky_before, leaky_after, 0, 0, 21) > 1e-3);
    CHECK(difference_of_rows(leaky_before, leaky_after, 1, 0, 13) > 1e-3);
    cache.intervention = other.intervention = nullptr;
    layer.forward(x, state, before, cache);
  }
}

TEST_CASE("phase-modulated attention streams, also under interventions that come and go") {
  Rng rng(3);
  Config config = test::phase_config(3, 16);
  const PhaseIntervention set{.coupling = 0.3, .order_parameter = 0.9, .gate = 0.7};
  for (const Rotary rotary : {Rotary::none, Rotary::half_split}) {
    config.rotary = rotary;
    const auto layer = test::random_phase_layer<float>(config, rng);
    const auto x = test::random_tokens<float>(2, 37, config.d_model, rng);
    const auto state = test::random_tokens<float>(2, 37, 5, rng);
    Tensor<float, 3> whole, changed;
    PhaseModulatedAttention<float>::Cache cache, changed_cache;
    layer.forward(x, state, whole, cache);
    changed_cache.intervention = &set;
    layer.forward(x, state, changed, changed_cache);
    PhaseModulatedAttention<float>::State stream;
    Index done = 0;
    for (const Index count : {1, 7, 1, 17, 11}) {
      stream.intervention = count == 17 ? &set : nullptr;  // keys and values do not depend on it
      const auto& expected = count == 17 ? changed : whole;
      Tensor<float, 3> x_part(2, count, config.d_model), state_part(2, count, 5), y;
      for (Index b = 0; b < 2; ++b) {
        std::copy_n(&x(b, done, 0), count * config.d_model, &x_part(b, 0, 0));
        std::copy_n(&state(b, done, 0), count * 5, &state_part(b, 0, 0));
      }
      layer.step(x_part, state_part, y, stream);
      for (Index b = 0; b < 2; ++b)
        for (Index i = 0; i < count * config.d_model; ++i)
          REQUIRE((&y(b, 0, 0))[i] == Approx((&expected(b, done, 0))[i]).margin(1e-5));
      if (count != 17)
        for (Index n = 0; n < 2 * count; ++n)
          REQUIRE(stream.scratch.order_parameter(n) ==
                  Approx(cache.order_parameter(n / count * 37 + done + n % count)).margin(1e-6));
      done += count;
    }
  }
}

TEST_CASE("phase-modulated attention has the same bits for any number of threads") {
  Rng rng(4);
  Config config = test::phase_config(32, 1);  // more than two chunks of blocks of oscillators
  config.max_seq_len = 200;
  const auto layer = test::random_phase_layer<float>(config, rng);
  const auto x = test::random_tokens<float>(3, 200, config.d_model, rng);
  const auto state = test::random_tokens<float>(3, 200, 5, rng);
  const auto run = [&] {
    Tensor<float, 3> y, dx, dstate;
    PhaseModulatedAttention<float>::Cache cache;
    auto grad = zeros_like(layer);
    layer.forward(x, state, y, cache);
    layer.backward(x, cache, dx, dstate, grad);
    std::vector<float> all(y.data(), y.data() + y.size());
    for (const auto* tensor : {&dx, &dstate}) all.insert(all.end(), tensor->data(), tensor->data() + tensor->size());
    for (const auto& parameter : parameters_of(grad))
      all.insert(all.end(), parameter.data, parameter.data + parameter.size);
    return all;
  };
  const auto one = run();
  for (const int threads : {2, 5}) {
    set_num_threads(threads);
    CHECK(run() == one);
  }
  set_num_threads(1);
}
