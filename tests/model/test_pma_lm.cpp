// The phase-modulated language model: its definition, gradients, causality, what decays, sizes, what it refuses.
#include "model/pma_support.hpp"
#include "rbar/audit/causality.hpp"
#include "rbar/audit/gradient_check.hpp"
#include "rbar/model/pma_ablations.hpp"

using namespace rbar;
using namespace pma_test;

static_assert(LanguageModel<PhaseModulatedAttentionLM<float>>);

namespace {

using Model = PhaseModulatedAttentionLM<double>;

void add_to(Tensor<double, 3>& h, const Tensor<double, 3>& branch) {
  for (Index i = 0; i < h.size(); ++i) h.data()[i] += branch.data()[i];
}
Tensor<double, 3> normed(const RMSNorm<double>& norm, const Tensor<double, 3>& h) {
  Tensor<double, 3> y = h;
  RMSNorm<double>::Cache cache;
  norm.forward(rows(h), rows(y), cache);
  return y;
}
void add_feed_forward(const auto& block, Tensor<double, 3>& h) {
  const Tensor<double, 3> x = normed(block.norm2, h);
  Tensor<double, 3> y = x;
  SwiGLU<double>::Cache cache;
  block.feed_forward.forward(rows(x), rows(y), cache);
  add_to(h, y);
}

// The model as the specification writes it, from its layers.
Tensor<double, 3> definition(const Model& model, const Tensor<Token, 2>& tokens) {
  Tensor<double, 3> h;
  model.ends.embed(tokens, 0, h);
  for (const auto& block : model.ssm) {
    add_to(h, block.mixer(normed(block.norm1, h)));
    if (model.config.ssm_mlp) add_feed_forward(block, h);
  }
  const Tensor<double, 3> ssm_state = h;
  for (const auto& block : model.pma) {
    add_to(h, block.mixer(normed(block.norm1, h), ssm_state));
    add_feed_forward(block, h);
  }
  const Tensor<double, 3> last = normed(model.ends.final_norm, h);
  const auto& head = model.config.tie_embeddings ? model.ends.token_embedding.weight : model.ends.lm_head.weight;
  Tensor<double, 3> logits(h.dimension(0), h.dimension(1), model.config.vocab_size);
  rows(logits) = rows(last) * rows(head).transpose();
  return logits;
}

}  // namespace

TEST_CASE("the phase-modulated model is its definition") {
  for (const auto& config : configs()) {
    INFO(describe(config));
    const auto model = random_model<double>(config, 1);
    const auto tokens = random_tokens(2, 9, config.vocab_size, 2);
    CHECK(largest_difference(model(tokens), definition(model, tokens)) < 1e-12);
  }
}

TEST_CASE("the phase-modulated model: gradients of every parameter") {
  for (const auto& config : configs()) {
    INFO(describe(config));
    const auto tokens = random_tokens(2, 7, config.vocab_size, 4);
    const auto report = gradient_check(random_model<double>(config, 3), tokens, {.samples_per_tensor = 12});
    INFO(report.worst);
    CHECK(report.error < 1e-6);
    CHECK(report.largest_gradient > 0.1);
  }
}

TEST_CASE("the phase-modulated model: gradients with dropout, the masks held still") {
  auto config = tiny_config();
  config.dropout = 0.3;
  auto model = random_model<double>(config, 5);
  const auto tokens = random_tokens(2, 7, config.vocab_size, 6);
  Model::Cache cache;
  cache.dropout = {true, 7, 8};
  Tensor<double, 3> logits;
  model.forward(tokens, logits, cache);
  CHECK(largest_difference(logits, model(tokens)) > 1e-3);
  Tensor<double, 3> weights = logits;
  Rng rng(9);
  normal(weights, 1.0, rng);
  auto grad = zeros_like(model);
  model.backward(weights, cache, grad);
  std::vector<GradientPair> pairs;
  detail::append_pairs(model, grad, pairs);
  const auto report = gradient_check(std::span<const GradientPair>(pairs),
                                     [&] {
                                       model.forward(tokens, logits, cache);
                                       return detail::weighted_sum(weights, logits);
                                     },
                                     {.samples_per_tensor = 8});
  INFO(report.worst);
  CHECK(report.error < 1e-6);
}

TEST_CASE("the phase-modulated model is causal") {
  for (const auto& config : configs()) {
    INFO(describe(config));
    const auto report = causality(random_model<float>(config, 7), {.length = config.max_seq_len, .trials = 0});
    CHECK(report.leak == 0);
    CHECK(report.largest_output > 0.1);
  }
}

