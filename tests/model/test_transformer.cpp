#include "model/transformer_support.hpp"
#include "rbar/audit/causality.hpp"
#include "rbar/audit/gradient_check.hpp"
#include "support/passes.hpp"
#include "support/streaming.hpp"

using namespace rbar;
using namespace transformer_test;

static_assert(LanguageModel<TransformerModel<float>>);

TEST_CASE("the transformer is its definition, layer by layer") {
  for (const auto& config : configs()) {
    INFO(describe(config));
    const auto model = random_model<double>(config, 1);
    const auto tokens = random_tokens(2, 9, config.vocab_size, 2);
    const auto expected = textbook_logits(model, tokens);
    const Tensor<double, 3> logits = model(tokens);
    for (Index i = 0; i < logits.size(); ++i) REQUIRE(logits.data()[i] == Approx(expected.data()[i]).margin(1e-10));
  }
}

TEST_CASE("the transformer: gradients of every parameter") {
  for (const auto& config : configs()) {
    INFO(describe(config));
    GradientCheckOptions options;
    options.samples_per_tensor = 12;
    const auto report =
        gradient_check(random_model<double>(config, 3), random_tokens(2, 7, config.vocab_size, 4), options);
    INFO(report.worst);
    CHECK(report.error < 1e-6);
    CHECK(report.largest_gradient > 0.1);
  }
}

TEST_CASE("the transformer: gradients with dropout, the masks held still") {
  for (auto config : configs()) {
    config.dropout = 0.3;
    INFO(describe(config));
    auto model = random_model<double>(config, 5);
    const auto tokens = random_tokens(2, 7, config.vocab_size, 6);
    TransformerModel<double>::Cache cache;
    cache.dropout = {true, 7, 8};
    Tensor<double, 3> logits, weights;
    model.forward(tokens, logits, cache);
    const Tensor<double, 3> plain = model(tokens);
    CHECK(largest_difference(logits, plain) > 1e-3);
    weights = logits;
    Rng rng(9);
    normal(weights, 1.0, rng);
    auto grad = zeros_like(model);
    model.backward(weights, cache, grad);

    std::vector<GradientPair> pairs;
    const auto values = parameters_of(model), gradients = parameters_of(grad);
    for (std::size_t i = 0; i < values.size(); ++i)
      pairs.push_back({values[i].name, values[i].values(), gradients[i].values()});
    GradientCheckOptions options;
    options.samples_per_tensor = 8;
    const auto report = gradient_check(
        std::span<const GradientPair>(pairs),
        [&] {
          model.forward(tokens, logits, cache);
          double loss = 0;
          for (Index i = 0; i < logits.size(); ++i) loss += logits.data()[i] * weights.data()[i];
          return loss;
        },
        options);
    INFO(report.worst);
    CHECK(report.error < 1e-6);
  }
}

TEST_CASE("the transformer is causal") {
  for (const auto& config : configs()) {
    INFO(describe(config));
    CausalityOptions options;
    options.length = config.max_seq_len;
    options.trials = 0;
    const auto report = causality(random_model<float>(config, 7), options);
    CHECK(report.leak == 0);
    CHECK(report.largest_output > 0.1);
  }
}

TEST_CASE("streaming gives the transformer's logits, token by token and in chunks") {
  for (const auto& config : configs()) {
    const auto model = random_model<float>(config, 8);
    const auto tokens = random_tokens(2, config.max_seq_len, config.vocab_size, 9);
    for (const Index chunk : {1, 5}) {
      INFO(describe(config) << ", chunk " << chunk);
      CHECK(test::streaming_difference(model, tokens, chunk) < 1e-5);
    }
  }
}

TEST_CASE("the transformer has the same bits for 1, 2 and 5 threads") {
  for (auto config : configs()) {
    config.dropout = 0.1;
    INFO(describe(config));
    const auto model = random_model<float>(config, 10);
    const auto tokens = random_tokens(9, config.max_seq_len, config.vocab_size, 11);
    TransformerModel<float>::Cache cache;
    cache.dropout = {true, 1, 2};
    CHECK(test::same_for_any_threads(model, tokens, cache));
  }
}

