// Training in bf16: the three products of a dense layer, of fp32 factors that are rounded each time, and steps of whole
// models. `speedup` is over fp32; peak_share is of the FMA peak, which bf16 dot products can pass: twice as much is
// their limit.
#include "rbar/model/transformer.hpp"
#include "rbar/nn/products.hpp"
#include "rbar/train/trainer.hpp"
#include "support.hpp"

namespace {

using namespace rbar;

enum class Pass { y, dx, dW };  // y = x Wᵀ, dx = dy W, dW += dyᵀ x

// range: rows, out, in
template <Pass pass>
void product(benchmark::State& state) {
  const Index m = state.range(0), out = state.range(1), in = state.range(2);
  Tensor<float, 2> x(m, in), weight(out, in), dy(m, out), y(m, out), dx(m, in), dW(out, in);
  Rng rng(1);
  for (auto* factor : {&x, &weight, &dy})
    for (float& value : elements(*factor)) value = static_cast<float>(rng.uniform(-1, 1));
  dW.setZero();
  const auto multiply = [&](Products products) {
    constexpr auto no = Transpose::no, yes = Transpose::yes;
    if constexpr (pass == Pass::y)
      gemm(products, no, yes, m, out, in, x.data(), in, weight.data(), in, y.data(), out);
    else if constexpr (pass == Pass::dx)
      gemm(products, no, no, m, in, out, dy.data(), out, weight.data(), in, dx.data(), in);
    else
      gemm(products, yes, no, out, in, m, dy.data(), out, x.data(), in, dW.data(), in, /*accumulate=*/true);
  };
  const auto rounded = [&] { multiply(Products::bf16); };
  const auto plain = [&] { multiply(Products::fp32); };
  bench::measure(state, {.flops = 2.0 * static_cast<double>(m * out * in)}, rounded);
  state.counters["speedup"] = 1 / bench::paired_ratio(rounded, plain);
}
void layer_sizes(benchmark::internal::Benchmark* benchmark) {
  constexpr Index sizes[][2] = {{512, 512}, {2048, 512}, {512, 2048}, {3072, 768}, {768, 3072}};
  benchmark->ArgNames({"rows", "out", "in"});
  for (const Index rows : {128, 1024})
    for (const auto& [out, in] : sizes) benchmark->Args({rows, out, in});
  bench::standard(benchmark);
}
BENCHMARK(product<Pass::y>)->Name("y")->Apply(layer_sizes);
BENCHMARK(product<Pass::dx>)->Name("dx")->Apply(layer_sizes);
BENCHMARK(product<Pass::dW>)->Name("dW")->Apply(layer_sizes);

// A step of the standard model with 6 layers of d = 512, the two in turn; the best of each.
// range: windows, tokens in each
void step(benchmark::State& state) {
  TrainingConfig config;
  config.batch_size = state.range(0);
  config.window = state.range(1);
  Rng rng(1);
  TransformerModel<float> plain(TransformerConfig::gpt2_style(256, 512, 6, 8, 512), rng), rounded = plain;
  std::vector<Token> tokens(8192);
  for (Token& token : tokens) token = static_cast<Token>(rng.below(256));
  Trainer in_fp32(plain, config);
  config.products = Products::bf16;
  Trainer in_bf16(rounded, config);
  in_fp32.step(tokens), in_bf16.step(tokens);
  double best = 1e300, best_plain = 1e300;
  for (auto _ : state) {
    const double start = bench::now();
    in_fp32.step(tokens);
    const double between = bench::now();
    in_bf16.step(tokens);
    const double seconds = bench::now() - between;
    state.SetIterationTime(seconds);
    best = std::min(best, seconds);
    best_plain = std::min(best_plain, between - start);
  }
  state.counters["tokens/s"] = static_cast<double>(config.batch_size * config.window) / best;
  state.counters["speedup"] = best_plain / best;
}
BENCHMARK(step)->ArgNames({"batch", "tokens"})->Args({4, 512})->Args({8, 128})->Apply(bench::standard)->Iterations(3);

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv); }