TEST_CASE("weight decay shrinks a phase-modulated model's matrices, and no phase, gate or rate") {
  Rng rng(1);
  auto config = tiny_config();
  config.tie_embeddings = false;
  const PhaseModulatedAttentionLM<float> model(config, rng);
  std::vector<std::string> kept, shrunk;
  for (const auto& parameter : parameters_of(model))
    (Model::decays(parameter.name, parameter.shape.size()) ? shrunk : kept).push_back(parameter.name);
  const auto has = [](const auto& list, const std::string& name) {
    return std::find(list.begin(), list.end(), name) != list.end();
  };
  for (const char* name :
       {"ssm.1.mixer.A_log", "ssm.0.mixer.D", "ssm.0.mixer.dt_proj.bias", "ssm.0.mixer.conv_bias", "ssm.0.norm1.weight",
        "pma.0.mixer.frequency", "pma.1.mixer.position_phases", "pma.0.mixer.gate_logit", "pma.0.mixer.alpha",
        "pma.0.mixer.beta", "pma.0.mixer.coupling_map.bias", "final_norm.weight"}) {
    INFO(name);
    CHECK(has(kept, name));
  }
  for (const char* name :
       {"token_embedding.weight", "lm_head.weight", "ssm.0.mixer.in_proj.weight", "ssm.0.feed_forward.up.weight",
        "pma.0.mixer.q_proj.weight", "pma.0.mixer.phase_map.weight", "pma.1.feed_forward.down.weight"}) {
    INFO(name);
    CHECK(has(shrunk, name));
  }
}

TEST_CASE("the sizes of the presets") {
  CHECK(parameter_count(PMAConfig::create_130m_config()) == 129'923'648);
  CHECK(parameter_count(PMAConfig::small_5m(205)) == 4'991'000);
  CHECK(parameter_count(PMAConfig::small_1m(205)) == 1'002'000);
  CHECK(parameter_count(PMAConfig::tiny(65)) == 44'968);
  for (const auto& config : configs()) {
    INFO(describe(config));
    Rng rng(1);
    CHECK(PhaseModulatedAttentionLM<float>(config, rng).num_parameters() == parameter_count(config));
  }
}

TEST_CASE("the phase-modulated model refuses what it cannot mean") {
  const auto config = tiny_config();
  const auto model = random_model<float>(config, 14);
  PhaseModulatedAttentionLM<float>::Cache cache;
  PhaseModulatedAttentionLM<float>::State state;
  Tensor<float, 3> logits;
  CHECK_THROWS_WITH(model.forward(random_tokens(1, 21, 13, 1), logits, cache), ContainsText("max_seq_len 20, got 21"));
  Tensor<Token, 2> tokens = random_tokens(1, 3, 13, 1);
  tokens(0, 1) = 13;
  CHECK_THROWS_WITH(model.forward(tokens, logits, cache), ContainsText("token: expected 0 <= token < 13, got 13"));
  model.step(random_tokens(1, 20, 13, 1), logits, state);
  CHECK_THROWS_WITH(model.step(random_tokens(1, 1, 13, 1), logits, state), ContainsText("max_seq_len"));
  auto grad = zeros_like(model);
  PhaseModulatedAttentionLM<float>::Cache empty;
  CHECK_THROWS_WITH(model.backward(Tensor<float, 3>(1, 3, 13), empty, grad), ContainsText("blocks in the cache"));

  Rng rng(1);
  for (const auto spoil :
       {+[](PMAConfig& c) { c.vocab_size = 0; }, +[](PMAConfig& c) { c.d_model = 0; },
        +[](PMAConfig& c) { c.n_heads = 3; }, +[](PMAConfig& c) { c.n_heads = 0; },
        +[](PMAConfig& c) { c.ssm_blocks = -1; }, +[](PMAConfig& c) { c.pma_blocks = -1; },
        +[](PMAConfig& c) { c.ssm_blocks = c.pma_blocks = 0; }, +[](PMAConfig& c) { c.d_ff = -1; },
        +[](PMAConfig& c) { c.max_seq_len = 0; }, +[](PMAConfig& c) { c.dropout = 1; },
        +[](PMAConfig& c) { c.d_state = 0; }, +[](PMAConfig& c) { c.d_conv = 17; }, +[](PMAConfig& c) { c.expand = 0; },
        +[](PMAConfig& c) { c.gate = 0; }, +[](PMAConfig& c) { c.temperature = 0; }, +[](PMAConfig& c) { c.dt = 0; },
        +[](PMAConfig& c) { c.alpha = -1; }, +[](PMAConfig& c) { c.norm_eps = 0; }}) {
    auto bad = tiny_config();
    spoil(bad);
    CHECK_THROWS_AS(PhaseModulatedAttentionLM<float>(bad, rng), Error);
  }
}

TEST_CASE("flops of the phase-modulated model: two a weight of a matrix, and what scan, phases and attention add") {
  auto config = PMAConfig::small_1m(205);
  constexpr Index tokens = 11;
  Rng rng(1);
  double weights = static_cast<double>(config.vocab_size * config.d_model);
  const PhaseModulatedAttentionLM<float> model(config, rng);
  for (const auto& parameter : parameters_of(model))
    if (parameter.shape.size() == 2 && !parameter.name.starts_with("token_embedding") &&
        !parameter.name.ends_with("A_log"))
      weights += static_cast<double>(parameter.size);
  const double scan = 3 * 8.0 * 256 * 16, attention = 2 * (4.0 * 128 + 6 * 4) * (tokens + 1) / 2;
  const double oscillators = 2 * 40.0 * 5 * 4;
  CHECK(flops(config, tokens) == Approx(2 * weights + scan + attention + oscillators).epsilon(1e-12));
}
