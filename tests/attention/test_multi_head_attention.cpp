#include "attention/naive_multi_head.hpp"
#include "rbar/audit/gradient_check.hpp"
#include "support/differences.hpp"

using namespace rbar;
using naive::random_hidden;
using naive::random_layer;

static_assert(StreamingLayer<MultiHeadAttention<float>>);

TEST_CASE("multi-head attention follows its definition") {
  std::uint64_t seed = 1;
  for (const auto& config : naive::multi_head_configs())
    for (const auto& [batch, tokens] : {std::pair<Index, Index>{1, 1}, {2, 19}, {3, 5}}) {
      INFO(naive::describe(config) << ", batch " << batch << ", tokens " << tokens << ", seed " << ++seed);
      const auto layer = random_layer<double>(config, seed);
      const auto x = random_hidden<double>(batch, tokens, config.d_model, seed + 100);
      const auto expected = naive::multi_head_attention(layer, x, [](Index) { return true; });
      const Tensor<double, 3> y = layer(x);
      for (Index i = 0; i < y.size(); ++i) REQUIRE(y.data()[i] == Approx(expected.data()[i]).margin(1e-11));
    }
}

TEST_CASE("multi-head attention: gradients") {
  std::uint64_t seed = 50;
  for (const auto& config : naive::multi_head_configs()) {
    INFO(naive::describe(config) << ", seed " << ++seed);
    const auto report =
        gradient_check(random_layer<double>(config, seed), random_hidden<double>(2, 11, config.d_model, seed));
    INFO(report.worst);
    CHECK(report.error < 1e-6);
  }
}

TEST_CASE("multi-head attention accumulates parameter gradients and overwrites the input's") {
  const auto config = naive::multi_head_configs()[2];
  const auto layer = random_layer<double>(config, 7);
  const auto x = random_hidden<double>(2, 9, config.d_model, 8), dy = random_hidden<double>(2, 9, config.d_model, 9);
  Tensor<double, 3> y, once, twice = random_hidden<double>(2, 9, config.d_model, 10);
  MultiHeadAttention<double>::Cache cache;
  layer.forward(x, y, cache);
  auto grad = zeros_like(layer), sum = zeros_like(layer);
  layer.backward(dy, cache, once, grad);
  layer.backward(dy, cache, twice, sum);
  layer.backward(dy, cache, twice, sum);
  for (Index i = 0; i < once.size(); ++i) CHECK(twice.data()[i] == once.data()[i]);
  const auto single = parameters_of(grad), doubled = parameters_of(sum);
  for (std::size_t p = 0; p < single.size(); ++p)
    for (Index i = 0; i < single[p].size; ++i) CHECK(doubled[p].data[i] == Approx(2 * single[p].data[i]).margin(1e-12));
}

TEST_CASE("multi-head attention has the same bits for 1, 2 and 5 threads") {
  auto config = naive::multi_head_configs()[2];
  config.d_model = 40;
  const auto layer = random_layer<float>(config, 3);
  const auto x = random_hidden<float>(3, 150, 40, 4), dy = random_hidden<float>(3, 150, 40, 5);
  std::vector<float> first;
  for (const int threads : {1, 2, 5}) {
    set_num_threads(threads);
    Tensor<float, 3> y, dx;
    MultiHeadAttention<float>::Cache cache;
    auto grad = zeros_like(layer);
    layer.forward(x, y, cache);
    layer.backward(dy, cache, dx, grad);
    std::vector<float> all(y.data(), y.data() + y.size());
    all.insert(all.end(), dx.data(), dx.data() + dx.size());
    for (const auto& p : parameters_of(grad)) all.insert(all.end(), p.data, p.data + p.size);
    if (first.empty()) first = all;
    INFO("threads " << threads);
    CHECK(all == first);
  }
  set_num_threads(1);
}

