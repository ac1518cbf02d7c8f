// Training passes that keep the layers' inputs only: the numbers of those that keep everything, to the last bit.
#include "model/cgt_support.hpp"
#include "model/kuramoto_lm_support.hpp"
#include "model/pma_support.hpp"
#include "model/transformer_support.hpp"
#include "rbar/model/cort.hpp"
#include "rbar/model/phasegpt.hpp"

using namespace rbar;
using namespace transformer_test;

namespace {

template <class Model>
std::vector<float> numbers_of(const Model& gradient, const Tensor<float, 3>& logits) {
  std::vector<float> numbers(logits.data(), logits.data() + logits.size());
  for (const auto& parameter : parameters_of(gradient))
    numbers.insert(numbers.end(), parameter.data, parameter.data + parameter.size);
  return numbers;
}

// Two steps on different tokens with the same cache: what the first left in it must not reach the second. `between`
// is called after each with (model, cache).
template <class Model, class Between>
std::vector<float> two_steps(Model model, bool recompute, Between&& between) {
  typename Model::Cache cache;
  cache.recompute = recompute;
  Tensor<float, 3> logits;
  auto gradient = zeros_like(model);
  for (const std::uint64_t seed : {7u, 8u}) {
    const auto tokens = random_tokens(2, model.config.max_seq_len - static_cast<Index>(seed % 2), 13, seed);
    cache.dropout = {true, 3, seed};
    model.forward(tokens, logits, cache);
    model.forward(tokens, logits, cache);  // a pass without a backward one
    model.backward(view(std::as_const(logits)), cache, gradient);
    between(model, cache);
  }
  std::vector<float> numbers = numbers_of(gradient, logits);
  for (const auto& buffer : buffers_of(model)) numbers.insert(numbers.end(), buffer.data, buffer.data + buffer.size);
  numbers.push_back(static_cast<float>(auxiliary_loss_of(cache)));
  return numbers;
}
template <class Model>
bool same_bits(const Model& model) {
  const auto between = [](Model& stepped, const typename Model::Cache& cache) {
    if constexpr (requires { stepped.adapt(cache); }) stepped.adapt(cache);
  };
  return two_steps(model, true, between) == two_steps(model, false, between);
}

}  // namespace

TEST_CASE("a standard transformer's recomputed gradients are those of kept caches") {
  for (auto config : configs()) {
    config.dropout = 0.1;
    config.n_layers = 3;
    INFO(describe(config));
    CHECK(same_bits(random_model<float>(config, 1)));
  }
}

TEST_CASE("CoRT's recomputed gradients, and what its routers learn, are those of kept caches") {
  for (const KeyValues key_values : {KeyValues::all, KeyValues::routed}) {
    CoRTConfig config;
    config.vocab_size = 13;
    config.d_model = 24;
    config.n_heads = 3;
    config.n_layers = 3;
    config.max_seq_len = 20;
    config.dropout = 0.1;
    config.route_frac = 0.3;
    config.key_values = key_values;
    INFO("key_values " << name_of(key_values));
    Rng rng(1);
    const CoRTModel<float> model(config, rng);
    CHECK(same_bits(model));

    typename CoRTModel<float>::Cache kept, recomputed;
    recomputed.recompute = true;
    const auto tokens = random_tokens(2, 20, 13, 9);
    Tensor<float, 3> logits;
    model.forward(tokens, logits, kept);
    model.forward(tokens, logits, recomputed);
    const auto expected = kept.routing_stats(), stats = recomputed.routing_stats();
    REQUIRE(stats.size() == expected.size());
    for (std::size_t l = 0; l < stats.size(); ++l) CHECK(stats[l].mean_score == expected[l].mean_score);
  }
}

TEST_CASE("a phase-modulated model's recomputed gradients are those of kept caches") {
  for (auto config : pma_test::configs()) {
    config.dropout = 0.1;
    INFO(pma_test::describe(config));
    auto model = pma_test::random_model<float>(config, 1);
    CHECK(same_bits(model));
    if (config.pma_blocks == 0) continue;
    const auto scope = set_coupling_override(model, 0.5);
    CHECK(same_bits(model));
  }
}

TEST_CASE("PhaseGPT's recomputed gradients are those of kept caches, its mixers mixed") {
  for (const double share : {1.0, 0.5}) {
    PhaseGPTConfig config;
    config.vocab_size = 13;
    config.d_model = 24;
    config.n_layers = 5;
    config.n_heads = 3;
    config.n_oscillators = 5;
    config.max_seq_len = 20;
    config.phase_layer_idx = "0,2,3";
    config.phase_share = share;
    config.phase_noise = config.frequency_jitter = 0.02;
    config.coherence_target = CoherenceTarget::band;
    INFO("share " << share);
    Rng rng(1);
    const PhaseGPT<float> model(config, rng);
    CHECK(same_bits(model));
    PhaseGPT<float>::Cache cache;
    cache.recompute = true;
    Tensor<float, 3> logits;
    model.forward(random_tokens(1, 9, 13, 2), logits, cache);
    CHECK_THROWS_WITH(cache.angles(0), ContainsText("that keeps them"));
  }
}

TEST_CASE("a torus model's recomputed gradients are those of kept caches") {
  for (auto config : kuramoto_lm_test::configs()) {
    config.dropout = 0.1;
    config.n_layers = 3;
    INFO(kuramoto_lm_test::describe(config));
    CHECK(same_bits(kuramoto_lm_test::random_model<float>(config, 1)));
  }
}

TEST_CASE("a gated transformer's recomputed gradients, and what its router learns, are those of kept caches") {
  const int number = GENERATE(0, 1, 2, 3, 4, 5);
  auto config = cgt_test::variant(number);
  config.dropout = 0.1;
  INFO("variant " << number);
  CHECK(same_bits(cgt_test::random_model<float>(config, 1)));
}
