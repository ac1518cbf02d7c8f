#include "model/frozen_support.hpp"
#include "model/kuramoto_lm_support.hpp"
#include "model/pma_support.hpp"
#include "model/transformer_support.hpp"
#include "rbar/model/phasegpt.hpp"

using namespace rbar;
using frozen_test::check_frozen;
using frozen_test::share_of_memory;

TEST_CASE("a linear layer with rounded weights computes with those and nothing else, and does not train") {
  Rng rng(1);
  for (const bool bias : {false, true}) {
    Linear<float> plain(37, 21, bias, rng), layer = plain;
    if (bias) plain.bias.setConstant(0.5f), layer.bias.setConstant(0.5f);
    for (float& value : elements(plain.weight)) value = to_float(to_bf16(value));
    layer.round_weights();
    CHECK(layer.in() == 37);
    CHECK(layer.out() == 21);
    CHECK(layer.weight.size() == 0);
    Tensor<float, 2> x(5, 37), y(5, 21), expected(5, 21), dx(5, 37);
    for (float& value : elements(x)) value = static_cast<float>(rng.normal(0, 1));
    layer.forward(rows(std::as_const(x)), rows(y));
    plain.forward(rows(std::as_const(x)), rows(expected));
    CHECK(test::largest_difference(y, expected) < 1e-5);
    layer.product(rows(std::as_const(x)), rows(y), /*accumulate=*/true);
    plain.product(rows(std::as_const(x)), rows(expected), /*accumulate=*/true);
    CHECK(test::largest_difference(y, expected) < 1e-5);
    CHECK_THROWS_WITH(layer.backward(rows(std::as_const(y)), rows(std::as_const(x)), rows(dx), plain),
                      ContainsText("rounded"));
  }
}

TEST_CASE("a standard transformer with frozen weights: the same model, streaming as well, for inference only") {
  for (const auto& config : transformer_test::configs()) {
    INFO(transformer_test::describe(config));
    check_frozen(transformer_test::random_model<float>(config, 1));
  }
}

TEST_CASE("a phase-modulated model with frozen weights: the same model, streaming as well, for inference only") {
  for (const auto& config : pma_test::configs()) {
    INFO(pma_test::describe(config));
    check_frozen(pma_test::random_model<float>(config, 1));
  }
}

TEST_CASE("a torus model with frozen weights: the same model, streaming as well, for inference only") {
  for (const auto& config : kuramoto_lm_test::configs()) {
    INFO(kuramoto_lm_test::describe(config));
    check_frozen(kuramoto_lm_test::random_model<float>(config, 1));
  }
}

TEST_CASE("a PhaseGPT with frozen weights: the same model, streaming as well, for inference only") {
  for (const double phase_share : {1.0, 0.5}) {
    INFO("phase_share " << phase_share);
    PhaseGPTConfig config;
    config.vocab_size = 13;
    config.d_model = 14;
    config.n_layers = 2;
    config.n_heads = 2;
    config.d_ff = 12;
    config.max_seq_len = 20;
    config.dropout = 0;
    config.phase_layer_idx = "1";
    config.phase_share = phase_share;
    config.n_oscillators = 3;
    config.n_steps = 4;
    Rng rng(1);
    PhaseGPT<float> model(config, rng);
    for (const auto& parameter : parameters_of(model))
      for (float& value : parameter.values()) value += static_cast<float>(rng.normal(0, 0.2));
    check_frozen(model);
  }
}

TEST_CASE("rounded weights take half the memory") {
  Rng rng(1);
  const auto gpt2 = TransformerConfig::gpt2_style(13, 96, 2, 2, 16);
  CHECK(share_of_memory(TransformerModel<float>(gpt2, rng)) < 0.55);
  auto pma = pma_test::tiny_config();
  pma.d_model = 96;
  pma.d_ff = 192;
  CHECK(share_of_memory(PhaseModulatedAttentionLM<float>(pma, rng)) < 0.6);
  for (const TorusReadout readout : {TorusReadout::linear, TorusReadout::tied}) {
    auto torus = kuramoto_lm_test::config_of(TorusGate::query_key, false, readout);
    torus.d_model = 96;
    CHECK(share_of_memory(KuramotoLM<float>(torus, rng)) < 0.56);  // 13 outputs take a register's
  }
  PhaseGPTConfig phase;
  phase.vocab_size = 13;
  phase.d_model = 64;
  phase.n_layers = 2;
  phase.n_heads = 2;
  phase.max_seq_len = 20;
  phase.phase_layer_idx = "1";
  CHECK(share_of_memory(PhaseGPT<float>(phase, rng)) < 0.55);
}
