#include "model/transformer_support.hpp"
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