TEST_CASE("streaming gives the numbers of the full pass: token by token, in chunks, beyond the first capacity") {
  std::uint64_t seed = 20;
  for (const auto& config : naive::multi_head_configs()) {
    if (!config.causal) continue;
    const Index batch = 2, tokens = 150;  // the cache starts with room for 64
    const auto layer = random_layer<double>(config, ++seed);
    const auto x = random_hidden<double>(batch, tokens, config.d_model, seed);
    const Tensor<double, 3> full = layer(x);
    for (const Index chunk : {1, 7, 150}) {
      INFO(naive::describe(config) << ", chunk " << chunk << ", seed " << seed);
      MultiHeadAttention<double>::State state;
      Tensor<double, 3> y;
      double error = 0;
      for (Index first = 0; first < tokens; first += chunk) {
        const Index count = std::min(chunk, tokens - first);
        Tensor<double, 3> part(batch, count, config.d_model);
        for (Index b = 0; b < batch; ++b) std::copy_n(&x(b, first, 0), count * config.d_model, &part(b, 0, 0));
        layer.step(part, y, state);
        for (Index b = 0; b < batch; ++b)
          for (Index t = 0; t < count; ++t)
            for (Index d = 0; d < config.d_model; ++d)
              error = test::larger(error, std::abs(y(b, t, d) - full(b, first + t, d)));
      }
      CHECK(error < 1e-12);
    }
  }
}

TEST_CASE("multi-head attention refuses what it cannot mean") {
  Rng rng(1);
  const auto make = [&](auto&& change) {
    MultiHeadAttentionConfig config;
    config.d_model = 12, config.n_heads = 3;
    change(config);
    return MultiHeadAttention<float>(config, rng);
  };
  using Config = MultiHeadAttentionConfig;
  CHECK_THROWS_WITH(make([](Config& c) { c.n_heads = 0; }),
                    "MultiHeadAttentionConfig: n_heads: expected at least 1, got 0");
  CHECK_THROWS_WITH(make([](Config& c) { c.n_heads = 5; }),
                    "MultiHeadAttentionConfig: d_model: expected a multiple of n_heads 5, got 12");
  CHECK_THROWS_AS(make([](Config& c) { c.n_kv_heads = 2; }), Error);
  CHECK_THROWS_AS(make([](Config& c) { c.n_heads = 4, c.rotary = Rotary::interleaved; }), Error);
  CHECK_THROWS_AS(make([](Config& c) { c.causal = false, c.window = 3; }), Error);
  CHECK_THROWS_AS(make([](Config& c) { c.d_model = -12; }), Error);

  const auto layer = make([](Config&) {});
  Tensor<float, 3> y;
  MultiHeadAttention<float>::Cache cache;
  CHECK_THROWS_WITH(layer.forward(random_hidden<float>(2, 3, 13, 1), y, cache),
                    "MultiHeadAttention::forward: x: expected [-1, -1, 12], got [2, 3, 13]");
  layer.forward(random_hidden<float>(2, 3, 12, 1), y, cache);
  auto grad = zeros_like(layer);
  CHECK_THROWS_AS(layer.backward(random_hidden<float>(2, 4, 12, 1), cache, y, grad), Error);

  MultiHeadAttention<float>::State state;
  state.keys.limit = 5;
  layer.step(random_hidden<float>(2, 3, 12, 1), y, state);
  CHECK_THROWS_WITH(layer.step(random_hidden<float>(2, 3, 12, 1), y, state),
                    "KeyValueCache: tokens: expected at most 5, got 6");
  layer.step(random_hidden<float>(2, 2, 12, 1), y, state);  // the refused call changed nothing
  CHECK(state.position == 5);
  CHECK_THROWS_AS(layer.step(random_hidden<float>(1, 1, 12, 1), y, state), Error);
  const auto bidirectional = make([](Config& c) { c.causal = false; });
  MultiHeadAttention<float>::State other;
  CHECK_THROWS_AS(bidirectional.step(random_hidden<float>(1, 1, 12, 1), y, other), Error);
}
