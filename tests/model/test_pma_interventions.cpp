// Interventions on a phase-modulated model: they do what they say in the layer they name, nest, compose, and take
// themselves back however their scopes end.
#include "model/pma_support.hpp"
#include "rbar/audit/gradient_check.hpp"

#include <memory>
#include <optional>

using namespace rbar;
using namespace pma_test;

namespace {

using Model = PhaseModulatedAttentionLM<double>;

bool same(const Tensor<double, 3>& a, const Tensor<double, 3>& b) {
  return std::equal(a.data(), a.data() + a.size(), b.data());
}

struct Fixture {
  Model model = random_model<double>(tiny_config(), 21);
  Tensor<Token, 2> tokens = random_tokens(2, 9, 13, 22);
  Tensor<double, 3> plain = model(tokens);

  Tensor<double, 3> under(const PhaseIntervention& intervention, Index layer = all_layers) {
    const ScopedIntervention scope(model, intervention, layer);
    return model(tokens);
  }
};

}  // namespace

TEST_CASE_METHOD(Fixture, "an override changes what it names in the layers it names") {
  Model::Cache cache;
  Tensor<double, 3> logits;
  const auto layer = [&](std::size_t l) -> const auto& { return cache.pma[l].mixer; };
  model.forward(tokens, logits, cache);
  const auto untouched = cache.pma[0].mixer.phases;
  {
    const auto scope = set_coupling_override(model, 7.5, 1);
    model.forward(tokens, logits, cache);
    for (const double coupling : elements(layer(1).coupling)) CHECK(coupling == 7.5);
    CHECK(layer(0).coupling(0) != 7.5);
    CHECK(std::equal(untouched.data(), untouched.data() + untouched.size(), layer(0).phases.data()));
  }
  {
    const auto scope = set_temperature_override(model, 3);
    model.forward(tokens, logits, cache);
    for (std::size_t l : {0u, 1u})
      for (const double temperature : elements(layer(l).temperature)) CHECK(temperature == 3);
  }
  {
    const auto scope = set_phase_override(model, 0.5, 0);
    model.forward(tokens, logits, cache);
    for (const double phase : elements(layer(0).phases)) CHECK(phase == Approx(0.5));
    for (const double order : elements(layer(0).order_parameter)) CHECK(order == Approx(1));
    CHECK(layer(1).phases(0, 0) != Approx(0.5));
  }
  {
    // R = 1 takes the disorder out of τ and leaves the phases alone.
    const auto scope = set_order_parameter_override(model, 1, 0);
    model.forward(tokens, logits, cache);
    const auto with = cache.pma[0].mixer.temperature;
    CHECK(std::equal(untouched.data(), untouched.data() + untouched.size(), layer(0).phases.data()));
    const double alpha = std::exchange(model.pma[0].mixer.alpha(0), 5);  // what it multiplies is 0
    model.forward(tokens, logits, cache);
    CHECK(std::equal(with.data(), with.data() + with.size(), layer(0).temperature.data()));
    model.pma[0].mixer.alpha(0) = alpha;
  }
  {
    const auto scope = set_gate_override(model, 0);
    const auto ungated = model(tokens);
    CHECK(largest_difference(ungated, plain) > 1e-6);
    CHECK(same(ungated, under({.gate = 0.0})));
  }
  CHECK(same(model(tokens), plain));
}

TEST_CASE_METHOD(Fixture, "the younger scope overrides what it names, and only that") {
  const auto both = under({.coupling = 3.0, .gate = 0.7});
  const auto outer = set_coupling_override(model, 9.0);
  {
    const auto inner = set_gate_override(model, 0.7);
    {
      const auto innermost = set_coupling_override(model, 3.0);
      CHECK(same(model(tokens), both));
    }
    CHECK(!same(model(tokens), both));
    CHECK(largest_difference(model(tokens), plain) > 1e-6);
  }
  const auto one_layer = set_coupling_override(model, 3.0, 1);
  Model::Cache cache;
  Tensor<double, 3> logits;
  model.forward(tokens, logits, cache);
  CHECK(cache.pma[0].mixer.coupling(0) == 9);
  CHECK(cache.pma[1].mixer.coupling(0) == 3);
}

TEST_CASE_METHOD(Fixture, "scopes end in any order, and by an exception") {
  const auto gate = under({.gate = 0.9}), coupling = under({.coupling = 4.0});
  std::optional<ScopedIntervention> first(std::in_place, model, PhaseIntervention{.gate = 0.9});
  std::optional<ScopedIntervention> second(std::in_place, model, PhaseIntervention{.coupling = 4.0});
  first.reset();
  CHECK(same(model(tokens), coupling));
  first.emplace(model, PhaseIntervention{.coupling = 8.0});
  second.reset();
  CHECK(same(model(tokens), under({.coupling = 8.0})));
  second.emplace(std::move(*first));  // moved, not ended
  first.reset();
  CHECK(same(model(tokens), under({.coupling = 8.0})));
  second.reset();
  CHECK(same(model(tokens), plain));

  try {
    const auto scope = set_gate_override(model, 0.9);
    CHECK(same(model(tokens), gate));
    Tensor<double, 3> logits;
    Model::Cache cache;
    model.forward(random_tokens(1, 99, 13, 1), logits, cache);  // longer than the context
    FAIL("the context is limited");
  } catch (const Error&) {
  }
  CHECK(same(model(tokens), plain));
}

