// Phase-modulated attention against its definition.
#include "kuramoto/naive_phase_modulated.hpp"
#include "kuramoto/phase_modulated_layers.hpp"
#include "rbar/attention/multi_head_attention.hpp"
#include "support/catch.hpp"
#include "support/differences.hpp"

#include <numbers>

using namespace rbar;
using test::largest_difference;
using Config = PhaseModulatedAttentionConfig;

namespace {

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

template <class T>
double largest_of(const T& tensor) {
  double largest = 0;
  for (const double value : elements(tensor)) largest = test::larger(largest, std::abs(value));
  return largest;
}

// One forward pass and its entropies against the definition. `tolerance`: of 1 for what the oscillators settle on, of
// the largest number otherwise.
template <class T>
void compare(const Config& config, const PhaseIntervention& set, Index batch, Index tokens, double tolerance,
             Rng& rng) {
  const auto layer = test::random_phase_layer<T>(config, rng);
  const auto x = test::random_tokens<T>(batch, tokens, config.d_model, rng);
  const auto state = test::random_tokens<T>(batch, tokens, config.coupling_width(), rng);
  Tensor<T, 3> y, entropy;
  typename PhaseModulatedAttention<T>::Cache cache;
  cache.intervention = &set;
  layer.forward(x, state, y, cache);
  layer.attention_entropy(cache, entropy);

  // The same numbers, computed with in double.
  PhaseModulatedAttention<double> exact(config, rng);
  const auto from = parameters_of(layer);
  const auto to = parameters_of(exact);
  for (std::size_t p = 0; p < from.size(); ++p) std::copy_n(from[p].data, from[p].size, to[p].data);
  const Tensor<double, 3> exact_x = x.template cast<double>(), exact_state = state.template cast<double>();
  const auto naive = test::naive_phase_modulated(exact, exact_x, exact_state, set);
  CHECK(largest_difference(y, naive.output) <= tolerance * largest_of(naive.output));
  CHECK(largest_difference(cache.temperature, naive.temperature) <= tolerance * largest_of(naive.temperature));
  CHECK(largest_difference(cache.order_parameter, naive.order) <= tolerance);
  CHECK(largest_difference(cache.coupling, naive.coupling) <= tolerance * std::max(1.0, largest_of(naive.coupling)));
  double turned = 0;  // up to whole turns
  for (Index i = 0; i < naive.phases.size(); ++i) {
    const double difference = static_cast<double>(cache.phases.data()[i]) - naive.phases.data()[i];
    turned = test::larger(turned, std::abs(std::remainder(difference, 2 * std::numbers::pi)));
  }
  CHECK(turned <= tolerance);
  CHECK(largest_difference(entropy, naive.entropy) <= tolerance * std::max(1.0, largest_of(naive.entropy)));
}

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
  // Rounding of a few hundred operations on numbers of order 1 to 10.
  const auto both = [&](const Config& config, const PhaseIntervention& set, Index batch, Index tokens) {
    compare<double>(config, set, batch, tokens, 1e-13, rng);
    compare<float>(config, set, batch, tokens, 1e-5, rng);
  };
  for (const auto& [name, apply] : switches) {
    INFO(name);
    Config config = test::phase_config(3, 4);
    apply(config);
    both(config, {}, 2, 7);
    for (const PhaseIntervention& set : interventions) both(config, set, 1, 5);
  }
  // Tails: one head, one token, widths and counts that fill no register, several blocks of oscillators.
  for (const auto& [heads, dim, batch, tokens] : {std::tuple<Index, Index, Index, Index>{1, 1, 1, 1},
                                                  {1, 5, 3, 1},
                                                  {5, 3, 2, 19},
                                                  {2, 17, 3, 37},
                                                  {9, 2, 1, 40}}) {
    INFO("heads " << heads << " dim " << dim << " batch " << batch << " tokens " << tokens);
    both(test::phase_config(heads, dim), {}, batch, tokens);
  }
}

TEST_CASE("phase-modulated attention is its definition over long sequences and many heads") {
  Rng rng(5);
  Config config = test::phase_config(2, 4);
  config.max_seq_len = 2048;
  compare<float>(config, {}, 1, 2048, 1e-5, rng);
  // More than two chunks of blocks of oscillators.
  config = test::phase_config(32, 1);
  config.max_seq_len = 200;
  compare<double>(config, {}, 3, 200, 1e-13, rng);
  compare<float>(config, {}, 3, 200, 1e-5, rng);
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

TEST_CASE("the variance of P in closed form is the variance") {
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

TEST_CASE("a variance that rounds below zero cools no row, and beta does not learn from it") {
  Rng rng(6);
  Config config = test::phase_config(3, 4);
  config.position_phases = false;  // P is the same for all keys
  auto layer = test::random_phase_layer<float>(config, rng);
  layer.beta(0) = 1e6f;
  const auto x = test::random_tokens<float>(2, 7, config.d_model, rng);
  const auto state = test::random_tokens<float>(2, 7, config.coupling_width(), rng);
  PhaseModulatedAttention<float>::Cache cache;
  Tensor<float, 3> y, dx, dstate;
  const auto calm = [&](Index n) {
    return config.temperature * (1 + static_cast<double>(layer.alpha(0)) * (1 - cache.order_parameter(n)));
  };
  layer.forward(x, state, y, cache);
  for (Index n = 0; n < 14; ++n)
    for (Index h = 0; h < 3; ++h) REQUIRE(cache.temperature(n, h) >= calm(n) * (1 - 1e-6));
  Index below = 0;
  for (double phase = -3; phase < 3; phase += 0.05) {  // one phase for all rows, so that all of them round alike
    const PhaseIntervention set{.order_parameter = 0.5, .phase = phase};
    cache.intervention = &set;
    layer.forward(x, state, y, cache);
    const double least = config.temperature * (1 + static_cast<double>(layer.alpha(0)) * 0.5);
    REQUIRE(cache.temperature(0, 0) >= least * (1 - 1e-6));
    // Compiled into another place it may round to another side.
    const float variance = phase_variance(cache.cosine(0, 0), cache.sine(0, 0), 1.0f, 0.0f, 1.0f, 0.0f);
    if (variance >= 0 || cache.temperature(0, 0) > least * (1 + 1e-6)) continue;
    ++below;
    auto grad = zeros_like(layer);
    layer.backward(x, cache, dx, dstate, grad);
    INFO("phase " << phase);
    CHECK(grad.beta(0) == 0);
    CHECK(grad.alpha(0) != 0);
  }
  CHECK(below > 0);
}
