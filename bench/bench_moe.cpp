// The mixture of experts beside what it should cost: one feed-forward block of the same width on as many rows as there
// are choices. `speedup` is over that block. 1 would say that choosing, packing and combining are free; with few tokens
// the weights are what is read, and the mixture has those of every chosen expert to read. peak_share counts the
// experts' products alone.
#include "rbar/nn/mixture_of_experts.hpp"
#include "support.hpp"

namespace {

using namespace rbar;

constexpr Index dim = 512, hidden = 1024, top_k = 2;

struct Setting {
  Index tokens;
  MixtureOfExperts<float> mixture, mixture_grad;
  FeedForward<float> block, block_grad;
  MixtureOfExperts<float>::Cache cache;
  FeedForward<float>::Cache block_cache;
  Tensor<float, 2> x, y, dy, dx, block_x, block_y, block_dx;

  Setting(Index tokens_, Index n_experts) : tokens(tokens_) {
    Rng rng(1);
    mixture = {{.d_model = dim, .d_ff = hidden, .n_experts = n_experts, .top_k = top_k}, rng};
    block = FeedForward<float>(dim, hidden, /*bias=*/true, rng);
    mixture_grad = zeros_like(mixture);
    block_grad = zeros_like(block);
    for (auto* tensor : {&x, &y, &dy, &dx}) ensure_shape(*tensor, {tokens, dim});
    for (auto* tensor : {&block_x, &block_y, &block_dx}) ensure_shape(*tensor, {top_k * tokens, dim});
    normal(x, 1, rng);
    normal(dy, 1, rng);
    normal(block_x, 1, rng);
  }
  double flops() const { return 4.0 * static_cast<double>(tokens * top_k * dim * hidden); }
  void forward() { mixture.forward(rows(std::as_const(x)), rows(y), cache); }
  void backward() { mixture.backward(rows(std::as_const(dy)), rows(std::as_const(x)), cache, rows(dx), mixture_grad); }
  void block_forward() { block.forward(rows(std::as_const(block_x)), rows(block_y), block_cache); }
  void block_backward() {
    block.backward(rows(std::as_const(block_y)), rows(std::as_const(block_x)), block_cache, rows(block_dx), block_grad);
  }
};

void forward(benchmark::State& state) {
  Setting setting(state.range(0), state.range(1));
  rbar::bench::measure(
      state, {.flops = setting.flops()}, [&] { setting.forward(); }, [&] { setting.block_forward(); });
}
void backward(benchmark::State& state) {
  Setting setting(state.range(0), state.range(1));
  setting.forward();
  setting.block_forward();
  rbar::bench::measure(
      state, {.flops = 2 * setting.flops()}, [&] { setting.backward(); }, [&] { setting.block_backward(); });
}

void sizes(benchmark::internal::Benchmark* benchmark) {
  rbar::bench::standard(benchmark);
  benchmark->ArgNames({"tokens", "experts"})->ArgsProduct({{1, 16, 128, 1024}, {4, 8}});
}
BENCHMARK(forward)->Apply(sizes);
BENCHMARK(backward)->Apply(sizes);

}  // namespace

int main(int argc, char** argv) { return rbar::bench::run(argc, argv); }
