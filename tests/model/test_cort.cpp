#include "rbar/model/cort.hpp"

#include "rbar/audit/causality.hpp"
#include "rbar/audit/gradient_check.hpp"
#include "rbar/io/pretrained.hpp"
#include "rbar/model/generate.hpp"
#include "rbar/train/loss.hpp"
#include "routing/routing_support.hpp"
#include "support/catch.hpp"
#include "support/differences.hpp"

using namespace rbar;

namespace {

CoRTConfig tiny_config(Causality causality = Causality::causal, KeyValues key_values = KeyValues::all) {
  CoRTConfig config;
  config.vocab_size = 13;
  config.d_model = 12;
  config.n_heads = 3;
  config.n_layers = 2;
  config.d_ff = 20;
  config.max_seq_len = 40;
  config.dropout = 0;
  config.route_frac = 0.4;
  config.coherence_window = 3;
  config.causality = causality;
  config.key_values = key_values;
  return config;
}

template <class T>
CoRTModel<T> make_model(const CoRTConfig& config, std::uint64_t seed = 5) {
  Rng rng(seed);
  CoRTModel<T> model(config, rng);
  test::shake(model, 0.1, rng);
  return model;
}

Tensor<Token, 2> random_text(Index batch, Index tokens, Index vocabulary, std::uint64_t seed) {
  Tensor<Token, 2> text(batch, tokens);
  Rng rng(seed);
  for (Token& token : elements(text)) token = static_cast<Token>(rng.below(static_cast<std::uint64_t>(vocabulary)));
  return text;
}

// τ of every layer away from all scores, so that rounding flips no decision; layer after layer, since each
// changes what the next one sees.
template <class T>
void place_thresholds(CoRTModel<T>& model, const Tensor<Token, 2>& tokens) {
  for (std::size_t l = 0; l < model.layers.size(); ++l) {
    typename CoRTModel<T>::Cache cache;
    Tensor<T, 3> logits;
    model.forward(tokens, logits, cache);
    REQUIRE(test::separate(model.layers[l].routed.router.router, cache.layers[l].routed.router.scores) > 1e-4);
  }
}

template <class T>
double relative_difference(const Tensor<T, 3>& a, const Tensor<T, 3>& b) {
  REQUIRE(shape_of(a) == shape_of(b));
  double difference = 0, largest = 0;
  for (Index i = 0; i < a.size(); ++i) {
    difference = test::larger(difference, std::abs(static_cast<double>(a.data()[i] - b.data()[i])));
    largest = std::max(largest, std::abs(static_cast<double>(a.data()[i])));
  }
  return difference / largest;
}

}  // namespace

TEST_CASE("CoRT's gradients, causal and reference") {
  const auto causality = GENERATE(Causality::causal, Causality::reference);
  const auto key_values = GENERATE(KeyValues::all, KeyValues::routed);
  const bool tied = GENERATE(true, false);
  INFO(name_of(causality) << ", kv " << name_of(key_values) << ", tied " << tied);
  auto config = tiny_config(causality, key_values);
  config.tie_embeddings = tied;
  auto model = make_model<double>(config);
  const auto tokens = random_text(2, 9, config.vocab_size, 3);
  place_thresholds(model, tokens);
  const auto report = gradient_check(model, tokens, {.samples_per_tensor = 6});
  INFO(report.worst);
  CHECK(report.error < 1e-6);
  CHECK(report.checked > 200);
}

TEST_CASE("CoRT's layer is a layer") {
  Rng rng(3);
  const auto hidden = test::random_tokens(2, 8, 12, rng);
  CoRTLayer<double> layer(tiny_config(), rng);
  test::shake(layer, 0.1, rng);
  CoRTLayer<double>::Cache cache;
  Tensor<double, 3> y;
  layer.forward(hidden, y, cache);
  REQUIRE(test::separate(layer.routed.router.router, cache.routed.router.scores) > 1e-4);
  const auto report = gradient_check(layer, hidden, {.samples_per_tensor = 20});
  INFO(report.worst);
  CHECK(report.error < 1e-6);
}

TEST_CASE("CoRT is causal unless reference is asked for") {
  const auto key_values = GENERATE(KeyValues::all, KeyValues::routed);
  const auto mode = GENERATE(CoherenceMode::token, CoherenceMode::local, CoherenceMode::cross, CoherenceMode::combined);
  for (const auto causality_of_model : {Causality::causal, Causality::reference}) {
    auto config = tiny_config(causality_of_model, key_values);
    config.coherence_mode = mode;
    const auto report = causality(make_model<float>(config));
    INFO(report.text());
    if (causality_of_model == Causality::causal)
      CHECK(report.leak <= 1e-6);
    else
      CHECK(report.leak > 1e-4);
  }
}

