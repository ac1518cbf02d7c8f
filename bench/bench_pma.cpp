// Whole phase-modulated models.
//
// pma_130m_*: the 130 M preset on 4 × 512 tokens, forward as for training, and a whole training step with AdamW. `GB`
// is the most that lies on the heap at once, the model, its gradient and the optimiser's moments included; it has to
// stay below 6. pma_training, pma_decoding: a model of a million parameters against the standard transformer of as many
// parameters and blocks; `over_standard` is the ratio of their times. FLOPs are those of flops(config): a backward pass
// counts twice a forward one.
#include "rbar/model/pma_ablations.hpp"
#include "support.hpp"
#include "training_step.hpp"

#include "heap_meter.hpp"  // after all else: it defines malloc

namespace {

using namespace rbar;

using PMA = PhaseModulatedAttentionLM<float>;

// Seconds of a second call, after one that fills the buffers and whose heap is metered together with `prepare`.
template <class Prepare, class Body>
void once(benchmark::State& state, double flops, Index tokens, Prepare&& prepare, Body&& body) {
  const double heap = bench::heap_needed_by([&] {
    prepare();
    body();
  });
  for (auto _ : state) {
    const double start = bench::now();
    body();
    const double seconds = bench::now() - start;
    state.SetIterationTime(seconds);
    state.counters["tokens/s"] = static_cast<double>(tokens) / seconds;
    state.counters["GFLOP/s"] = flops / seconds * 1e-9;
    state.counters["peak_share"] = flops / seconds / bench::fma_peak();
  }
  if (bench::measures_heap) state.counters["GB"] = heap * 1e-9;
}

constexpr Index large_batch = 4, large_length = 512, large_tokens = large_batch * large_length;

void pma_130m_forward(benchmark::State& state) {
  const PMAConfig config = PMAConfig::create_130m_config();
  PMA model;
  PMA::Cache cache;
  Tensor<Token, 2> tokens(large_batch, large_length);
  Tensor<float, 3> logits;
  Rng rng(1);
  for (Token& token : elements(tokens)) token = static_cast<Token>(rng.below(50257));
  once(
      state, flops(config, large_length) * large_tokens, large_tokens, [&] { model = PMA(config, rng); },
      [&] { model.forward(view(std::as_const(tokens)), logits, cache); });
}
BENCHMARK(pma_130m_forward)->UseManualTime()->Iterations(1)->Unit(benchmark::kMillisecond);

void pma_130m_training(benchmark::State& state) {
  const PMAConfig config = PMAConfig::create_130m_config();
  std::unique_ptr<bench::TrainingStep<PMA>> step;
  once(
      state, 3 * flops(config, large_length) * large_tokens, large_tokens,
      [&] { step = std::make_unique<bench::TrainingStep<PMA>>(config, large_batch, large_length); },
      [&] { benchmark::DoNotOptimize((*step)()); });
}
BENCHMARK(pma_130m_training)->UseManualTime()->Iterations(1)->Unit(benchmark::kMillisecond);

// Both in turn, so that a neighbour slows down both; the ratio is that of their best times.
template <class Body, class Standard>
void in_turn(benchmark::State& state, double flops, Index tokens, Body&& body, Standard&& standard) {
  body();
  standard();
  std::vector<double> seconds, standard_seconds;
  for (auto _ : state) {
    seconds.push_back(bench::best_seconds(body, 1));
    standard_seconds.push_back(bench::best_seconds(standard, 1));
    state.SetIterationTime(seconds.back());
  }
  const double best = *std::min_element(seconds.begin(), seconds.end());
  state.counters["over_standard"] = best / *std::min_element(standard_seconds.begin(), standard_seconds.end());
  state.counters["tokens/s"] = static_cast<double>(tokens) / best;
  state.counters["GFLOP/s"] = flops / best * 1e-9;
  state.counters["peak_share"] = flops / best / bench::fma_peak();
}

PMAConfig small(Index length) {
  PMAConfig config = PMAConfig::small_1m(256);
  config.max_seq_len = length;
  return config;
}

// range: batch, length
void pma_training(benchmark::State& state) {
  const Index batch = state.range(0), length = state.range(1);
  const PMAConfig config = small(length);
  bench::TrainingStep<PMA> step(config, batch, length);
  bench::TrainingStep<TransformerModel<float>> standard(matched_transformer(config), batch, length);
  in_turn(
      state, 3 * flops(config, length) * static_cast<double>(batch * length), batch * length,
      [&] { benchmark::DoNotOptimize(step()); }, [&] { benchmark::DoNotOptimize(standard()); });
}
BENCHMARK(pma_training)
    ->ArgNames({"batch", "length"})
    ->Args({8, 128})
    ->Args({2, 512})
    ->UseManualTime()
    ->Iterations(9)
    ->Unit(benchmark::kMillisecond);

// One token of one sequence that has `context` tokens behind it.
template <class Model>
struct Decoder {
  Model model;
  typename Model::State prompted, stream;
  Tensor<Token, 2> next{1, 1};
  Tensor<float, 3> logits;

  Decoder(const typename Model::Config& config, Index context) {
    Rng rng(1);
    model = Model(config, rng);
    Tensor<Token, 2> prompt(1, context);
    for (Token& token : elements(prompt)) token = static_cast<Token>(rng.below(256));
    next(0, 0) = 7;
    model.step(view(std::as_const(prompt)), logits, prompted);
    stream = prompted;
  }
  void operator()() {
    if (stream.position == model.config.max_seq_len) stream = prompted;
    model.step(view(std::as_const(next)), logits, stream);
  }
};

void pma_decoding(benchmark::State& state) {
  const Index context = state.range(0);
  const PMAConfig config = small(context + 4096);
  Decoder<PMA> decoder(config, context);
  Decoder<TransformerModel<float>> standard(matched_transformer(config), context);
  in_turn(
      state, flops(config, 2 * context), 1, [&] { decoder(); }, [&] { standard(); });
}
BENCHMARK(pma_decoding)
    ->ArgName("context")
    ->Arg(128)
    ->Arg(2048)
    ->UseManualTime()
    ->Iterations(200)
    ->Unit(benchmark::kMicrosecond);

}  // namespace

int main(int argc, char** argv) { return rbar::bench::run(argc, argv); }
