// The phase-modulated model's ablations: all of one size, and each is what its name says.
#include "model/pma_support.hpp"
#include "rbar/attention/multi_head_attention.hpp"
#include "rbar/model/pma_ablations.hpp"
#include "support/differences.hpp"

#include <map>
#include <numbers>

using namespace rbar;
using namespace pma_test;

namespace {

using Model = PhaseModulatedAttentionLM<double>;

// Heads of an even width: attention alone has rotary positions.
PMAConfig even_config() {
  PMAConfig config = tiny_config();
  config.d_model = 12;
  return config;
}

// What `from` calls by the same names.
void copy_named(const auto& from, auto& to) {
  std::map<std::string, ParameterRef<const double>> named;
  for (const auto& parameter : parameters_of(from)) named[parameter.name] = parameter;
  for (const auto& parameter : parameters_of(to)) {
    REQUIRE(named.at(parameter.name).size == parameter.size);
    std::copy_n(named.at(parameter.name).data, parameter.size, parameter.data);
  }
}

// The whole model, and an ablation with its weights.
struct Ablated {
  Model full = random_model<double>(even_config(), 5), model;
  Tensor<Token, 2> tokens = random_tokens(2, 9, 13, 2);
  Model::Cache cache;
  Tensor<double, 3> logits;

  explicit Ablated(const std::string& name) {
    INFO(name);
    const auto list = pma_ablations(even_config());
    const auto found = std::find_if(list.begin(), list.end(), [&](const auto& one) { return one.name == name; });
    REQUIRE(found != list.end());
    model = random_model<double>(found->config, 6);
    if (found->config.ssm_blocks == full.config.ssm_blocks && found->config.pma_blocks == full.config.pma_blocks)
      copy_named(full, model);
    model.forward(tokens, logits, cache);
  }
  double from_full() { return largest_difference(full(tokens), logits); }
  double from_full_under(const PhaseIntervention& intervention) {
    const ScopedIntervention scope(full, intervention);
    return from_full();
  }
  const PhaseModulatedAttention<double>::Cache& layer(std::size_t l) const { return cache.pma[l].mixer; }
};

}  // namespace

TEST_CASE("every ablation has the size of the model, and so has the transformer that it is compared with") {
  for (const auto& config : {PMAConfig::small_1m(256), PMAConfig::small_5m(65), PMAConfig::tiny(65)}) {
    const auto size = static_cast<double>(parameter_count(config));
    std::vector<std::string> names;
    for (const auto& [name, description, ablated] : pma_ablations(config)) {
      INFO(name);
      names.push_back(name);
      CHECK(static_cast<double>(parameter_count(ablated)) == Approx(size).epsilon(0.01));
      CHECK(ablated.d_model == config.d_model);
      CHECK(!description.empty());
    }
    CHECK(names == std::vector<std::string>{"full", "no_gate", "fixed_temperature", "no_phases", "constant_coupling",
                                            "no_coupling", "frozen_phases", "no_position_phases", "ssm_only",
                                            "attention_only"});
    Rng rng(1);
    const TransformerModel<float> transformer(matched_transformer(config), rng);
    CHECK(static_cast<double>(transformer.num_parameters()) == Approx(size).epsilon(0.01));
  }
  auto bare = even_config();
  bare.ssm_mlp = false;  // the state space alone then has no width to grow but what it gets
  CHECK(pma_ablations(bare)[8].config.ssm_mlp);
  bare.ssm_blocks = 0;
  CHECK(pma_ablations(bare).size() == 8);
}

TEST_CASE("ablations that cannot be, or not of that size, are refused") {
  auto config = even_config();
  const Index smallest =
      parameter_count(with_parameters(config, 6000)) - 3 * 12 * 4 * (with_parameters(config, 6000).d_ff - 1);
  CHECK(with_parameters(config, smallest).d_ff == 1);
  CHECK_THROWS_WITH(with_parameters(config, smallest / 2), ContainsText("parameters to match: expected at least"));
  config.ssm_mlp = false;
  config.pma_blocks = 0;
  CHECK_THROWS_WITH(pma_ablations(config), ContainsText("pma_blocks"));
  CHECK_THROWS_WITH(with_parameters(config, 5000), ContainsText("widened"));
  CHECK_THROWS_WITH(pma_ablations(tiny_config()), ContainsText("rotary"));  // heads of width 5

  // State spaces without a second half are smaller than a transformer's attention can be.
  auto narrow = PMAConfig::tiny(13);
  narrow.ssm_mlp = false;
  narrow.expand = narrow.d_state = 1;
  narrow.ssm_blocks = 8;
  narrow.d_ff = 1;
  CHECK_THROWS_WITH(matched_transformer(narrow), ContainsText("matched_transformer"));
}

