// A dense layer whose weights lie in bf16 against the same with fp32 weights, at the sizes of the 130 M preset, with as
// many layers as leave the caches: decoding reads every weight from memory. Both are packed; `speedup` is over fp32;
// GB/s counts the weights as they lie, peak_share is of the copy bandwidth below 64 rows and of the FMA peak from there
// on, which bf16 dot products can pass: twice as much is their limit. Then whole models with rounded weights, decoding
// and reading a prompt.
#include "rbar/core/gemm.hpp"
#include "rbar/core/random.hpp"
#include "rbar/model/pma_lm.hpp"
#include "rbar/model/transformer.hpp"
#include "rbar/nn/packed_matrix.hpp"
#include "support.hpp"

namespace {

using namespace rbar;

// range: rows, out, in, Bf16Inputs
void dense(benchmark::State& state) {
  const Index m = state.range(0), n = state.range(1), k = state.range(2);
  const auto inputs = static_cast<Bf16Inputs>(state.range(3));
  const Index layers = std::max<Index>(2, (Index{96} << 20) / (n * k * 2));
  Tensor<float, 2> weight(n, k), x(m, k), y(m, n);
  Rng rng(1);
  for (auto* matrix : {&weight, &x})
    for (float& value : elements(*matrix)) value = static_cast<float>(rng.uniform(-1, 1));
  const std::vector<PackedMatrix<float>> plain(static_cast<std::size_t>(layers),
                                               PackedMatrix<float>(rows(std::as_const(weight))));
  const std::vector<RoundedMatrix> rounded(plain.size(), RoundedMatrix(rows(std::as_const(weight))));
  std::size_t layer = 0, plain_layer = 0;
  bench::Work work;
  if (m < 64)
    work.bytes = 2.0 * static_cast<double>(n * k);
  else
    work.flops = 2.0 * static_cast<double>(m * n * k);
  bench::measure(
      state, work,
      [&] {
        rounded[layer].product(rows(std::as_const(x)), rows(y), false, inputs);
        layer = (layer + 1) % rounded.size();
      },
      [&] {
        plain[plain_layer].product(rows(std::as_const(x)), rows(y), false);
        plain_layer = (plain_layer + 1) % plain.size();
      });
}
BENCHMARK(dense)
    ->ArgNames({"rows", "out", "in", "both"})
    ->ArgsProduct({{1, 4, 16, 64, 128, 256, 1024}, {3072}, {768}, {0, 1}})
    ->ArgsProduct({{1, 16, 128, 1024}, {768}, {3072}, {0, 1}})
    ->ArgsProduct({{128}, {2048}, {512}, {0, 1}})
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
  pack_weights(plain.model);
  round_weights(rounded.model);
  for (int i = 0; i < 64; ++i) plain(), rounded();
  bench::measure(state, {.elements = static_cast<double>(state.range(0))}, rounded);
  state.counters["tokens/s"] = state.counters["Gelem/s"] * 1e9;
  state.counters["speedup"] = 1 / bench::paired_ratio(rounded, plain);
}
// A prompt and the logits after it; `speedup` over the same model in fp32.
// range: tokens, Bf16Inputs
void prompt_gpt2(benchmark::State& state) {
  Rng rng(1);
  TransformerModel<float> plain(TransformerConfig::gpt2_style(50257, 768, 12, 12, 1024), rng);
  auto rounded = plain;
  pack_weights(plain);
  round_weights(rounded, static_cast<Bf16Inputs>(state.range(1)));
  Tensor<Token, 2> tokens(1, state.range(0));
  for (Token& token : elements(tokens)) token = static_cast<Token>(rng.below(50257));
  TransformerModel<float>::State stream;
  Tensor<float, 3> logits;
  const auto read = [&](const TransformerModel<float>& model) {
    stream.position = 0;
    stream.layers.clear();
    model.step(view(std::as_const(tokens)), logits, stream, StepLogits::last);
  };
  bench::measure(
      state, {.elements = static_cast<double>(tokens.size())}, [&] { read(rounded); }, [&] { read(plain); });
  state.counters["tokens/s"] = state.counters["Gelem/s"] * 1e9;
}
BENCHMARK(prompt_gpt2)->ArgNames({"tokens", "both"})->ArgsProduct({{128, 512}, {0, 1}})->Apply(bench::standard);

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