TEST_CASE("parameters: names, numbers and how they start") {
  Rng rng(13);
  auto config = TransformerConfig::gpt2_style(100, 32, 2, 4, 16);
  const TransformerModel<float> model(config, rng);
  // Embeddings, per layer 4 projections and 2 matrices with biases and 2 norms, final norm.
  CHECK(model.num_parameters() == 100 * 32 + 16 * 32 + 2 * (12 * 32 * 32 + 13 * 32) + 2 * 32);
  const auto parameters = parameters_of(model);
  CHECK(parameters.front().name == "token_embedding.weight");
  CHECK(parameters[1].name == "position_embedding.weight");
  CHECK(parameters.back().name == "layers.1.feed_forward.down.bias");

  const auto spread = [](const auto& tensor) {
    double square = 0;
    for (const auto value : elements(tensor)) square += static_cast<double>(value * value);
    return std::sqrt(square / static_cast<double>(tensor.size()));
  };
  CHECK(spread(model.ends.token_embedding.weight) == Approx(0.02).epsilon(0.1));
  CHECK(spread(model.ends.position_embedding.weight) == Approx(0.02).epsilon(0.1));
  config.init = Initialisation::cort_package;
  const TransformerModel<float> package(config, rng);
  CHECK(spread(package.ends.token_embedding.weight) == Approx(std::sqrt(2.0 / 132)).epsilon(0.1));
  CHECK(spread(package.ends.position_embedding.weight) == Approx(0.02).epsilon(0.1));

  const auto llama = TransformerConfig::llama_style(512, 64, 5, 8, 4, 172, 512);
  CHECK(TransformerModel<float>(llama, rng).num_parameters() ==
        512 * 64 + 5 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 172 * 64 + 2 * 64) + 64);
}

TEST_CASE("the transformer refuses what it cannot mean") {
  const auto config = configs()[0];
  const auto model = random_model<float>(config, 14);
  TransformerModel<float>::Cache cache;
  Tensor<float, 3> logits;
  CHECK_THROWS_WITH(model.forward(random_tokens(1, 17, config.vocab_size, 1), logits, cache),
                    ContainsText("at most max_seq_len 16, got 17"));
  Tensor<Token, 2> tokens = random_tokens(1, 3, config.vocab_size, 1);
  tokens(0, 1) = static_cast<Token>(config.vocab_size);
  CHECK_THROWS_WITH(model.forward(tokens, logits, cache), ContainsText("token: expected 0 <= token < 13, got 13"));
  tokens(0, 1) = -1;
  CHECK_THROWS_AS(model.forward(tokens, logits, cache), Error);

  TransformerModel<float>::State state;
  model.step(random_tokens(1, 16, config.vocab_size, 1), logits, state);
  CHECK_THROWS_AS(model.step(random_tokens(1, 1, config.vocab_size, 1), logits, state), Error);

  model.forward(random_tokens(1, 4, config.vocab_size, 1), logits, cache);
  auto grad = zeros_like(model);
  CHECK_THROWS_AS(model.backward(Tensor<float, 3>(1, 4, config.vocab_size + 1), cache, grad), Error);

  Rng rng(1);
  const auto refuses = [&](auto&& change) {
    auto broken = configs()[1];
    change(broken);
    CHECK_THROWS_AS(TransformerModel<float>(broken, rng), Error);
  };
  refuses([](TransformerConfig& c) { c.n_heads = 0; });
  refuses([](TransformerConfig& c) { c.d_model = 17; });
  refuses([](TransformerConfig& c) { c.n_layers = 0; });
  refuses([](TransformerConfig& c) { c.vocab_size = 0; });
  refuses([](TransformerConfig& c) { c.dropout = 1; });
  refuses([](TransformerConfig& c) { c.n_kv_heads = 3; });
  refuses([](TransformerConfig& c) { c.rotary = Rotary::none; });
}

TEST_CASE("flops of the transformer: two a weight of a matrix, and what attention sees") {
  for (const auto& config : configs()) {
    INFO(describe(config));
    Rng rng(1);
    double weights = 0;
    const TransformerModel<double> model(config, rng);
    for (const auto& parameter : parameters_of(model))
      if (parameter.shape.size() == 2 && parameter.name.find("embedding") == std::string::npos)
        weights += static_cast<double>(parameter.size);
    if (config.tie_embeddings) weights += static_cast<double>(config.vocab_size * config.d_model);
    constexpr Index tokens = 11;
    Index pairs = 0;  // that attention computes, by counting
    for (Index query = 0; query < tokens; ++query)
      pairs += config.window > 0 ? std::min(config.window, query + 1) : query + 1;
    const double attention = 4.0 * static_cast<double>(config.d_model * config.n_layers * pairs) / tokens;
    CHECK(flops(config, tokens) == Approx(2 * weights + attention).epsilon(1e-12));
  }
}
