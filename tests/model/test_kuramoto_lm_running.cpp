// A torus model in use: dropout, streams, threads, what it refuses, what it costs, and how it starts.
#include "model/kuramoto_lm_support.hpp"
#include "rbar/audit/gradient_check.hpp"
#include "rbar/model/generate.hpp"
#include "support/passes.hpp"
#include "support/streaming.hpp"

using namespace rbar;
using namespace kuramoto_lm_test;

TEST_CASE("a torus model's gradients with dropout, the masks held still") {
  for (const TorusReadout readout : {TorusReadout::linear, TorusReadout::tied}) {
    auto config = config_of(TorusGate::query_key, false, readout);
    config.dropout = 0.3;
    INFO(describe(config));
    auto model = random_model<double>(config, 5);
    const auto tokens = random_tokens(2, 7, config.vocab_size, 6);
    KuramotoLM<double>::Cache cache;
    cache.dropout = {true, 7, 8};
    Tensor<double, 3> logits;
    model.forward(tokens, logits, cache);
    CHECK(largest_difference(logits, model(tokens)) > 1e-3);
    Tensor<double, 3> weights = logits;
    Rng rng(9);
    normal(weights, 1.0, rng);
    auto grad = zeros_like(model);
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
  }
}

TEST_CASE("streaming gives a torus model's logits, token by token and in chunks") {
  for (const auto& config : configs()) {
    const auto model = random_model<float>(config, 8);
    const auto tokens = random_tokens(2, config.max_seq_len, config.vocab_size, 9);
    for (const Index chunk : {1, 7}) {
      INFO(describe(config) << ", chunk " << chunk);
      CHECK(test::streaming_difference(model, tokens, chunk) < 1e-5);
    }
  }
}

TEST_CASE("a torus model writes on past its context") {
  const auto model = random_model<float>(config_of(TorusGate::query, true, TorusReadout::tied), 1);
  const std::vector<Token> prompt = {1, 2, 3};
  GenerateOptions options;
  options.max_new_tokens = 40;
  const auto streamed = generate(model, prompt, options);
  options.use_cache = false;
  CHECK(streamed.size() == 40);
  CHECK(streamed == generate(model, prompt, options));
}

TEST_CASE("a torus model has the same bits for 1, 2 and 5 threads") {
  for (const TorusReadout readout : {TorusReadout::linear, TorusReadout::tied}) {
    auto config = config_of(TorusGate::query_key, false, readout);
    config.dropout = 0.1;
    config.d_model = 96;  // enough for more than one chunk
    config.max_seq_len = 40;
    INFO(describe(config));
    const auto model = random_model<float>(config, 10);
    const auto tokens = random_tokens(9, config.max_seq_len, config.vocab_size, 11);
    KuramotoLM<float>::Cache cache;
    cache.dropout = {true, 1, 2};
    CHECK(test::same_for_any_threads(model, tokens, cache));
  }
}

TEST_CASE("a torus model starts with tokens all around the circle, nearly no mixing and flat logits") {
  Rng rng(13);
  const KuramotoLM<float> model(KuramotoLMConfig::one_million(205), rng);
  double cosine = 0, sine = 0, largest = 0;
  for (const float angle : elements(model.token_embedding.weight)) {
    cosine += std::cos(angle);
    sine += std::sin(angle);
    largest = std::max(largest, std::abs(static_cast<double>(angle)));
  }
  const double count = static_cast<double>(model.token_embedding.weight.size());
  CHECK(std::hypot(cosine, sine) < 3 * std::sqrt(count));
  CHECK((largest > 3.14 && largest < 3.1416));
  const auto tokens = random_tokens(2, 64, 205, 14);
  KuramotoLM<float>::Cache cache;
  Tensor<float, 3> logits;
  model.forward(tokens, logits, cache);
  double square = 0;
  for (const float turned : elements(cache.scratch.branch)) square += static_cast<double>(turned * turned);
  CHECK(std::sqrt(square / static_cast<double>(cache.scratch.branch.size())) < 0.2);  // radians, of the last layer
  for (const float logit : elements(logits)) REQUIRE(std::abs(logit) < 2);
}

