#include "model/cgt_support.hpp"
#include "model/frozen_support.hpp"
#include "rbar/model/cort.hpp"

using namespace rbar;
using frozen_test::check_frozen;
using frozen_test::share_of_memory;

TEST_CASE("a CoRT with frozen weights: the same model, streaming as well, for inference only") {
  for (const KeyValues key_values : {KeyValues::all, KeyValues::routed})
    for (const bool learnable : {false, true}) {
      INFO("key_values " << name_of(key_values) << ", learnable mixer " << learnable);
      CoRTConfig config;
      config.vocab_size = 13;
      config.d_model = 24;
      config.n_heads = 3;
      config.n_layers = 3;
      config.max_seq_len = 24;
      config.dropout = 0;
      config.route_frac = 0.4;
      config.key_values = key_values;
      config.learnable_mixer = learnable;
      Rng rng(1);
      CoRTModel<float> model(config, rng);
      for (const auto& parameter : parameters_of(model))
        for (float& value : parameter.values()) value += static_cast<float>(rng.normal(0, 0.1));
      typename CoRTModel<float>::Cache cache;
      Tensor<float, 3> logits;
      model.forward(transformer_test::random_tokens(2, 24, 13, 5), logits, cache);
      for (const RoutingStats& stats : cache.routing_stats()) {
        CHECK(stats.attention_share > 0.1);
        CHECK(stats.mixing_share > 0.1);
      }
      check_frozen(model);
      config.d_model = 96;
      CHECK(share_of_memory(CoRTModel<float>(config, rng)) < 0.55);
    }
}

TEST_CASE("a Coherence-Gated Transformer with frozen weights: the same model, streaming as well, for inference only") {
  for (const int variant : {0, 1, 2, 3, 4}) {
    INFO("variant " << variant);
    auto config = cgt_test::variant(variant);
    const auto model = cgt_test::random_model<float>(config, 1);
    check_frozen(model);

    typename CoherenceGatedTransformer<float>::Cache cache;
    Tensor<float, 3> logits;
    auto rounded = model;
    round_weights(rounded);
    const auto tokens = cgt_test::random_tokens(4, config.max_seq_len, config.vocab_size, 2);
    rounded.forward(tokens, logits, cache);
    CHECK(cgt_test::lanes_are_mixed(cache.sheet()));
    CHECK(rounded.infer(tokens).emitted() > 0);

    config.d_model = config.n_heads * 32;
    config.d_ff = 96;
    Rng rng(1);
    CHECK(share_of_memory(CoherenceGatedTransformer<float>(config, rng)) < 0.6);
  }
}