TEST_CASE_METHOD(Fixture, "interventions belong to the model, not to its copies") {
  const auto changed = under({.phase = 1.0});
  auto scope = std::make_unique<ScopedIntervention>(set_phase_override(model, 1.0));
  const Model copy = model;
  CHECK(same(copy(tokens), plain));
  Model assigned = copy;
  {
    const auto its_own = set_phase_override(assigned, 1.0);
    assigned = copy;
    CHECK(same(assigned(tokens), changed));  // still under its scope
  }
  CHECK(same(assigned(tokens), plain));
  const Model moved = std::move(model);
  CHECK(same(moved(tokens), changed));
  scope.reset();
  CHECK(same(moved(tokens), plain));

  auto ends_first = std::make_unique<Model>(copy);
  const auto outlives = set_gate_override(*ends_first, 0.5);
  ends_first.reset();
}

TEST_CASE_METHOD(Fixture, "a model under a scope may become one of other depth") {
  auto config = tiny_config();
  config.pma_blocks = 4;
  const Model deep = random_model<double>(config, 23), shallow = model;
  const auto expected = deep(tokens), changed = under({.gate = 0.9});
  {
    const auto scope = set_gate_override(model, 0.9);
    model = deep;
    // The layers that it had when the scope began are under it, the others cannot be.
    for (std::size_t l = 0; l < 4; ++l) CHECK((model.interventions.on(l) != nullptr) == (l < 2));
    CHECK(model.interventions.on(99) == nullptr);
    CHECK(!same(model(tokens), expected));
    const auto younger = set_coupling_override(model, 1.0, 3);
    for (std::size_t l = 0; l < 4; ++l) CHECK(model.interventions.on(l)->gate == 0.9);
    model = shallow;
    CHECK(same(model(tokens), changed));
  }
  CHECK(same(model(tokens), plain));
}

TEST_CASE_METHOD(Fixture, "models that are swapped swap their interventions, and a moved value brings its own") {
  const auto gated = under({.gate = 0.9}), coupled = under({.coupling = 4.0});
  Model other = model;
  {
    const auto gate = set_gate_override(model, 0.9);
    std::swap(model, other);
    CHECK(same(model(tokens), plain));
    CHECK(same(other(tokens), gated));
    const auto coupling = set_coupling_override(model, 4.0);
    std::swap(model, other);
    CHECK(same(model(tokens), gated));
    CHECK(same(other(tokens), coupled));
    other = Model(model);  // a value without any
    CHECK(same(other(tokens), coupled));
    model = std::move(other);
    CHECK(same(model(tokens), coupled));
  }
  CHECK(same(model(tokens), plain));
}

TEST_CASE_METHOD(Fixture, "a model under interventions streams, and its gradient is that of what it computes") {
  const auto pushed = set_coupling_override(model, 2.5);
  const auto hot = set_temperature_override(model, 1.7, 0);
  const auto read = set_order_parameter_override(model, 0.3, 1);
  const auto whole = model(tokens);
  Model::State state;
  Tensor<double, 3> logits;
  for (Index t = 0; t < 9; ++t) {
    Tensor<Token, 2> next(2, 1);
    for (Index b = 0; b < 2; ++b) next(b, 0) = tokens(b, t);
    model.step(next, logits, state);
    for (Index b = 0; b < 2; ++b)
      for (Index v = 0; v < 13; ++v) REQUIRE(logits(b, 0, v) == Approx(whole(b, t, v)).epsilon(1e-10));
  }

  Model::Cache cache;
  model.forward(tokens, logits, cache);
  const auto weights = detail::random_like(logits, 3);
  Model grad = zeros_like(model);
  model.backward(weights, cache, grad);
  std::vector<GradientPair> pairs;
  detail::append_pairs(model, grad, pairs);
  const auto report = gradient_check(std::span<const GradientPair>(pairs),
                                     [&] {
                                       model.forward(tokens, logits, cache);
                                       return detail::weighted_sum(weights, logits);
                                     },
                                     {.samples_per_tensor = 8});
  INFO(report.worst);
  CHECK(report.error < 1e-6);
  CHECK(grad.pma[0].mixer.alpha(0) == 0);  // the temperature there is a constant
  CHECK(grad.pma[1].mixer.alpha(0) != 0);
}

TEST_CASE_METHOD(Fixture, "interventions that mean nothing are refused, and leave no trace") {
  CHECK_THROWS_WITH(set_order_parameter_override(model, 1.5), ContainsText("order_parameter"));
  CHECK_THROWS_WITH(set_gate_override(model, -0.1), ContainsText("gate"));
  CHECK_THROWS_WITH(set_temperature_override(model, 0), ContainsText("temperature"));
  CHECK_THROWS_WITH(set_coupling_override(model, std::nan("")), ContainsText("coupling"));
  CHECK_THROWS_WITH(set_phase_override(model, 1.0 / 0.0), ContainsText("phase"));
  CHECK_THROWS_WITH(set_gate_override(model, 0.5, 2), ContainsText("layer"));
  CHECK_THROWS_WITH(set_gate_override(model, 0.5, -2), ContainsText("layer"));
  CHECK(same(model(tokens), plain));
  auto config = tiny_config();
  config.pma_blocks = 0;
  auto state_space = random_model<double>(config, 1);
  CHECK_THROWS_WITH(set_gate_override(state_space, 0.5), ContainsText("at least one phase-modulated layer"));
}
