#include "rbar/routing/routed_attention.hpp"

#include "rbar/audit/gradient_check.hpp"
#include "routing/routing_support.hpp"
#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/differences.hpp"

using namespace rbar;
using test::random_tokens;

namespace {

RoutedAttentionConfig routed_config(Index dim, Index heads, Causality causality, KeyValues key_values,
                                    double share = 0.4) {
  RoutedAttentionConfig config;
  config.router.router.d_model = dim;
  config.router.router.route_frac = share;
  config.router.router.causality = causality;
  config.router.router.coherence_window = 3;
  config.router.adaptive = false;
  config.n_heads = heads;
  config.key_values = key_values;
  return config;
}

template <class T>
RoutedAttention<T> make_routed(const RoutedAttentionConfig& config) {
  Rng rng(19);
  RoutedAttention<T> layer(config, rng);
  test::shake(layer, 0.1, rng);
  return layer;
}

// Places τ away from all scores, so that a perturbation of 1e-5 flips no decision.
template <class T>
void place_threshold(RoutedAttention<T>& layer, const Tensor<T, 3>& hidden) {
  typename RoutedAttention<T>::Cache cache;
  Tensor<T, 3> y;
  layer.forward(hidden, y, cache);
  REQUIRE(test::separate(layer.router.router, cache.router.scores) > 1e-4);
}

using ::test::largest_difference;

// Both branches for every token, one of them discarded: what the package does.
Tensor<double, 3> plain_routed(const RoutedAttention<double>& layer, const Tensor<double, 3>& hidden,
                               const RoutedAttention<double>::Cache& cache) {
  const Index batch = hidden.dimension(0), tokens = hidden.dimension(1), dim = hidden.dimension(2);
  Tensor<double, 3> attended = layer.attention(hidden), y(batch, tokens, dim);
  std::vector<Index> every(static_cast<std::size_t>(batch * tokens));
  std::iota(every.begin(), every.end(), Index{0});
  CoherenceMixer<double>::Cache mixer_cache;
  layer.mixer.forward(hidden, every, cache.router.scores, rows(y), mixer_cache);
  for (Index b = 0; b < batch; ++b) {
    if (layer.config.key_values == KeyValues::routed) {  // the routed tokens as a sequence of their own
      std::vector<Index> chosen;
      for (Index t = 0; t < tokens; ++t)
        if (cache.router.routing.attention_mask(b, t)) chosen.push_back(t);
      Tensor<double, 3> alone(1, static_cast<Index>(chosen.size()), dim);
      for (std::size_t i = 0; i < chosen.size(); ++i)
        std::copy_n(&hidden(b, chosen[i], 0), dim, &alone(0, static_cast<Index>(i), 0));
      alone = layer.attention(alone);
      for (std::size_t i = 0; i < chosen.size(); ++i)
        std::copy_n(&alone(0, static_cast<Index>(i), 0), dim, &attended(b, chosen[i], 0));
    }
    for (Index t = 0; t < tokens; ++t)
      if (cache.router.routing.attention_mask(b, t)) std::copy_n(&attended(b, t, 0), dim, &y(b, t, 0));
  }
  return y;
}

}  // namespace

TEST_CASE("routing first gives what computing everything and discarding gives") {
  const auto causality = GENERATE(Causality::causal, Causality::reference);
  const auto key_values = GENERATE(KeyValues::all, KeyValues::routed);
  const Index tokens = GENERATE(1, 2, 13);
  INFO(name_of(causality) << ", kv " << name_of(key_values) << ", T " << tokens);
  Rng rng(3);
  const auto hidden = random_tokens(3, tokens, 15, rng);
  auto layer = make_routed<double>(routed_config(15, 3, causality, key_values));
  if (tokens > 2) place_threshold(layer, hidden);
  RoutedAttention<double>::Cache cache;
  Tensor<double, 3> y;
  layer.forward(hidden, y, cache);
  CHECK(largest_difference(y, plain_routed(layer, hidden, cache)) < 1e-12);
  if (tokens > 2) CHECK(cache.router.stats.attention_share > 0.1);
}

TEST_CASE("all routed is attention, none routed is mixing") {
  Rng rng(5);
  const auto hidden = random_tokens(2, 9, 8, rng);
  const auto key_values = GENERATE(KeyValues::all, KeyValues::routed);
  auto layer = make_routed<double>(routed_config(8, 2, Causality::causal, key_values));
  for (const bool everything : {true, false}) {
    layer.router.router.threshold.value(0) = everything ? 1e9 : -1e9;
    RoutedAttention<double>::Cache cache;
    RoutedAttention<double>::State state;
    Tensor<double, 3> y, streamed;
    layer.forward(hidden, y, cache);
    CHECK(cache.router.stats.attention_share == (everything ? 1.0 : 0.0));
    CHECK(largest_difference(y, plain_routed(layer, hidden, cache)) < 1e-12);
    layer.step(hidden, streamed, state);
    CHECK(largest_difference(y, streamed) < 1e-12);
    const auto report = gradient_check(layer, hidden, {.samples_per_tensor = 10});
    INFO(report.worst);
    CHECK(report.error < 1e-6);
  }
}