TEST_CASE("streamed logits are those of the full pass") {
  const auto key_values = GENERATE(KeyValues::all, KeyValues::routed);
  const auto mode = GENERATE(CoherenceMode::token, CoherenceMode::local, CoherenceMode::cross, CoherenceMode::combined);
  const bool learnable = GENERATE(true, false);
  INFO("kv " << name_of(key_values) << ", " << name_of(mode) << ", learnable mixer " << learnable);
  constexpr Index batch = 2, length = 31;
  auto config = tiny_config(Causality::causal, key_values);
  config.coherence_mode = mode;
  config.learnable_mixer = learnable;
  auto model = make_model<float>(config);
  const auto tokens = random_text(batch, length, config.vocab_size, 9);
  place_thresholds(model, tokens);
  const auto whole = model(tokens);
  for (const Index piece : {1, 3, 7}) {
    CoRTModel<float>::State state;
    Tensor<float, 3> streamed(batch, length, config.vocab_size), part_logits;
    for (Index first = 0; first < length; first += piece) {
      const Index count = std::min(piece, length - first);
      Tensor<Token, 2> part(batch, count);
      for (Index b = 0; b < batch; ++b) std::copy_n(&tokens(b, first), count, &part(b, 0));
      model.step(part, part_logits, state);
      for (Index b = 0; b < batch; ++b)
        std::copy_n(&part_logits(b, 0, 0), count * config.vocab_size, &streamed(b, first, 0));
    }
    CHECK(relative_difference(whole, streamed) < 1e-5);
  }
}

TEST_CASE("CoRT has the same bits for every number of threads") {
  const auto model = make_model<float>(tiny_config());
  const auto tokens = random_text(3, 37, 13, 21);
  const auto run = [&](int threads) {
    set_num_threads(threads);
    CoRTModel<float>::Cache cache;
    cache.dropout = {true, 7, 3};
    Tensor<float, 3> logits;
    model.forward(tokens, logits, cache);
    auto gradient = zeros_like(model);
    model.backward(logits, cache, gradient);
    std::vector<float> all(elements(logits).begin(), elements(logits).end());
    for (const auto& parameter : parameters_of(gradient))
      all.insert(all.end(), parameter.values().begin(), parameter.values().end());
    return all;
  };
  const auto one = run(1);
  CHECK(one == run(1));
  CHECK(one == run(2));
  CHECK(one == run(5));
  set_num_threads(1);
}

TEST_CASE("dropout acts only where it is active, and its gradient is that of its mask") {
  auto config = tiny_config();
  config.dropout = 0.3;
  auto model = make_model<double>(config);
  const auto tokens = random_text(2, 8, config.vocab_size, 31);
  CoRTModel<double>::Cache cache;
  Tensor<double, 3> plain, first, second, again;
  model.forward(tokens, plain, cache);
  CHECK(relative_difference(plain, model(tokens)) == 0);
  cache.dropout = {true, 5, 1};
  model.forward(tokens, first, cache);
  model.forward(tokens, again, cache);
  cache.dropout.step = 2;
  model.forward(tokens, second, cache);
  CHECK(relative_difference(first, again) == 0);
  CHECK(relative_difference(first, plain) > 1e-3);
  CHECK(relative_difference(first, second) > 1e-3);

  auto gradient = zeros_like(model);
  model.backward(second, cache, gradient);  // the gradient of ½ Σ logits²
  std::vector<GradientPair> pairs;
  detail::append_pairs(model, gradient, pairs);
  const auto report = gradient_check(std::span<const GradientPair>(pairs),
                                     [&] {
                                       model.forward(tokens, again, cache);
                                       return detail::weighted_sum(again, again) / 2;
                                     },
                                     {.samples_per_tensor = 3});
  INFO(report.worst);
  CHECK(report.error < 1e-6);
}

TEST_CASE("training steps hold the share of attention in every layer") {
  auto config = tiny_config();
  config.route_frac = 0.25;
  Rng rng(1);
  CoRTModel<float> model(config, rng);
  auto gradient = zeros_like(model);
  CoRTModel<float>::Cache cache;
  Tensor<float, 3> logits;
  constexpr int steps = 60;
  double share = 0;
  for (int step = 0; step < steps; ++step) {
    const auto tokens = random_text(8, 33, config.vocab_size, static_cast<std::uint64_t>(step));
    model.forward(tokens, logits, cache);
    cross_entropy<float>(view(std::as_const(logits)), view(tokens), &logits);
    set_zero(gradient);
    model.backward(logits, cache, gradient);
    const auto values = parameters_of(model), gradients = parameters_of(gradient);
    for (std::size_t i = 0; i < values.size(); ++i)
      for (Index j = 0; j < values[i].size; ++j) values[i].data[j] -= 0.3f * gradients[i].data[j];
    model.adapt(cache);
    if (step < steps / 2) continue;
    for (const RoutingStats& stats : cache.routing_stats()) share += stats.attention_share / (steps / 2) / 2;
  }
  CHECK(share == Approx(0.25).margin(0.02));
}

TEST_CASE("a share of 1 is a standard transformer: everything is attended") {
  auto config = tiny_config();
  config.route_frac = 1;
  const auto model = make_model<float>(config);
  CoRTModel<float>::Cache cache;
  Tensor<float, 3> logits;
  model.forward(random_text(2, 11, config.vocab_size, 1), logits, cache);
  for (const RoutingStats& stats : cache.routing_stats()) CHECK(stats.attention_share == 1);
}

