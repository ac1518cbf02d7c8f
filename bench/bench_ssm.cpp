// The selective scan and Mamba's block around it.
//
// scan_*: softplus, recurrence, skip and gate of one sequence, as the layer runs them. Gelem/s counts states moved by
// one token (tokens · channels · 16). `peak_share` is of the copy bandwidth, for the activations that must be read and
// written once; `fma_share` is of the FMA peak, with the operations as written (a multiply-add is two): 21 a state
// forward, the same again and 14 more backward. `speedup` is over the recurrence as a plain loop: a channel's states in
// registers or L1, scalar std::exp.
// layer_*: the whole block. `scan_share` is the scan's part of the time; `heap_bytes_per_token` what a training step
// takes at once. layer_step: one token of a stream.
#include "rbar/core/random.hpp"
#include "rbar/nn/ssm.hpp"
#include "support.hpp"

#include <cmath>

#include "heap_meter.hpp"  // after all else: it defines malloc

namespace {

using namespace rbar;

constexpr Index states = 16;
constexpr double forward_flops = 21, backward_flops = 21 + 14;

template <class Tensorial>
void fill(Tensorial& tensor, double mean, double deviation, std::uint64_t seed) {
  Rng rng(seed);
  for (float& value : elements(tensor)) value = static_cast<float>(rng.normal(mean, deviation));
}

struct Scan {
  Index tokens, inner, blocks;
  Tensor<float, 2> step, input, gate, selection, y, out, dout, dstep, dinput, dgate, dselection, state, borders;
  Tensor<float, 2> log_rate, partial;
  Tensor<float, 1> skip, memory;

  Scan(Index tokens_, Index inner_)
      : tokens(tokens_), inner(inner_), blocks((inner + simd::scan_channels - 1) / simd::scan_channels) {
    const Index size = simd::scan_state_size(states);
    for (auto* tensor : {&step, &input, &gate, &y, &out, &dout, &dstep, &dinput, &dgate})
      ensure_shape(*tensor, {tokens, inner});
    ensure_shape(selection, {tokens, 2 * states});
    ensure_shape(dselection, {blocks * tokens, 2 * states});
    ensure_shape(state, {blocks, size});
    ensure_shape(borders, {blocks, simd::scan_chunks(tokens) * size});
    ensure_shape(partial, {blocks, size + simd::scan_channels});
    ensure_shape(log_rate, {inner, states});
    ensure_shape(skip, {inner});
    ensure_shape(memory, {simd::ScanScratch<float>::size(states)});
    fill(step, -4, 1, 1);
    fill(input, 0, 1, 2);
    fill(gate, 0, 1, 3);
    fill(selection, 0, 1, 4);
    fill(dout, 0, 1, 5);
    for (Index e = 0; e < inner; ++e)
      for (Index s = 0; s < states; ++s) log_rate(e, s) = std::log(static_cast<float>(s + 1));
    skip.setConstant(1.0f);
    forward();
  }

