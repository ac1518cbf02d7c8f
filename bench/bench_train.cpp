// What a training step costs beside the model: cross-entropy with its gradient, the norm of the gradient and
// AdamW. All three are bound by memory at real sizes, so their share is of the copy bandwidth; it can exceed 1,
// because a copy first reads the lines that it overwrites, and arrays updated in place do not. The plain reference
// (counter `speedup`) is the textbook loop on one thread.
#include "support.hpp"

#include "rbar/core/random.hpp"
#include "rbar/train/adamw.hpp"
#include "rbar/train/loss.hpp"

#include <cmath>
#include <vector>

namespace {

using rbar::Index;
using rbar::Tensor;
using rbar::Token;

void plain_cross_entropy(const Tensor<float, 3>& logits, const Tensor<Token, 2>& targets, Tensor<float, 3>& gradient) {
  const Index vocabulary = logits.dimension(2);
  const float share = 1.0f / static_cast<float>(targets.size());
  double loss = 0;
  for (Index r = 0; r < targets.size(); ++r) {
    const float* row = logits.data() + r * vocabulary;
    float* out = gradient.data() + r * vocabulary;
    float largest = row[0], total = 0;
    for (Index v = 0; v < vocabulary; ++v) largest = std::max(largest, row[v]);
    for (Index v = 0; v < vocabulary; ++v) total += out[v] = std::exp(row[v] - largest);
    for (Index v = 0; v < vocabulary; ++v) out[v] *= share / total;
    out[targets.data()[r]] -= share;
    loss += std::log(total) + largest - row[targets.data()[r]];
  }
  benchmark::DoNotOptimize(loss);
}

// range: rows, vocabulary, in place
void cross_entropy(benchmark::State& state) {
  const Index count = state.range(0), vocabulary = state.range(1);
  Tensor<float, 3> logits(1, count, vocabulary), gradient(1, count, vocabulary);
  Tensor<Token, 2> targets(1, count);
  rbar::Rng rng(1);
  for (Index i = 0; i < logits.size(); ++i) logits.data()[i] = static_cast<float>(rng.uniform(-4, 4));
  for (Token& target : rbar::elements(targets))
    target = static_cast<Token>(rng.below(static_cast<std::uint64_t>(vocabulary)));
  const Tensor<float, 3>& input = logits;
  const Tensor<Token, 2>& labels = targets;
  Tensor<float, 3>* const output = state.range(2) ? &logits : &gradient;
  const double size = static_cast<double>(logits.size());
  rbar::bench::measure(
      state, {.bytes = 8 * size, .elements = size},
      [&] { benchmark::DoNotOptimize(rbar::cross_entropy<float>(rbar::view(input), rbar::view(labels), output)); },
      [&] { plain_cross_entropy(logits, targets, gradient); });
}
BENCHMARK(cross_entropy)
    ->ArgNames({"rows", "vocabulary", "in_place"})
    ->Args({1024, 65, 1})
    ->Args({1024, 256, 0})
    ->Args({1024, 256, 1})
    ->Args({512, 50257, 1})
    ->Apply(rbar::bench::standard);

// The shapes of a six-layer transformer of this width.
struct Weights {
  using Scalar = float;
  std::vector<Tensor<float, 2>> matrices;
  std::vector<Tensor<float, 1>> vectors;

  explicit Weights(Index width) {
    for (int layer = 0; layer < 6; ++layer) {
      for (const Index rows : {width, width, width, width, 4 * width, 4 * width}) matrices.emplace_back(rows, width);
      for (const Index size : {width, width, width, width, width, width, 4 * width, width}) vectors.emplace_back(size);
    }
    rbar::Rng rng(3);
    for (const auto& parameter : rbar::parameters_of(*this))
      for (Index i = 0; i < parameter.size; ++i) parameter.data[i] = static_cast<float>(rng.uniform(-1, 1));
  }
  void parameters(auto&& visit) {
    for (std::size_t i = 0; i < matrices.size(); ++i) visit("matrix" + std::to_string(i), matrices[i]);
    for (std::size_t i = 0; i < vectors.size(); ++i) visit("vector" + std::to_string(i), vectors[i]);
  }
};

void global_norm(benchmark::State& state) {
  Weights weights(state.range(0));
  const rbar::FlatParameters<float> flat(weights);
  const double size = static_cast<double>(flat.size());
  rbar::bench::measure(
      state, {.bytes = 4 * size, .elements = size}, [&] { benchmark::DoNotOptimize(rbar::global_norm(flat)); },
      [&] {
        double sum = 0;
        for (const auto& part : flat.parts())
          for (const float value : part.values()) sum += static_cast<double>(value) * static_cast<double>(value);
        benchmark::DoNotOptimize(sum);
      });
}
BENCHMARK(global_norm)->ArgName("width")->Arg(128)->Arg(512)->Apply(rbar::bench::standard);

// The gradient is cleared in the same pass, as the trainer has it: four arrays are read and written.
void adamw(benchmark::State& state) {
  Weights weights(state.range(0)), gradient(state.range(0));
  const rbar::FlatParameters<float> parameters(weights), gradients(gradient);
  rbar::AdamW<float> optimizer(rbar::AdamWConfig{});
  std::vector<float> first(static_cast<std::size_t>(parameters.size())), second(first);
  const double size = static_cast<double>(parameters.size());
  rbar::bench::measure(
      state, {.bytes = 32 * size, .elements = size},
      [&] { optimizer.step(parameters, gradients, 1e-4, 1.0, rbar::GradientAfterStep::zero); },
      [&] {
        float *m = first.data(), *v = second.data();
        for (std::size_t p = 0; p < parameters.parts().size(); ++p) {
          const auto &weight = parameters.parts()[p], &g = gradients.parts()[p];
          for (Index i = 0; i < weight.size; ++i, ++m, ++v) {
            *m = 0.9f * *m + 0.1f * g.data[i];
            *v = 0.95f * *v + 0.05f * g.data[i] * g.data[i];
            weight.data[i] = 0.9999f * weight.data[i] - 1e-4f * *m / (std::sqrt(*v) + 1e-8f);
            g.data[i] = 0;
          }
        }
      });
}
BENCHMARK(adamw)->ArgName("width")->Arg(128)->Arg(512)->Apply(rbar::bench::standard);

}  // namespace

int main(int argc, char** argv) { return rbar::bench::run(argc, argv); }
