// A phase-modulated model in use: streams, threads, text.
#include "model/pma_support.hpp"
#include "rbar/model/generate.hpp"
#include "support/differences.hpp"

using namespace rbar;
using namespace pma_test;

TEST_CASE("streaming gives the phase-modulated model's logits, token by token and in chunks") {
  for (const auto& config : configs()) {
    const auto model = random_model<float>(config, 8);
    const Index batch = 2, length = config.max_seq_len;
    const auto tokens = random_tokens(batch, length, config.vocab_size, 9);
    const Tensor<float, 3> full = model(tokens);
    double largest = 0;
    for (const float logit : elements(full)) largest = std::max(largest, std::abs(static_cast<double>(logit)));
    for (const Index chunk : {1, 7}) {
      INFO(describe(config) << ", chunk " << chunk);
      PhaseModulatedAttentionLM<float>::State state;
      Tensor<float, 3> logits;
      double error = 0;
      for (Index first = 0; first < length; first += chunk) {
        const Index count = std::min(chunk, length - first);
        Tensor<Token, 2> part(batch, count);
        for (Index b = 0; b < batch; ++b) std::copy_n(&tokens(b, first), count, &part(b, 0));
        model.step(part, logits, state);
        for (Index b = 0; b < batch; ++b)
          for (Index i = 0; i < count * config.vocab_size; ++i)
            error = test::larger(error, std::abs(static_cast<double>((&logits(b, 0, 0))[i] - (&full(b, first, 0))[i])));
      }
      CHECK(error < 1e-5 * largest);
      CHECK(state.position == length);
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

TEST_CASE("a phase-modulated model has the same bits for 1, 2 and 5 threads, and on a second run") {
  for (auto config : configs()) {
    config.dropout = 0.1;
    config.max_seq_len = 50;
    INFO(describe(config));
    const auto model = random_model<float>(config, 10);
    const auto tokens = random_tokens(9, config.max_seq_len, config.vocab_size, 11);
    Tensor<float, 3> dlogits(9, config.max_seq_len, config.vocab_size), logits;
    Rng rng(12);
    normal(dlogits, 1.0, rng);
    PhaseModulatedAttentionLM<float>::Cache cache;
    cache.dropout = {true, 1, 2};
    std::vector<float> first;
    for (const int threads : {1, 2, 5, 1}) {
      set_num_threads(threads);
      auto grad = zeros_like(model);
      model.forward(tokens, logits, cache);
      model.backward(dlogits, cache, grad);
      std::vector<float> all(logits.data(), logits.data() + logits.size());
      for (const auto& p : parameters_of(grad)) all.insert(all.end(), p.data, p.data + p.size);
      if (first.empty()) first = all;
      CHECK(all == first);
    }
    set_num_threads(1);
  }
}
