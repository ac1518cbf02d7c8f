// Models whose weights were packed, or rounded to bf16, for inference: what every one of them keeps.
#pragma once

#include "rbar/core/bf16.hpp"
#include "rbar/core/parameters.hpp"
#include "rbar/model/kuramoto_lm.hpp"
#include "support/allocation_count.hpp"
#include "support/catch.hpp"
#include "support/differences.hpp"

#include <algorithm>
#include <string_view>

namespace frozen_test {

using namespace rbar;
using ::test::largest_difference;

// The same model in fp32 with every matrix that `round_weights` reaches rounded: the numbers to expect. A tied table is
// rounded where it is the head, not where it is looked up.
template <class Model>
void round_in_place(Model& model) {
  if constexpr (requires { model.ends; })
    if (model.ends.tied()) model.ends.lm_head.weight = model.ends.token_embedding.weight;
  if constexpr (requires { model.readout_scale; })
    if (model.config.readout == TorusReadout::tied) {
      detail::phasors_of<float>(rows(std::as_const(model.token_embedding.weight)), model.lm_head.weight);
      model.config.readout = TorusReadout::linear;
    }
  for (const auto& parameter : parameters_of(model)) {
    const auto is = [&](std::string_view part) { return parameter.name.find(part) != std::string::npos; };
    if (!parameter.name.ends_with(".weight") || parameter.shape.size() != 2 || is("embedding")) continue;
    if (is("dt_proj") || is("phase_map") || is("coupling_map")) continue;
    if (is("router.") || is("mixer.gate.") || is("experts.gate.")) continue;
    for (float& value : parameter.values()) value = to_float(to_bf16(value));
  }
  if constexpr (requires { model.readout_scale; })
    if (model.readout_scale.size() > 0)
      for (float& value : elements(model.lm_head.weight)) value *= model.readout_scale(0);
}

// The logits of tokens that come one by one.
template <class Model>
Tensor<float, 3> streamed(const Model& model, const Tensor<Token, 2>& tokens) {
  const Index batch = tokens.dimension(0), length = tokens.dimension(1), vocabulary = model.config.vocab_size;
  typename Model::State state;
  Tensor<float, 3> step, logits(batch, length, vocabulary);
  Tensor<Token, 2> next(batch, 1);
  for (Index t = 0; t < length; ++t) {
    for (Index b = 0; b < batch; ++b) next(b, 0) = tokens(b, t);
    model.step(next, step, state);
    for (Index b = 0; b < batch; ++b) std::copy_n(&step(b, 0, 0), vocabulary, &logits(b, t, 0));
  }
  return logits;
}

template <class Model>
void check_frozen(const Model& model) {
  const Index vocabulary = model.config.vocab_size, length = model.config.max_seq_len - 3;
  Rng rng(5);
  Tensor<Token, 2> tokens(2, length);
  for (Token& token : elements(tokens)) token = static_cast<Token>(rng.below(static_cast<std::uint64_t>(vocabulary)));
  Model expected = model, rounded = model;
  round_weights(rounded);
  round_in_place(expected);
  const Tensor<float, 3> logits = rounded(tokens), exact = model(tokens), naive = expected(tokens);
  CHECK(largest_difference(logits, naive) < 1e-4);
  CHECK(largest_difference(logits, exact) > 1e-5);  // it did round
  // Naive bf16 rounds the activations as well, and is no nearer than this.
  CHECK(largest_difference(logits, exact) <= 2 * largest_difference(naive, exact));

  CHECK(largest_difference(streamed(rounded, tokens), logits) < 1e-4);

  round_weights(rounded);  // twice is once
  CHECK(largest_difference(logits, rounded(tokens)) == 0);
  // Activations rounded, too, differ by a rounding that is small itself, and may be taken back.
  round_weights(rounded, Bf16Inputs::both);
  const Tensor<float, 3> of_both = rounded(tokens);
  CHECK(largest_difference(of_both, logits) > 1e-5);
  CHECK(largest_difference(of_both, exact) <= 4 * largest_difference(naive, exact));
  CHECK(largest_difference(streamed(rounded, tokens), of_both) <= 2 * largest_difference(naive, exact));
  round_weights(rounded);
  CHECK(largest_difference(logits, rounded(tokens)) == 0);
  // What trains in bf16 rounds the same matrices and activations, and streams.
  Model training = model;
  set_products(training, Products::bf16);
  const double rounding = largest_difference(of_both, exact);
  CHECK(largest_difference(training(tokens), exact) > 1e-5);
  CHECK(largest_difference(training(tokens), of_both) < rounding);
  CHECK(largest_difference(streamed(training, tokens), training(tokens)) < rounding);
  set_products(training, Products::fp32);
  CHECK(largest_difference(training(tokens), exact) == 0);
  typename Model::Cache cache;
  Tensor<float, 3> again;
  rounded.forward(tokens, again, cache);
  auto gradient = zeros_like(model);
  CHECK_THROWS_WITH(rounded.backward(view(logits), cache, gradient), ContainsText("rounded"));
  CHECK_THROWS_WITH(count_parameters(rounded), ContainsText("rounded"));
  CHECK_THROWS_WITH(pack_weights(rounded), ContainsText("rounded"));

  Model packed = model;
  pack_weights(packed);
#if defined(RBAR_GEMM_EIGEN) || defined(RBAR_GEMM_ONEDNN)
  constexpr double same = 1e-4;  // products in another order
#else
  constexpr double same = 0;
#endif
  CHECK(largest_difference(packed(tokens), exact) <= same);
  CHECK(largest_difference(streamed(packed, tokens), streamed(model, tokens)) <= same);
  pack_weights(packed);  // twice is once
  CHECK(largest_difference(packed(tokens), exact) <= same);
  CHECK_THROWS_WITH(packed.backward(view(logits), cache, gradient), ContainsText("packed"));
  CHECK_THROWS_WITH(count_parameters(packed), ContainsText("packed"));
  CHECK_THROWS_WITH(round_weights(packed), ContainsText("packed"));
}

// Bytes of a rounded model over those of the model; the parts that stay should be small in it.
template <class Model>
double share_of_memory(const Model& model) {
  if (!test::counts_allocations) return 0.5;
  Model rounded = model;
  round_weights(rounded);
  const auto bytes = [](const Model& copied) {
    return static_cast<double>(test::bytes_allocated_in([&] { const Model copy = copied; }).total);
  };
  return bytes(rounded) / bytes(model);
}

}  // namespace frozen_test
