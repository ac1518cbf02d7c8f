// Resuming bit for bit with the library's own models: dropout and gradient accumulation on, and for CoRT the
// thresholds and controllers of its routers.
#include "io/temporary_folder.hpp"
#include "rbar/io/checkpoint.hpp"
#include "rbar/model/cort.hpp"
#include "rbar/model/kuramoto_lm.hpp"
#include "rbar/model/pma_lm.hpp"
#include "rbar/model/transformer.hpp"
#include "support/catch.hpp"

using namespace rbar;

namespace {

template <class Model>
void check_resuming(const typename Model::Config& config, Products products = Products::fp32) {
  const test::TemporaryFolder folder;
  Rng rng(8);
  std::vector<Token> tokens(400);
  for (Token& token : tokens) token = static_cast<Token>(rng.below(10));
  TrainingConfig training;
  training.steps = 7;
  training.batch_size = 2;
  training.accumulation = 2;
  training.window = 13;
  training.schedule.warmup_steps = 2;
  training.products = products;

  Rng other_rng(9);
  Model straight(config, rng), first = straight, second(config, other_rng);
  Trainer straight_trainer(straight, training);
  straight_trainer.train(tokens);
  {
    Trainer trainer(first, training);
    for (int i = 0; i < 4; ++i) trainer.step(tokens);
    save_checkpoint(folder / "run", trainer);
  }
  Trainer trainer(second, training);
  load_checkpoint(folder / "run", trainer);
  trainer.train(tokens);
  const auto expected = detail::checkpoint_tensors(straight_trainer), resumed = detail::checkpoint_tensors(trainer);
  REQUIRE(expected.size() == resumed.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    INFO(expected[i].name);
    CHECK(std::equal(expected[i].data, expected[i].data + expected[i].size, resumed[i].data));
  }
}

KuramotoLMConfig torus(TorusGate gate, TorusReadout readout) {
  KuramotoLMConfig config;
  config.vocab_size = 10;
  config.d_model = 12;
  config.n_layers = 2;
  config.n_heads = 2;
  config.max_seq_len = 16;
  config.dropout = 0.1;
  config.gate = gate;
  config.strict = true;
  config.readout = readout;
  return config;
}

PMAConfig phase_modulated() {
  PMAConfig config = PMAConfig::tiny(10);
  config.d_model = 12;
  config.n_heads = 2;
  config.d_ff = 10;
  config.max_seq_len = 16;
  config.dropout = 0.1;
  return config;
}

}  // namespace

TEST_CASE("a transformer resumes bit for bit", "[io]") {
  for (const Products products : all_products)
    check_resuming<TransformerModel<float>>(TransformerConfig::gpt2_style(10, 12, 2, 2, 16), products);
}

TEST_CASE("CoRT resumes bit for bit, its routers' state included", "[io]") {
  CoRTConfig config;
  config.vocab_size = 10;
  config.d_model = 12;
  config.n_heads = 2;
  config.n_layers = 2;
  config.max_seq_len = 16;
  config.adaptive_routing = true;
  check_resuming<CoRTModel<float>>(config);
}

TEST_CASE("a torus model resumes bit for bit", "[io]") {
  check_resuming<KuramotoLM<float>>(torus(TorusGate::query, TorusReadout::linear));
  check_resuming<KuramotoLM<float>>(torus(TorusGate::fixed, TorusReadout::tied));
}

TEST_CASE("a torus model comes back from its folder with every switch", "[io]") {
  for (const TorusGate gate : all_torus_gates)
    for (const TorusReadout readout : {TorusReadout::linear, TorusReadout::tied}) {
      const test::TemporaryFolder folder;
      Rng rng(3);
      const KuramotoLM<float> model(torus(gate, readout), rng);
      save_pretrained(model, folder / "model");
      const auto json = read_json(folder / "model" / "config.json");
      CHECK(json["model_type"] == "kuramoto");
      CHECK(json["gate"] == name_of(gate));
      const auto again = from_pretrained<KuramotoLM<float>>(folder / "model");
      Tensor<Token, 2> tokens(1, 9);
      for (Index t = 0; t < 9; ++t) tokens(0, t) = static_cast<Token>(t);
      const auto expected = model(tokens), logits = again(tokens);
      CHECK(std::equal(expected.data(), expected.data() + expected.size(), logits.data()));
    }
}

TEST_CASE("a phase-modulated model resumes bit for bit", "[io]") {
  check_resuming<PhaseModulatedAttentionLM<float>>(phase_modulated());
}

TEST_CASE("a phase-modulated model comes back from its folder with every switch", "[io]") {
  for (const auto change :
       {+[](PMAConfig&) {}, +[](PMAConfig& c) { c.ssm_blocks = 0; }, +[](PMAConfig& c) { c.pma_blocks = 0; },
        +[](PMAConfig& c) { c.ssm_mlp = false; }, +[](PMAConfig& c) { c.tie_embeddings = false; },
        +[](PMAConfig& c) { c.phase_gate = false; }, +[](PMAConfig& c) { c.adaptive_temperature = false; },
        +[](PMAConfig& c) { c.learn_coupling = false; }, +[](PMAConfig& c) { c.coupling = 0; },
        +[](PMAConfig& c) { c.frozen_phases = true; }, +[](PMAConfig& c) { c.position_phases = false; },
        +[](PMAConfig& c) { c.rotary = Rotary::interleaved; }, +[](PMAConfig& c) { c.n_steps = 0; },
        +[](PMAConfig& c) { c.temperature = 2; }, +[](PMAConfig& c) { c.d_state = c.d_conv = c.expand = 3; }}) {
    const test::TemporaryFolder folder;
    Rng rng(3);
    PMAConfig config = phase_modulated();
    change(config);
    const PhaseModulatedAttentionLM<float> model(config, rng);
    save_pretrained(model, folder / "model");
    CHECK(read_json(folder / "model" / "config.json")["model_type"] == "pma");
    const auto again = from_pretrained<PhaseModulatedAttentionLM<float>>(folder / "model");
    CHECK(to_json(again.config) == to_json(config));
    Tensor<Token, 2> tokens(1, 9);
    for (Index t = 0; t < 9; ++t) tokens(0, t) = static_cast<Token>(t);
    const auto expected = model(tokens), logits = again(tokens);
    CHECK(std::equal(expected.data(), expected.data() + expected.size(), logits.data()));
  }
}
