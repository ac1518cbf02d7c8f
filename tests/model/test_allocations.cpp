#include "model/transformer_support.hpp"
#include "rbar/model/cort.hpp"
#include "support/allocations.hpp"

using namespace rbar;
using namespace transformer_test;

TEST_CASE("the second forward and backward pass of the same shape allocate nothing") {
  for (auto config : configs()) {
    config.dropout = 0.1;
    INFO(describe(config));
    const auto model = random_model<float>(config, 1);
    const auto tokens = random_tokens(3, config.max_seq_len, config.vocab_size, 2);
    Tensor<float, 3> dlogits(3, config.max_seq_len, config.vocab_size), logits;
    dlogits.setConstant(0.1f);
    TransformerModel<float>::Cache cache;
    cache.dropout = {true, 1, 2};
    auto grad = zeros_like(model);
    const auto pass = [&] {
      model.forward(tokens, logits, cache);
      model.backward(dlogits, cache, grad);
    };
    const long first = test::allocations_in(pass), second = test::allocations_in(pass);
    CHECK((first > 0 || !test::counts_allocations));
    CHECK(second == 0);
  }
}

TEST_CASE("CoRT's second forward and backward pass allocate nothing, whatever is routed") {
  for (const KeyValues key_values : {KeyValues::all, KeyValues::routed}) {
    CoRTConfig config;
    config.vocab_size = 19;
    config.d_model = 24;
    config.n_heads = 3;
    config.n_layers = 2;
    config.max_seq_len = 20;
    config.dropout = 0.1;
    config.route_frac = 0.3;
    config.key_values = key_values;
    INFO("key_values " << name_of(key_values));
    Rng rng(1);
    const CoRTModel<float> model(config, rng);
    Tensor<float, 3> dlogits(3, config.max_seq_len, config.vocab_size), logits;
    dlogits.setConstant(0.1f);
    CoRTModel<float>::Cache cache;
    auto grad = zeros_like(model);
    const auto pass = [&](std::uint64_t seed) {
      const auto tokens = random_tokens(3, config.max_seq_len, config.vocab_size, seed);
      cache.dropout = {true, 1, seed};
      return test::allocations_in([&] {
        model.forward(tokens, logits, cache);
        model.backward(dlogits, cache, grad);
      });
    };
    CHECK((pass(1) > 0 || !test::counts_allocations));
    for (const std::uint64_t seed : {2u, 3u, 4u, 5u}) CHECK(pass(seed) == 0);
  }
}
