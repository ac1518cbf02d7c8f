#include "model/cgt_support.hpp"
#include "model/kuramoto_lm_support.hpp"
#include "model/pma_support.hpp"
#include "model/transformer_support.hpp"
#include "rbar/model/cort.hpp"
#include "rbar/model/phasegpt.hpp"
#include "support/allocations.hpp"

using namespace rbar;
using namespace transformer_test;

namespace {

// Heap allocations of a forward and backward pass, and of a second one.
template <class Model>
std::pair<long, long> allocations_of_passes(const Model& model, bool recompute = false) {
  const auto& config = model.config;
  const auto tokens = random_tokens(3, config.max_seq_len, config.vocab_size, 2);
  Tensor<float, 3> dlogits(3, config.max_seq_len, config.vocab_size), logits;
  dlogits.setConstant(0.1f);
  typename Model::Cache cache;
  cache.dropout = {true, 1, 2};
  cache.recompute = recompute;
  auto grad = zeros_like(model);
  const auto pass = [&] {
    model.forward(tokens, logits, cache);
    model.backward(dlogits, cache, grad);
  };
  const long first = test::allocations_in(pass);
  return {first, test::allocations_in(pass)};
}

// Of the second passes that keep the layers' inputs only.
template <class Model>
long allocations_of_recomputing(const Model& model) {
  return allocations_of_passes(model, /*recompute=*/true).second;
}

// Of the last ten of 80 tokens that come one by one: by then keys have their room (64, then 128 tokens).
template <class Model>
long allocations_of_late_steps(const Model& model) {
  typename Model::State state;
  Tensor<float, 3> logits;
  Tensor<Token, 2> next(2, 1);
  long late = 0;
  for (Index t = 0; t < 80; ++t) {
    next.setConstant(static_cast<Token>(t % model.config.vocab_size));
    const long count = test::allocations_in([&] { model.step(next, logits, state); });
    if (t >= 70) late += count;
  }
  return late;
}

}  // namespace

TEST_CASE("the second forward and backward pass of the same shape allocate nothing") {
  for (auto config : configs()) {
    config.dropout = 0.1;
    INFO(describe(config));
    const auto model = random_model<float>(config, 1);
    const auto [first, second] = allocations_of_passes(model);
    CHECK((first > 0 || !test::counts_allocations));
    CHECK(second == 0);
    CHECK(allocations_of_recomputing(model) == 0);
  }
}

TEST_CASE("PhaseGPT's second forward and backward pass allocate nothing, nor do its late tokens") {
  for (const double share : {1.0, 0.5}) {
    PhaseGPTConfig config;
    config.vocab_size = 19;
    config.d_model = 24;
    config.n_layers = 3;
    config.n_heads = 3;
    config.n_oscillators = 5;
    config.max_seq_len = 96;
    config.phase_layer_idx = "0,2";
    config.phase_share = share;
    config.phase_noise = config.frequency_jitter = 0.02;
    config.coherence_target = CoherenceTarget::band;
    INFO("share " << share);
    Rng rng(1);
    const PhaseGPT<float> model(config, rng);
    const auto [first, second] = allocations_of_passes(model);
    CHECK((first > 0 || !test::counts_allocations));
    CHECK(second == 0);
    CHECK(allocations_of_recomputing(model) == 0);
    CHECK(allocations_of_late_steps(model) == 0);
  }
}

TEST_CASE("a phase-modulated model's second forward and backward pass allocate nothing, nor do its late tokens") {
  for (auto config : pma_test::configs()) {
    config.dropout = 0.1;
    config.max_seq_len = 96;
    INFO(pma_test::describe(config));
    auto model = pma_test::random_model<float>(config, 1);
    const auto check = [&] {
      const auto [first, second] = allocations_of_passes(model);
      CHECK((first > 0 || !test::counts_allocations));
      CHECK(second == 0);
      CHECK(allocations_of_recomputing(model) == 0);
      CHECK(allocations_of_late_steps(model) == 0);
    };
    check();
    if (config.pma_blocks == 0) continue;
    const auto scope = set_coupling_override(model, 0.5);
    check();
  }
}

