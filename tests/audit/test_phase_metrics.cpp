// Every number of the metrics against its definition, written out.
#include "io/temporary_folder.hpp"
#include "rbar/audit/phase_log.hpp"
#include "support/catch.hpp"

#include <complex>
#include <fstream>
#include <sstream>

using namespace rbar;

namespace {

PMAConfig small_config() {
  PMAConfig config = PMAConfig::tiny(7);
  config.d_model = 12;
  config.n_heads = 3;
  config.pma_blocks = 2;
  config.ssm_blocks = 1;
  config.d_ff = 8;
  config.max_seq_len = 16;
  return config;
}

template <class T>
PhaseModulatedAttentionLM<T> random_model(const PMAConfig& config) {
  Rng rng(3);
  PhaseModulatedAttentionLM<T> model(config, rng);
  for (const auto& parameter : parameters_of(model))
    for (T& value : parameter.values()) value += static_cast<T>(rng.normal(0, 0.3));
  return model;
}

std::vector<Token> random_text(Index count) {
  Rng rng(4);
  std::vector<Token> text(static_cast<std::size_t>(count));
  for (Token& token : text) token = static_cast<Token>(rng.below(7));
  return text;
}

TokenBatch batch_of(const std::vector<Token>& text, Index sequences, Index tokens) {
  TokenBatch batch;
  ConsecutiveWindows windows(text, tokens);
  REQUIRE(windows.next(sequences, batch));
  REQUIRE(batch.inputs.dimension(0) == sequences);
  return batch;
}

}  // namespace

TEST_CASE("the metrics of a batch are their definitions") {
  const auto model = random_model<double>(small_config());
  const TokenBatch batch = batch_of(random_text(40), 3, 9);
  const PhaseMetrics metrics = phase_metrics(model, batch);
  CHECK(metrics.tokens == 27);
  CHECK(metrics.sequences == 3);
  CHECK(metrics.fisher_trace == 0);
  PhaseModulatedAttentionLM<double>::Cache cache;
  Tensor<double, 3> logits;
  model.forward(batch.inputs, logits, cache);

  double entropy = 0, nats = 0;
  for (Index b = 0; b < 3; ++b)
    for (Index t = 0; t < 9; ++t) {
      double total = 0;
      for (Index v = 0; v < 7; ++v) total += std::exp(logits(b, t, v));
      for (Index v = 0; v < 7; ++v) {
        const double p = std::exp(logits(b, t, v)) / total;
        entropy -= p * std::log(p) / 27;
        if (v == batch.targets(b, t)) nats -= std::log(p) / 27;
      }
    }
  CHECK(metrics.next_token_entropy == Approx(entropy).epsilon(1e-12));
  CHECK(metrics.nats == Approx(nats).epsilon(1e-12));
  CHECK(metrics.perplexity() == Approx(std::exp(nats)));

  REQUIRE(metrics.layers.size() == 2);
  double R_mean = 0, attention_entropy = 0;
  for (std::size_t l = 0; l < 2; ++l) {
    const auto& mixer = cache.pma[l].mixer;
    const auto& layer = metrics.layers[l];
    double R = 0, coupling = 0, temperature = 0, entropy_of_rows = 0;
    for (Index n = 0; n < 27; ++n) {
      std::complex<double> mean = 0;
      for (Index h = 0; h < 3; ++h) mean += std::polar(1.0 / 3, mixer.phases(n, h));
      CHECK(layer.order_parameter(n / 9, n % 9) == Approx(std::abs(mean)).epsilon(1e-12));
      R += std::abs(mean) / 27;
      coupling += mixer.coupling(n) / 27;
      const Index dim = 4, b = n / 9, i = n % 9;
      for (Index h = 0; h < 3; ++h) {
        const double tau = mixer.temperature(n, h), lambda = model.pma[l].mixer.gate();
        temperature += tau / 81;
        std::vector<double> weight;
        double total = 0;
        for (Index j = 0; j <= i; ++j) {
          double dot = 0;
          for (Index d = 0; d < dim; ++d)
            dot += mixer.attention.query(n, h * dim + d) * mixer.attention.key(b * 9 + j, h * dim + d);
          const double phase = std::cos(mixer.phases(n, h) - model.pma[l].mixer.position_phases(j));
          weight.push_back(std::exp(dot / 2 * (lambda * phase + 1 - lambda) / tau));
          total += weight.back();
        }
        for (const double w : weight) entropy_of_rows -= w / total * std::log(w / total) / 81;
      }
    }
    CHECK(layer.R_mean == Approx(R).epsilon(1e-12));
    CHECK(layer.coupling == Approx(coupling).epsilon(1e-12));
    CHECK(layer.temperature == Approx(temperature).epsilon(1e-12));
    CHECK(layer.gate == Approx(1 / (1 + std::exp(-model.pma[l].mixer.gate_logit(0)))));
    CHECK(layer.attention_entropy == Approx(entropy_of_rows).epsilon(1e-9));
    R_mean += R / 2;
    attention_entropy += entropy_of_rows / 2;
  }
  CHECK(metrics.R_mean == Approx(R_mean));
  CHECK(metrics.attention_entropy == Approx(attention_entropy));
  CHECK(phase_metrics(model, batch, {.attention_entropy = false}).attention_entropy == 0);
}

