// Phase-modulated attention against its definition.
#include "kuramoto/naive_phase_modulated.hpp"
#include "kuramoto/phase_modulated_layers.hpp"
#include "rbar/attention/multi_head_attention.hpp"
#include "support/catch.hpp"

#include <numbers>

using namespace rbar;
using Config = PhaseModulatedAttentionConfig;

namespace {

template <class A, class B>
double largest_difference(const A& a, const B& b) {
  double worst = a.size() == b.size() ? 0.0 : INFINITY;
  for (Index i = 0; i < a.size(); ++i) {
    const double difference = std::abs(static_cast<double>(a.data()[i]) - static_cast<double>(b.data()[i]));
    if (!(difference <= worst)) worst = difference;  // keeps a NaN
  }
  return worst;
}

// Every switch and every intervention.
const std::pair<const char*, void (*)(Config&)> switches[] = {
    {"all", [](Config&) {}},
    {"no gate", [](Config& c) { c.phase_gate = false; }},
    {"fixed temperature", [](Config& c) { c.adaptive_temperature = false; }},
    {"neither", [](Config& c) { c.phase_gate = c.adaptive_temperature = false; }},
    {"constant coupling", [](Config& c) { c.learn_coupling = false, c.coupling = 1.7; }},
    {"no coupling", [](Config& c) { c.learn_coupling = false, c.coupling = 0; }},
    {"frozen phases", [](Config& c) { c.frozen_phases = true; }},
    {"no steps", [](Config& c) { c.n_steps = 0; }},
    {"no phases of positions", [](Config& c) { c.position_phases = false; }},
    {"biases", [](Config& c) { c.bias = true; }}};
const PhaseIntervention interventions[] = {{.coupling = 2.5},
                                           {.order_parameter = 0.25},
                                           {.temperature = 0.6},
                                           {.gate = 1},
                                           {.phase = 4.0},
                                           {.coupling = -1, .order_parameter = 1, .gate = 0.5},
                                           {.temperature = 2, .phase = -0.5}};

}  // namespace

TEST_CASE("phase-modulated attention: golden vectors") {
  Config config;
  config.d_model = 4;
  config.n_heads = 2;
  config.d_coupling = 3;
  config.max_seq_len = 3;
  Rng rng(1);
  PhaseModulatedAttention<double> layer(config, rng);
  const double query[2][3][2] = {{{1, 0}, {.5, -1}, {2, 1}}, {{-1, .5}, {0, 1}, {1, 1}}};
  const double key[2][3][2] = {{{1, 1}, {-.5, 2}, {0, 1}}, {{.5, .5}, {1, -1}, {2, 0}}};
  const double value[2][3][2] = {{{1, 0}, {0, 1}, {-1, 1}}, {{2, 0}, {0, -1}, {1, 3}}};
  const double initial[2][3] = {{.3, 1.2, -2}, {-.7, .4, 2.5}}, coupling[3] = {.5, 1, 1.5};
  layer.frequency.setValues({.1, -.2});
  layer.position_phases.setValues({0, std::numbers::pi / 4, std::numbers::pi / 2});
  // Token t is the unit vector e_t: the maps' columns are what it gets.
  layer.out_proj.weight.setZero();
  for (Index i = 0; i < 4; ++i) layer.out_proj.weight(i, i) = 1;
  for (Index t = 0; t < 3; ++t) {
    layer.coupling_map.weight(0, t) = std::log(coupling[t] / (2 - coupling[t]));
    for (Index h = 0; h < 2; ++h) {
      layer.phase_map.weight(h, t) = initial[h][t] - layer.frequency(h);
      for (Index d = 0; d < 2; ++d) {
        layer.q_proj.weight(2 * h + d, t) = query[h][t][d];
        layer.k_proj.weight(2 * h + d, t) = key[h][t][d];
        layer.v_proj.weight(2 * h + d, t) = value[h][t][d];
      }
    }
  }
  auto x = zeros<double, 3>({1, 3, 4}), state = zeros<double, 3>({1, 3, 3});
  for (Index t = 0; t < 3; ++t) x(0, t, t) = state(0, t, t) = 1;
  Tensor<double, 3> y;
  PhaseModulatedAttention<double>::Cache cache;
  layer.forward(x, state, y, cache);

  const double phases[2][3] = {{.246445, 1.084943, -2.31962}, {-.696445, .465057, 2.76962}};
  const double order[3] = {.890913, .952351, .827041};
  const double temperature[2][3] = {{1.010909, 1.010759, 1.019278}, {1.010909, 1.004842, 1.046046}};
  const double output[2][3][2] = {{{1, 0}, {.77485, .22515}, {.42269, .38369}},
                                  {{2, 0}, {1.480871, -.259565}, {1.11565, 1.536908}}};
  const auto printed = [](double x) { return Approx(x).margin(6e-7); };  // six decimals
  for (Index t = 0; t < 3; ++t) {
    CHECK(cache.coupling(t) == Approx(coupling[t]).margin(1e-14));
    CHECK(cache.order_parameter(t) == printed(order[t]));
    for (Index h = 0; h < 2; ++h) {
      CHECK(cache.phases(t, h) == printed(phases[h][t]));
      CHECK(cache.temperature(t, h) == printed(temperature[h][t]));
      for (Index d = 0; d < 2; ++d) CHECK(y(0, t, 2 * h + d) == printed(output[h][t][d]));
    }
  }
}