TEST_CASE("a torus model refuses what it cannot mean") {
  const auto config = configs()[0];
  const auto model = random_model<float>(config, 14);
  KuramotoLM<float>::Cache cache;
  Tensor<float, 3> logits;
  CHECK_THROWS_WITH(model.forward(random_tokens(1, 21, config.vocab_size, 1), logits, cache),
                    ContainsText("at most max_seq_len 20, got 21"));
  Tensor<Token, 2> tokens = random_tokens(1, 3, config.vocab_size, 1);
  tokens(0, 1) = static_cast<Token>(config.vocab_size);
  CHECK_THROWS_WITH(model.forward(tokens, logits, cache), ContainsText("token: expected 0 <= token < 13, got 13"));

  KuramotoLM<float>::State state;
  model.step(random_tokens(1, 20, config.vocab_size, 1), logits, state);
  CHECK_THROWS_WITH(model.step(random_tokens(1, 1, config.vocab_size, 1), logits, state), ContainsText("max_seq_len"));

  auto grad = zeros_like(model);
  CHECK_THROWS_WITH(model.backward(logits, KuramotoLM<float>::Cache{}, grad), ContainsText("layers of the cache"));
  model.forward(random_tokens(1, 4, config.vocab_size, 1), logits, cache);
  CHECK_THROWS_WITH(model.backward(Tensor<float, 3>(1, 4, config.vocab_size + 1), cache, grad),
                    ContainsText("dlogits"));
  CHECK_THROWS_WITH(model.backward(Tensor<float, 3>(1, 3, config.vocab_size), cache, grad), ContainsText("dlogits"));

  Rng rng(1);
  for (const auto spoil :
       {+[](KuramotoLMConfig& c) { c.vocab_size = 0; }, +[](KuramotoLMConfig& c) { c.n_layers = 0; },
        +[](KuramotoLMConfig& c) { c.d_ff = -1; }, +[](KuramotoLMConfig& c) { c.max_seq_len = 0; },
        +[](KuramotoLMConfig& c) { c.dropout = 1; }, +[](KuramotoLMConfig& c) { c.n_heads = 2; },
        +[](KuramotoLMConfig& c) { c.n_heads = 0; }, +[](KuramotoLMConfig& c) { c.drift_base = -1; }}) {
    auto bad = config;
    spoil(bad);
    CHECK_THROWS_AS(KuramotoLM<float>(bad, rng), Error);
  }
  TorusReadout readout{};
  CHECK((parse("tied", readout) && readout == TorusReadout::tied));
  CHECK_FALSE(parse("raw", readout));
}

TEST_CASE("only matrices of a torus model decay") {
  Rng rng(1);
  for (const TorusGate gate : all_torus_gates)
    for (const TorusReadout readout : {TorusReadout::linear, TorusReadout::tied}) {
      auto config = config_of(gate, false, readout);
      config.n_layers = 1;
      KuramotoLM<float> model(config, rng);
      for (const auto& parameter : parameters_of(model)) {
        INFO(parameter.name);
        const bool matrix = parameter.name.ends_with("_gate.weight") || parameter.name.find("mixing") < 100 ||
                            parameter.name == "lm_head.weight";
        CHECK(KuramotoLM<float>::decays(parameter.name, parameter.shape.size()) == matrix);
      }
    }
}

TEST_CASE("flops of a torus model: two a weight of a matrix, and what attention sees") {
  for (const auto& config : configs()) {
    INFO(describe(config));
    Rng rng(1);
    double weights = 0;
    const KuramotoLM<double> model(config, rng);
    for (const auto& parameter : parameters_of(model))
      if (KuramotoLM<double>::decays(parameter.name, parameter.shape.size()))
        weights += static_cast<double>(parameter.size);
    if (config.readout == TorusReadout::tied) weights += static_cast<double>(config.vocab_size * 2 * config.d_model);
    constexpr Index tokens = 11;
    Index pairs = 0;  // that attention computes, by counting
    for (Index query = 0; query < tokens; ++query) pairs += config.strict ? query : query + 1;
    const double attention = 8.0 * static_cast<double>(config.d_model * config.n_layers * pairs) / tokens;
    CHECK(flops(config, tokens) == Approx(2 * weights + attention).epsilon(1e-12));
  }
}
