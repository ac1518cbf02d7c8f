// Whole models: a training step and decoding of the 6-layer d = 512 GPT-2 style transformer.
#include "support.hpp"
#include "training_step.hpp"

namespace {

using namespace rbar;

// The matrix products of one training step alone, by Eigen: what `speedup` compares the whole step with.
struct PlainProducts {
  Index tokens;
  TransformerConfig config;
  std::vector<float> activations, gradients, weight;

  PlainProducts(const TransformerConfig& config_, Index tokens_)
      : tokens(tokens_),
        config(config_),
        activations(static_cast<std::size_t>(tokens * config.hidden()), 0.5f),
        gradients(activations),
        weight(static_cast<std::size_t>(config.d_model * config.hidden()), 0.25f) {}

  void layer(Index in, Index out) {
    const float *x = activations.data(), *dy = gradients.data(), *w = weight.data();
    using enum Transpose;
    detail::eigen_gemm(no, yes, tokens, out, in, x, in, w, in, gradients.data(), out, false);
    detail::eigen_gemm(no, no, tokens, in, out, dy, out, w, in, activations.data(), in, false);
    detail::eigen_gemm(yes, no, out, in, tokens, dy, out, x, in, weight.data(), in, false);
  }
  void operator()() {
    for (Index l = 0; l < config.n_layers; ++l) {
      for (int projection = 0; projection < 4; ++projection) layer(config.d_model, config.d_model);
      layer(config.d_model, config.hidden());
      layer(config.hidden(), config.d_model);
    }
    layer(config.d_model, config.vocab_size);
  }
};

// range: batch, length
void standard_training(benchmark::State& state) {
  const Index batch = state.range(0), length = state.range(1);
  const TransformerConfig config = bench::six_layers(length);
  bench::TrainingStep<TransformerModel<float>> step(config, batch, length);
  PlainProducts plain(config, batch * length);
  bench::measure(
      state, {.flops = bench::training_flops(config, batch, length)}, [&] { benchmark::DoNotOptimize(step()); },
      [&] { plain(); });
  state.counters["tokens/s"] = static_cast<double>(batch * length) * state.counters["GFLOP/s"] * 1e9 /
                               bench::training_flops(config, batch, length);
}
BENCHMARK(standard_training)
    ->ArgNames({"batch", "length"})
    ->Args({8, 128})
    ->UseManualTime()
    ->Iterations(7)
    ->Unit(benchmark::kMillisecond);

// One token for each of `batch` sequences with a KV cache of `context` tokens: every weight is read once.
void standard_decoding(benchmark::State& state) {
  const Index batch = state.range(0), context = state.range(1);
  Rng rng(1);
  const TransformerModel<float> model(bench::six_layers(context + 4096), rng);
  const auto some_tokens = [&](Index length) {
    Tensor<Token, 2> tokens(batch, length);
    for (Token& token : elements(tokens)) token = static_cast<Token>(rng.below(256));
    return tokens;
  };
  const Tensor<Token, 2> prompt = some_tokens(context), next = some_tokens(1);
  TransformerModel<float>::State decoder;
  Tensor<float, 3> logits;
  model.step(view(prompt), logits, decoder);
  const TransformerModel<float>::State prompted = decoder;
  const double bytes = 4.0 * static_cast<double>(count_parameters(model));
  bench::measure(state, {.bytes = bytes}, [&] {
    if (decoder.position == model.config.max_seq_len) decoder = prompted;
    model.step(view(next), logits, decoder);
  });
  state.counters["tokens/s"] = static_cast<double>(batch) * state.counters["GB/s"] * 1e9 / bytes;
}
BENCHMARK(standard_decoding)->ArgNames({"batch", "context"})->Args({1, 128})->Args({8, 128})->Apply(bench::standard);

}  // namespace

int main(int argc, char** argv) { return rbar::bench::run(argc, argv); }
