#include "rbar/audit/causality.hpp"
#include "rbar/audit/gradient_check.hpp"
#include "rbar/model/phasegpt.hpp"
#include "rbar/model/transformer.hpp"
#include "rbar/train/flat_parameters.hpp"
#include "support/catch.hpp"
#include "support/passes.hpp"

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
  config.phase_layer_idx = "auto";
  CHECK(config.phase_layers() == std::vector<Index>{1});
  config.phase_layer_idx = "";
  CHECK(config.phase_layers().empty());
  CHECK(PhaseGPTConfig{}.phase_layers() == std::vector<Index>{7});
  for (const char* bad : {"3", "2,1", "1,1", "a", "1,", ",1", "-1", "1 2", "automatic", "99999999999999999999"}) {
    config.phase_layer_idx = bad;
    INFO(bad);
    CHECK_THROWS_AS(config.validate(), Error);
  }
  Rng rng(1);
  const PhaseGPT<float> model(small_config(), rng);
  CHECK(std::holds_alternative<PhaseAttention<float>>(model.layers[0].mixer));
  CHECK(std::holds_alternative<MultiHeadAttention<float>>(model.layers[1].mixer));
}

TEST_CASE("PhaseGPT's presets are the published experiments, causal unless asked otherwise") {
  const auto layers = PhaseGPTConfig::phase_a(65, 64, 2, "4,7");
  layers.validate();
  CHECK(layers.phase_layers() == std::vector<Index>{4, 7});
  CHECK((layers.vocab_size == 65 && layers.n_oscillators == 64 && layers.coupling_init == 2));
  const auto controlled = PhaseGPTConfig::phase_b(50257, 0.75, true);
  controlled.validate();
  CHECK(controlled.phase_layers() == std::vector<Index>{7});
  CHECK((controlled.vocab_size == 50257 && controlled.phase_noise == 0.03 && controlled.frequency_jitter == 0.02));
  CHECK(controlled.coherence_target == CoherenceTarget::ceiling);
  CHECK(PhaseGPTConfig::phase_b(50257).coherence_target == CoherenceTarget::none);

  const auto causal = PhaseGPTConfig::phase_a(65), leaky = causal.published();
  CHECK((causal.causality == Causality::causal && causal.coupling == Coupling::attractive));
  CHECK((leaky.causality == Causality::reference && leaky.coupling == Coupling::reference));
  CHECK(leaky.readout == PhaseReadout::raw);
  // Published: 83 M, with tiny Shakespeare's 65 characters. Reading cos and sin costs 768·384 weights more.
  CHECK(parameter_count(leaky) == 83'531'532);
  CHECK(parameter_count(causal) == 83'531'532 + 768 * 384);

  Rng rng(7);
  for (const char* where : {"", "1", "0,2"})
    for (const double share : {1.0, 0.5}) {
      auto config = small_config();
      config.phase_layer_idx = where;
      config.phase_share = share;
      config.tie_embeddings = share == 1;
      config.readout = share == 1 ? PhaseReadout::raw : PhaseReadout::circular;
      INFO("layers '" << where << "' share " << share);
      CHECK(PhaseGPT<float>(config, rng).num_parameters() == parameter_count(config));
    }
}

TEST_CASE("PhaseGPT without phase layers is GPT-2") {
  Rng rng(8);
  auto config = small_config();
  config.phase_layer_idx = "";
  const PhaseGPT<double> model(config, rng);
  auto baseline = TransformerConfig::gpt2_style(config.vocab_size, config.d_model, config.n_layers, config.n_heads,
                                                config.max_seq_len);
  baseline.d_ff = config.d_ff;
  baseline.dropout = 0;
  TransformerModel<double> transformer(baseline, rng);
  const auto from = parameters_of(model);
  const auto to = parameters_of(transformer);
  REQUIRE(from.size() == to.size());
  for (std::size_t i = 0; i < from.size(); ++i) {
    INFO(from[i].name << " is " << to[i].name);
    REQUIRE(from[i].shape == to[i].shape);
    std::copy_n(from[i].data, from[i].size, to[i].data);
  }
  const auto tokens = random_tokens(2, 9, config.vocab_size, rng);
  const auto logits = model(tokens), expected = transformer(tokens);
  for (Index i = 0; i < logits.size(); ++i) REQUIRE(logits.data()[i] == Approx(expected.data()[i]).margin(1e-12));
  PhaseGPT<double>::Cache cache;
  Tensor<double, 3> again;
  model.forward(tokens, again, cache);
  CHECK(coherence(model, cache).empty());
}