  double moved() const { return static_cast<double>(tokens * inner * states); }
  double bytes(double activations) const {
    return sizeof(float) * static_cast<double>(tokens) * (activations * static_cast<double>(inner) + 2.0 * states);
  }
  simd::ScanBlock<float> block(Index channel) const {
    return {tokens,
            std::min(simd::scan_channels, inner - channel),
            states,
            &log_rate(channel, 0),
            &skip(channel),
            &step(0, channel),
            &input(0, channel),
            &gate(0, channel),
            selection.data(),
            inner,
            inner,
            2 * states};
  }
  void forward() {
    state.setZero();
    for (Index b = 0; b < blocks; ++b) {
      const Index channel = b * simd::scan_channels;
      simd::selective_scan(block(channel), &state(b, 0), &borders(b, 0), &out(0, channel), memory.data());
    }
  }
  void backward() {
    for (Index b = 0; b < blocks; ++b) {
      const Index channel = b * simd::scan_channels;
      simd::selective_scan_backward(
          block(channel), &borders(b, 0), &dout(0, channel), &out(0, channel),
          {&dstep(0, channel), &dinput(0, channel), &dgate(0, channel), &dselection(b * tokens, 0), &partial(b, 0),
           &partial(b, simd::scan_state_size(states))},
          memory.data());
    }
  }
};

float softplus(float x) { return x > 20 ? x : std::log1p(std::exp(x)); }
float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

void plain_forward(Scan& x) {
  for (Index e = 0; e < x.inner; ++e) {
    float rate[states], h[states] = {};
    for (Index s = 0; s < states; ++s) rate[s] = -std::exp(x.log_rate(e, s));
    for (Index t = 0; t < x.tokens; ++t) {
      const float step = softplus(x.step(t, e)), drive = step * x.input(t, e), z = x.gate(t, e);
      const float *B = &x.selection(t, 0), *C = B + states;
      float y = x.skip(e) * x.input(t, e);
      for (Index s = 0; s < states; ++s) {
        h[s] = std::exp(step * rate[s]) * h[s] + drive * B[s];
        y += C[s] * h[s];
      }
      x.y(t, e) = y;
      x.out(t, e) = y * z * sigmoid(z);
    }
  }
}

// Keeps a channel's states and decays of all tokens, so that no exponential is computed twice.
void plain_backward(Scan& x, std::vector<float>& kept) {
  kept.resize(static_cast<std::size_t>(2 * x.tokens + 1) * states);
  float *h = kept.data(), *a = h + (x.tokens + 1) * states;
  std::fill_n(h, states, 0.0f);
  x.dselection.setZero();
  for (Index e = 0; e < x.inner; ++e) {
    float rate[states], carry[states] = {}, drate[states] = {}, dskip = 0;
    for (Index s = 0; s < states; ++s) rate[s] = -std::exp(x.log_rate(e, s));
    for (Index t = 0; t < x.tokens; ++t) {
      const float step = softplus(x.step(t, e)), drive = step * x.input(t, e);
      for (Index s = 0; s < states; ++s) {
        a[t * states + s] = std::exp(step * rate[s]);
        h[(t + 1) * states + s] = a[t * states + s] * h[t * states + s] + drive * x.selection(t, s);
      }
    }
    for (Index t = x.tokens - 1; t >= 0; --t) {
      const float r = x.step(t, e), step = softplus(r), u = x.input(t, e), z = x.gate(t, e), gate = sigmoid(z);
      const float dy = x.dout(t, e) * z * gate;
      const float *B = &x.selection(t, 0), *C = B + states;
      float *dB = &x.dselection(t, 0), *dC = dB + states, dstep = 0, ddrive = 0;
      for (Index s = 0; s < states; ++s) {
        const float g = C[s] * dy + carry[s];
        dC[s] += dy * h[(t + 1) * states + s];
        dB[s] += g * step * u;
        ddrive += g * B[s];
        carry[s] = g * a[t * states + s];
        const float dexponent = carry[s] * h[t * states + s];
        drate[s] += dexponent * step;
        dstep += dexponent * rate[s];
      }
      x.dgate(t, e) = x.dout(t, e) * x.y(t, e) * gate * (1 + z * (1 - gate));
      x.dstep(t, e) = (dstep + ddrive * u) * sigmoid(r);
      x.dinput(t, e) = ddrive * step + dy * x.skip(e);
      dskip += dy * u;
    }
    for (Index s = 0; s < states; ++s)
      x.partial(e / simd::scan_channels, s * simd::scan_channels + e % simd::scan_channels) = drate[s] * rate[s];
    x.partial(e / simd::scan_channels, states * simd::scan_channels + e % simd::scan_channels) = dskip;
  }
}

void add_fma_share(benchmark::State& state, double flops) {
  state.counters["fma_share"] = state.counters["Gelem/s"] * 1e9 * flops / bench::fma_peak(5);
}

void scan_forward(benchmark::State& state) {
  Scan x(state.range(0), state.range(1)), plain(state.range(0), state.range(1));
  bench::measure(
      state, {.bytes = x.bytes(5), .elements = x.moved()}, [&] { x.forward(); }, [&] { plain_forward(plain); });
  add_fma_share(state, forward_flops);
  double error = 0;
  for (Index i = 0; i < x.out.size(); ++i)
    error = std::max(error, std::abs(static_cast<double>(x.out.data()[i] - plain.out.data()[i])));
  state.counters["difference"] = error;
}
BENCHMARK(scan_forward)
    ->ArgNames({"tokens", "channels"})
    ->Args({512, 512})
    ->Args({2048, 512})
    ->Args({512, 1536})
    ->Apply(bench::standard);

void scan_backward(benchmark::State& state) {
  Scan x(state.range(0), state.range(1)), plain(state.range(0), state.range(1));
  std::vector<float> kept;
  bench::measure(
      state, {.bytes = x.bytes(8), .elements = x.moved()}, [&] { x.backward(); }, [&] { plain_backward(plain, kept); });
  add_fma_share(state, backward_flops);
  double error = 0;
  for (Index i = 0; i < x.dstep.size(); ++i)
    error = std::max(error, std::abs(static_cast<double>(x.dstep.data()[i] - plain.dstep.data()[i])));
  state.counters["difference"] = error;
}
BENCHMARK(scan_backward)
    ->ArgNames({"tokens", "channels"})
    ->Args({512, 512})
    ->Args({2048, 512})
    ->Args({512, 1536})
    ->Apply(bench::standard);

struct Block {
  Rng rng{1};
  SelectiveSSM<float> layer, grad;
  SelectiveSSM<float>::Cache cache;
  Tensor<float, 3> x, y, dx;

