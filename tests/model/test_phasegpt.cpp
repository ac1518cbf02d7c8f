#include "rbar/audit/causality.hpp"
#include "rbar/audit/gradient_check.hpp"
#include "rbar/model/phasegpt.hpp"
#include "support/catch.hpp"

using namespace rbar;

namespace {

PhaseGPTConfig small_config() {
  PhaseGPTConfig config;
  config.vocab_size = 11;
  config.d_model = 8;
  config.n_layers = 3;
  config.n_heads = 2;
  config.d_ff = 12;
  config.max_seq_len = 20;
  config.dropout = 0;
  config.phase_layer_idx = "0,2";
  config.n_oscillators = 3;
  config.n_steps = 4;
  return config;
}

Tensor<Token, 2> random_tokens(Index batch, Index count, Index vocabulary, Rng& rng) {
  Tensor<Token, 2> tokens(batch, count);
  for (Token& token : elements(tokens)) token = static_cast<Token>(rng.below(static_cast<std::uint64_t>(vocabulary)));
  return tokens;
}

}  // namespace

TEST_CASE("PhaseGPT's layers are where the config says") {
  auto config = small_config();
  CHECK(config.phase_layers() == std::vector<Index>{0, 2});
  config.phase_layer_idx = "";
  CHECK(config.phase_layers() == std::vector<Index>{1});
  CHECK(PhaseGPTConfig::phase_a().phase_layers() == std::vector<Index>{7});
  for (const char* bad : {"3", "2,1", "1,1", "a", "1,", ",1", "-1", "1 2", "99999999999999999999"}) {
    config.phase_layer_idx = bad;
    INFO(bad);
    CHECK_THROWS_AS(config.validate(), Error);
  }
  PhaseGPTConfig::phase_a(64, 2, "4,7").validate();
  const auto controlled = PhaseGPTConfig::phase_b(0.75, true);
  controlled.validate();
  CHECK(controlled.phase_noise == 0.03);
  CHECK(controlled.coherence_target == CoherenceTarget::ceiling);
  Rng rng(1);
  const PhaseGPT<float> model(small_config(), rng);
  CHECK(std::holds_alternative<PhaseAttention<float>>(model.layers[0].mixer));
  CHECK(std::holds_alternative<MultiHeadAttention<float>>(model.layers[1].mixer));
}

TEST_CASE("PhaseGPT's gradients, hybrid and regularised too") {
  Rng rng(2);
  for (const double share : {1.0, 0.5})
    for (const CoherenceTarget target : {CoherenceTarget::none, CoherenceTarget::center}) {
      auto config = small_config();
      config.phase_share = share;
      config.coherence_target = target;
      const PhaseGPT<double> model(config, rng);
      const auto report = gradient_check(model, view(random_tokens(2, 6, config.vocab_size, rng)),
                                         {.step = 1e-5, .samples_per_tensor = 12});
      INFO("share " << share << " " << name_of(target) << " " << report.worst);
      CHECK(report.error <= 1e-6);
    }
}

TEST_CASE("PhaseGPT is causal, as published it is not") {
  Rng rng(3);
  for (const double share : {1.0, 0.5}) {
    auto config = small_config();
    config.phase_share = share;
    CHECK(causality(PhaseGPT<float>(config, rng)).leak == 0);
    config.causality = Causality::reference;
    config.coupling = Coupling::reference;
    config.readout = PhaseReadout::raw;
    CHECK(!causality(PhaseGPT<float>(config, rng)).passed());
  }
}

TEST_CASE("PhaseGPT streams the numbers of the full pass") {
  Rng rng(4);
  for (const double share : {1.0, 0.3}) {
    auto config = small_config();
    config.phase_share = share;
    config.phase_noise = 0.5;  // not outside training
    const PhaseGPT<float> model(config, rng);
    const auto tokens = random_tokens(2, 15, config.vocab_size, rng);
    const auto whole = model(tokens);
    PhaseGPT<float>::State state;
    Index done = 0;
    for (const Index count : {1, 6, 1, 7}) {
      Tensor<Token, 2> part(2, count);
      for (Index b = 0; b < 2; ++b) std::copy_n(&tokens(b, done), count, &part(b, 0));
      Tensor<float, 3> logits;
      model.step(part, logits, state);
      for (Index b = 0; b < 2; ++b)
        for (Index i = 0; i < count * config.vocab_size; ++i)
          REQUIRE((&logits(b, 0, 0))[i] == Approx((&whole(b, done, 0))[i]).margin(1e-5));
      done += count;
    }
    CHECK(done == 15);
  }
}

TEST_CASE("PhaseGPT's noise is drawn by step while training") {
  Rng rng(5);
  auto config = small_config();
  config.phase_noise = 0.2;
  config.frequency_jitter = 0.2;
  const PhaseGPT<float> model(config, rng);
  const auto tokens = random_tokens(1, 9, config.vocab_size, rng);
  PhaseGPT<float>::Cache cache;
  Tensor<float, 3> first, second;
  cache.dropout = {true, 3, 0};
  model.forward(tokens, first, cache);
  model.forward(tokens, second, cache);
  CHECK(std::equal(first.data(), first.data() + first.size(), second.data()));
  cache.dropout.step = 1;
  model.forward(tokens, second, cache);
  CHECK(!std::equal(first.data(), first.data() + first.size(), second.data()));
  REQUIRE(cache.angles(0) != nullptr);
  CHECK(shape_of(*cache.angles(0)) == Shape<3>{1, 9, 6});
  CHECK(cache.angles(1) == nullptr);
}

TEST_CASE("PhaseGPT refuses what it cannot do") {
  Rng rng(6);
  auto config = small_config();
  const PhaseGPT<float> model(config, rng);
  Tensor<float, 3> logits;
  PhaseGPT<float>::Cache cache;
  CHECK_THROWS_WITH(model.forward(random_tokens(1, 21, 11, rng), logits, cache), ContainsText("max_seq_len"));
  config.causality = Causality::reference;
  const PhaseGPT<float> reference(config, rng);
  PhaseGPT<float>::State state;
  CHECK_THROWS_WITH(reference.step(random_tokens(1, 2, 11, rng), logits, state), ContainsText("causality"));
  for (const auto spoil : {+[](PhaseGPTConfig& c) { c.vocab_size = 0; }, +[](PhaseGPTConfig& c) { c.dropout = 1; },
                           +[](PhaseGPTConfig& c) { c.phase_share = 2; }, +[](PhaseGPTConfig& c) { c.n_heads = 3; },
                           +[](PhaseGPTConfig& c) { c.max_seq_len = 0; }, +[](PhaseGPTConfig& c) { c.dt = 0; }}) {
    auto bad = small_config();
    spoil(bad);
    CHECK_THROWS_AS(PhaseGPT<float>(bad, rng), Error);
  }
}
