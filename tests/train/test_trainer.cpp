#include "rbar/train/trainer.hpp"

#include "support/catch.hpp"
#include "support/differences.hpp"
#include "support/tiny_language_model.hpp"

#include <limits>

using namespace rbar;
using test::TinyConfig;
using test::TinyLanguageModel;

namespace {

// A text with something to learn: each token is mostly followed by 3·token + 1 modulo 11.
std::vector<Token> pattern(Index count, std::uint64_t seed = 1) {
  Rng rng(seed);
  std::vector<Token> tokens{0};
  while (static_cast<Index>(tokens.size()) < count)
    tokens.push_back(rng.below(10) == 0 ? static_cast<Token>(rng.below(11)) : (3 * tokens.back() + 1) % 11);
  return tokens;
}

template <class T>
bool equal_bits(const TinyLanguageModel<T>& a, const TinyLanguageModel<T>& b) {
  const auto same = [](const auto& left, const auto& right) {
    bool equal = left.size() == right.size();
    for (std::size_t i = 0; equal && i < left.size(); ++i)
      equal = std::equal(left[i].data, left[i].data + left[i].size, right[i].data);
    return equal;
  };
  return same(parameters_of(a), parameters_of(b)) && same(buffers_of(a), buffers_of(b));
}

TrainingConfig quick() {
  TrainingConfig config;
  config.steps = 60;
  config.batch_size = 4;
  config.window = 8;
  config.optimizer.learning_rate = 0.05;
  config.schedule.warmup_steps = 5;
  return config;
}

}  // namespace

TEST_CASE("the tiny model of these tests has a right gradient") {
  Rng rng(2);
  TinyLanguageModel<double> model(TinyConfig{.dropout = 0.3}, rng);
  model.gain(0) = 0.4;
  TokenBatch batch;
  RandomWindows{}.next(pattern(50), 2, 5, batch);
  TinyLanguageModel<double>::Cache cache;
  cache.dropout = {true, 5, 6};
  Tensor<double, 3> logits, dlogits;
  const auto loss = [&](Tensor<double, 3>* gradient) {
    model.forward(view(std::as_const(batch.inputs)), logits, cache);
    return cross_entropy<double>(view(std::as_const(logits)), view(std::as_const(batch.targets)), gradient);
  };
  auto gradient = zeros_like(model);
  loss(&dlogits);
  model.backward(view(std::as_const(dlogits)), cache, gradient);
  const auto values = parameters_of(model), analytic = parameters_of(gradient);
  double error = 0;
  for (std::size_t p = 0; p < values.size(); ++p)
    for (Index i = 0; i < values[p].size; ++i) {
      const double kept = std::exchange(values[p].data[i], values[p].data[i] + 1e-5);
      const double up = loss(nullptr);
      values[p].data[i] = kept - 1e-5;
      const double numeric = (up - loss(nullptr)) / 2e-5;
      values[p].data[i] = kept;
      error = test::larger(error, std::abs(numeric - analytic[p].data[i]));
    }
  CHECK(error < 1e-8);
}

TEST_CASE("training learns the pattern and repeats bit for bit") {
  const TokenDataset dataset(pattern(2000));
  Rng rng(1);
  const TinyLanguageModel<float> start(TinyConfig{.dropout = 0.1}, rng);
  auto first = start, second = start;
  Trainer trainer(first, quick());
  double report_tokens = 0;
  trainer.train(dataset.train(), [&](auto&, StepReport& report) {
    report_tokens += static_cast<double>(report.tokens);
    CHECK(report.gradient_norm > 0);
  });
  CHECK(report_tokens == 60 * 4 * 8);
  const double before = evaluate(start, dataset.validation()).nats, after = evaluate(first, dataset.validation()).nats;
  CHECK(before > 2.2);
  CHECK(after < 1.0);  // the entropy of the pattern is about 0.54

  set_num_threads(2);
  Trainer(second, quick()).train(dataset.train());
  set_num_threads(1);
  CHECK(equal_bits(first, second));
  CHECK(first.gain(0) != 0.0f);
}