  Block(Index tokens, Index d_model)
      : layer({.d_model = d_model}, rng), grad(zeros_like(layer)), x(1, tokens, d_model) {
    fill(x, 0, 1, 2);
    layer.forward(x, y, cache);
  }
  double flops() const {  // of the products and of the scan
    const auto& c = layer.config;
    const auto products = static_cast<double>(c.inner() * (3 * c.d_model + c.selection() + c.rank()));
    return static_cast<double>(x.dimension(1)) *
           (2 * products + forward_flops * static_cast<double>(c.inner() * c.d_state));
  }
};

void layer_forward(benchmark::State& state) {
  Block block(state.range(0), state.range(1));
  bench::measure(state, {.flops = block.flops()}, [&] { block.layer.forward(block.x, block.y, block.cache); });
  Scan scan(state.range(0), block.layer.config.inner());
  state.counters["scan_share"] = bench::best_seconds([&] { scan.forward(); }) /
                                 bench::best_seconds([&] { block.layer.forward(block.x, block.y, block.cache); });
}
BENCHMARK(layer_forward)->ArgNames({"tokens", "d_model"})->Args({512, 256})->Args({512, 768})->Apply(bench::standard);

void layer_training(benchmark::State& state) {
  Block block(state.range(0), state.range(1));
  const auto both = [&](Tensor<float, 3>& y, Tensor<float, 3>& dx, SelectiveSSM<float>::Cache& cache) {
    block.layer.forward(block.x, y, cache);
    block.layer.backward(block.x, cache, dx, block.grad);
  };
  both(block.y, block.dx, block.cache);  // scratch of the threads has grown
  if (bench::measures_heap)
    state.counters["heap_bytes_per_token"] = bench::heap_needed_by([&] {
                                               Tensor<float, 3> y, dx;
                                               SelectiveSSM<float>::Cache cache;
                                               both(y, dx, cache);
                                             }) /
                                             static_cast<double>(state.range(0));
  bench::measure(state, {.flops = 3 * block.flops()}, [&] { both(block.y, block.dx, block.cache); });
  Scan scan(state.range(0), block.layer.config.inner());
  state.counters["scan_share"] = bench::best_seconds([&] {
                                   scan.forward();
                                   scan.backward();
                                 }) /
                                 bench::best_seconds([&] { both(block.y, block.dx, block.cache); });
}
BENCHMARK(layer_training)->ArgNames({"tokens", "d_model"})->Args({512, 256})->Args({512, 768})->Apply(bench::standard);

void layer_step(benchmark::State& state) {
  Block block(1, state.range(0));
  SelectiveSSM<float>::State stream;
  bench::measure(state, {.bytes = sizeof(float) * static_cast<double>(count_parameters(block.layer))},
                 [&] { block.layer.step(block.x, block.y, stream); });
}
BENCHMARK(layer_step)->ArgName("d_model")->Arg(256)->Arg(768)->Apply(bench::standard);

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv); }