TEST_CASE("phase-modulated attention is its definition, with every switch and intervention") {
  Rng rng(2);
  const auto compare = [&](const Config& config, const PhaseIntervention& set, Index batch, Index tokens) {
    const auto layer = test::random_phase_layer<double>(config, rng);
    const auto x = test::random_tokens<double>(batch, tokens, config.d_model, rng);
    const auto state = test::random_tokens<double>(batch, tokens, config.coupling_width(), rng);
    Tensor<double, 3> y, entropy;
    PhaseModulatedAttention<double>::Cache cache;
    cache.intervention = &set;
    layer.forward(x, state, y, cache);
    const auto naive = test::naive_phase_modulated(layer, x, state, set);
    // Rounding of a few hundred operations on numbers of order 1 to 10.
    CHECK(largest_difference(y, naive.output) <= 1e-12);
    CHECK(largest_difference(cache.temperature, naive.temperature) <= 1e-13);
    CHECK(largest_difference(cache.order_parameter, naive.order) <= 1e-13);
    CHECK(largest_difference(cache.coupling, naive.coupling) <= 1e-13);
    for (Index i = 0; i < naive.phases.size(); ++i)  // up to whole turns
      CHECK(std::remainder(cache.phases.data()[i] - naive.phases.data()[i], 2 * std::numbers::pi) ==
            Approx(0).margin(1e-12));
    layer.attention_entropy(cache, entropy);
    CHECK(largest_difference(entropy, naive.entropy) <= 1e-12);
  };
  for (const auto& [name, apply] : switches) {
    INFO(name);
    Config config = test::phase_config(3, 4);
    apply(config);
    compare(config, {}, 2, 7);
    for (const PhaseIntervention& set : interventions) compare(config, set, 1, 5);
  }
  // Tails: one head, one token, widths and counts that fill no register, several blocks of oscillators.
  for (const auto& [heads, dim, batch, tokens] : {std::tuple<Index, Index, Index, Index>{1, 1, 1, 1},
                                                  {1, 5, 3, 1},
                                                  {5, 3, 2, 19},
                                                  {2, 17, 3, 37},
                                                  {9, 2, 1, 40}}) {
    INFO("heads " << heads << " dim " << dim << " batch " << batch << " tokens " << tokens);
    compare(test::phase_config(heads, dim), {}, batch, tokens);
  }
}

TEST_CASE("without a gate and an adaptive temperature it is multi-head attention at the temperature tau_base") {
  Rng rng(3);
  Config config = test::phase_config(3, 8);
  config.phase_gate = config.adaptive_temperature = false;
  MultiHeadAttentionConfig like;
  like.d_model = config.d_model;
  like.n_heads = config.n_heads;
  like.bias = false;
  for (const double temperature : {1.0, 1.6}) {
    config.temperature = temperature;
    const auto layer = test::random_phase_layer<float>(config, rng);
    MultiHeadAttention<float> standard(like, rng);
    copy_parameters(layer, standard);
    // 1/(√d τ): the temperature is a factor on the queries, and rounds differently there: 6e-8 of logits of order 10.
    for (float& weight : elements(standard.q_proj.weight)) weight /= static_cast<float>(temperature);
    const auto x = test::random_tokens<float>(2, 33, config.d_model, rng);
    const auto state = test::random_tokens<float>(2, 33, 5, rng);
    Tensor<float, 3> y, expected;
    PhaseModulatedAttention<float>::Cache cache;
    layer.forward(x, state, y, cache);
    MultiHeadAttention<float>::Cache standard_cache;
    standard.forward(x, expected, standard_cache);
    CHECK(largest_difference(y, expected) <= (temperature == 1.0 ? 0.0 : 1e-5));
    // With α = β = 0 and λ = 0 as numbers, the oscillators running, too.
    Config running = test::phase_config(3, 8);
    running.temperature = temperature;
    auto full = test::random_phase_layer<float>(running, rng);
    full.q_proj = layer.q_proj, full.k_proj = layer.k_proj, full.v_proj = layer.v_proj, full.out_proj = layer.out_proj;
    full.alpha.setZero();
    full.beta.setZero();
    const PhaseIntervention closed{.gate = 0};
    cache.intervention = &closed;
    full.forward(x, state, y, cache);
    CHECK(largest_difference(y, expected) <= (temperature == 1.0 ? 0.0 : 1e-5));
    cache.intervention = nullptr;
    full.forward(x, state, y, cache);
    CHECK(largest_difference(y, expected) > 1e-3);
  }
}

TEST_CASE("the variance in closed form never falls below zero and is the variance") {
  Rng rng(4);
  for (int round = 0; round < 200; ++round) {
    const Index count = 1 + static_cast<Index>(rng.below(30));
    const double spread = std::pow(10.0, rng.uniform(-6, 1)), centre = rng.uniform(-3, 3), phase = rng.uniform(-3, 3);
    std::vector<double> positions;
    for (Index j = 0; j < count; ++j) positions.push_back(centre + spread * rng.normal());
    PositionPhases<double> table;
    table.extend(positions.data(), count, count);
    double mean = 0, variance = 0;
    for (const double angle : positions) mean += std::cos(phase - angle) / static_cast<double>(count);
    for (const double angle : positions) variance += std::pow(std::cos(phase - angle) - mean, 2);
    const double* last = &table.mean(count - 1, 0);
    const double closed = phase_variance(std::cos(phase), std::sin(phase), last[0], last[1], last[2], last[3]);
    CHECK(closed == Approx(variance / static_cast<double>(count)).margin(1e-14));
  }
}
