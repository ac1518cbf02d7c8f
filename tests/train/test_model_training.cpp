// The trainer on the library's own models: they learn, and neither threads nor recomputation change a bit.
#include "rbar/model/cort.hpp"
#include "rbar/model/kuramoto_lm.hpp"
#include "rbar/model/pma_lm.hpp"
#include "rbar/model/transformer.hpp"
#include "rbar/train/trainer.hpp"
#include "support/catch.hpp"
#include "support/tiny_language_model.hpp"

using namespace rbar;

namespace {

// Words of a small grammar: the next letter is certain inside a word and free between words.
std::vector<Token> words(Index count) {
  constexpr std::array<std::array<Token, 4>, 3> lexicon = {{{0, 1, 2, 9}, {3, 4, 5, 9}, {6, 7, 8, 9}}};
  Rng rng(21);
  std::vector<Token> tokens;
  while (static_cast<Index>(tokens.size()) < count)
    for (const Token token : lexicon[rng.below(3)]) tokens.push_back(token);
  return tokens;
}

TrainingConfig config_of(Index steps) {
  TrainingConfig config;
  config.steps = steps;
  config.batch_size = 3;
  config.accumulation = 2;
  config.window = 19;
  config.optimizer.learning_rate = 0.01;
  config.schedule.warmup_steps = 5;
  return config;
}

TransformerConfig gpt2() { return TransformerConfig::gpt2_style(10, 16, 2, 2, 32); }
TransformerConfig llama() { return TransformerConfig::llama_style(10, 16, 2, 4, 2, 24, 32); }
CoRTConfig cort(bool adaptive) {
  CoRTConfig config;
  config.vocab_size = 10;
  config.d_model = 16;
  config.n_heads = 2;
  config.n_layers = 2;
  config.max_seq_len = 32;
  config.route_frac = 0.4;
  config.adaptive_routing = adaptive;
  return config;
}

KuramotoLMConfig torus(TorusGate gate, TorusReadout readout) {
  KuramotoLMConfig config;
  config.vocab_size = 10;
  config.d_model = 16;
  config.n_layers = 2;
  config.n_heads = 2;
  config.max_seq_len = 32;
  config.gate = gate;
  config.readout = readout;
  return config;
}

template <class Model>
void check_training(const typename Model::Config& config) {
  const auto tokens = words(600);
  Rng rng(4);
  const Model start(config, rng);
  Model one = start, two = start;
  Trainer trainer(one, config_of(60));
  const double first_loss = trainer.step(tokens).loss;
  CHECK(first_loss == Approx(std::log(10)).margin(0.5));
  trainer.train(tokens);
  CHECK(evaluate(one, tokens, {.window = 19}).nats < 0.8);  // ln 3 / 4 = 0.27 at best, ln 10 = 2.3 at first

  set_num_threads(2);
  auto recomputing = config_of(60);
  recomputing.recompute = true;
  Trainer(two, recomputing).train(tokens);
  set_num_threads(1);
  const auto left = parameters_of(one), right = parameters_of(two);
  for (std::size_t i = 0; i < left.size(); ++i) {
    INFO(left[i].name);
    CHECK(std::equal(left[i].data, left[i].data + left[i].size, right[i].data));
  }
}

}  // namespace

TEST_CASE("the trainer does not recompute what a model cannot") {
  Rng rng(1);
  test::TinyLanguageModel<float> model({}, rng);
  auto config = config_of(1);
  config.recompute = true;
  CHECK_THROWS_WITH(Trainer(model, config), ContainsText("recompute"));
}

TEST_CASE("the trainer multiplies in bf16 only with large matrices to say it to, and in float") {
  Rng rng(1);
  auto config = config_of(1);
  config.products = Products::bf16;
  test::TinyLanguageModel<float> tiny({}, rng);
  CHECK_THROWS_WITH(Trainer(tiny, config), ContainsText("products"));
  TransformerModel<float> model(gpt2(), rng);
  Trainer(model, config).step(words(100));
  CHECK(model.layers[1].attention.out_proj.products == Products::bf16);
  Trainer(model, config_of(1)).step(words(100));
  CHECK(model.layers[1].attention.out_proj.products == Products::fp32);
}

