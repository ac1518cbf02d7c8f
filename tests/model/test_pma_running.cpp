// A phase-modulated model in use: streams, threads, text.
#include "model/pma_support.hpp"
#include "rbar/model/generate.hpp"
#include "support/passes.hpp"
#include "support/streaming.hpp"

using namespace rbar;
using namespace pma_test;

TEST_CASE("streaming gives the phase-modulated model's logits, token by token and in chunks") {
  for (const auto& config : configs()) {
    const auto model = random_model<float>(config, 8);
    const auto tokens = random_tokens(2, config.max_seq_len, config.vocab_size, 9);
    for (const Index chunk : {1, 7}) {
      INFO(describe(config) << ", chunk " << chunk);
      CHECK(test::streaming_difference(model, tokens, chunk) < 1e-5);
    }
  }
}

TEST_CASE("a phase-modulated model writes on past its context") {
  const auto model = random_model<float>(tiny_config(), 1);
  const std::vector<Token> prompt = {1, 2, 3};
  GenerateOptions options;
  options.max_new_tokens = 40;
  const auto streamed = generate(model, prompt, options);
  options.use_cache = false;
  CHECK(streamed.size() == 40);
  CHECK(streamed == generate(model, prompt, options));
}

TEST_CASE("a phase-modulated model has the same bits for 1, 2 and 5 threads") {
  for (auto config : configs()) {
    config.dropout = 0.1;
    config.max_seq_len = 50;
    INFO(describe(config));
    const auto model = random_model<float>(config, 10);
    const auto tokens = random_tokens(9, config.max_seq_len, config.vocab_size, 11);
    PhaseModulatedAttentionLM<float>::Cache cache;
    cache.dropout = {true, 1, 2};
    CHECK(test::same_for_any_threads(model, tokens, cache));
  }
}
