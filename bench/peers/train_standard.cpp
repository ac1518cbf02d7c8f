// rbar's side of compare_training.py: trains the GPT-2 style transformer on random bytes and prints one JSON
// line. Arguments: threads, timed steps (after an untimed one).
#include "../support.hpp"

#include "rbar/model/transformer.hpp"
#include "rbar/train/adamw.hpp"
#include "rbar/train/loss.hpp"

#include <cstdio>
#include <cstdlib>

using rbar::Index;
using rbar::Tensor;
using rbar::Token;

int main(int argc, char** argv) {
  if (argc != 3) return std::fputs("usage: train_standard THREADS STEPS\n", stderr), 2;
  rbar::set_num_threads(std::max(1, std::atoi(argv[1])));
  const int steps = std::max(1, std::atoi(argv[2]));
  constexpr Index batch = 8, length = 128;

  rbar::TransformerConfig config = rbar::TransformerConfig::gpt2_style(256, 512, 6, 8, length);
  config.dropout = 0;
  rbar::Rng rng(1);
  rbar::TransformerModel<float> model(config, rng), gradient = model;
  const rbar::FlatParameters<float> parameters(model), gradients(gradient);
  gradients.set_zero();
  rbar::AdamW<float> optimizer(rbar::AdamWConfig{});

  Tensor<Token, 2> tokens(batch, length), targets(batch, length);
  for (Token& token : rbar::elements(tokens)) token = static_cast<Token>(rng.below(256));
  for (Token& token : rbar::elements(targets)) token = static_cast<Token>(rng.below(256));
  const Tensor<Token, 2>&inputs = tokens, &labels = targets;
  rbar::TransformerModel<float>::Cache cache;
  Tensor<float, 3> logits;
  double loss = 0;
  const auto step = [&] {
    model.forward(rbar::view(inputs), logits, cache);
    loss = rbar::cross_entropy<float>(rbar::view(std::as_const(logits)), rbar::view(labels), &logits);
    model.backward(rbar::view(std::as_const(logits)), cache, gradient);
    optimizer.step(parameters, gradients, 3e-4, 1, rbar::GradientAfterStep::zero);
  };
  step();
  std::vector<double> seconds;
  double peak = 0;
  for (int i = 0; i < steps; ++i) {
    peak = std::max(peak, rbar::bench::fma_peak<float>());
    const double start = rbar::bench::now();
    step();
    seconds.push_back(rbar::bench::now() - start);
  }
  std::printf(
      "{\"name\": \"rbar %s, %s, %s\", \"parameters\": %lld, \"loss\": %.4f, \"median_s\": %.6f, \"best_s\": "
      "%.6f, \"fma_peak\": %.4g}\n",
      RBAR_VERSION_STRING, rbar::simd::architecture(), rbar::bench::compiler().c_str(),
      static_cast<long long>(parameters.size()), loss, rbar::bench::median(seconds),
      *std::min_element(seconds.begin(), seconds.end()), peak);
}
