// Decoding and short passes of whole models against their floors, measured in the same moments. Weights are packed;
// `over_unpacked` is the time over that of the same model as it was trained.
//   decode   one token for each of `batch` sequences after `context` tokens: every weight is read once, so the floor is
//            the time to read them all, by as many threads (plus 2 FLOPs a weight and token beyond the first, where
//            those take longer). `over_floor` is our time over it; `speedup`, with threads, over one thread.
//   prefill  a prompt of `context` tokens of which only the last one's logits are wanted, and
//   forward  all logits of a short sequence: `peak_share` of the FMA peak, `over_floor` its inverse.
#include "rbar/model/pma_lm.hpp"
#include "support.hpp"
#include "training_step.hpp"

#include <algorithm>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

namespace {

using namespace rbar;
using Standard = TransformerModel<float>;
using PMA = PhaseModulatedAttentionLM<float>;

// GPT-2's smallest: 124 M parameters, as many as the other model has.
TransformerConfig standard_config() { return TransformerConfig::gpt2_style(50257, 768, 12, 12, 1024); }

template <class Model>
const Model& large_model() {
  static const Model model = [] {
    Rng rng(1);
    if constexpr (std::is_same_v<Model, Standard>)
      return Model(standard_config(), rng);
    else
      return Model(PMAConfig::create_130m_config(), rng);
  }();
  return model;
}

Tensor<Token, 2> some_tokens(Index batch, Index length) {
  Rng rng(2);
  Tensor<Token, 2> tokens(batch, length);
  for (Token& token : elements(tokens)) token = static_cast<Token>(rng.below(256));
  return tokens;
}

template <class Model>
Model& packed_model() {
  static Model model = [] {
    Model copy = large_model<Model>();
    pack_weights(copy);
    return copy;
  }();
  return model;
}

// What one token of every sequence reads: all matrices, and next to nothing else.
template <class Model>
std::vector<std::span<const float>> weights_read(Model& packed) {
  std::vector<std::span<const float>> list;
  packed.linears([&](const auto& map, const auto&...) {
    list.push_back(map.is_packed() ? map.packed.memory() : elements(std::as_const(map.weight)));
  });
  return list;
}

// Reads memory as fast as the threads can: several streams each, and nothing but additions.
double read_all(const std::vector<std::span<const float>>& list) {
  constexpr Index most = Index{1} << 17, streams = 4, lanes = simd::lanes<float>;
  std::vector<std::pair<const float*, Index>> pieces;
  for (const auto& matrix : list)
    for (Index begin = 0; begin < std::ssize(matrix); begin += most)
      pieces.emplace_back(matrix.data() + begin, std::min(most, std::ssize(matrix) - begin));
  std::vector<double> totals(pieces.size());
  parallel_for(static_cast<Index>(pieces.size()), 1, [&](Index number, Index) {
    const auto [data, size] = pieces[static_cast<std::size_t>(number)];
    const Index part = size / streams / lanes * lanes;  // the last lanes of a piece are not read
    simd::Batch<float> sum[streams];
    for (auto& s : sum) s = simd::zero<float>();
    for (Index i = 0; i < part; i += lanes)
      for (Index s = 0; s < streams; ++s) sum[s] = sum[s] + simd::load(data + s * part + i);
    totals[static_cast<std::size_t>(number)] = simd::reduce_add(sum[0] + sum[1] + sum[2] + sum[3]);
  });
  return std::accumulate(totals.begin(), totals.end(), 0.0);
}

double seconds(const auto& body) {
  const double start = bench::now();
  body();
  return bench::now() - start;
}

template <class Model>
void decode(benchmark::State& state) {
  const Index batch = state.range(0), context = state.range(1);
  const int threads = num_threads();
  const Model &model = packed_model<Model>(), &unpacked = large_model<Model>();
  const auto list = weights_read(packed_model<Model>());
  double weights = 0;
  for (const auto& matrix : list) weights += static_cast<double>(matrix.size());
  const Tensor<Token, 2> prompt = some_tokens(batch, context), next = some_tokens(batch, 1);
  typename Model::State stream;
  Tensor<float, 3> logits;
  for (Index t = 0; t < context; t += 64) {  // in pieces, whose logits are small
    const Tensor<Token, 2> piece = some_tokens(batch, std::min<Index>(64, context - t));
    model.step(view(piece), logits, stream);
  }
  const auto step = [&] { model.step(view(next), logits, stream); };
  const auto step_unpacked = [&] { unpacked.step(view(next), logits, stream); };
  step(), step_unpacked();
  // Reading and decoding in turns.
  std::vector<double> over_floor, over_unpacked, times, bandwidths, speedups;
  for (auto _ : state) {
    const double reading = seconds([&] { benchmark::DoNotOptimize(read_all(list)); });
    const double computing = 2.0 * weights * static_cast<double>(batch) / bench::fma_peak(1);
    const double ours = seconds(step);
    times.push_back(ours);
    bandwidths.push_back(4.0 * weights / reading);
    over_floor.push_back(ours / std::max(reading, computing));
    over_unpacked.push_back(ours / seconds(step_unpacked));
    if (threads > 1) {
      set_num_threads(1);
      speedups.push_back(seconds(step) / ours);
      set_num_threads(threads);
    }
    state.SetIterationTime(ours);
  }
  state.counters["tokens/s"] = static_cast<double>(batch) / bench::median(times);
  state.counters["over_floor"] = bench::median(over_floor);
  state.counters["over_unpacked"] = bench::median(over_unpacked);
  state.counters["read GB/s"] = bench::median(bandwidths) * 1e-9;
  if (threads > 1) state.counters["speedup"] = bench::median(speedups);
}
void decoding(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"batch", "context"})
      ->ArgsProduct({{1, 4, 16}, {128}})
      ->Args({1, 896})
      ->UseManualTime()
      ->Iterations(15)
      ->Unit(benchmark::kMillisecond);
}
BENCHMARK_TEMPLATE(decode, Standard)->Apply(decoding);
BENCHMARK_TEMPLATE(decode, PMA)->Apply(decoding);