TEST_CASE("the Fisher trace is the mean of the sequences' squared gradients") {
  auto model = random_model<double>(small_config());
  const TokenBatch batch = batch_of(random_text(30), 2, 7);
  const double trace = phase_metrics(model, batch, {.attention_entropy = false, .fisher = true}).fisher_trace;
  // ∂ log p(sequence)/∂θ by central differences, all parameters.
  double expected = 0;
  for (Index b = 0; b < 2; ++b) {
    const auto log_likelihood = [&] {
      Tensor<double, 3> logits;
      PhaseModulatedAttentionLM<double>::Cache cache;
      model.forward(view(&batch.inputs(b, 0), 1, 7), logits, cache);
      return -7 * cross_entropy<double>(view(std::as_const(logits)), view(&batch.targets(b, 0), 1, 7), nullptr);
    };
    for (const auto& parameter : parameters_of(model))
      for (double& value : parameter.values()) {
        const double there = value, step = 1e-5;
        value = there + step;
        const double above = log_likelihood();
        value = there - step;
        const double below = log_likelihood();
        value = there;
        expected += std::pow((above - below) / (2 * step), 2) / 2;
      }
  }
  CHECK(trace == Approx(expected).epsilon(1e-6));
}

TEST_CASE("the metrics of a text are those of its windows, whatever the batch") {
  const auto model = random_model<double>(small_config());
  const auto text = random_text(100);
  PhaseMetricsOptions options{.fisher = true, .window = 9, .batch_size = 4, .max_windows = 0};
  const auto all = phase_metrics(model, TokenSpan(text), options);
  CHECK(all.tokens == 99);
  CHECK(all.sequences == 11);
  const auto at_once = phase_metrics(model, batch_of(text, 11, 9), {.fisher = true});
  options.batch_size = 3;
  const auto in_threes = phase_metrics(model, TokenSpan(text), options);
  for (const auto& other : {at_once, in_threes}) {
    CHECK(all.nats == Approx(other.nats));
    CHECK(all.next_token_entropy == Approx(other.next_token_entropy));
    CHECK(all.fisher_trace == Approx(other.fisher_trace));
    CHECK(all.R_mean == Approx(other.R_mean));
    CHECK(all.attention_entropy == Approx(other.attention_entropy));
    for (std::size_t l = 0; l < 2; ++l) {
      CHECK(all.layers[l].R_mean == Approx(other.layers[l].R_mean));
      CHECK(all.layers[l].temperature == Approx(other.layers[l].temperature));
      CHECK(all.layers[l].coupling == Approx(other.layers[l].coupling));
    }
  }
  options.max_windows = 5;
  CHECK(phase_metrics(model, TokenSpan(text), options).sequences == 5);
  CHECK_THROWS_WITH(phase_metrics(model, TokenSpan(text).first(1), options), ContainsText("at least 2"));
  CHECK_THROWS_WITH(phase_metrics(model, TokenBatch{}), ContainsText("at least one"));
}

