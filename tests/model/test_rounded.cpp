// Models whose weights were rounded to bf16 for inference.
#include "model/pma_support.hpp"
#include "model/transformer_support.hpp"

using namespace rbar;
using namespace transformer_test;

namespace {

// The same model in fp32 with every matrix that `round_weights` reaches rounded: the numbers to expect. A tied table is
// rounded where it is the head, not where it is looked up, hence untied models only.
template <class Model>
void round_in_place(Model& model) {
  for (const auto& parameter : parameters_of(model)) {
    const auto is = [&](std::string_view part) { return parameter.name.find(part) != std::string::npos; };
    if (!parameter.name.ends_with(".weight") || parameter.shape.size() != 2 || is("embedding")) continue;
    if (is("dt_proj") || is("phase_map") || is("coupling_map")) continue;
    for (float& value : parameter.values()) value = to_float(to_bf16(value));
  }
}

template <class Model>
void check_rounded(const Model& model) {
  const Index vocabulary = model.config.vocab_size, length = model.config.max_seq_len - 3;
  const auto tokens = random_tokens(2, length, vocabulary, 5);
  Model expected = model, rounded = model;
  rounded.round_weights();
  const Tensor<float, 3> logits = rounded(tokens);
  if (!model.config.tie_embeddings) {
    round_in_place(expected);
    CHECK(largest_difference(logits, expected(tokens)) < 1e-4);
  }
  CHECK(largest_difference(logits, model(tokens)) > 1e-5);  // it did round
  CHECK(largest_difference(logits, model(tokens)) < 0.3);

  typename Model::State state;
  Tensor<float, 3> step;
  Tensor<Token, 2> next(2, 1);
  double apart = 0;
  for (Index t = 0; t < length; ++t) {
    for (Index b = 0; b < 2; ++b) next(b, 0) = tokens(b, t);
    rounded.step(next, step, state);
    for (Index b = 0; b < 2; ++b)
      for (Index v = 0; v < vocabulary; ++v)
        apart = std::max(apart, static_cast<double>(std::abs(step(b, 0, v) - logits(b, t, v))));
  }
  CHECK(apart < 1e-4);

  rounded.round_weights();  // twice is once
  CHECK(largest_difference(logits, rounded(tokens)) == 0);
  typename Model::Cache cache;
  Tensor<float, 3> again;
  rounded.forward(tokens, again, cache);
  auto gradient = zeros_like(model);
  CHECK_THROWS_WITH(rounded.backward(view(logits), cache, gradient), ContainsText("rounded"));
  CHECK_THROWS_WITH(count_parameters(rounded), ContainsText("rounded"));
}

}  // namespace

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
    CHECK(largest_difference(y, expected) < 1e-5);
    CHECK_THROWS_WITH(layer.backward(rows(std::as_const(y)), rows(std::as_const(x)), rows(dx), plain),
                      ContainsText("rounded to bf16"));
  }
}

TEST_CASE("a standard transformer with rounded weights: the same model, streaming as well, for inference only") {
  for (const auto& config : configs()) {
    INFO(describe(config));
    check_rounded(random_model<float>(config, 1));
  }
}

TEST_CASE("a phase-modulated model with rounded weights: the same model, streaming as well, for inference only") {
  for (const auto& config : pma_test::configs()) {
    INFO(pma_test::describe(config));
    check_rounded(pma_test::random_model<float>(config, 1));
  }
}
