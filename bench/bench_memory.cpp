// What a training step keeps of a model's activations, and what it costs to keep less: forward and backward of
// 8 × 128 tokens through six layers of width 256. Counters:
//   KB/token  the most that lies on the heap at once beyond the model and its gradient, logits included
//   d/layer   the same in numbers a token, divided by width and layers: how many vectors of d_model a layer keeps
//   over_kept with recompute: the time over that of the same pass with every cache kept, the two in turn
#include "rbar/rbar.hpp"
#include "support.hpp"

#include "heap_meter.hpp"  // after all else: it defines malloc

namespace {

using namespace rbar;

constexpr Index batch = 8, length = 128, width = 256, depth = 6, heads = 4, vocabulary = 256;

template <class Model>
struct Passes {
  using Config = typename Model::Config;

  Model model, gradient;
  Tensor<Token, 2> tokens{batch, length};
  Tensor<float, 3> logits;
  typename Model::Cache cache;

  Passes(const Config& config, bool recompute) {
    Rng rng(1);
    model = Model(config, rng);
    gradient = zeros_like(model);
    for (Token& token : elements(tokens)) token = static_cast<Token>(rng.below(vocabulary));
    cache.dropout = {true, 1, 2};
    cache.recompute = recompute;
  }
  void operator()() {
    model.forward(view(std::as_const(tokens)), logits, cache);
    model.backward(view(std::as_const(logits)), cache, gradient);
  }
};

// range: recompute
template <class Model>
void activations(benchmark::State& state, const typename Model::Config& config) {
  const bool recompute = state.range(0) != 0;
  Passes<Model> passes(config, recompute);
  Passes<Model>(config, recompute)();  // the scratch of threads is no activation
  const double bytes = bench::heap_needed_by(passes) / static_cast<double>(batch * length);
  bench::measure(state, {.elements = batch * length}, passes);
  if (bench::measures_heap) {
    state.counters["KB/token"] = bytes / 1024;
    state.counters["d/layer"] = bytes / sizeof(float) / static_cast<double>(width * depth);
  }
  if (!recompute) return;
  Passes<Model> kept(config, false);
  state.counters["over_kept"] = bench::paired_ratio(passes, kept);
}

template <class Config>
Config sized(Config config = {}) {
  config.vocab_size = vocabulary;
  config.d_model = width;
  config.n_heads = heads;
  config.max_seq_len = length;
  if constexpr (requires { config.n_layers; }) config.n_layers = depth;
  return config;
}
PMAConfig sized_pma() {
  PMAConfig config = sized<PMAConfig>();
  config.ssm_blocks = 4;
  config.pma_blocks = 2;
  return config;
}

template <class Model>
void add(const char* name, const typename Model::Config& config) {
  benchmark::RegisterBenchmark(name, [config](benchmark::State& state) { activations<Model>(state, config); })
      ->ArgName("recompute")
      ->Arg(0)
      ->Arg(1)
      ->UseManualTime()
      ->Iterations(3)
      ->Unit(benchmark::kMillisecond);
}

}  // namespace

int main(int argc, char** argv) {
  add<TransformerModel<float>>("gpt2", sized<TransformerConfig>());
  add<TransformerModel<float>>("llama", TransformerConfig::llama_style(vocabulary, width, depth, heads, 0, 0, length));
  add<CoRTModel<float>>("cort", sized<CoRTConfig>());
  add<PhaseModulatedAttentionLM<float>>("pma", sized_pma());
  add<PhaseGPT<float>>("phasegpt", sized<PhaseGPTConfig>());
  add<KuramotoLM<float>>("kuramoto", sized<KuramotoLMConfig>());
  add<CoherenceGatedTransformer<float>>("cgt", sized<CGTConfig>());
  return bench::run(argc, argv);
}
