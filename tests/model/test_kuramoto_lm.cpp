#include "model/kuramoto_lm_support.hpp"
#include "rbar/audit/causality.hpp"
#include "rbar/audit/gradient_check.hpp"

using namespace rbar;
using namespace kuramoto_lm_test;

static_assert(LanguageModel<KuramotoLM<float>>);

namespace {

Index parameters_with(const auto& config) {
  Rng rng(1);
  using Config = std::remove_cvref_t<decltype(config)>;
  if constexpr (std::is_same_v<Config, KuramotoLMConfig>)
    return KuramotoLM<float>(config, rng).num_parameters();
  else
    return TransformerModel<float>(config, rng).num_parameters();
}

}  // namespace

TEST_CASE("torus models and the transformers they are measured against have the published sizes") {
  CHECK(parameters_with(KuramotoLMConfig::one_million(205)) == 999517);
  CHECK(parameters_with(KuramotoLMConfig::one_million(205, TorusGate::query_key)) == 997981);
  CHECK(parameters_with(KuramotoLMConfig::five_million(205)) == 5002237);
  CHECK(parameters_with(TransformerConfig::matched_1m(205)) == 997760);
  CHECK(parameters_with(TransformerConfig::matched_5m(205)) == 4998912);
  // Untied: angles and readout [V, d] and [V, 2d], with a bias; tied: one matrix and γ.
  auto tied = KuramotoLMConfig::one_million(205);
  tied.readout = TorusReadout::tied;
  CHECK(parameters_with(tied) == 999517 - 205 * 256 - 205 + 1);
}

TEST_CASE("a torus model is its definition, layer by layer") {
  for (auto config : configs()) {
    config.drift_base = 77;
    INFO(describe(config));
    const auto model = random_model<double>(config, 1);
    const auto tokens = random_tokens(2, 9, config.vocab_size, 2);
    const auto logits = model(tokens), expected = textbook_logits(model, tokens);
    const auto& attention = model.layers.back().attention.config;
    CHECK((attention.n_heads == 3 && attention.gate == config.gate && attention.strict == config.strict &&
           attention.drift == config.drift && attention.drift_base == config.drift_base));
    for (Index i = 0; i < logits.size(); ++i) REQUIRE(logits.data()[i] == Approx(expected.data()[i]).margin(1e-11));
  }
}

TEST_CASE("a torus model's gradients") {
  for (const auto& config : configs()) {
    INFO(describe(config));
    const auto report = gradient_check(random_model<double>(config, 3), random_tokens(2, 7, config.vocab_size, 4),
                                       {.samples_per_tensor = 12});
    INFO(report.worst);
    CHECK(report.error < 1e-6);
    CHECK(report.largest_gradient > 0.1);
  }
}

TEST_CASE("a torus model is causal") {
  for (const auto& config : configs()) {
    INFO(describe(config));
    const auto report = causality(random_model<float>(config, 7), {.length = config.max_seq_len, .trials = 0});
    CHECK(report.leak == 0);
    CHECK(report.largest_output > 0.1);
  }
}