TEST_CASE("CoRT generates, with the cache and without") {
  const auto key_values = GENERATE(KeyValues::all, KeyValues::routed);
  const auto model = make_model<double>(tiny_config(Causality::causal, key_values));
  const std::vector<Token> prompt{1, 5, 2};
  GenerateOptions options;
  options.max_new_tokens = 60;  // beyond max_seq_len
  const auto with_cache = generate(model, prompt, options);
  options.use_cache = false;
  CHECK(with_cache == generate(model, prompt, options));
  CHECK(with_cache.size() == 60);
}

TEST_CASE("a saved CoRT comes back whole, thresholds included") {
  auto model = make_model<float>(tiny_config(Causality::causal, KeyValues::routed));
  const auto tokens = random_text(2, 17, 13, 77);
  CoRTModel<float>::Cache cache;
  Tensor<float, 3> logits;
  model.forward(tokens, logits, cache);
  model.adapt(cache);
  const auto folder = std::filesystem::temp_directory_path() / "rbar_test_cort";
  save_pretrained(model, folder);
  const auto loaded = from_pretrained<CoRTModel<float>>(folder);
  std::filesystem::remove_all(folder);
  CHECK(relative_difference(model(tokens), loaded(tokens)) == 0);
  CHECK(loaded.layers[0].routed.router.router.threshold() == model.layers[0].routed.router.router.threshold());
  CHECK(loaded.config.key_values == KeyValues::routed);
}

TEST_CASE("CoRT's presets and costs") {
  CHECK(CoRTConfig::small().d_model == 512);
  CHECK(CoRTConfig::medium().n_layers == 12);
  CHECK(CoRTConfig::large().n_heads == 16);
  CHECK(CoRTConfig{}.route_frac == 0.15);
  auto config = CoRTConfig::small();
  const auto attention = [&](double share) { return flops(config, 1024, share).attention / 6; };
  const double d = 512, everything = 8 * d * d + 4 * d * 512.5;
  CHECK(attention(1) == Approx(everything));
  CHECK(attention(0.25) == Approx(4 * d * d * 1.25 + 4 * d * 512.5 * 0.25));
  config.key_values = KeyValues::routed;
  CHECK(attention(0.25) == Approx(8 * d * d * 0.25 + 4 * d * 512.5 / 16));
  CHECK(flops(config, 1024, 0.25).mixer / 6 == Approx(0.75 * (6 * d * d + 4 * d)));
  CHECK(flops(config, 1024, 1).mixer == 0);
}

TEST_CASE("CoRT refuses configs, tokens and weights that make no sense") {
  Rng rng(1);
  const auto refused = [&](auto&& change) {
    auto config = tiny_config();
    change(config);
    CHECK_THROWS_AS(CoRTModel<float>(config, rng), Error);
  };
  refused([](CoRTConfig& config) { config.n_heads = 5; });
  refused([](CoRTConfig& config) { config.n_layers = 0; });
  refused([](CoRTConfig& config) { config.vocab_size = 0; });
  refused([](CoRTConfig& config) { config.max_seq_len = 0; });
  refused([](CoRTConfig& config) { config.dropout = 1; });
  refused([](CoRTConfig& config) { config.route_frac = 0; });
  refused([](CoRTConfig& config) { config.route_frac = 2; });
  refused([](CoRTConfig& config) { config.coherence_window = 0; });
  refused([](CoRTConfig& config) { config.layer_norm_eps = 0; });

  auto model = make_model<float>(tiny_config());
  CoRTModel<float>::Cache cache;
  CoRTModel<float>::State state;
  Tensor<float, 3> logits;
  auto tokens = random_text(1, 5, 13, 1);
  tokens(0, 3) = 13;
  CHECK_THROWS_AS(model.forward(tokens, logits, cache), Error);
  CHECK_THROWS_AS(model.forward(random_text(1, 41, 13, 1), logits, cache), Error);
  CHECK_THROWS_AS(model.forward(Tensor<Token, 2>(1, 0), logits, cache), Error);
  model.step(random_text(1, 39, 13, 1), logits, state);
  CHECK_THROWS_AS(model.step(random_text(1, 2, 13, 1), logits, state), Error);
  auto gradient = zeros_like(model);
  CoRTModel<float>::Cache unused;
  CHECK_THROWS_AS(model.backward(logits, unused, gradient), Error);
  CHECK_THROWS_AS(model.adapt(unused), Error);
  model.ends.token_embedding.weight(4, 2) = std::numeric_limits<float>::quiet_NaN();
  const Tensor<Token, 2> poisoned = [] {
    Tensor<Token, 2> text(1, 2);
    text.setConstant(4);
    return text;
  }();
  CHECK_THROWS_AS(model.forward(poisoned, logits, cache), Error);
  const auto reference = make_model<float>(tiny_config(Causality::reference));
  CoRTModel<float>::State fresh;
  CHECK_THROWS_AS(reference.step(random_text(1, 2, 13, 1), logits, fresh), Error);
}