TEST_CASE("interventions show in the metrics") {
  auto model = random_model<double>(small_config());
  const TokenBatch batch = batch_of(random_text(40), 3, 9);
  const auto plain = phase_metrics(model, batch);
  const auto gate = set_gate_override(model, 0.25, 0);
  const auto coupling = set_coupling_override(model, 30, 1);
  const auto calm = set_order_parameter_override(model, 1, 0);
  const auto changed = phase_metrics(model, batch);
  CHECK(changed.layers[0].gate == 0.25);
  CHECK(changed.layers[1].gate == plain.layers[1].gate);
  CHECK(changed.layers[1].coupling == 30);
  CHECK(changed.layers[1].R_mean > plain.layers[1].R_mean);
  CHECK(changed.layers[0].R_mean == plain.layers[0].R_mean);  // the override is for τ
  CHECK(changed.layers[0].temperature != plain.layers[0].temperature);
}

TEST_CASE("a model without attention has no phases to measure, but an entropy") {
  auto config = small_config();
  config.pma_blocks = 0;
  const auto metrics = phase_metrics(random_model<float>(config), batch_of(random_text(40), 3, 9));
  CHECK(metrics.layers.empty());
  CHECK(metrics.next_token_entropy > 0);
  CHECK(metrics.R_mean == 0);
}

TEST_CASE("the log of a training run has a line a layer, and goes on after a resumption") {
  const test::TemporaryFolder folder;
  const auto text = random_text(200);
  auto model = random_model<float>(small_config());
  TrainingConfig config;
  config.steps = 7;
  config.batch_size = 2;
  config.window = 9;
  Trainer trainer(model, config);
  const PhaseMetricsOptions options{.window = 9, .max_windows = 3};
  const auto lines = [&] {
    std::ifstream file(folder / "phases.csv");
    std::vector<std::string> all;
    for (std::string line; std::getline(file, line);) all.push_back(line);
    return all;
  };
  StepReport last;
  {
    PhaseLog log(folder / "phases.csv", TokenSpan(text), 3, options);
    trainer.train(text, log, [&](auto&, StepReport& report) { last = report; });
  }
  const auto whole = lines();
  REQUIRE(whole.size() == 1 + 2 * 4);  // steps 1, 3, 6 and 7
  CHECK(whole[0] == "step,layer,R_mean,coupling,temperature,gate,alpha,beta,attention_entropy");
  const auto metrics = phase_metrics(model, TokenSpan(text), options);
  std::istringstream line(whole[8]);
  std::vector<double> values;
  for (std::string cell; std::getline(line, cell, ',');) values.push_back(std::stod(cell));
  const auto& layer = metrics.layers[1];
  const std::vector<double> expected = {
      7,          1,           layer.R_mean, layer.coupling,         layer.temperature,
      layer.gate, layer.alpha, layer.beta,   layer.attention_entropy};
  REQUIRE(values.size() == expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) CHECK(values[i] == Approx(expected[i]).epsilon(1e-5));
  CHECK(layer.alpha == Approx(model.pma[1].mixer.alpha(0)));

  PhaseLog resumed(folder / "phases.csv", TokenSpan(text), 3, options);  // from a checkpoint after step 5
  last.step = 6;
  resumed(trainer, last);
  CHECK(lines().size() == 1 + 2 * 3);
  CHECK_THROWS_WITH(PhaseLog("x", TokenSpan(text), 0), ContainsText("every"));
}