TEST_CASE("what an ablation switches off, an intervention on the whole model switches off too") {
  const double temperature = even_config().temperature;
  for (const auto& [name, intervention] : {std::pair<const char*, PhaseIntervention>{"no_gate", {.gate = 0.0}},
                                           {"fixed_temperature", {.temperature = temperature}},
                                           {"no_phases", {.temperature = temperature, .gate = 0.0}},
                                           {"constant_coupling", {.coupling = 1.0}},
                                           {"no_coupling", {.coupling = 0.0}}}) {
    INFO(name);
    Ablated ablated(name);
    CHECK(ablated.from_full() > 1e-6);
    CHECK(ablated.from_full_under(intervention) < 1e-12);
  }
  CHECK(Ablated("full").from_full() == 0);
}

TEST_CASE("no phases: multi-head attention") {
  const Ablated ablated("no_phases");
  const auto& layer = ablated.model.pma[0].mixer;
  Rng rng(7);
  MultiHeadAttentionConfig config;
  config.d_model = 12;
  config.n_heads = 2;
  config.bias = false;
  MultiHeadAttention<double> plain(config, rng);
  copy_named(layer, plain);
  Tensor<double, 3> x(2, 9, 12), state = x, y;
  normal(x, 1.0, rng);
  normal(state, 1.0, rng);
  CHECK(largest_difference(layer(view(std::as_const(x)), view(std::as_const(state))), plain(view(std::as_const(x)))) <
        1e-13);
}

TEST_CASE("frozen phases are the frequencies, for every token") {
  const Ablated ablated("frozen_phases");
  for (std::size_t l : {0u, 1u}) {
    const auto& phases = ablated.layer(l).phases;
    REQUIRE(phases.dimension(0) == 18);
    for (Index n = 0; n < 18; ++n)
      for (Index h = 0; h < 2; ++h) {
        const double apart = phases(n, h) - ablated.model.pma[l].mixer.frequency(h);
        CHECK(std::remainder(apart, 2 * std::numbers::pi) == Approx(0).margin(1e-14));
      }
  }
}

TEST_CASE("no position phases: position phases of 0") {
  Ablated ablated("no_position_phases");
  CHECK(ablated.from_full() > 1e-6);
  for (auto& block : ablated.full.pma) block.mixer.position_phases.setZero();
  CHECK(ablated.from_full() < 1e-12);
}

TEST_CASE("the state space alone has no attention, attention alone no state space but rotary positions") {
  const Ablated state_space("ssm_only"), attention("attention_only");
  CHECK(state_space.model.pma.empty());
  CHECK(state_space.model.ssm.size() == 2);
  CHECK(attention.model.ssm.empty());
  CHECK(attention.model.pma.size() == 2);
  CHECK(attention.model.config.rotary == matched_transformer(even_config()).rotary);
  for (const auto& block : attention.model.pma) CHECK(block.mixer.config.rotary == Rotary::interleaved);
  for (const auto& [name, description, config] : pma_ablations(even_config()))
    CHECK((config.rotary != Rotary::none) == (name == "attention_only"));
  // But for them, and for the position phases, a layer cannot tell in which order the tokens before came.
  for (const bool rotary : {true, false}) {
    PMAConfig config = attention.model.config;
    config.pma_blocks = 1;
    config.position_phases = false;
    if (!rotary) config.rotary = Rotary::none;
    Tensor<Token, 2> tokens(2, 3);
    tokens.setValues({{1, 2, 3}, {2, 1, 3}});
    const auto logits = random_model<double>(config, 6)(tokens);
    double difference = 0;
    for (Index v = 0; v < 13; ++v) difference = test::larger(difference, std::abs(logits(0, 2, v) - logits(1, 2, v)));
    INFO("rotary " << rotary << ", difference " << difference);
    CHECK((difference > 1e-6) == rotary);
    CHECK((difference < 1e-12) == !rotary);
  }
}