TEST_CASE("a torus model's second forward and backward pass allocate nothing, nor do its late tokens") {
  for (auto config : kuramoto_lm_test::configs()) {
    config.dropout = 0.1;
    config.max_seq_len = 96;
    INFO(kuramoto_lm_test::describe(config));
    const auto model = kuramoto_lm_test::random_model<float>(config, 1);
    const auto [first, second] = allocations_of_passes(model);
    CHECK((first > 0 || !test::counts_allocations));
    CHECK(second == 0);
    CHECK(allocations_of_recomputing(model) == 0);
    CHECK(allocations_of_late_steps(model) == 0);
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
    config.key_values = key_values;
    const bool recompute = GENERATE(false, true);
    INFO("key_values " << name_of(key_values) << ", recompute " << recompute);
    const auto random_model = [&](double route_frac) {
      config.route_frac = route_frac;
      Rng rng(1);
      return CoRTModel<float>(config, rng);
    };
    const auto many_routed = random_model(0.9), model = random_model(0.3);
    Tensor<float, 3> dlogits(3, config.max_seq_len, config.vocab_size), logits;
    dlogits.setConstant(0.1f);
    CoRTModel<float>::Cache cache;
    cache.recompute = recompute;
    auto grad = zeros_like(model);
    const auto pass = [&](const CoRTModel<float>& of, std::uint64_t seed) {
      const auto tokens = random_tokens(3, config.max_seq_len, config.vocab_size, seed);
      cache.dropout = {true, 1, seed};
      return test::allocations_in([&] {
        of.forward(tokens, logits, cache);
        of.backward(dlogits, cache, grad);
      });
    };
    // Few queries take another way through the attention than many: either has scratch, kept from its first time on.
    CHECK((pass(many_routed, 1) > 0 || !test::counts_allocations));
    pass(model, 1);
    for (const std::uint64_t seed : {2u, 3u, 4u, 5u}) CHECK(pass(model, seed) == 0);
  }
}

TEST_CASE("a gated transformer's second round of passes allocates nothing, whoever goes how far") {
  auto config = cgt_test::tiny_config();
  config.dropout = 0.1;
  const bool exits = GENERATE(false, true), sparse = GENERATE(false, true), recompute = GENERATE(false, true);
  config.early_exit.enabled = exits;
  config.sparsity.enabled = sparse;
  config.sparsity.chunk = config.sparsity.block = 4;
  INFO("early exit " << exits << ", sparse " << sparse << ", recompute " << recompute);
  const auto model = cgt_test::random_model<float>(config, 1);
  Tensor<float, 3> dlogits(3, config.max_seq_len, config.vocab_size), logits;
  dlogits.setConstant(0.1f);
  CoherenceGatedTransformer<float>::Cache cache;
  cache.recompute = recompute;
  auto grad = zeros_like(model);
  const auto round = [&] {
    long count = 0;
    for (const std::uint64_t seed : {1u, 2u, 3u, 4u}) {
      const auto tokens = random_tokens(3, config.max_seq_len, config.vocab_size, seed);
      cache.dropout = {true, 1, seed};
      count += test::allocations_in([&] {
        model.forward(tokens, logits, cache);
        model.backward(dlogits, cache, grad);
      });
    }
    return count;
  };
  CHECK((round() > 0 || !test::counts_allocations));
  CHECK(round() == 0);
}

// A token that goes on after many that stopped asks for all their keys at once, which may need more scratch than ever
// before; here everybody goes on.
TEST_CASE("tokens of a gated stream allocate nothing once the keys have their room") {
  auto config = cgt_test::tiny_config();
  config.max_seq_len = 64;
  auto model = cgt_test::random_model<float>(config, 2);
  model.stack.router.set_thresholds({0, 0, 1e20, 1e21});
  const auto tokens = random_tokens(2, 60, config.vocab_size, 3);
  CoherenceGatedTransformer<float>::State state;
  Tensor<float, 3> logits;
  Tensor<Token, 2> next(2, 1);
  long late = 0;
  for (Index t = 0; t < 60; ++t) {
    next(0, 0) = tokens(0, t);
    next(1, 0) = tokens(1, t);
    const long count = test::allocations_in([&] { model.step(next, logits, state); });
    if (t >= 50) late += count;
  }
  CHECK(late == 0);
}