TEST_CASE("accumulated batches are one big batch up to rounding") {
  const auto tokens = pattern(500);
  Rng rng(1);
  const TinyLanguageModel<double> start(TinyConfig{}, rng);
  auto big = start, small = start;
  TrainingConfig config = quick();
  config.steps = 5;
  config.batch_size = 12;
  TrainingConfig accumulated = config;
  accumulated.batch_size = 3;
  accumulated.accumulation = 4;
  Trainer big_trainer(big, config), small_trainer(small, accumulated);
  // The buffer adapts to the last forward pass, which is another batch here: keep it out of the comparison.
  for (Index step = 0; step < config.steps; ++step) {
    const auto a = big_trainer.step(tokens), b = small_trainer.step(tokens);
    CHECK(a.loss == Approx(b.loss).epsilon(1e-12));
    CHECK(a.gradient_norm == Approx(b.gradient_norm).epsilon(1e-12));
    CHECK(a.tokens == b.tokens);
    big.gain = small.gain = start.gain;
  }
  const auto left = parameters_of(big), right = parameters_of(small);
  for (std::size_t p = 0; p < left.size(); ++p)
    for (Index i = 0; i < left[p].size; ++i) CHECK(left[p].data[i] == Approx(right[p].data[i]).epsilon(1e-9));
}

TEST_CASE("clipping bounds the step, dropout differs from pass to pass") {
  const auto tokens = pattern(500);
  Rng rng(1);
  const TinyLanguageModel<double> start(TinyConfig{.dropout = 0.5}, rng);
  auto clipped = start, free = start;
  TrainingConfig config = quick();
  config.clip_norm = 1e-3;
  Trainer clipped_trainer(clipped, config);
  config.clip_norm = 0;
  Trainer free_trainer(free, config);
  const auto a = clipped_trainer.step(tokens), b = free_trainer.step(tokens);
  CHECK(a.gradient_norm == b.gradient_norm);
  CHECK(a.gradient_norm > 1e-3);
  const auto& m = clipped_trainer.state.optimizer.first;
  double square = 0;
  for (const double value : m) square += value * value;
  CHECK(std::sqrt(square) == Approx(1e-3 * (1 - config.optimizer.beta1)).epsilon(1e-2));

  // A text of one window and a model that stands still: only the dropout masks can change the loss.
  config.optimizer.learning_rate = 0;
  config.window = 499;
  config.batch_size = 1;
  const auto losses = [&](Index accumulation) {
    config.accumulation = accumulation;
    auto still = start;
    Trainer trainer(still, config);
    const double first = trainer.step(tokens).loss;
    still.gain = start.gain;
    return std::pair(first, trainer.step(tokens).loss);
  };
  const auto one = losses(1), two = losses(2);
  CHECK(one.first != one.second);
  CHECK(two.first != one.first);  // the mean of two equal passes would be the one pass
}

TEST_CASE("a loss or gradient that is not finite stops the run and changes nothing") {
  const auto tokens = pattern(500);
  Rng rng(1);
  TinyLanguageModel<float> model(TinyConfig{}, rng);
  Trainer trainer(model, quick());
  trainer.step(tokens);
  const auto kept = model;
  const auto moments = trainer.state.optimizer.first;
  model.bias(0) = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH(trainer.step(tokens), ContainsText("Trainer::step: loss of step 2: expected a finite number"));
  CHECK(trainer.state.step == 1);
  CHECK(trainer.state.windows.drawn == 4);
  CHECK(trainer.state.optimizer.steps == 1);
  CHECK(trainer.state.optimizer.first == moments);
}

TEST_CASE("what a failed step has half done is not carried into the next") {
  const auto good = pattern(500);
  std::vector<Token> bad(good.begin(), good.begin() + 10);
  bad.back() = 99;  // a target of one of the two windows of this text, in the vocabulary of none
  Rng rng(1);
  const TinyLanguageModel<float> start(TinyConfig{}, rng);
  TrainingConfig config = quick();
  config.batch_size = 1;
  config.accumulation = 2;
  Index failed = 0;
  for (config.seed = 1; config.seed <= 12; ++config.seed) {  // some of them fail in the second pass
    auto model = start, twin = start;
    Trainer trainer(model, config), fresh(twin, config);
    try {
      trainer.step(bad);
      continue;
    } catch (const Error&) {
      ++failed;
    }
    CHECK(trainer.step(good).gradient_norm == fresh.step(good).gradient_norm);
    CHECK(equal_bits(model, twin));
  }
  CHECK(failed > 4);
}

TEST_CASE("a callback can stop the run, and senseless settings are refused") {
  const auto tokens = pattern(500);
  Rng rng(1);
  TinyLanguageModel<float> model(TinyConfig{}, rng);
  Trainer trainer(model, quick());
  int calls = 0;
  trainer.train(
      tokens, [&](auto&, StepReport& report) { report.stop = report.step == 7; },
      [&](auto&, StepReport& report) { calls += report.last() ? 100 : 1; });
  CHECK(trainer.state.step == 7);
  CHECK(calls == 106);
  TrainingConfig config = quick();
  config.accumulation = 0;
  CHECK_THROWS_AS(Trainer(model, config), Error);
  CHECK_THROWS_AS(trainer.step(TokenSpan(tokens).first(8)), Error);
}
