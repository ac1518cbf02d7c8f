// A dense layer whose weights lie in bf16 against the same with fp32 weights, at the sizes of the 130 M preset, with as
// many layers as leave the caches: decoding reads every weight from memory. `speedup` is over fp32; GB/s counts the
// weights as they lie, peak_share is of the copy bandwidth below 64 rows and of the FMA peak from there on. Then whole
// models with rounded weights, decoding.
#include "rbar/core/gemm.hpp"
#include "rbar/core/random.hpp"
#include "rbar/model/pma_lm.hpp"
#include "rbar/model/transformer.hpp"
#include "rbar/simd/bf16_gemm.hpp"
#include "support.hpp"

namespace {

using namespace rbar;

// range: rows, out, in
void dense(benchmark::State& state) {
  const Index m = state.range(0), n = state.range(1), k = state.range(2);
  const Index layers = std::max<Index>(2, (Index{96} << 20) / (n * k * 2));
  std::vector<float> weights(static_cast<std::size_t>(layers * n * k)), x(static_cast<std::size_t>(m * k)),
      y(static_cast<std::size_t>(m * n));
  Rng rng(1);
  for (float& value : x) value = static_cast<float>(rng.uniform(-1, 1));
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = x[i % x.size()];
  std::vector<BFloat16> rounded(weights.size());
  to_bf16(weights, rounded.data());
  Index layer = 0, plain = 0;
  bench::Work work;
  if (m < 64)
    work.bytes = 2.0 * static_cast<double>(n * k);
  else
    work.flops = 2.0 * static_cast<double>(m * n * k);
  bench::measure(
      state, work,
      [&] {
        simd::bf16_gemm(m, n, k, x.data(), k, rounded.data() + layer * n * k, k, y.data(), n, false);
        layer = (layer + 1) % layers;
      },
      [&] {
        gemm(Transpose::no, Transpose::yes, m, n, k, x.data(), k, weights.data() + plain * n * k, k, y.data(), n);
        plain = (plain + 1) % layers;
      });
}
BENCHMARK(dense)
    ->ArgNames({"rows", "out", "in"})
    ->ArgsProduct({{1, 4, 16, 64, 256}, {3072}, {768}})
    ->ArgsProduct({{1, 16, 128}, {768}, {3072}})
    ->Apply(bench::standard);

// One token of every sequence after 64, with a KV cache; `speedup` over the same model in fp32, the two in turn.
// range: batch
template <class Model>
void decode(benchmark::State& state, const typename Model::Config& config) {
  struct Stream {
    Model model;
    Tensor<Token, 2> next;
    typename Model::State state = {};
    Tensor<float, 3> logits = {};
    void operator()() {
      if (state.position == model.config.max_seq_len) state = {};
      model.step(view(std::as_const(next)), logits, state);
    }
  };
  Rng rng(1);
  Tensor<Token, 2> next(state.range(0), 1);
  for (Token& token : elements(next)) token = static_cast<Token>(rng.below(256));
  Stream plain{Model(config, rng), next}, rounded{plain.model, next};
  rounded.model.round_weights();
  for (int i = 0; i < 64; ++i) plain(), rounded();
  bench::measure(state, {.elements = static_cast<double>(state.range(0))}, rounded);
  state.counters["tokens/s"] = state.counters["Gelem/s"] * 1e9;
  state.counters["speedup"] = 1 / bench::paired_ratio(rounded, plain);
}
void decode_gpt2(benchmark::State& state) {
  decode<TransformerModel<float>>(state, TransformerConfig::gpt2_style(50257, 768, 12, 12, 1024));
}
void decode_pma(benchmark::State& state) {
  decode<PhaseModulatedAttentionLM<float>>(state, PMAConfig::create_130m_config());
}
BENCHMARK(decode_gpt2)->ArgName("batch")->Arg(1)->Arg(4)->Arg(16)->Apply(bench::standard);
BENCHMARK(decode_pma)->ArgName("batch")->Arg(1)->Arg(4)->Arg(16)->Apply(bench::standard);

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv); }
