#include "rbar/routing/router.hpp"

#include "rbar/audit/gradient_check.hpp"
#include "rbar/routing/adaptive_router.hpp"
#include "routing/routing_support.hpp"
#include "support/catch.hpp"

#include <cmath>
#include <limits>

using namespace rbar;
using test::random_tokens;

namespace {

constexpr CoherenceMode all_modes[] = {CoherenceMode::token, CoherenceMode::local, CoherenceMode::cross,
                                       CoherenceMode::combined};

RouterConfig router_config(Index dim, CoherenceMode mode, Causality causality, double share = 0.3) {
  RouterConfig config;
  config.d_model = dim;
  config.route_frac = share;
  config.coherence_mode = mode;
  config.coherence_window = 3;
  config.coherence_offsets = 2;
  config.causality = causality;
  return config;
}

template <class T>
CoherentRouter<T> make_router(const RouterConfig& config) {
  Rng rng(17);
  CoherentRouter<T> router(config, rng);
  router.route_proj.bias(0) = T(0.2);
  return router;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

}  // namespace

TEST_CASE("the score is entropy, coherence and projection, weighted") {
  const auto mode = GENERATE(from_range(std::begin(all_modes), std::end(all_modes)));
  const auto causality = GENERATE(Causality::causal, Causality::reference);
  const Index tokens = GENERATE(1, 6), dim = GENERATE(2, 5, 24);
  INFO(name_of(mode) << ", " << name_of(causality) << ", T " << tokens << ", D " << dim);
  Rng rng(3);
  const auto hidden = random_tokens(2, tokens, dim, rng);
  const auto config = router_config(dim, mode, causality);
  const auto router = make_router<double>(config);
  CoherentRouter<double>::Cache cache;
  router.forward(hidden, cache);
  const auto coherence = compute_coherence(hidden, config.coherence());
  double total_score = 0, total_coherence = 0;
  for (Index row = 0; row < 2 * tokens; ++row) {
    const double* x = hidden.data() + row * dim;
    double mean = 0, variance = 0, logit = router.route_proj.bias(0);
    for (Index d = 0; d < dim; ++d) mean += x[d] / double(dim);
    for (Index d = 0; d < dim; ++d) variance += (x[d] - mean) * (x[d] - mean) / double(dim - 1);
    for (Index d = 0; d < dim; ++d) logit += router.route_proj.weight(0, d) * x[d];
    const double score = 0.4 * sigmoid(variance) + 0.4 * coherence.data()[row] + 0.2 * sigmoid(logit);
    CHECK(cache.scores.data()[row] == Approx(score).epsilon(1e-12));
    total_score += score, total_coherence += coherence.data()[row];
  }
  CHECK(cache.stats.mean_score == Approx(total_score / double(2 * tokens)));
  CHECK(cache.stats.mean_coherence == Approx(total_coherence / double(2 * tokens)));
  CHECK(cache.stats.attention_share + cache.stats.mixing_share == Approx(1.0));
}

TEST_CASE("causal routers compare with the threshold, reference routers choose the lowest") {
  constexpr Index batch = 3, tokens = 11, dim = 6;
  Rng rng(5);
  auto hidden = random_tokens(batch, tokens, dim, rng);
  for (Index d = 0; d < dim; ++d) hidden(1, 7, d) = hidden(1, 2, d);  // a tie
  auto config = router_config(dim, CoherenceMode::token, Causality::causal);
  auto causal = make_router<double>(config);
  CoherentRouter<double>::Cache cache;
  causal.forward(hidden, cache);
  causal.threshold.value(0) = cache.scores(1, 2);  // not below itself
  causal.forward(hidden, cache);
  CHECK_FALSE(cache.routing.attention_mask(1, 2));
  for (Index i = 0; i < batch * tokens; ++i)
    CHECK(cache.routing.attention_mask.data()[i] == (cache.scores.data()[i] < cache.scores(1, 2)));

  config.causality = Causality::reference;
  for (const double share : {0.01, 0.3, 0.999, 1.0}) {
    config.route_frac = share;
    make_router<double>(config).forward(hidden, cache);
    const Index chosen = std::max<Index>(1, static_cast<Index>(tokens * share));
    for (Index b = 0; b < batch; ++b) {
      Index count = 0;
      for (Index t = 0; t < tokens; ++t) {
        Index before = 0;  // tokens that come first: a lower score, or the same and earlier
        for (Index s = 0; s < tokens; ++s)
          before += cache.scores(b, s) < cache.scores(b, t) || (cache.scores(b, s) == cache.scores(b, t) && s < t);
        CHECK(cache.routing.attention_mask(b, t) == (before < chosen));
        count += cache.routing.attention_mask(b, t);
      }
      CHECK(count == chosen);
    }
    const RoutedRows rows = cache.routing.attention_rows(), others = cache.routing.mixing_rows();
    require_routed("test", rows, batch, tokens);
    require_routed("test", others, batch, tokens);
    CHECK(rows.count() + others.count() == batch * tokens);
  }
}

TEST_CASE("the gradient of the scores, in every mode") {
  const auto mode = GENERATE(from_range(std::begin(all_modes), std::end(all_modes)));
  const auto causality = GENERATE(Causality::causal, Causality::reference);
  const Index tokens = GENERATE(1, 7);
  INFO(name_of(mode) << ", " << name_of(causality) << ", T " << tokens);
  constexpr Index batch = 2, dim = 5;
  Rng rng(23);
  auto hidden = random_tokens(batch, tokens, dim, rng);
  auto router = make_router<double>(router_config(dim, mode, causality));
  Tensor<double, 2> weights(batch, tokens);
  for (double& value : elements(weights)) value = rng.normal();
  CoherentRouter<double>::Cache cache;
  router.forward(hidden, cache);
  auto gradient = zeros_like(router);
  auto dhidden = zeros<double, 3>({batch, tokens, dim});
  router.backward(weights, hidden, cache, dhidden, gradient);
  std::vector<GradientPair> pairs;
  detail::append_pairs(router, gradient, pairs);
  pairs.push_back({"hidden", elements(hidden), elements(std::as_const(dhidden))});
  const auto report = gradient_check(std::span<const GradientPair>(pairs),
                                     [&] {
                                       router.forward(hidden, cache);
                                       double sum = 0;
                                       for (Index i = 0; i < weights.size(); ++i)
                                         sum += weights.data()[i] * cache.scores.data()[i];
                                       return sum;
                                     },
                                     {.samples_per_tensor = 0});
  INFO(report.worst);
  CHECK(report.error < 1e-6);
}

TEST_CASE("a streamed router takes the decisions of the full pass") {
  const auto mode = GENERATE(from_range(std::begin(all_modes), std::end(all_modes)));
  INFO(name_of(mode));
  constexpr Index batch = 2, tokens = 17, dim = 9;
  Rng rng(29);
  const auto hidden = random_tokens(batch, tokens, dim, rng);
  auto router = make_router<double>(router_config(dim, mode, Causality::causal));
  CoherentRouter<double>::Cache cache;
  router.forward(hidden, cache);
  REQUIRE(test::separate(router, cache.scores) > 1e-6);
  router.forward(hidden, cache);
  for (const Index piece : {1, 2, 5, 16}) {
    CoherentRouter<double>::State state;
    for (Index first = 0; first < tokens; first += piece) {
      const Index count = std::min(piece, tokens - first);
      Tensor<double, 3> part(batch, count, dim);
      for (Index b = 0; b < batch; ++b) std::copy_n(&hidden(b, first, 0), count * dim, &part(b, 0, 0));
      router.step(part, state);
      for (Index b = 0; b < batch; ++b)
        for (Index t = 0; t < count; ++t) {
          CHECK(state.cache.scores(b, t) == Approx(cache.scores(b, first + t)).epsilon(1e-12));
          CHECK(state.cache.routing.attention_mask(b, t) == cache.routing.attention_mask(b, first + t));
        }
    }
  }
}

TEST_CASE("causal scores do not see later tokens; reference decisions do") {
  const auto mode = GENERATE(from_range(std::begin(all_modes), std::end(all_modes)));
  INFO(name_of(mode));
  constexpr Index tokens = 12, dim = 8, changed = 6;
  Rng rng(31);
  const auto hidden = random_tokens(1, tokens, dim, rng);
  auto other = hidden;
  for (Index d = 0; d < dim; ++d) other(0, changed, d) = 0;  // all phases equal: the highest coherence there is
  const auto scores_differ = [&](Causality causality) {
    const auto router = make_router<double>(router_config(dim, mode, causality, 0.5));
    CoherentRouter<double>::Cache before, after;
    router.forward(hidden, before);
    router.forward(other, after);
    bool differ = false;
    for (Index t = 0; t < changed; ++t) differ = differ || before.scores(0, t) != after.scores(0, t);
    return differ;
  };
  CHECK_FALSE(scores_differ(Causality::causal));
  CHECK(scores_differ(Causality::reference) == (mode != CoherenceMode::token));
}

TEST_CASE("routing has the same bits for every number of threads") {
  constexpr Index batch = 3, tokens = 150, dim = 33;
  Rng rng(37);
  const auto hidden = random_tokens<float>(batch, tokens, dim, rng);
  const auto router = make_router<float>(router_config(dim, CoherenceMode::combined, Causality::causal));
  const auto run = [&](int threads) {
    set_num_threads(threads);
    CoherentRouter<float>::Cache cache;
    router.forward(hidden, cache);
    auto gradient = zeros_like(router);
    auto dhidden = zeros<float, 3>({batch, tokens, dim});
    router.backward(cache.scores, hidden, cache, dhidden, gradient);
    std::vector<float> all(elements(cache.scores).begin(), elements(cache.scores).end());
    for (const float value : elements(dhidden)) all.push_back(value);
    for (const auto& parameter : parameters_of(gradient))
      all.insert(all.end(), parameter.values().begin(), parameter.values().end());
    return all;
  };
  const auto one = run(1);
  CHECK(one == run(2));
  CHECK(one == run(5));
  set_num_threads(1);
}

TEST_CASE("non-finite input is an error, never a route") {
  for (const double poison : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(),
                              -std::numeric_limits<double>::infinity()})
    for (const auto causality : {Causality::causal, Causality::reference}) {
      Rng rng(41);
      auto hidden = random_tokens(1, 4, 6, rng);
      hidden(0, 2, 3) = poison;
      CoherentRouter<double>::Cache cache;
      CoherentRouter<double>::State state;
      const auto router = make_router<double>(router_config(6, CoherenceMode::combined, causality));
      CHECK_THROWS_AS(router.forward(hidden, cache), Error);
      CHECK_THROWS_AS(router.step(hidden, state), Error);
    }
}

TEST_CASE("router configs and shapes that make no sense are errors") {
  Rng rng(1);
  const auto refused = [&](auto&& change) {
    auto config = router_config(6, CoherenceMode::token, Causality::causal);
    change(config);
    CHECK_THROWS_AS(CoherentRouter<float>(config, rng), Error);
  };
  refused([](RouterConfig& config) { config.d_model = 1; });
  refused([](RouterConfig& config) { config.route_frac = 0; });
  refused([](RouterConfig& config) { config.route_frac = 1.01; });
  refused([](RouterConfig& config) { config.route_frac = std::nan(""); });
  refused([](RouterConfig& config) { config.coherence_window = 0; });
  refused([](RouterConfig& config) { config.coherence_offsets = 0; });
  refused([](RouterConfig& config) { config.entropy_weight = std::nan(""); });
  const auto router = make_router<double>(router_config(6, CoherenceMode::token, Causality::causal));
  CoherentRouter<double>::Cache cache;
  CHECK_THROWS_AS(router.forward(random_tokens(1, 3, 7, rng), cache), Error);
  CHECK_THROWS_AS(router.forward(Tensor<double, 3>(1, 0, 6), cache), Error);
}