TEST_CASE("PhaseGPT begins with GPT-2's weights, N(0, .02), and what turns does not decay") {
  Rng rng(9);
  for (const double share : {1.0, 0.5}) {
    auto config = small_config();
    config.d_model = 64;
    config.d_ff = 0;
    config.n_oscillators = 40;
    config.phase_share = share;
    config.tie_embeddings = false;
    PhaseGPT<float> model(config, rng);
    const FlatParameters<float> flat(model);
    std::size_t frequencies = 0;
    for (std::size_t i = 0; i < flat.parts().size(); ++i) {
      const auto& part = flat.parts()[i];
      const bool frequency = part.name.ends_with("natural_freq"), matrix = part.shape.size() == 2 && !frequency;
      INFO(part.name);
      CHECK(flat.decays(i) == matrix);
      frequencies += frequency;
      double square = 0;
      for (const float value : part.values()) square += static_cast<double>(value) * value;
      const double deviation = std::sqrt(square / static_cast<double>(part.size));
      // The deviation of n normal numbers has a relative error of 1/√(2n): five of them.
      const double spread = 5 / std::sqrt(2 * static_cast<double>(part.size));
      if (matrix) CHECK(deviation == Approx(0.02).epsilon(spread));
      if (frequency) CHECK(deviation == Approx(0.1).epsilon(spread));
      if (part.name.ends_with("bias")) CHECK(deviation == 0);
      if (part.name.ends_with("coupling_matrix")) CHECK(part.data[0] == 1);
    }
    CHECK(frequencies == 2);
  }
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

TEST_CASE("PhaseGPT has the same bits for any number of threads") {
  Rng rng(11);
  for (const double share : {1.0, 0.3}) {
    auto config = small_config();
    config.phase_share = share;
    config.max_seq_len = 90;
    config.dropout = config.phase_noise = config.frequency_jitter = 0.1;
    config.coherence_target = CoherenceTarget::center;
    PhaseGPT<float>::Cache cache;
    cache.dropout = {true, 3, 5};
    CHECK(test::same_for_any_threads(PhaseGPT<float>(config, rng), random_tokens(3, 90, 11, rng), cache));
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
  CHECK_THROWS_WITH(cache.angles(3), ContainsText("layer"));
}

TEST_CASE("PhaseGPT's cache tells how coherent its phase layers are") {
  Rng rng(10);
  for (const double share : {1.0, 0.5}) {
    auto config = small_config();
    config.phase_share = share;
    config.coherence_target = CoherenceTarget::center;
    const PhaseGPT<double> model(config, rng);
    PhaseGPT<double>::Cache cache;
    Tensor<double, 3> logits;
    model.forward(random_tokens(2, 7, config.vocab_size, rng), logits, cache);
    const auto measured = coherence(model, cache);
    REQUIRE(measured.size() == 2);
    CHECK((measured[0].layer == 0 && measured[1].layer == 2));
    // It is what the regulariser pushes.
    double loss = 0;
    CoherenceTracker tracker;
    for (const auto& [layer, order] : measured) {
      loss += coherence_loss({CoherenceTarget::center}, order).loss;
      tracker.observe(std::span<const double>(&order, 1));
    }
    CHECK(loss == Approx(cache.auxiliary_loss));
    CHECK(tracker.history == std::vector<double>{measured[0].order, measured[1].order});
  }
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
  for (const char* where : {"", "1", "0,2"}) {
    auto streaming = small_config();
    streaming.phase_layer_idx = where;
    const PhaseGPT<float> streamed(streaming, rng);
    PhaseGPT<float>::State stream;
    streamed.step(random_tokens(2, 19, 11, rng), logits, stream);
    CHECK_THROWS_WITH(streamed.step(random_tokens(2, 2, 11, rng), logits, stream), ContainsText("max_seq_len"));
    CHECK_THROWS_AS(streamed.step(random_tokens(3, 1, 11, rng), logits, stream), Error);
    streamed.step(random_tokens(2, 1, 11, rng), logits, stream);
    CHECK(stream.position == 20);
  }
  for (const auto spoil : {+[](PhaseGPTConfig& c) { c.vocab_size = 0; }, +[](PhaseGPTConfig& c) { c.dropout = 1; },
                           +[](PhaseGPTConfig& c) { c.phase_share = 2; }, +[](PhaseGPTConfig& c) { c.n_heads = 3; },
                           +[](PhaseGPTConfig& c) { c.max_seq_len = 0; }, +[](PhaseGPTConfig& c) { c.dt = 0; }}) {
    auto bad = small_config();
    spoil(bad);
    CHECK_THROWS_AS(PhaseGPT<float>(bad, rng), Error);
  }
}