template <class Model>
void prefill(benchmark::State& state) {
  const Index context = state.range(0);
  const Tensor<Token, 2> prompt = some_tokens(1, context);
  Tensor<float, 3> logits;
  const Model &model = packed_model<Model>(), &unpacked = large_model<Model>();
  const double head = 2.0 * static_cast<double>(model.config.vocab_size * model.config.d_model);
  const double floating = static_cast<double>(context) * (flops(model.config, context) - head) + head;
  const auto read = [&](const Model& reader) {
    typename Model::State stream;
    reader.step(view(prompt), logits, stream, StepLogits::last);
  };
  bench::measure(state, {.flops = floating}, [&] { read(model); });
  state.counters["over_floor"] = 1 / state.counters["peak_share"];
  state.counters["over_unpacked"] = bench::paired_ratio([&] { read(model); }, [&] { read(unpacked); });
  state.counters["tokens/s"] = static_cast<double>(context) * state.counters["GFLOP/s"] * 1e9 / floating;
}
void prefilling(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"context"})->Arg(128)->Arg(512)->UseManualTime()->Iterations(3)->Unit(benchmark::kMillisecond);
}
BENCHMARK_TEMPLATE(prefill, Standard)->Apply(prefilling);
BENCHMARK_TEMPLATE(prefill, PMA)->Apply(prefilling);

// The 6-layer d = 512 transformer on one sequence, as the peers run it.
void forward(benchmark::State& state) {
  const Index length = state.range(0);
  Rng rng(1);
  const Standard unpacked(bench::six_layers(length), rng);
  Standard model = unpacked;
  pack_weights(model);
  const Tensor<Token, 2> tokens = some_tokens(1, length);
  Standard::Cache cache;
  Tensor<float, 3> logits;
  bench::measure(state, {.flops = static_cast<double>(length) * flops(model.config, length)},
                 [&] { model.forward(view(tokens), logits, cache); });
  state.counters["over_floor"] = 1 / state.counters["peak_share"];
  state.counters["over_unpacked"] = bench::paired_ratio([&] { model.forward(view(tokens), logits, cache); },
                                                        [&] { unpacked.forward(view(tokens), logits, cache); });
}
BENCHMARK(forward)->ArgNames({"length"})->Arg(128)->Arg(512)->Apply(bench::standard);

}  // namespace

int main(int argc, char** argv) { return rbar::bench::run(argc, argv); }