TEST_CASE("the gradient goes through attention, mixer and score") {
  const auto causality = GENERATE(Causality::causal, Causality::reference);
  const auto key_values = GENERATE(KeyValues::all, KeyValues::routed);
  const auto mode = GENERATE(CoherenceMode::token, CoherenceMode::local, CoherenceMode::cross, CoherenceMode::combined);
  INFO(name_of(causality) << ", kv " << name_of(key_values) << ", " << name_of(mode));
  Rng rng(7);
  const auto hidden = random_tokens(2, 9, 6, rng);
  auto config = routed_config(6, 2, causality, key_values);
  config.router.router.coherence_mode = mode;
  auto layer = make_routed<double>(config);
  place_threshold(layer, hidden);
  const auto report = gradient_check(layer, hidden, {.samples_per_tensor = 25});
  INFO(report.worst);
  CHECK(report.error < 1e-6);
}

TEST_CASE("a streamed layer gives the numbers of the full pass") {
  const auto key_values = GENERATE(KeyValues::all, KeyValues::routed);
  const auto mode = GENERATE(CoherenceMode::token, CoherenceMode::local, CoherenceMode::cross, CoherenceMode::combined);
  INFO("kv " << name_of(key_values) << ", " << name_of(mode));
  constexpr Index batch = 2, tokens = 19, dim = 10;
  Rng rng(11);
  const auto hidden = random_tokens(batch, tokens, dim, rng);
  auto config = routed_config(dim, 2, Causality::causal, key_values);
  config.router.router.coherence_mode = mode;
  auto layer = make_routed<double>(config);
  place_threshold(layer, hidden);
  RoutedAttention<double>::Cache cache;
  Tensor<double, 3> whole;
  layer.forward(hidden, whole, cache);
  for (const Index piece : {1, 3, 8}) {
    RoutedAttention<double>::State state;
    Tensor<double, 3> streamed(batch, tokens, dim);
    for (Index first = 0; first < tokens; first += piece) {
      const Index count = std::min(piece, tokens - first);
      Tensor<double, 3> part(batch, count, dim), out;
      for (Index b = 0; b < batch; ++b) std::copy_n(&hidden(b, first, 0), count * dim, &part(b, 0, 0));
      layer.step(part, out, state);
      for (Index b = 0; b < batch; ++b) std::copy_n(&out(b, 0, 0), count * dim, &streamed(b, first, 0));
    }
    CHECK(largest_difference(whole, streamed) < 1e-11);
  }
}

TEST_CASE("the routed layer has the same bits for every number of threads, and twice in a row") {
  Rng rng(13);
  const auto hidden = random_tokens<float>(2, 160, 32, rng);
  const auto layer = make_routed<float>(routed_config(32, 4, Causality::causal, KeyValues::all));
  const auto run = [&](int threads) {
    set_num_threads(threads);
    RoutedAttention<float>::Cache cache;
    Tensor<float, 3> y, dx;
    layer.forward(hidden, y, cache);
    auto gradient = zeros_like(layer);
    layer.backward(hidden, cache, dx, gradient);
    std::vector<float> all(elements(y).begin(), elements(y).end());
    all.insert(all.end(), elements(dx).begin(), elements(dx).end());
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

TEST_CASE("a second pass of the same shape allocates nothing, even when the routing changes") {
  if (!test::counts_allocations) return;
  const auto causality = GENERATE(Causality::causal, Causality::reference);
  const auto key_values = GENERATE(KeyValues::all, KeyValues::routed);
  INFO(name_of(causality) << ", kv " << name_of(key_values));
  Rng rng(17);
  const auto hidden = random_tokens<float>(2, 40, 16, rng), other = random_tokens<float>(2, 40, 16, rng);
  const auto layer = make_routed<float>(routed_config(16, 4, causality, key_values));
  auto gradient = zeros_like(layer);
  RoutedAttention<float>::Cache cache;
  Tensor<float, 3> y, dx;
  const auto pass = [&](const Tensor<float, 3>& x) {
    layer.forward(x, y, cache);
    layer.backward(view(x), cache, dx, gradient);
  };
  pass(hidden);
  CHECK(test::allocations_in([&] { pass(other); }) == 0);
}
