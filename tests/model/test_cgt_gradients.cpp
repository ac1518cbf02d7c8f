// Gradients of the Coherence-Gated Transformer, and what a model trained with them does.
#include "model/cgt_support.hpp"
#include "rbar/audit/gradient_check.hpp"
#include "rbar/train/loss.hpp"

using namespace rbar;
using namespace cgt_test;

TEST_CASE("gradients of a gated transformer, through lanes, gates, experts and energies") {
  const int number = GENERATE(0, 1, 2, 3, 4, 5);
  INFO("variant " << number);
  const auto config = variant(number);
  const auto model = random_model<double>(config, 11);
  const auto tokens = random_tokens(2, 11, config.vocab_size, 3);
  CoherenceGatedTransformer<double>::Cache cache;
  Tensor<double, 3> logits;
  model.forward(tokens, logits, cache);
  CHECK((segment_sizes(cache.sheet())[2] > 0 || config.early_exit.enabled));
  CHECK(segment_sizes(cache.sheet())[0] > 0);
  CHECK(cache.auxiliary_loss > 0);
  const auto& sheet = cache.sheet();
  CHECK((std::ranges::count(sheet.stopped, true) > 0) == config.early_exit.enabled);
  for (std::size_t n = 0; n < sheet.stopped.size(); ++n)
    CHECK(sheet.stopped[n] == (sheet.exit[n] != ExitReason::max_layers_reached));
  if (config.sparsity.enabled) {  // blocks are skipped, or the dense model would say the same
    auto dense = config;
    dense.sparsity.enabled = false;
    CHECK(transformer_test::largest_difference(logits, random_model<double>(dense, 11)(tokens)) > 1e-6);
  }
  const auto report = gradient_check(model, tokens, {.samples_per_tensor = 3});
  INFO(report.worst);
  CHECK(report.error < 1e-6);
  // The task alone reaches the router's maps through the gates.
  auto plain = model;
  plain.config.energy_weight = plain.stack.config.energy_weight = 0;
  auto gradient = zeros_like(plain);
  plain.forward(tokens, logits, cache);
  plain.backward(logits, cache, gradient);
  double largest = 0;
  for (const auto& parameter : parameters_of(gradient.stack.router))
    for (const double value : parameter.values()) largest = std::max(largest, std::abs(value));
  CHECK((largest > 1e-6) == config.gate);
}

TEST_CASE("dropout of a gated transformer has the gradient of its mask") {
  auto config = tiny_config();
  config.dropout = 0.3;
  auto model = random_model<double>(config, 41);
  const auto tokens = random_tokens(2, 8, config.vocab_size, 31);
  CoherenceGatedTransformer<double>::Cache cache;
  cache.dropout = {true, 5, 1};
  Tensor<double, 3> logits, again;
  model.forward(tokens, logits, cache);
  CHECK(transformer_test::largest_difference(logits, model(tokens)) > 1e-3);
  auto gradient = zeros_like(model);
  model.backward(logits, cache, gradient);  // the gradient of ½ Σ logits², and of what the model adds
  std::vector<GradientPair> pairs;
  detail::append_pairs(model, gradient, pairs);
  const auto report = gradient_check(std::span<const GradientPair>(pairs),
                                     [&] {
                                       model.forward(tokens, again, cache);
                                       return detail::weighted_sum(again, again) / 2 + cache.auxiliary_loss;
                                     },
                                     {.samples_per_tensor = 2});
  INFO(report.worst);
  CHECK(report.error < 1e-6);
}

TEST_CASE("training steps hold the lanes at their shares, and learn") {
  auto config = tiny_config();
  Rng rng(1);
  CoherenceGatedTransformer<float> model(config, rng);
  auto gradient = zeros_like(model);
  CoherenceGatedTransformer<float>::Cache cache;
  Tensor<float, 3> logits;
  constexpr int steps = 120;
  std::array<double, 3> shares{};
  double first = 0, last = 0;
  for (int step = 0; step < steps; ++step) {
    auto tokens = random_tokens(6, 24, config.vocab_size, static_cast<std::uint64_t>(step));
    for (Index i = 1; i < tokens.size(); ++i)  // mostly the token after the one before
      if (tokens.data()[i] % 4 != 0) tokens.data()[i] = static_cast<Token>((tokens.data()[i - 1] + 1) % 13);
    Tensor<Token, 2> targets = tokens;
    std::copy_n(tokens.data() + 1, tokens.size() - 1, targets.data());
    model.forward(tokens, logits, cache);
    const double loss = cross_entropy<float>(view(std::as_const(logits)), view(std::as_const(targets)), &logits);
    (step == 0 ? first : last) = loss;
    set_zero(gradient);
    model.backward(logits, cache, gradient);
    const auto values = parameters_of(model), gradients = parameters_of(gradient);
    for (std::size_t i = 0; i < values.size(); ++i)
      for (Index j = 0; j < values[i].size; ++j) values[i].data[j] -= 0.2f * gradients[i].data[j];
    model.adapt(cache);
    if (step < steps / 2) continue;
    const auto sizes = segment_sizes(cache.sheet());
    for (std::size_t i = 0; i < 3; ++i)
      shares[i] += static_cast<double>(sizes[i]) / static_cast<double>(cache.sheet().size()) / (steps / 2);
  }
  CHECK(last < first - 0.3);
  CHECK(shares[0] == Approx(0.4).margin(0.08));
  CHECK(shares[1] == Approx(0.3).margin(0.08));
}