TEST_CASE("a transformer trains in bf16 as it does in fp32, its parameters in fp32, the same bits on any threads") {
  const auto tokens = words(600);
  Rng rng(4);
  const TransformerModel<float> start(llama(), rng);
  const auto trained = [&](Products products, int threads, bool recompute) {
    set_num_threads(threads);
    TransformerModel<float> model = start;
    auto config = config_of(60);
    config.products = products;
    config.recompute = recompute;
    Trainer(model, config).train(tokens);
    set_num_threads(1);
    return model;
  };
  auto plain = trained(Products::fp32, 1, false);
  const auto rounded = trained(Products::bf16, 1, false), again = trained(Products::bf16, 2, true);
  const double nats = evaluate(plain, tokens, {.window = 19}).nats;
  CHECK(nats < 0.8);
  CHECK(std::abs(evaluate(rounded, tokens, {.window = 19}).nats - nats) < 0.02);
  const auto left = parameters_of(rounded), right = parameters_of(again);
  Index beyond_bf16 = 0;
  for (std::size_t i = 0; i < left.size(); ++i) {
    INFO(left[i].name);
    CHECK(std::equal(left[i].data, left[i].data + left[i].size, right[i].data));
    for (const float value : left[i].values()) beyond_bf16 += value != to_float(to_bf16(value));
  }
  CHECK(beyond_bf16 > count_parameters(rounded) / 2);
}

TEST_CASE("a GPT-2 style transformer trains") { check_training<TransformerModel<float>>(gpt2()); }
TEST_CASE("a Llama style transformer trains") { check_training<TransformerModel<float>>(llama()); }
TEST_CASE("CoRT trains") { check_training<CoRTModel<float>>(cort(false)); }
TEST_CASE("CoRT with an adaptive router trains") { check_training<CoRTModel<float>>(cort(true)); }
TEST_CASE("a torus model trains") { check_training<KuramotoLM<float>>(torus(TorusGate::query, TorusReadout::linear)); }
TEST_CASE("a torus model with tied readout trains") {
  check_training<KuramotoLM<float>>(torus(TorusGate::query_key, TorusReadout::tied));
}

TEST_CASE("the trainer lets a torus model's matrices decay, and neither its angles nor what scales them") {
  const auto tokens = words(200);
  for (const TorusGate gate : {TorusGate::fixed, TorusGate::query_key})
    for (const TorusReadout readout : {TorusReadout::linear, TorusReadout::tied}) {
      Rng rng(4);
      const KuramotoLM<float> start(torus(gate, readout), rng);
      // The same step with and without decay: what decays ends elsewhere, the rest bit for bit the same.
      const auto after_a_step = [&](double decay) {
        KuramotoLM<float> model = start;
        auto config = config_of(1);
        config.optimizer.weight_decay = decay;
        config.schedule.warmup_steps = 0;
        Trainer(model, config).step(tokens);
        return model;
      };
      const auto kept = after_a_step(0), shrunk = after_a_step(0.5);
      const auto left = parameters_of(kept), right = parameters_of(shrunk);
      for (std::size_t i = 0; i < left.size(); ++i) {
        INFO(name_of(gate) << ", " << name_of(readout) << ": " << left[i].name);
        const bool same = std::equal(left[i].data, left[i].data + left[i].size, right[i].data);
        const bool matrix = left[i].name.ends_with("gate.weight") || left[i].name.ends_with("up.weight") ||
                            left[i].name.ends_with("down.weight") || left[i].name == "lm_head.weight";
        CHECK(same == !matrix);
      }
    }
}

TEST_CASE("a phase-modulated model trains, its phases too") {
  auto config = PMAConfig::tiny(10);
  config.d_model = 16;
  config.n_heads = 2;
  config.d_ff = 16;
  config.max_seq_len = 32;
  check_training<PhaseModulatedAttentionLM<float>>(config);
  const auto tokens = words(200);
  Rng rng(4);
  const PhaseModulatedAttentionLM<float> start(config, rng);
  auto model = start;
  Trainer trainer(model, config_of(20));
  trainer.train(tokens);
  const auto before = parameters_of(start), after = parameters_of(std::as_const(model));
  for (std::size_t i = 0; i < before.size(); ++i) {
    INFO(before[i].name);
    CHECK(!std::equal(before[i].data, before[i].data + before[i].size, after[i].data));
  }
}
